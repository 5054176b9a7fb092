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

create function two_tower.learn_history(p_limit integer default 500) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_events two_tower.event[];
  v_position bigint;
begin
  select c.position into v_position from two_tower.cursors c where c.name = 'history' for update;
  if not found then
    perform two_tower.begin_learning_history();
    v_position := 0;
  end if;
  select array_agg(row(e.id, e.user_id, e.post_id, e.event_type, e.dwell_ms, e.client_event_id,
    e.created_at)::two_tower.event order by e.id)
  into v_events
  from (
    select h.id, h.user_id, h.post_id, h.event_type, h.dwell_ms, null::uuid as client_event_id,
      h.created_at
    from public.engagement_events h
    where h.id > v_position
      and h.id <= (select c.position from two_tower.cursors c where c.name = 'history_end')
    order by h.id limit p_limit) e;
  if v_events is null then
    delete from two_tower.cursors c where c.name in ('history', 'history_end');
    return 0;
  end if;
  update two_tower.cursors c set position = (v_events[cardinality(v_events)]).id
  where c.name = 'history';
  perform two_tower.learn_events(array(
    select e from unnest(v_events) e
    where exists (select from two_tower.posts p where p.id = e.post_id)
      and exists (select from auth.users a where a.id = e.user_id)
    order by e.id));
  return cardinality(v_events);
end
$$;
comment on function two_tower.learn_history(integer) is
  'For operators, after rows were restored without this schema: learns the next p_limit events in the order of their ids. Call it until it returns 0, each time in a transaction of its own, after reconcile() of the attached tables. Passes over events of posts and users that are gone. Raises 55000 at the first call if anything was learned already.';
