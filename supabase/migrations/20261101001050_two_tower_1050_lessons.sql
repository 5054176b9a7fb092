-- What happens inside the INSERT of engagements. One statement-level trigger takes all events of a
-- statement, and each step is a file. A refusal refuses all of the statement.
--
--   lessons    event types to signals: strengths, labels, dwell thresholds. Refuses a time out of
--              range, an unknown event type, a dwell without duration, a repeated event
--   locks      advisory (shared, against a switch), users in order, posts in order. Refuses an
--              unknown user
--   verdicts   per event, in id order: learn, withdraw, defer, wait, or record only, and why.
--              Refuses an unknown post. Then stores what the user did: user_posts, author_blocks,
--              deferred_events, unlearned_events
--   draws      the negatives of a positive pair, and the posts that it pushes away
--   rules      the formulas of both learning rules
--   learning   per event, in id order, in memory. Each user and post row is then written once
--
-- The code goes row by row, in plain statements with one key each, and all state is in arrays. Such
-- a statement runs in 5 to 20 microseconds, one that joins or aggregates in 30 to 100. A like has
-- about fifteen of them. Plans are generic (plan_cache_mode of the trigger): with partitioned
-- tables, planning would cost more than running. A session makes its plans once, often while a
-- partition is new and empty. They must not read it whole (enable_seqscan of the trigger), nor all
-- that one account did (enable_bitmapscan): a bitmap has no order, so the newest rows of a flood
-- would be all of them.
--
-- Two sessions: users are locked in one order before anything of them is read, so steps are serial
-- per user. Posts are locked in order too, but never waited for. Where another session holds the
-- row of a post, as on a viral one, the step on it is deferred, and folded with the pushes. The row
-- of a post in the slot that serves stands for the post. Its row in the other slot is only touched
-- while that one is held. A statement of views alone, without client_event_ids, takes no lock but
-- those of its rows of user_posts. It writes them in order.
--
-- A crash: all of it is one transaction.

create type two_tower.lesson as (
  event_id bigint, user_id uuid, post_id bigint, event_type text, dwell_ms integer,
  client_event_id uuid, created_at timestamptz, happened_at timestamptz,
  signal text, strength real, label boolean, bit integer, withdrawn text, withdrawn_bit integer,
  withdrawn_strength real, blocks_author boolean, user_post_place integer,
  verdict text
);
comment on type two_tower.lesson is
  'An event inside the trigger: what it means (signal to blocks_author), and the verdict on it.';
comment on column two_tower.lesson.created_at is 'When it arrived. Bounds of influence go by it.';
comment on column two_tower.lesson.happened_at is 'When it happened: what the client says, else when it arrived.';
comment on column two_tower.lesson.signal is 'The signal, which of a dwell depends on its duration: dwell, view or skip.';
comment on column two_tower.lesson.withdrawn is 'The signal that the event takes back.';
comment on column two_tower.lesson.withdrawn_bit is 'The bit of the signal that the event takes back.';
comment on column two_tower.lesson.withdrawn_strength is 'The strength of the signal that the event takes back.';
comment on column two_tower.lesson.user_post_place is 'The place of the first lesson of the same user and post in the statement. What the user did with the post is kept there.';
comment on column two_tower.lesson.verdict is 'learn, withdraw, defer, wait (for a minute with room), seen, or a reason of unlearned_events.';

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
  'Returns whether an event can have arrived then: within settings.future_event_tolerance and settings.oldest_event_age.';

create function two_tower.interpret_events(p_events two_tower.event[],
  p_settings two_tower.settings, p_is_deferred boolean,
  out lessons two_tower.lesson[], out are_views boolean, out have_client_ids boolean)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_event two_tower.event;
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
        as x (id, user_id, post_id, event_type, dwell_ms, client_event_id, created_at,
          happened_at, place)
      order by x.place);
  end if;
  foreach v_event in array p_events loop
    -- An event that was taken once is not refused later, whatever clock or settings say by then.
    if not p_is_deferred and v_event.created_at <> pg_catalog.now()
       and not two_tower.is_plausible_time(v_event.created_at, p_settings) then
      raise exception 'event time % is out of range', v_event.created_at using errcode = 'TT001',
        hint = 'Leave created_at to the server. For a replay of history, set two_tower.now or raise settings.oldest_event_age.';
    end if;
    select * into v_signal from two_tower.signals g where g.event_type = case
      when v_event.event_type <> 'dwell' or v_event.dwell_ms > p_settings.long_dwell_ms
        then v_event.event_type
      when v_event.dwell_ms < p_settings.short_dwell_ms then 'skip' else 'view' end;
    if not found then
      raise exception 'event_type % is not known', left(v_event.event_type, 100)
        using errcode = 'check_violation', hint = 'Use an event type of two_tower.signals.';
    elsif v_event.dwell_ms < 0 or (v_event.event_type = 'dwell' and v_event.dwell_ms is null) then
      raise exception 'dwell_ms % is not a duration', coalesce(v_event.dwell_ms::text, 'null')
        using errcode = 'check_violation',
          hint = 'Give dwell_ms in milliseconds, 0 or more.';
    end if;
    v_withdrawn := null;
    if v_signal.withdraws is not null then
      select * into v_withdrawn from two_tower.signals g where g.event_type = v_signal.withdraws;
    end if;
    lessons := lessons || row(v_event.id, v_event.user_id, v_event.post_id,
      v_event.event_type, v_event.dwell_ms, v_event.client_event_id, v_event.created_at,
      coalesce(v_event.happened_at, v_event.created_at), v_signal.event_type, v_signal.strength,
      v_signal.label, v_signal.bit, v_signal.withdraws,
      v_withdrawn.bit, v_withdrawn.strength, v_signal.blocks_author,
      v_first[coalesce(cardinality(lessons), 0) + 1], null)::two_tower.lesson;
    are_views := are_views and v_signal.strength = 0 and v_signal.withdraws is null;
    have_client_ids := have_client_ids or v_event.client_event_id is not null;
  end loop;
end
$$;
comment on function two_tower.interpret_events(two_tower.event[], two_tower.settings, boolean) is
  'Returns events as lessons, whether all are views, and whether any has a client_event_id. Raises TT001 for a time out of range. Raises 23514 for an unknown event type, a negative dwell_ms, and a dwell without one.';

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
        hint = 'Treat the retry as a success. record_engagements() does so by itself.';
  end if;
end
$$;
comment on function two_tower.refuse_repeated_client_events(two_tower.lesson[]) is
  'Raises 23505 for a client_event_id that its user sent before. The users are locked, so that of two retries at once one waits and is refused.';
