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

-- A batch is answered by event, or stored as a whole. Either way an event is refused by what its
-- insert raises, and by nothing else: what is refused here is what an insert of that event refuses.
create type two_tower.sent_event as (
  place integer, post_id bigint, post_key text, post_source text, event_type text,
  dwell_ms integer, client_event_id uuid, happened_at timestamptz
);
comment on type two_tower.sent_event is 'An event of a batch, as a client sends it.';
comment on column two_tower.sent_event.place is 'Its place in the batch, from 1.';

create type two_tower.event_answer as (
  place integer, client_event_id uuid, event_id bigint, created_at timestamptz, status text,
  code text, message text, hint text
);
comment on type two_tower.event_answer is 'What became of an event of a batch.';
comment on column two_tower.event_answer.status is 'stored, known (its client_event_id was stored before) or refused.';
comment on column two_tower.event_answer.code is 'The SQLSTATE of a refusal.';

create function two_tower.read_dwell(p_dwell jsonb) returns integer
language plpgsql immutable strict set search_path = pg_catalog, pg_temp as $$
declare
  v_milliseconds numeric;
begin
  if jsonb_typeof(p_dwell) = 'null' then
    return null;
  elsif jsonb_typeof(p_dwell) <> 'number' then
    raise exception 'dwell_ms is not a number' using errcode = 'invalid_text_representation',
      hint = 'Give dwell_ms in milliseconds, 0 or more.';
  end if;
  v_milliseconds := p_dwell::numeric;
  -- What is negative stays so, for the trigger to refuse it.
  return case
    when v_milliseconds < 0 then greatest(floor(v_milliseconds), -2147483648)
    else least(round(v_milliseconds), 2147483647) end;
end
$$;
comment on function two_tower.read_dwell(jsonb) is 'Returns whole milliseconds: clocks of browsers give fractions. Clamps to what an integer holds. Raises 22P02 for what is no number.';

create function two_tower.read_event(p_event jsonb, p_place integer)
returns two_tower.sent_event language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_event two_tower.sent_event;
  v_code text;
  v_message text;
  v_hint text;
begin
  if jsonb_typeof(p_event) <> 'object' then
    raise exception 'the event is not an object' using errcode = '22023',
      hint = 'Give {"post_id": 1, "event_type": "like", "client_event_id": "a uuid"}.';
  end if;
  select p_place, r.post_id, r.post_key, r.post_source, r.event_type,
    two_tower.read_dwell(r.dwell_ms), coalesce(r.client_event_id, gen_random_uuid()),
    r.happened_at
  into v_event
  from jsonb_to_record(p_event) as r (post_id bigint, post_key text, post_source text,
    event_type text, dwell_ms jsonb, client_event_id uuid, happened_at timestamptz);
  return v_event;
exception when data_exception then
  get stacked diagnostics v_code = returned_sqlstate, v_message = message_text,
    v_hint = pg_exception_hint;
  raise exception '%', left(v_message, 500) using errcode = v_code,
    hint = coalesce(nullif(v_hint, ''), 'Correct that field of the event, or drop the event.');
end
$$;
comment on function two_tower.read_event(jsonb, integer) is 'Returns an event as it was sent. Raises 22023 for what is no object, and 22P02, 22003, 22007 and 22008 for a value that its column can not hold.';

create function two_tower.store_events(p_events jsonb[], p_places integer[], p_since timestamptz)
returns setof two_tower.event_answer language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_sent two_tower.sent_event[] := array(
    select two_tower.read_event(p_events[p.place], p.place)
    from unnest(p_places) as p (place) order by p.place);
begin
  return query
  with sent as materialized (
    select e.*, k.id as known_id, k.created_at as known_at,
      row_number() over (partition by e.client_event_id order by e.place) > 1 as is_repeated
    from unnest(v_sent) e
      left join lateral (
        select s.id, s.created_at from public.engagement_events s
        where s.client_event_id = e.client_event_id and s.user_id = (select auth.uid())
          and s.created_at > p_since
        limit 1) k on true
  ), stored as (
    insert into public.engagement_events
      (post_id, post_key, post_source, event_type, dwell_ms, client_event_id, happened_at)
    select s.post_id, s.post_key, s.post_source, s.event_type, s.dwell_ms, s.client_event_id,
      s.happened_at
    from sent s where s.known_id is null and not s.is_repeated
    order by s.place
    returning id, client_event_id, created_at
  )
  select s.place, s.client_event_id, coalesce(s.known_id, n.id),
    coalesce(s.known_at, n.created_at),
    case when s.known_id is null and not s.is_repeated then 'stored' else 'known' end,
    null::text, null::text, null::text
  from sent s left join stored n on n.client_event_id = s.client_event_id
  order by s.place;
end
$$;
comment on function two_tower.store_events(jsonb[], integer[], timestamptz) is
  'Stores the events at these places of a batch in one statement, those that are known left out, and answers each. p_since: since when a client_event_id is remembered. Raises what reading and inserting them raises.';

-- A read replica, a full disk or a lock that is not to be had says nothing about an event. A client
-- that was told "refused" would throw the event away.
create function two_tower.is_about_the_event(p_code text) returns boolean
language sql immutable set search_path = pg_catalog, pg_temp
return p_code = '42501'
  or left(p_code, 2) <> all ('{08,25,40,42,53,54,55,57,58,XX}'::text[]);
comment on function two_tower.is_about_the_event(text) is
  'Returns whether an error with this SQLSTATE is due to what was inserted, and would come again.';

create function two_tower.refuse_event(p_event jsonb, p_place integer, p_code text,
  p_message text, p_hint text) returns two_tower.event_answer
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select p_place,
    two_tower.canonical_key(p_event ->> 'client_event_id', 'uuid'::regtype)::uuid,
    null::bigint, null::timestamptz, 'refused', p_code, left(p_message, 500),
    coalesce(nullif(p_hint, ''), 'Correct the event, or drop it.');
$$;
comment on function two_tower.refuse_event(jsonb, integer, text, text, text) is 'Returns the answer to an event that is refused, with its client_event_id where it has a valid one.';

-- All are stored in one subtransaction. Where that is refused, both halves are tried, the left one
-- first, down to one event, so that they are learned in order. A subtransaction that wrote and was
-- kept has a transaction id, and more than 64 of them in one session slow down all others. So at
-- most p_kept_parts parts are kept. Further ones are tried and taken back, and what was good of
-- them is stored in one statement at the end.
create function two_tower.store_each(p_events jsonb[], p_since timestamptz,
  p_kept_parts integer default 32)
returns setof two_tower.event_answer language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_parts int4range[] := array[int4range(1, cardinality(p_events), '[]')];
  v_places integer[];
  v_kept integer := 0;
  v_answers two_tower.event_answer[];
  v_good integer[] := '{}';
  v_is_good boolean;
  v_middle integer;
  v_code text;
  v_message text;
  v_hint text;
begin
  while v_parts <> '{}' loop
    v_places := array(select generate_series(lower(v_parts[1]), upper(v_parts[1]) - 1));
    v_parts := v_parts[2:];
    v_is_good := false;
    begin
      v_answers := array(
        select a from two_tower.store_events(p_events, v_places, p_since) a);
      v_is_good := true;
      if v_kept = p_kept_parts then
        raise exception 'taken back';
      end if;
      v_kept := v_kept + 1;
      return query select * from unnest(v_answers);
    exception when others then
      if v_is_good then
        v_good := v_good || v_places;
        continue;
      end if;
      get stacked diagnostics v_code = returned_sqlstate, v_message = message_text,
        v_hint = pg_exception_hint;
      if not two_tower.is_about_the_event(v_code) then
        raise;
      elsif cardinality(v_places) = 1 then
        return next two_tower.refuse_event(p_events[v_places[1]], v_places[1], v_code, v_message,
          v_hint);
      else
        v_middle := (v_places[1] + v_places[cardinality(v_places)] + 1) / 2;
        v_parts := array[int4range(v_places[1], v_middle),
          int4range(v_middle, v_places[cardinality(v_places)], '[]')] || v_parts;
      end if;
    end;
  end loop;
  if v_good <> '{}' then
    return query select * from two_tower.store_events(p_events, v_good, p_since);
  end if;
end
$$;
comment on function two_tower.store_each(jsonb[], timestamptz, integer) is
  'Stores those events of a batch that can be stored, and answers each, in any order. An event that can not be stored is answered with what its insert raises. Raises only what is due to no event: cancellation, serialization failures, deadlocks, locks, resources.';

create function public.record_engagements(p_events jsonb, p_each boolean default false)
returns table (place integer, client_event_id uuid, event_id bigint, created_at timestamptz,
  status text, code text, message text, hint text)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_since timestamptz;
  v_events jsonb[];
begin
  if jsonb_typeof(p_events) is distinct from 'array' then
    raise exception 'p_events is not an array of events' using errcode = '22023',
      hint = 'Pass [{"post_id": 1, "event_type": "like", "client_event_id": "a uuid"}, ...]';
  elsif jsonb_array_length(p_events) > 500 then
    raise exception 'a call takes at most 500 events, not %', jsonb_array_length(p_events)
      using errcode = 'TT002', hint = 'Send them in several calls.';
  elsif pg_column_size(p_events) > 1000000 then
    raise exception 'a call takes at most a megabyte, not % bytes', pg_column_size(p_events)
      using errcode = 'TT002', hint = 'Send the fields of an event alone, in several calls.';
  end if;
  v_since := two_tower.begin_batch();
  v_events := array(select e from jsonb_array_elements(p_events) e);
  if v_events = '{}' then
    return;
  elsif p_each then
    return query select * from two_tower.store_each(v_events, v_since) a order by a.place;
  else
    return query select * from two_tower.store_events(v_events,
      array(select generate_series(1, cardinality(v_events))), v_since);
  end if;
end
$$;
comment on function public.record_engagements(jsonb, boolean) is
  'Stores a batch of the signed-in user''s events: [{"post_id" or "post_key" (and "post_source"), "event_type", "dwell_ms"?, "client_event_id"?, "happened_at"?}], at most 500. Returns a row per event, in order: its place from 1, and stored, or known for one whose client_event_id is stored already. So a retry gets the same ids, and stores nothing twice. p_each false: all or nothing. p_each true: what is good is stored, and what is not is refused by itself, with code (SQLSTATE), message and hint. Rounds dwell_ms. Raises 22023 for what is no array, TT002 for more than 500 events or a megabyte and, without p_each, what an insert raises.';
