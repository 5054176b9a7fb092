-- What happens inside the INSERT of engagements. One statement-level trigger takes all events of a
-- statement:
--
--   interpret  event types to signals: strengths, labels, dwell thresholds; refuse a time to come
--   lock       advisory (shared, against a switch of models), users sorted, posts sorted; refuse an
--              unknown user, a repeated event: all of the statement
--   decide     per event, in id order: learn, withdraw, defer, or record only, and why; refuse an
--              unknown post
--   record     user_posts, author_blocks, deferred_events, unlearned_events
--   apply      per event, in id order, in memory; each user and post row is then written once
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
  withdrawn_strength real, blocks_author boolean, pair integer, verdict text
);
comment on type two_tower.lesson is
  'An event with what it means (signal to blocks_author), the place of the first lesson of its user and post, and what was decided: learn, withdraw, defer, seen, or a reason of unlearned_events.';

create type two_tower.drawn_posts as (
  negative_ids bigint[], negative_embs extensions.halfvec[], viewed integer, pushed_ids bigint[],
  pushed_weights double precision[]
);
comment on type two_tower.drawn_posts is
  'Posts drawn for a lesson: the negatives of its pair, the first "viewed" of them seen by the user, and the posts that it pushes away, each with exp((cosine - 1) / temperature).';

create type two_tower.post_range as (slot smallint, lowest bigint, highest bigint);
comment on type two_tower.post_range is 'A slot, and the ids between which its posts lie.';

create function two_tower.is_plausible_time(p_at timestamptz, p_settings two_tower.settings)
returns boolean language plpgsql stable set search_path = '' as $$
declare
  v_now timestamptz := two_tower.now();
begin
  return isfinite(p_at) and p_at <= v_now + p_settings.future_event_tolerance
    and p_at >= v_now - p_settings.oldest_event_age;
end
$$;
comment on function two_tower.is_plausible_time(timestamptz, two_tower.settings) is
  'Whether an event can have happened then: settings.future_event_tolerance, settings.oldest_event_age.';

create function two_tower.interpret(p_events public.engagement_events[],
  p_settings two_tower.settings, p_is_deferred boolean,
  out lessons two_tower.lesson[], out are_views boolean, out have_client_ids boolean)
language plpgsql stable set search_path = '' as $$
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
comment on function two_tower.interpret(public.engagement_events[], two_tower.settings, boolean) is
  'Events to lessons, and whether all are impressions, and any has a client_event_id. Raises TT001 for a time out of range, 23514 for an unknown event type and for a dwell without a duration.';

create function two_tower.refuse_repeated_client_events(p_lessons two_tower.lesson[])
  returns void
language plpgsql set search_path = '' as $$
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

create function two_tower.refuse_unknown_user(p_user_id uuid) returns void
language plpgsql set search_path = '' as $$
begin
  if not exists (select from auth.users a where a.id = p_user_id) then
    raise exception 'user % does not exist', p_user_id using errcode = 'foreign_key_violation',
      hint = 'Users are rows of auth.users. Nothing of this statement was stored.';
  end if;
end
$$;
comment on function two_tower.refuse_unknown_user(uuid) is 'Raises 23503 for a user who is no row of auth.users.';

create function two_tower.refuse_unknown_post(p_post_id bigint) returns void
language plpgsql set search_path = '' as $$
begin
  if not exists (select from public.posts p where p.id = p_post_id) then
    raise exception 'post % does not exist', p_post_id using errcode = 'foreign_key_violation',
      hint = 'Insert the post before its engagements. Nothing of this statement was stored.';
  end if;
end
$$;
comment on function two_tower.refuse_unknown_post(bigint) is 'Raises 23503 for a post that does not exist.';

create function two_tower.lock_users(p_user_ids uuid[]) returns two_tower.user_embeddings[]
language plpgsql set search_path = '' as $$
declare
  v_id uuid;
  v_user two_tower.user_embeddings;
  v_users two_tower.user_embeddings[];
begin
  foreach v_id in array p_user_ids loop
    loop
      select * into v_user from two_tower.user_embeddings u where u.user_id = v_id
      for no key update;
      exit when found;
      perform two_tower.refuse_unknown_user(v_id);
      insert into two_tower.user_embeddings (user_id) values (v_id) on conflict do nothing;
    end loop;
    v_users := v_users || v_user;
  end loop;
  return v_users;
end
$$;
comment on function two_tower.lock_users(uuid[]) is 'Locks the users'' rows in the order given, which is that of their ids, and returns them. Makes the row of a new user in its turn, since it too is a lock; raises 23503 for an unknown one.';

create function two_tower.lock_posts(p_slot smallint, p_post_ids bigint[],
  out posts two_tower.live_embeddings[], out held_ids bigint[])
language plpgsql set search_path = '' as $$
begin
  posts := array(
    select v from two_tower.live_embeddings v
    where v.slot = p_slot and v.post_id = any (p_post_ids)
    order by v.post_id for no key update skip locked);
  held_ids := p_post_ids;
  if cardinality(posts) < cardinality(p_post_ids) then
    held_ids := array(select p.post_id from unnest(posts) p);
    posts := array(
      select v
      from unnest(p_post_ids) with ordinality as i (post_id, place)
        left join two_tower.live_embeddings v on v.slot = p_slot and v.post_id = i.post_id
      order by i.place);
  end if;
end
$$;
comment on function two_tower.lock_posts(smallint, bigint[]) is
  'Locks the posts'' rows in the order of their ids, which is the order given, and returns them: null for a post without a live vector. A row that another session holds is not waited for: it is returned as it stands, and not among held_ids.';

create function two_tower.load_pairs(p_lessons two_tower.lesson[]) returns two_tower.user_posts[]
language plpgsql set search_path = '' as $$
declare
  v_lesson two_tower.lesson;
  v_pair two_tower.user_posts;
  v_pairs two_tower.user_posts[];
begin
  foreach v_lesson in array p_lessons loop
    v_pair := null;
    if v_lesson.pair = coalesce(cardinality(v_pairs), 0) + 1 then
      select * into v_pair from two_tower.user_posts u
      where u.user_id = v_lesson.user_id and u.post_id = v_lesson.post_id;
      if not found then
        v_pair := row(v_lesson.user_id, v_lesson.post_id, 0, false, false, v_lesson.created_at,
          v_lesson.created_at);
      end if;
    end if;
    v_pairs := v_pairs || v_pair;
  end loop;
  return v_pairs;
end
$$;
comment on function two_tower.load_pairs(two_tower.lesson[]) is
  'What the users did with the posts so far, at the place of the first lesson about it; null at the others. A look-up each, so that only one partition is opened.';

create function two_tower.find(p_post_id bigint, p_post_ids bigint[]) returns integer
language plpgsql immutable set search_path = '' as $$
declare
  v_place integer := width_bucket(p_post_id, p_post_ids);
begin
  return case when v_place > 0 and p_post_ids[v_place] = p_post_id then v_place end;
end
$$;
comment on function two_tower.find(bigint, bigint[]) is 'The place of an id in a sorted array, null if it is not there. A binary search.';

create function two_tower.verdict_without_post(p_lesson two_tower.lesson) returns text
language plpgsql set search_path = '' as $$
begin
  perform two_tower.refuse_unknown_post(p_lesson.post_id);
  return case
    when p_lesson.strength = 0 and p_lesson.withdrawn is null then 'seen'
    when (select p.deleted_at is null from public.posts p where p.id = p_lesson.post_id)
      then 'defer'
    else 'post_deleted' end;
end
$$;
comment on function two_tower.verdict_without_post(two_tower.lesson) is
  'The verdict on an event about a post that has no live vector. Raises 23503 where there is no such post.';

create function two_tower.has_events_waiting(p_post_id bigint) returns boolean
language plpgsql set search_path = '' as $$
begin
  return exists (select from two_tower.deferred_events d where d.post_id = p_post_id);
end
$$;
comment on function two_tower.has_events_waiting(bigint) is 'Whether earlier events about a post wait to be learned.';

-- The verdict on each event, in order, against what the user did before. What the user did is
-- recorded whatever the verdict is; a bit of user_posts.signals is set only by what is learned, so
-- that it is learned once.
create function two_tower.decide(
  inout p_lessons two_tower.lesson[], inout p_pairs two_tower.user_posts[],
  inout p_users two_tower.user_embeddings[], p_user_ids uuid[],
  p_posts two_tower.live_embeddings[], p_post_ids bigint[],
  p_settings two_tower.settings, p_is_frozen boolean, p_is_deferred boolean,
  out teaches boolean
) language plpgsql set search_path = '' as $$
declare
  v_lesson two_tower.lesson;
  v_pair two_tower.user_posts;
  v_user two_tower.user_embeddings;
  v_post two_tower.live_embeddings;
  v_user_index integer;
  v_minute timestamptz;
begin
  teaches := false;
  for v_place in 1..cardinality(p_lessons) loop
    v_lesson := p_lessons[v_place];
    v_pair := p_pairs[v_lesson.pair];
    v_user_index := width_bucket(v_lesson.user_id, p_user_ids);
    v_user := p_users[v_user_index];
    v_post := p_posts[width_bucket(v_lesson.post_id, p_post_ids)];
    v_minute := date_bin('1 minute', v_lesson.created_at, 'epoch');
    v_lesson.verdict := case
      when v_post.post_id is null then two_tower.verdict_without_post(v_lesson)
      when v_lesson.strength = 0 and v_lesson.withdrawn is null then 'seen'
      when v_post.is_deleted and v_lesson.withdrawn is null then 'post_deleted'
      when p_is_frozen or not p_is_deferred and two_tower.has_events_waiting(v_lesson.post_id)
        then 'defer'
      when v_pair.signals & v_lesson.withdrawn_bit = 0 then 'nothing_to_withdraw'
      when v_lesson.withdrawn is not null then 'withdraw'
      when v_pair.signals & v_lesson.bit <> 0 then 'repeated'
      when v_user.minute = v_minute
        and v_user.minute_count >= p_settings.learned_events_per_minute then 'rate_limited'
      else 'learn' end;

    v_pair.signals := case
      when v_lesson.verdict in ('learn', 'seen') then v_pair.signals | v_lesson.bit
      when v_lesson.verdict = 'withdraw' then v_pair.signals & ~v_lesson.withdrawn_bit
      else v_pair.signals end;
    if v_lesson.verdict in ('learn', 'withdraw') then
      teaches := true;
      v_user.minute_count := (v_lesson.verdict = 'learn')::integer
        + case when v_user.minute = v_minute then v_user.minute_count else 0 end;
      v_user.minute := v_minute;
      p_users[v_user_index] := v_user;
    end if;
    if v_lesson.strength > 0 then
      v_pair.is_engaged := true;
    elsif v_lesson.verdict in ('withdraw', 'nothing_to_withdraw', 'post_deleted') then
      v_pair.is_engaged := exists (select from two_tower.signals g
        where g.strength > 0 and v_pair.signals & g.bit <> 0);
    end if;
    v_pair.is_hidden := v_pair.is_hidden or v_lesson.event_type in ('hide', 'not_interested');
    v_pair.first_seen_at := least(v_pair.first_seen_at, v_lesson.created_at);
    v_pair.last_event_at := greatest(v_pair.last_event_at, v_lesson.created_at);
    p_pairs[v_lesson.pair] := v_pair;
    p_lessons[v_place] := v_lesson;
  end loop;
end
$$;
comment on function two_tower.decide(two_tower.lesson[], two_tower.user_posts[], two_tower.user_embeddings[], uuid[], two_tower.live_embeddings[], bigint[], two_tower.settings, boolean, boolean) is
  'Fills in the verdicts, and what the users did with the posts; teaches: whether any event is learned or withdrawn. Waits for a post that is not encoded, or has earlier events waiting, and for the end of a freeze. Raises 23503 for an unknown post.';

create function two_tower.record_views(p_lessons two_tower.lesson[]) returns void
language plpgsql set search_path = '' as $$
declare
  v_lesson two_tower.lesson;
begin
  foreach v_lesson in array p_lessons loop
    perform two_tower.refuse_unknown_post(v_lesson.post_id);
    perform two_tower.refuse_unknown_user(v_lesson.user_id);
  end loop;
  insert into two_tower.user_posts as u (user_id, post_id, signals, first_seen_at, last_event_at)
  select l.user_id, l.post_id, bit_or(l.bit), min(l.created_at), max(l.created_at)
  from unnest(p_lessons) l group by l.user_id, l.post_id order by l.user_id, l.post_id
  on conflict (user_id, post_id) do update set
    signals = u.signals | excluded.signals,
    first_seen_at = least(u.first_seen_at, excluded.first_seen_at),
    last_event_at = greatest(u.last_event_at, excluded.last_event_at);
end
$$;
comment on function two_tower.record_views(two_tower.lesson[]) is
  'What impressions leave behind. Needs no lock of the user: it only adds the bit of a view, which no decision takes away.';

create function two_tower.record_decisions(p_lessons two_tower.lesson[],
  p_pairs two_tower.user_posts[], p_is_frozen boolean, p_is_deferred boolean)
returns void language plpgsql set search_path = '' as $$
declare
  v_lesson two_tower.lesson;
  v_blocks boolean := false;
  v_leaves_rows boolean := false;
begin
  foreach v_lesson in array p_lessons loop
    v_blocks := v_blocks or v_lesson.blocks_author;
    v_leaves_rows := v_leaves_rows or v_lesson.verdict not in ('learn', 'withdraw', 'seen');
  end loop;
  insert into two_tower.user_posts as u
  select * from unnest(p_pairs) p where p.user_id is not null order by p.user_id, p.post_id
  on conflict (user_id, post_id) do update set
    signals = excluded.signals | (u.signals & 1),
    is_engaged = excluded.is_engaged, is_hidden = u.is_hidden or excluded.is_hidden,
    first_seen_at = least(u.first_seen_at, excluded.first_seen_at),
    last_event_at = greatest(u.last_event_at, excluded.last_event_at);
  if v_blocks and not p_is_deferred then
    insert into public.author_blocks (user_id, author_id, kind, created_at)
    select distinct on (l.user_id, p.author_id) l.user_id, p.author_id, l.event_type, l.created_at
    from unnest(p_lessons) l join public.posts p on p.id = l.post_id
    where l.blocks_author and p.author_id <> l.user_id
    order by l.user_id, p.author_id, l.event_id desc
    on conflict (user_id, author_id) do update set kind = excluded.kind
    where author_blocks.kind = 'mute_author' and excluded.kind = 'block_author';
  end if;
  if v_leaves_rows then
    insert into two_tower.deferred_events (event_id, event, user_id, post_id, reason)
    select l.event_id,
           row(l.event_id, l.user_id, l.post_id, l.event_type, l.dwell_ms, l.client_event_id,
             l.created_at)::public.engagement_events,
           l.user_id, l.post_id,
           case when p_is_frozen then 'frozen' else 'post_not_encoded' end
    from unnest(p_lessons) l where l.verdict = 'defer';
    insert into two_tower.unlearned_events
      (event_id, user_id, post_id, event_type, reason, created_at)
    select l.event_id, l.user_id, l.post_id, l.event_type, l.verdict, l.created_at
    from unnest(p_lessons) l where l.verdict not in ('learn', 'withdraw', 'seen', 'defer');
  end if;
end
$$;
comment on function two_tower.record_decisions(two_tower.lesson[], two_tower.user_posts[], boolean, boolean) is
  'Stores what the users did, whom they block, and what is not learned now or ever. The users are locked, so all bits but 1, that of a view, are as decide() read them.';

-- Draws are ids of a range, chosen at random, that turn out to be posts. Ids that are missing,
-- deleted, or engaged with are passed over, which keeps the rest uniform. All that a lesson needs
-- is looked up at once: each post lies on a page of its own, and each statement has a price.
create function two_tower.random_ids(p_lowest bigint, p_highest bigint, p_count integer)
returns bigint[] language plpgsql volatile set search_path = '' as $$
declare
  v_span double precision := p_highest - p_lowest + 1;
  v_ids bigint[] := '{}';
begin
  if p_count >= v_span then
    return array(select generate_series(p_lowest, p_highest));
  end if;
  for v_place in 1..p_count loop
    v_ids[v_place] := p_lowest + floor(random() * v_span)::bigint;
  end loop;
  return v_ids;
end
$$;
comment on function two_tower.random_ids(bigint, bigint, integer) is
  'So many ids of a range, drawn with replacement; each once, where the range has no more.';

create function two_tower.viewed_posts(p_lesson two_tower.lesson, p_settings two_tower.settings)
returns bigint[] language plpgsql volatile set search_path = '' as $$
begin
  return array(
    select d.post_id from (
      select distinct l.post_id from (
        select e.post_id from public.engagement_events e
        where e.user_id = p_lesson.user_id and e.event_type = 'view' and e.id < p_lesson.event_id
          and e.created_at between p_lesson.created_at - p_settings.viewed_negative_window
            and p_lesson.created_at
        order by e.created_at desc limit p_settings.negatives_per_positive * 3 / 2) l) d
    order by random());
end
$$;
comment on function two_tower.viewed_posts(two_tower.lesson, two_tower.settings) is
  'The posts that the user viewed last in the time before an event, at most half as many again as a pair has negatives, since some were engaged with, in random order.';

create function two_tower.eligible_draws(p_user_id uuid, p_slot smallint, p_excluded bigint[],
  p_count integer)
returns bigint[] language plpgsql volatile set search_path = '' as $$
begin
  return array(
    select v.post_id from two_tower.live_embeddings v
    where v.slot = p_slot and not v.is_deleted and v.author_id is distinct from p_user_id
      and v.post_id <> all (p_excluded) and not exists (
        select from two_tower.user_posts u
        where u.user_id = p_user_id and u.post_id = v.post_id and (u.is_engaged or u.is_hidden))
    order by random() limit p_count);
end
$$;
comment on function two_tower.eligible_draws(uuid, smallint, bigint[], integer) is
  'The last resort of draw_posts(), where few posts are left to draw: reads all of them.';

create function two_tower.draw_posts(
  p_lesson two_tower.lesson, p_settings two_tower.settings, p_range two_tower.post_range,
  p_user extensions.vector, p_excluded bigint[]
) returns two_tower.drawn_posts language plpgsql volatile set search_path = '' as $$
declare
  v_negatives integer := case when p_lesson.label then p_settings.negatives_per_positive else 0 end;
  v_pushes integer := case when p_settings.learning_rule = 'contrastive'
    then p_settings.pushes_per_positive else 0 end;
  v_needed integer := greatest(v_negatives, v_pushes);
  v_lowest bigint := greatest(p_range.lowest, p_range.highest - p_settings.recent_posts_pool + 1);
  v_viewed bigint[] := '{}';
  v_recent bigint[] := '{}';
  v_any bigint[] := '{}';
  v_width integer := 1;
  v_tries integer;
  v_is_last boolean;
  v_drawn two_tower.drawn_posts;
begin
  if v_negatives > 0 then
    v_viewed := two_tower.viewed_posts(p_lesson, p_settings);
  end if;
  loop
    v_is_last := v_width > 36
      or 4 * v_width * v_needed >= p_range.highest - p_range.lowest + 1;
    -- One more than is needed: now and then one is passed over.
    v_tries := v_width * (v_needed + 1);
    if v_negatives > 0 then
      v_recent := two_tower.random_ids(v_lowest, p_range.highest,
        greatest(0, v_tries - cardinality(v_viewed)));
    end if;
    v_any := case
      when v_is_last then two_tower.eligible_draws(p_lesson.user_id, p_range.slot, p_excluded,
        2 * v_needed + cardinality(v_viewed))
      when v_pushes > 0 or v_width > 6
        then two_tower.random_ids(p_range.lowest, p_range.highest, v_tries)
      else v_any end;
    select
      (array_agg(d.post_id) filter (where d.is_viewed)
        || array_agg(d.post_id) filter (where d.is_recent))[:v_negatives],
      (array_agg(d.embedding::extensions.halfvec) filter (where d.is_viewed)
        || array_agg(d.embedding::extensions.halfvec) filter (where d.is_recent))[:v_negatives],
      least(v_negatives, count(*) filter (where d.is_viewed)),
      (array_agg(d.post_id) filter (where d.is_any))[:v_pushes],
      (array_agg(exp((-(d.embedding operator(extensions.<#>) p_user) - 1)
        / p_settings.temperature)) filter (where d.is_any))[:v_pushes]
    into v_drawn.negative_ids, v_drawn.negative_embs, v_drawn.viewed, v_drawn.pushed_ids,
      v_drawn.pushed_weights
    from (
      select v.post_id, v.embedding, v.post_id = any (v_viewed) as is_viewed,
        (v_width > 6 or v_is_last or v.post_id = any (v_recent)) and v.post_id <> all (v_viewed)
          as is_recent,
        v.post_id = any (v_any) as is_any
      from two_tower.live_embeddings v
      where v.slot = p_range.slot and v.post_id = any (v_viewed || v_recent || v_any)
        and not v.is_deleted and v.author_id is distinct from p_lesson.user_id
        and v.post_id <> all (p_excluded || array(
          select u.post_id from two_tower.user_posts u
          where u.user_id = p_lesson.user_id
            and u.post_id = any (v_viewed || v_recent || v_any)
            and (u.is_engaged or u.is_hidden)))
      order by random()
    ) d;
    exit when v_is_last or (coalesce(cardinality(v_drawn.negative_ids), 0) = v_negatives
      and coalesce(cardinality(v_drawn.pushed_ids), 0) = v_pushes);
    v_width := 6 * v_width;
  end loop;
  return v_drawn;
end
$$;
comment on function two_tower.draw_posts(two_tower.lesson, two_tower.settings, two_tower.post_range, extensions.vector, bigint[]) is
  'Draws different live posts that the user neither engaged with, nor hid, nor wrote. Negatives of a positive pair: of the last posts viewed in the time before, in random order; then random recent posts; then any. Pushed posts: uniformly of all. Fewer only if there are fewer.';

create function two_tower.refresh_drawn(
  p_drawn two_tower.drawn_posts, p_temperature real, p_user extensions.vector,
  p_post_ids bigint[], p_posts two_tower.live_embeddings[]
) returns two_tower.drawn_posts language plpgsql immutable set search_path = '' as $$
declare
  v_index integer;
begin
  for v_place in 1..coalesce(cardinality(p_drawn.negative_ids), 0) loop
    v_index := two_tower.find(p_drawn.negative_ids[v_place], p_post_ids);
    if v_index is not null then
      p_drawn.negative_embs[v_place] := (p_posts[v_index]).embedding::extensions.halfvec;
    end if;
  end loop;
  for v_place in 1..coalesce(cardinality(p_drawn.pushed_ids), 0) loop
    v_index := two_tower.find(p_drawn.pushed_ids[v_place], p_post_ids);
    if v_index is not null then
      p_drawn.pushed_weights[v_place] := exp((-((p_posts[v_index]).embedding
        operator(extensions.<#>) p_user) - 1) / p_temperature);
    end if;
  end loop;
  return p_drawn;
end
$$;
comment on function two_tower.refresh_drawn(two_tower.drawn_posts, real, extensions.vector, bigint[], two_tower.live_embeddings[]) is
  'Drawn posts as they stand within the statement: those that the statement itself has moved. p_post_ids is sorted.';

-- The two rules. Each takes one lesson and the vectors as they stand before it. Norms:
-- l2_normalize leaves a zero vector zero, and norm(x) = norm(c x), so an average of two vectors
-- needs one multiplication.

create function two_tower.renorm_user(p_user two_tower.user_embeddings)
  returns extensions.vector
language plpgsql immutable set search_path = '' as $$
begin
  return extensions.l2_normalize(
    case when p_user.base_embedding is null then p_user.engaged_sum
         else p_user.engaged_sum operator(extensions.+)
              (array_fill(p_user.base_weight, array[128])::extensions.vector
                operator(extensions.*) p_user.base_embedding)
    end);
end
$$;
comment on function two_tower.renorm_user(two_tower.user_embeddings) is 'u = norm(base_weight * base_embedding + engaged_sum).';

create function two_tower.step_literal(
  p_strength real, p_alpha_limit real, p_engagements integer, p_user extensions.vector,
  p_post extensions.vector
) returns extensions.vector language plpgsql immutable set search_path = '' as $$
declare
  v_alpha double precision := least(p_alpha_limit, 1.0 / (p_engagements + 1));
begin
  return extensions.l2_normalize(
    p_user operator(extensions.+)
    (array_fill((v_alpha / (1 - v_alpha) * p_strength)::real, array[128])::extensions.vector
     operator(extensions.*) p_post));
end
$$;
comment on function two_tower.step_literal(real, real, integer, extensions.vector, extensions.vector) is
  'u'' = norm((1 - a) u + a s p), a = least(limit, 1 / (n + 1)). The post''s own step is rate s: p'' = norm(p + rate s u).';

create function two_tower.step_contrastive(
  p_full_step real, p_temperature real, p_user extensions.vector, p_post extensions.vector,
  p_weights double precision[], out step real, out push_factors real[]
) language plpgsql immutable set search_path = '' as $$
declare
  -- cosines are at most 1, so subtracting 1 keeps exp in range
  v_own double precision :=
    exp((-(p_post operator(extensions.<#>) p_user) - 1) / p_temperature);
  v_total double precision := v_own;
  v_weight double precision;
begin
  foreach v_weight in array p_weights loop
    v_total := v_total + v_weight;
  end loop;
  foreach v_weight in array p_weights loop
    push_factors := push_factors || greatest(1e-12, p_full_step * v_weight / v_total)::real;
  end loop;
  step := p_full_step * (1 - v_own / v_total);
end
$$;
comment on function two_tower.step_contrastive(real, real, extensions.vector, extensions.vector, double precision[]) is
  'q = softmax([p, pushed] u / temperature); p'' = norm(p + full_step (1 - q_p) u), of which step is full_step (1 - q_p). push_factors: full_step q of each pushed post, to be subtracted later. u and p as before the event; weights: exp((cosine - 1) / temperature) of each pushed post.';

create function two_tower.popularity_of(p_strength real, p_at timestamptz, p_half_life interval)
returns double precision language plpgsql immutable set search_path = '' as $$
begin
  return p_strength * 2 ^ greatest(-1000, least(1000,
    extract(epoch from p_at - timestamptz '2025-01-01 00:00:00+00')::double precision
    / extract(epoch from p_half_life)::double precision));
end
$$;
comment on function two_tower.popularity_of(real, timestamptz, interval) is
  'What an engagement adds to a post''s popularity. Forward decay: instead of letting all old ones shrink, new ones count for more.';

create function two_tower.popularity_of(p_strength real, p_at timestamptz) returns double precision
language sql stable set search_path = '' as $$
  select two_tower.popularity_of(p_strength, p_at, s.popularity_half_life)
  from two_tower.settings s;
$$;
comment on function two_tower.popularity_of(real, timestamptz) is 'The same, at the half-life in force.';

-- One event learned: the user after it, and its steps. What it teaches the towers is stored.
create function two_tower.learn_lesson(
  p_lesson two_tower.lesson, p_settings two_tower.settings, p_state two_tower.state,
  p_drawn two_tower.drawn_posts, p_post extensions.vector, inout p_user two_tower.user_embeddings,
  out steps two_tower.deferred_pushes
) language plpgsql set search_path = '' as $$
declare
  v_before extensions.vector := p_user.embedding;
  v_strength real := p_lesson.strength
    * case when p_lesson.strength < 0 then p_settings.negative_strength_factor else 1 end;
  v_popularity double precision := case when p_lesson.strength > 0
    then two_tower.popularity_of(p_lesson.strength, p_lesson.created_at,
      p_settings.popularity_half_life) else 0 end;
  v_step real;
  v_pushed record;
  v_factors real[] := '{}';
begin
  p_user.engaged_sum :=
    (array_fill(p_settings.history_decay, array[128])::extensions.vector
     operator(extensions.*) p_user.engaged_sum) operator(extensions.+)
    (array_fill(v_strength, array[128])::extensions.vector operator(extensions.*) p_post);
  if p_settings.learning_rule = 'contrastive' then
    v_step := v_strength * p_settings.contrastive_learning_rate * p_state.learning_rate_factor;
    if p_drawn.pushed_ids <> '{}' then
      v_pushed := two_tower.step_contrastive(v_step, p_settings.temperature, v_before, p_post,
        p_drawn.pushed_weights);
      v_step := v_pushed.step;
      v_factors := v_pushed.push_factors;
    end if;
    p_user.embedding := two_tower.renorm_user(p_user);
  else
    v_step := p_lesson.strength * p_settings.literal_learning_rate * p_state.learning_rate_factor;
    p_user.embedding := two_tower.step_literal(p_lesson.strength, p_settings.literal_maximum_alpha,
      p_user.engagement_count, v_before, p_post);
  end if;
  steps := row(null, p_lesson.event_id, p_state.epoch, v_before,
    coalesce(p_drawn.pushed_ids, '{}'), v_factors, p_lesson.post_id, v_step, 1, v_popularity,
    p_lesson.created_at);
  insert into two_tower.training_examples values (
    p_lesson.event_id, p_lesson.user_id, p_lesson.post_id, p_lesson.signal, p_lesson.label,
    v_before, p_post, v_step, coalesce(p_drawn.negative_ids, '{}'),
    coalesce(p_drawn.negative_embs, '{}'), coalesce(p_drawn.viewed, 0), steps.post_ids, v_factors,
    p_lesson.created_at, false);

  p_user.engagement_count := p_user.engagement_count + 1;
  p_user.recent_post_ids := (p_user.recent_post_ids || p_lesson.post_id)
    [greatest(1, cardinality(p_user.recent_post_ids) + 2 - p_settings.history_length):];
  p_user.recent_strengths := (p_user.recent_strengths || v_strength)
    [greatest(1, cardinality(p_user.recent_strengths) + 2 - p_settings.history_length):];
  p_user.updated_at := p_lesson.created_at;
end
$$;
comment on function two_tower.learn_lesson(two_tower.lesson, two_tower.settings, two_tower.state, two_tower.drawn_posts, extensions.vector, two_tower.user_embeddings) is
  'What one event teaches: the user after it, the steps of posts, and its row of training data, which is stored.';

-- The opposite of a learned step, for unlike and unrepost. p_example is what was recorded then;
-- without it (its partition was dropped) the vectors of today have to do, and the post stays.
create function two_tower.withdraw_lesson(
  p_lesson two_tower.lesson, p_settings two_tower.settings, p_state two_tower.state,
  p_example two_tower.training_examples, p_post extensions.vector,
  inout p_user two_tower.user_embeddings, out steps two_tower.deferred_pushes
) language plpgsql set search_path = '' as $$
declare
  v_strength real := p_lesson.withdrawn_strength;
  v_taught extensions.vector := coalesce(p_example.post_emb::extensions.vector, p_post);
  v_length integer := cardinality(p_user.recent_post_ids);
  v_place integer;
begin
  steps := row(null, p_lesson.event_id, p_state.epoch,
    coalesce(p_example.user_emb::extensions.vector, p_user.embedding), '{}', '{}',
    p_lesson.post_id, -coalesce(p_example.step, 0), -1,
    -case when p_example.event_id is null then 0 else two_tower.popularity_of(v_strength,
      p_example.created_at, p_settings.popularity_half_life) end, p_lesson.created_at);
  p_user.engagement_count := p_user.engagement_count - 1;

  select max(k) into v_place from generate_subscripts(p_user.recent_post_ids, 1) as k
  where p_user.recent_post_ids[k] = p_lesson.post_id and p_user.recent_strengths[k] = v_strength;
  if v_place is not null then
    p_user.engaged_sum := p_user.engaged_sum operator(extensions.-)
      (array_fill((v_strength * greatest(1e-30, p_settings.history_decay ^ (v_length - v_place)))::real,
         array[128])::extensions.vector operator(extensions.*) v_taught);
    p_user.recent_post_ids :=
      p_user.recent_post_ids[:v_place - 1] || p_user.recent_post_ids[v_place + 1:];
    p_user.recent_strengths :=
      p_user.recent_strengths[:v_place - 1] || p_user.recent_strengths[v_place + 1:];
  end if;
  if p_user.recent_post_ids = '{}' then
    p_user.engaged_sum := array_fill(0::real, array[128])::extensions.vector;
  end if;
  p_user.embedding := case
    when p_settings.learning_rule = 'contrastive' then two_tower.renorm_user(p_user)
    when p_user.recent_post_ids = '{}' then p_user.engaged_sum
    else two_tower.move(p_user.embedding, (-v_strength * least(p_settings.literal_maximum_alpha,
      1.0 / (p_user.engagement_count + 1)))::real, v_taught) end;
end
$$;
comment on function two_tower.withdraw_lesson(two_tower.lesson, two_tower.settings, two_tower.state, two_tower.training_examples, extensions.vector, two_tower.user_embeddings) is
  'Takes back, approximately, what a signal taught: the recorded step on the post, and the post''s part in the user''s sum. Normalised steps can not be subtracted exactly.';

create function two_tower.withdraw_example(p_lesson two_tower.lesson)
returns two_tower.training_examples language plpgsql set search_path = '' as $$
declare
  v_example two_tower.training_examples;
begin
  update two_tower.training_examples x set is_withdrawn = true
  where x.user_id = p_lesson.user_id and x.post_id = p_lesson.post_id
    and x.event_type = p_lesson.withdrawn and not x.is_withdrawn
  returning x.* into v_example;
  return v_example;
end
$$;
comment on function two_tower.withdraw_example(two_tower.lesson) is
  'Marks what was recorded for a signal as withdrawn and returns it. Null when its partition was dropped.';

create function two_tower.apply_lessons(
  p_lessons two_tower.lesson[], p_users two_tower.user_embeddings[], p_user_ids uuid[],
  p_posts two_tower.live_embeddings[], p_post_ids bigint[], p_held_ids bigint[],
  p_settings two_tower.settings, p_state two_tower.state
) returns void language plpgsql set search_path = '' as $$
declare
  v_range two_tower.post_range;
  v_lesson two_tower.lesson;
  v_withdrawn bigint[] := '{}';
  v_drawn two_tower.drawn_posts;
  v_user_index integer;
  v_post_index integer;
  v_user two_tower.user_embeddings;
  v_post two_tower.live_embeddings;
  v_learned record;
  v_steps two_tower.deferred_pushes;
begin
  select p_state.active_slot, min(v.post_id), max(v.post_id) into v_range
  from two_tower.live_embeddings v where v.slot = p_state.active_slot;
  foreach v_lesson in array p_lessons loop
    if v_lesson.verdict = 'withdraw' then
      v_withdrawn := v_withdrawn || v_lesson.post_id;
    end if;
  end loop;

  foreach v_lesson in array p_lessons loop
    continue when v_lesson.verdict not in ('learn', 'withdraw');
    v_user_index := width_bucket(v_lesson.user_id, p_user_ids);
    v_post_index := width_bucket(v_lesson.post_id, p_post_ids);
    v_user := p_users[v_user_index];
    v_post := p_posts[v_post_index];
    if v_lesson.verdict = 'withdraw' then
      v_learned := two_tower.withdraw_lesson(v_lesson, p_settings, p_state,
        two_tower.withdraw_example(v_lesson), v_post.embedding, v_user);
    else
      v_drawn := null;
      if v_lesson.strength > 0 then
        -- What this statement withdraws was engaged with when the event happened.
        v_drawn := two_tower.draw_posts(v_lesson, p_settings, v_range, v_user.embedding,
          v_lesson.post_id || v_withdrawn);
        if v_drawn.negative_ids && p_post_ids or v_drawn.pushed_ids && p_post_ids then
          v_drawn := two_tower.refresh_drawn(v_drawn, p_settings.temperature, v_user.embedding,
            p_post_ids, p_posts);
        end if;
      end if;
      v_learned := two_tower.learn_lesson(v_lesson, p_settings, p_state, v_drawn,
        v_post.embedding, v_user);
    end if;
    p_users[v_user_index] := v_learned.p_user;
    v_steps := v_learned.steps;
    if v_lesson.post_id = any (p_held_ids) then
      p_posts[v_post_index] := two_tower.move_post(v_post, array[row(v_steps.user_vector,
        v_steps.step, v_steps.engagements, v_steps.popularity, v_steps.created_at)
        ::two_tower.post_step], p_settings);
      v_steps.post_id := null;
      v_steps.engagements := 0;
    end if;
    if v_steps.post_id is not null or v_steps.post_ids <> '{}' then
      insert into two_tower.deferred_pushes (event_id, epoch, user_vector, post_ids, factors,
        post_id, step, engagements, popularity, created_at)
      values (v_steps.event_id, v_steps.epoch, v_steps.user_vector, v_steps.post_ids,
        v_steps.factors, v_steps.post_id, v_steps.step, v_steps.engagements, v_steps.popularity,
        v_steps.created_at);
    end if;
  end loop;
  perform two_tower.write_learned(p_users, p_posts, p_held_ids,
    p_state.filling_version is not null);
end
$$;
comment on function two_tower.apply_lessons(two_tower.lesson[], two_tower.user_embeddings[], uuid[], two_tower.live_embeddings[], bigint[], bigint[], two_tower.settings, two_tower.state) is
  'Applies the lessons in order: users and posts in memory, each written once at the end. Reading the vectors of drawn posts, and of posts that another session holds, takes no lock: they may be moved meanwhile.';

create function two_tower.write_learned(
  p_users two_tower.user_embeddings[], p_posts two_tower.live_embeddings[], p_held_ids bigint[],
  p_is_filling boolean
) returns void language plpgsql set search_path = '' as $$
declare
  v_user two_tower.user_embeddings;
  v_post two_tower.live_embeddings;
begin
  foreach v_user in array p_users loop
    update two_tower.user_embeddings set
      embedding = v_user.embedding, engaged_sum = v_user.engaged_sum,
      recent_post_ids = v_user.recent_post_ids, recent_strengths = v_user.recent_strengths,
      engagement_count = v_user.engagement_count, minute = v_user.minute,
      minute_count = v_user.minute_count, updated_at = v_user.updated_at
    where user_id = v_user.user_id;
  end loop;
  foreach v_post in array p_posts loop
    continue when v_post.post_id <> all (p_held_ids);
    for v_other in 0..p_is_filling::integer loop
      update two_tower.live_embeddings set
        embedding = v_post.embedding, engagement_count = v_post.engagement_count,
        popularity = v_post.popularity, is_pretrained = v_post.is_pretrained,
        moved_hour = v_post.moved_hour, moved = v_post.moved
      where slot = abs(v_post.slot - v_other) and post_id = v_post.post_id;
    end loop;
  end loop;
end
$$;
comment on function two_tower.write_learned(two_tower.user_embeddings[], two_tower.live_embeddings[], bigint[], boolean) is
  'Writes each row once. While a slot is being filled, engaged posts have the same vector in both.';

create function two_tower.learn(p_events public.engagement_events[],
  p_is_deferred boolean default false)
returns void language plpgsql set search_path = '' as $$
declare
  v_settings two_tower.settings;
  v_state two_tower.state;
  v_read record;
  v_user_ids uuid[] := array[(p_events[1]).user_id];
  v_post_ids bigint[] := array[(p_events[1]).post_id];
  v_is_frozen boolean;
  v_users two_tower.user_embeddings[];
  v_locked record;
  v_decided record;
begin
  select * into v_settings from two_tower.settings;
  v_read := two_tower.interpret(p_events, v_settings, p_is_deferred);
  if v_read.are_views and not v_read.have_client_ids then
    perform two_tower.record_views(v_read.lessons);
    return;
  end if;

  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  select * into v_state from two_tower.state;
  v_is_frozen := v_state.frozen_at is not null;
  if cardinality(p_events) > 1 then
    select array_agg(distinct e.user_id order by e.user_id),
           array_agg(distinct e.post_id order by e.post_id)
    into v_user_ids, v_post_ids from unnest(p_events) e;
  end if;
  v_users := two_tower.lock_users(v_user_ids);
  if v_read.have_client_ids and not p_is_deferred then
    perform two_tower.refuse_repeated_client_events(v_read.lessons);
  end if;
  if v_read.are_views then
    perform two_tower.record_views(v_read.lessons);
    return;
  end if;

  v_locked := two_tower.lock_posts(v_state.active_slot, v_post_ids);
  v_decided := two_tower.decide(v_read.lessons, two_tower.load_pairs(v_read.lessons), v_users,
    v_user_ids, v_locked.posts, v_post_ids, v_settings, v_is_frozen, p_is_deferred);
  perform two_tower.record_decisions(v_decided.p_lessons, v_decided.p_pairs, v_is_frozen,
    p_is_deferred);
  if v_decided.teaches then
    perform two_tower.apply_lessons(v_decided.p_lessons, v_decided.p_users, v_user_ids,
      v_locked.posts, v_post_ids, v_locked.held_ids, v_settings, v_state);
  end if;
end
$$;
comment on function two_tower.learn(public.engagement_events[], boolean) is
  'Learns events in the order of their ids: all of them or, when it raises, none. p_is_deferred: events that waited, and whose time has come.';

create function two_tower.learn_from_events() returns trigger
language plpgsql security definer set search_path = ''
  set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
declare
  v_events public.engagement_events[];
begin
  select array_agg(row(e.id, e.user_id, e.post_id, e.event_type, e.dwell_ms, e.client_event_id,
    e.created_at)::public.engagement_events order by e.id)
  into v_events from new_events e;
  if v_events is not null then
    perform two_tower.learn(v_events);
  end if;
  return null;
end
$$;
comment on function two_tower.learn_from_events() is
  'Definer: who inserts an event has no grant on embeddings, and learns only through this. Fires at the origin only: replicated rows bring their embeddings with them.';
create trigger learn_from_events after insert on public.engagement_events
  referencing new table as new_events
    for each statement execute function two_tower.learn_from_events();

create function two_tower.learn_deferred(p_limit integer default 500,
  p_post_ids bigint[] default null) returns integer
language plpgsql set search_path = '' as $$
declare
  v_events public.engagement_events[];
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  if (select frozen_at is not null from two_tower.state) then
    return 0;
  end if;
  with due as (
    select d.event_id from two_tower.deferred_events d
    where (p_post_ids is null or d.post_id = any (p_post_ids)) and (
      exists (select from two_tower.live_embeddings v
              where v.slot = (select active_slot from two_tower.state) and v.post_id = d.post_id)
      or exists (select from public.posts p where p.id = d.post_id and p.deleted_at is not null))
    order by d.event_id limit p_limit for update
  ), taken as (
    delete from two_tower.deferred_events d using due where d.event_id = due.event_id
      returning d.event
  )
  select array_agg(event order by (event).id) into v_events from taken;
  if v_events is not null then
    perform two_tower.learn(v_events, p_is_deferred => true);
  end if;
  return coalesce(cardinality(v_events), 0);
end
$$;
comment on function two_tower.learn_deferred(integer, bigint[]) is
  'Learns, in order, at most so many events that waited for their post''s embedding or for the end of a freeze. Returns how many.';

-- Where the encoder hands in what it computed. New posts get their live vector, then their waiting
-- events are learned, and only then are rows touched that others may hold: no lock is waited for
-- while one is held out of order.
create function two_tower.store_base_embeddings(
  p_post_ids bigint[], p_embeddings extensions.vector[], p_requests integer[] default null
) returns integer language plpgsql set search_path = '' as $$
declare
  v_new bigint[];
  v_stored bigint[];
  v_active smallint;
begin
  if cardinality(p_post_ids) is distinct from cardinality(p_embeddings)
     or cardinality(p_post_ids) is distinct
       from coalesce(cardinality(p_requests), cardinality(p_post_ids)) then
    raise exception 'post ids, embeddings and requests must be arrays of one length'
      using errcode = '22023',
        hint = 'Pass the request numbers that posts_to_encode() gave, or null.';
  end if;
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  v_active := (select active_slot from two_tower.state);
  with given as (
    select distinct on (g.post_id) g.post_id, g.embedding, g.request
    from unnest(p_post_ids, p_embeddings,
      coalesce(p_requests, array_fill(null::integer, array[cardinality(p_post_ids)])))
         as g (post_id, embedding, request)
    order by g.post_id
  ), locked as (
    select b.post_id, g.embedding from two_tower.base_embeddings b join given g using (post_id)
    where g.request is null or g.request = b.request
    order by b.post_id for no key update of b
  ), stored as (
    update two_tower.base_embeddings b
      set base_embedding = l.embedding, encoded_at = two_tower.now()
    from locked l where b.post_id = l.post_id
    returning b.post_id
  )
  select array_agg(post_id) into v_stored from stored;

  with inserted as (
    insert into two_tower.live_embeddings (slot, post_id, embedding, author_id, created_at,
      is_deleted, model_version)
    select slots.slot, p.id, projected.embedding, p.author_id, p.created_at,
      p.deleted_at is not null, slots.version
    from two_tower.slots_to_write() slots
      cross join two_tower.base_embeddings b
      join public.posts p on p.id = b.post_id
      -- "offset 0" keeps it from being computed once for each place that names it.
      cross join lateral (select two_tower.candidate_tower(b.base_embedding, slots.version) offset 0)
        as projected (embedding)
    where b.post_id = any (v_stored) and extensions.vector_norm(projected.embedding) > 0
    on conflict do nothing
    returning post_id
  )
  select array_agg(distinct post_id) into v_new from inserted;
  perform two_tower.learn_deferred(500, v_new);

  with again as materialized (
    select v.slot, v.post_id,
      two_tower.candidate_tower(b.base_embedding, v.model_version) as embedding
    from two_tower.live_embeddings v join two_tower.base_embeddings b using (post_id)
    where v.post_id = any (v_stored) and v.post_id <> all (coalesce(v_new, '{}'))
      and v.is_pretrained
    order by v.post_id, v.slot <> v_active for no key update of v
  )
  update two_tower.live_embeddings v set embedding = a.embedding
  from again a where v.slot = a.slot and v.post_id = a.post_id;
  return coalesce(cardinality(v_stored), 0);
end
$$;
comment on function two_tower.store_base_embeddings(bigint[], extensions.vector[], integer[]) is
  'Stores base embeddings, projects them with the candidate tower, and learns the events that waited for them. An encoding of a text that has changed since (another request number) is passed over. Returns how many were stored.';
