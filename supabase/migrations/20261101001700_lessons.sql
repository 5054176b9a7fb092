-- What happens inside the INSERT of engagements. One statement-level trigger takes all events of a
-- statement, and each step is a file:
--
--   lessons    event types to signals: strengths, labels, dwell thresholds; refuse a time to come
--   locks      advisory (shared, against a switch of models), users sorted, posts sorted; refuse an
--              unknown user, a repeated event: all of the statement
--   verdicts   per event, in id order: learn, withdraw, defer, or record only, and why; refuse an
--              unknown post; then store what the user did: user_posts, author_blocks,
--              deferred_events, unlearned_events
--   draws      the negatives of a positive pair, and the posts that it pushes away
--   rules      the formulas of both learning rules
--   learning   per event, in id order, in memory; each user and post row is then written once
--
-- It is written row by row, in plain statements with one key each, and all state is in arrays: such
-- a statement runs in 5 to 20 microseconds, one that joins or aggregates in 30 to 100, and a like
-- has about fifteen of them. Plans are generic (plan_cache_mode of the trigger): with partitioned
-- tables, planning would cost more than running. A session makes them once, often while a partition
-- is new and empty, so they must not read it whole (enable_seqscan of the trigger).
--
-- Two sessions: users are locked in one order before anything of them is read, so steps are serial
-- per user. Posts are locked in order too, but never waited for: where another session holds the
-- row of a post, as on a viral one, the step on it is queued and folded in with the pushes. The row
-- of a post in the slot that serves stands for the post: its row in the other slot is only touched
-- while that one is held. A statement that only holds views takes no lock but those of its rows of
-- user_posts, which it writes in order. A crash: all of it is one transaction.

create type two_tower.lesson as (
  event_id bigint, user_id uuid, post_id bigint, event_type text, dwell_ms integer,
  client_event_id uuid, created_at timestamptz,
  signal text, strength real, label boolean, bit integer, withdrawn text, withdrawn_bit integer,
  withdrawn_strength real, blocks_author boolean, user_post_place integer,
  verdict text
);
comment on type two_tower.lesson is
  'An event with what it means (signal to blocks_author) and what was decided. user_post_place: of the first lesson of its user and post in the statement, where what the user did with the post is kept. verdict: learn, withdraw, defer, seen, or a reason of unlearned_events.';

create function two_tower.is_plausible_time(p_at timestamptz, p_settings two_tower.settings)
returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_now timestamptz := two_tower.now();
begin
  return isfinite(p_at) and p_at <= v_now + p_settings.future_event_tolerance
    and p_at >= v_now - p_settings.oldest_event_age;
end
$$;
comment on function two_tower.is_plausible_time(timestamptz, two_tower.settings) is
  'Whether an event can have happened then: settings.future_event_tolerance, settings.oldest_event_age.';

create function two_tower.interpret_events(p_events public.engagement_events[],
  p_settings two_tower.settings, p_is_deferred boolean,
  out lessons two_tower.lesson[], out are_views boolean, out have_client_ids boolean)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_event public.engagement_events;
  v_signal two_tower.signals;
  v_withdrawn two_tower.signals;
  v_first integer[] := '{1}';
begin
  are_views := true;
  have_client_ids := false;
  if cardinality(p_events) > 1 then
    v_first := array(
      select min(x.place) over (partition by x.user_id, x.post_id)
      from unnest(p_events) with ordinality
        as x (id, user_id, post_id, event_type, dwell_ms, client_event_id, created_at, place)
      order by x.place);
  end if;
  foreach v_event in array p_events loop
    -- What was taken once is not refused later, whatever the clock or the settings say by then.
    if not p_is_deferred and v_event.created_at <> pg_catalog.now()
       and not two_tower.is_plausible_time(v_event.created_at, p_settings) then
      raise exception 'event time % is out of range', v_event.created_at using errcode = 'TT001',
        hint = 'created_at is set by the server; a replay of history sets two_tower.now, or settings.oldest_event_age.';
    end if;
    select * into v_signal from two_tower.signals g where g.event_type = case
      when v_event.event_type <> 'dwell' or v_event.dwell_ms > p_settings.long_dwell_ms
        then v_event.event_type
      when v_event.dwell_ms < p_settings.short_dwell_ms then 'skip' else 'view' end;
    if not found then
      raise exception 'event_type % is not known', v_event.event_type
        using errcode = 'check_violation', hint = 'two_tower.signals lists the event types.';
    elsif v_event.dwell_ms < 0 or (v_event.event_type = 'dwell' and v_event.dwell_ms is null) then
      raise exception 'dwell_ms % is not a duration', coalesce(v_event.dwell_ms::text, 'null')
        using errcode = 'check_violation',
          hint = 'A dwell needs dwell_ms, 0 or more milliseconds.';
    end if;
    v_withdrawn := null;
    if v_signal.withdraws is not null then
      select * into v_withdrawn from two_tower.signals g where g.event_type = v_signal.withdraws;
    end if;
    lessons := lessons || row(v_event.id, v_event.user_id, v_event.post_id,
      v_event.event_type, v_event.dwell_ms, v_event.client_event_id, v_event.created_at,
      v_signal.event_type, v_signal.strength, v_signal.label, v_signal.bit, v_signal.withdraws,
      v_withdrawn.bit, v_withdrawn.strength, v_signal.blocks_author,
      v_first[coalesce(cardinality(lessons), 0) + 1], null)::two_tower.lesson;
    are_views := are_views and v_signal.strength = 0 and v_signal.withdraws is null;
    have_client_ids := have_client_ids or v_event.client_event_id is not null;
  end loop;
end
$$;
comment on function two_tower.interpret_events(public.engagement_events[], two_tower.settings, boolean) is
  'Events to lessons, and whether all are impressions, and any has a client_event_id. Raises TT001 for a time out of range, 23514 for an unknown event type and for a dwell without a duration.';

create function two_tower.refuse_repeated_client_events(p_lessons two_tower.lesson[])
  returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_repeated uuid;
begin
  select l.client_event_id into v_repeated
  from unnest(p_lessons) l cross join two_tower.settings s
  where l.client_event_id is not null and exists (
    select from public.engagement_events x
    where x.client_event_id = l.client_event_id and x.user_id = l.user_id and x.id <> l.event_id
      and x.created_at > least(l.created_at, two_tower.now()) - s.client_event_retry_window)
  limit 1;
  if found then
    raise exception 'an event with client_event_id % is already stored', v_repeated
      using errcode = 'unique_violation',
        hint = 'A retry: treat it as success, or send events with record_engagements().';
  end if;
end
$$;
comment on function two_tower.refuse_repeated_client_events(two_tower.lesson[]) is
  'Raises 23505 for a client_event_id that its user sent before. The users are locked, so that two retries at once can not both pass.';
