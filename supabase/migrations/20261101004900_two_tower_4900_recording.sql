-- How clients hand in events: those that may be stored, and batches of them.

-- Who may not read a post cannot teach with it either. A post that was on pages and is gone from
-- them is not asked about: late events about it are stored, and teach nothing.
create function two_tower.find_refused(p_post_ids bigint[]) returns setof bigint
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select i from unnest(p_post_ids) i
  where not exists (select from two_tower.posts p
    where p.id = i and not p.is_listed and p.arrived_at is not null);
$$;
comment on function two_tower.find_refused(bigint[]) is 'Returns those of the posts that a sender must be able to read: all but those that were listed once and are not now. Definer: clients have no grant on the registry.';

create function two_tower.refuse_unreadable_posts() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_asked bigint[] := array(select distinct e.post_id from new_events e);
  v_readable bigint[] := array(select r from two_tower.find_readable(v_asked, true) r);
  v_refused bigint[];
begin
  if cardinality(v_readable) < cardinality(v_asked) then
    v_refused := array(select f from two_tower.find_refused(array(
      select a from unnest(v_asked) a except select r from unnest(v_readable) r)) f);
    if v_refused <> '{}' then
      perform two_tower.refuse_post((
        select coalesce(e.post_key, e.post_id::text) from new_events e
        where e.post_id = any (v_refused) order by e.id limit 1));
    end if;
  end if;
  return null;
end
$$;
comment on function two_tower.refuse_unreadable_posts() is 'Raises 23503 for the first event about a post that is not known, or that the sender may not read: nothing tells one from the other. Asks the policies of the app''s tables, so it runs as the sender.';
create trigger check_readable after insert on public.engagement_events
  referencing new table as new_events
  for each statement when (not two_tower.is_operator())
  execute function two_tower.refuse_unreadable_posts();

create function two_tower.begin_batch() returns timestamptz
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform two_tower.lock_users(array[two_tower.require_user()]);
  return (select two_tower.now() - s.client_event_retry_window from two_tower.settings s);
end
$$;
comment on function two_tower.begin_batch() is
  'Returns since when a client_event_id is remembered. Definer: locks the caller''s own row, so that a batch and its retry do not run at once.';

create type two_tower.sent_event as (
  post_id bigint, post_key text, post_source text, event_type text, dwell_ms integer,
  client_event_id uuid
);
comment on type two_tower.sent_event is 'An event of a batch, as a client sends it.';

create function public.record_engagements(p_events jsonb)
returns table (client_event_id uuid, event_id bigint, created_at timestamptz)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_since timestamptz;
  v_events two_tower.sent_event[];
begin
  if jsonb_typeof(p_events) is distinct from 'array' then
    raise exception 'p_events is not an array of events' using errcode = '22023',
      hint = 'Pass [{"post_id": 1, "event_type": "like", "client_event_id": "a uuid"}, ...]';
  elsif jsonb_array_length(p_events) > 500 then
    raise exception 'a call takes at most 500 events, not %', jsonb_array_length(p_events)
      using errcode = 'TT002', hint = 'Send them in several calls.';
  end if;
  v_since := two_tower.begin_batch();
  select array_agg(row(r.post_id, r.post_key, r.post_source, r.event_type, r.dwell_ms,
    coalesce(r.client_event_id, gen_random_uuid()))::two_tower.sent_event order by e.place)
  into v_events
  from jsonb_array_elements(p_events) with ordinality as e (event, place)
    cross join lateral jsonb_to_record(e.event) as r (post_id bigint, post_key text,
      post_source text, event_type text, dwell_ms integer, client_event_id uuid);

  insert into public.engagement_events
    (post_id, post_key, post_source, event_type, dwell_ms, client_event_id)
  select e.post_id, e.post_key, e.post_source, e.event_type, e.dwell_ms, e.client_event_id
  from unnest(v_events) with ordinality as e (post_id, post_key, post_source, event_type,
    dwell_ms, client_event_id, place)
  where not exists (select from public.engagement_events s
                    where s.client_event_id = e.client_event_id and s.user_id = (select auth.uid())
                      and s.created_at > v_since)
    and not exists (select from unnest(v_events) with ordinality as f (post_id, post_key,
                      post_source, event_type, dwell_ms, client_event_id, place)
                    where f.client_event_id = e.client_event_id and f.place < e.place)
  order by e.place;

  return query
  select s.client_event_id, s.id, s.created_at
  from unnest(v_events) with ordinality as e (post_id, post_key, post_source, event_type,
    dwell_ms, client_event_id, place)
    join public.engagement_events s
      on s.client_event_id = e.client_event_id and s.user_id = (select auth.uid())
        and s.created_at > v_since
  order by e.place;
end
$$;
comment on function public.record_engagements(jsonb) is
  'Stores a batch of the signed-in user''s events, all or nothing: [{"post_id" or "post_key" (and "post_source"), "event_type", "dwell_ms"?, "client_event_id"?}], at most 500. Returns a row per event, in order. Does not store an event again whose client_event_id is stored already: a retry gets the same answer. Raises 22023 for what is no array, TT002 for more than 500 events, and what an insert raises.';
