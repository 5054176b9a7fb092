-- A project whose rows were restored without this schema: the app's tables and engagement_events
-- are there, and nothing of them was learned, because a load fires no triggers. Reconciliation
-- finds the posts. What was learned is learned once more, from the events.

create function two_tower.begin_learning_history() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_last bigint := (select max(e.id) from public.engagement_events e);
begin
  if exists (select from two_tower.user_posts) then
    raise exception 'this engine has learned already' using errcode = '55000',
      hint = 'learn_history() is for a fresh engine over restored rows: it would learn events twice.';
  end if;
  perform setval('two_tower.engagement_event_ids', greatest(coalesce(v_last, 1), s.last_value),
    s.is_called or v_last is not null)
  from two_tower.engagement_event_ids s;
  insert into two_tower.cursors (name, position)
  values ('history', 0), ('history_end', coalesce(v_last, 0));
end
$$;
comment on function two_tower.begin_learning_history() is 'Begins the learning of restored events. Raises 55000 if anything was learned already.';

-- Ids that no key of the app lent were given anew. Then an event says by its key which post it is
-- about, or nothing does.
create function two_tower.find_restored_post(p_post_id bigint, p_key text, p_source text)
returns bigint language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if p_key is null then
    return (select p.id from two_tower.posts p join two_tower.sources s on s.id = p.source_id
      where p.id = p_post_id and s.lends_ids);
  end if;
  return two_tower.find_post(p_key, p_source);
exception when invalid_parameter_value then
  return null; -- its table is not attached any more, or several are, and none is named
end
$$;
comment on function two_tower.find_restored_post(bigint, text, text) is 'Returns the id that the post of a restored event has now, or null.';

create function two_tower.learn_history(p_limit integer default 500) returns integer
language plpgsql set search_path = pg_catalog, pg_temp set enable_bitmapscan = off as $$
declare
  v_events two_tower.event[];
  v_known two_tower.event[];
  v_position bigint;
begin
  select c.position into v_position from two_tower.cursors c where c.name = 'history' for update;
  if not found then
    perform two_tower.begin_learning_history();
    v_position := 0;
  end if;
  select array_agg(row(h.id, h.user_id, h.post_id, h.event_type, h.dwell_ms, null,
    h.created_at, h.happened_at)::two_tower.event order by h.id), max(h.id)
  into v_events, v_position
  from (
    select n.id, n.user_id, n.event_type, n.dwell_ms, n.created_at, n.happened_at,
      two_tower.find_restored_post(n.post_id, n.post_key, n.post_source) as post_id
    from public.engagement_events n
    where n.id > v_position
      and n.id <= (select c.position from two_tower.cursors c where c.name = 'history_end')
    order by n.id limit p_limit) h;
  if v_events is null then
    delete from two_tower.cursors c where c.name in ('history', 'history_end');
    return 0;
  end if;
  update two_tower.cursors c set position = v_position where c.name = 'history';
  update public.engagement_events h set post_id = n.post_id
  from unnest(v_events) n
  where h.id = n.id and h.created_at = n.created_at and h.post_id <> n.post_id;
  v_known := array(
    select e from unnest(v_events) e
    where e.post_id is not null and exists (select from auth.users a where a.id = e.user_id)
    order by e.id);
  if v_known <> '{}' then
    perform two_tower.learn_events(v_known);
  end if;
  return cardinality(v_events);
end
$$;
comment on function two_tower.learn_history(integer) is
  'For operators, after rows were restored without this schema: learns the next p_limit events in the order of their ids. Call it until it returns 0, each time in a transaction of its own, after reconcile() of the attached tables. Passes over events of users who are gone, and over those that do not say which post they are about: ids of a table that does not lend them were given anew, so there an event needs its post_key. Raises 55000 at the first call if anything was learned already.';
