-- What becomes of each event, and what it leaves behind whether it is learned or not.

create type two_tower.batch as (
  lessons two_tower.lesson[], user_posts two_tower.user_posts[],
  users two_tower.user_embeddings[], user_ids uuid[],
  posts two_tower.live_embeddings[], post_ids bigint[], held_ids bigint[],
  settings two_tower.settings, state two_tower.state, is_deferred boolean, teaches boolean
);
comment on type two_tower.batch is 'The events of a statement with all that they are learned into, and what was decided. users and posts stand in the order of user_ids and post_ids, which are sorted.';
comment on column two_tower.batch.user_posts is 'What the users did with the posts, at the place of the first lesson of user and post; null elsewhere.';
comment on column two_tower.batch.held_ids is 'Those of post_ids whose rows are locked. The others are locked by another session.';
comment on column two_tower.batch.is_deferred is 'The events were deferred, and their time has come.';
comment on column two_tower.batch.teaches is 'Whether any event is learned or withdrawn.';

create function two_tower.decide_without_post(p_lesson two_tower.lesson) returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform two_tower.refuse_unknown_post(p_lesson.post_id);
  return case
    when p_lesson.strength = 0 and p_lesson.withdrawn is null then 'seen'
    else (select case when not p.is_listed then 'post_deleted'
        when p.is_unreadable then 'post_unreadable' else 'defer' end
      from two_tower.posts p where p.id = p_lesson.post_id) end;
end
$$;
comment on function two_tower.decide_without_post(two_tower.lesson) is
  'Returns the verdict on an event about a post that has no live embedding. Raises 23503 where there is no such post.';

create function two_tower.has_events_waiting(p_post_id bigint) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  return exists (select from two_tower.deferred_events d
    where d.post_id = p_post_id and d.reason in ('post_not_encoded', 'frozen'));
end
$$;
comment on function two_tower.has_events_waiting(bigint) is 'Returns whether earlier events about a post wait for what all of them wait for: an embedding, or the end of a freeze.';

create function two_tower.count_waiting(p_user_id uuid) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  return (select count(*) from two_tower.deferred_events d
    where d.user_id = p_user_id and d.reason = 'minute_full');
end
$$;
comment on function two_tower.count_waiting(uuid) is 'Returns how many events of a user wait for a minute with room.';

-- What is taken back before it was learned is never learned. So a withdrawal acts at once, needs no
-- place in the queue, and can not be lost when that is full.
create function two_tower.end_waiting(p_batch two_tower.batch) returns two_tower.batch
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_lessons two_tower.lesson[] := p_batch.lessons;
  v_user_posts two_tower.user_posts[] := p_batch.user_posts;
  v_withdrawal two_tower.lesson;
  v_user_post two_tower.user_posts;
begin
  for v_place in 1..cardinality(v_lessons) loop
    v_withdrawal := v_lessons[v_place];
    continue when v_withdrawal.verdict not in ('withdraw', 'nothing_to_withdraw');
    for v_earlier in 1..v_place - 1 loop
      if v_lessons[v_earlier].verdict = 'wait'
        and v_lessons[v_earlier].user_post_place = v_withdrawal.user_post_place
        and v_lessons[v_earlier].signal = v_withdrawal.withdrawn then
        v_lessons[v_earlier].verdict := 'withdrawn';
      end if;
    end loop;
    with ended as (
      delete from two_tower.deferred_events d
      where d.user_id = v_withdrawal.user_id and d.reason = 'minute_full'
        and d.post_id = v_withdrawal.post_id and d.event_type = v_withdrawal.withdrawn
        and d.event_id < v_withdrawal.event_id
      returning d.event_id, d.user_id, d.post_id, d.event_type, d.created_at
    )
    insert into two_tower.unlearned_events
      (event_id, user_id, post_id, event_type, reason, created_at)
    select e.event_id, e.user_id, e.post_id, e.event_type, 'withdrawn', e.created_at from ended e;
    -- Another engagement with the post may wait, and go on waiting.
    v_user_post := v_user_posts[v_withdrawal.user_post_place];
    v_user_post.is_engaged := v_user_post.is_engaged
      or exists (select from unnest(v_lessons) l where l.verdict = 'wait' and l.strength > 0
                 and l.user_post_place = v_withdrawal.user_post_place)
      or exists (select from two_tower.deferred_events d
                   join two_tower.signals g on g.event_type = d.event_type
                 where d.user_id = v_withdrawal.user_id and d.reason = 'minute_full'
                   and d.post_id = v_withdrawal.post_id and g.strength > 0);
    v_user_posts[v_withdrawal.user_post_place] := v_user_post;
  end loop;
  p_batch.lessons := v_lessons;
  p_batch.user_posts := v_user_posts;
  return p_batch;
end
$$;
comment on function two_tower.end_waiting(two_tower.batch) is
  'Takes what the withdrawals of a batch take back out of the queue: earlier events of the same user, post and signal that wait for a minute. They stay recorded, as withdrawn. Their places are free from the next statement on.';

create function two_tower.waits_for_minute(p_lesson two_tower.lesson,
  p_user two_tower.user_embeddings, p_minute timestamptz, p_limit integer, p_is_deferred boolean)
returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return p_user.minute = p_minute and p_user.minute_count >= p_limit
    or p_user.waits_until is not null
      and (p_is_deferred or p_lesson.created_at > two_tower.now() - interval '1 minute');
end
$$;
comment on function two_tower.waits_for_minute(two_tower.lesson, two_tower.user_embeddings, timestamptz, integer, boolean) is
  'Returns whether an event may not be learned yet: its user''s minute is full, or earlier events of the user wait. History, which is older than a minute when it arrives, does not wait behind others.';

create function two_tower.is_blocked_by(p_author_id uuid, p_user_id uuid) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  return exists (select from two_tower.blocks b
    where b.user_id = p_author_id and b.author_id = p_user_id and b.kind = 'block_author');
end
$$;
comment on function two_tower.is_blocked_by(uuid, uuid) is 'Returns whether an author has blocked a user, whose engagements then teach nothing. A mute does not: who is muted does not notice.';

-- Each round of a signal and its withdrawal draws other posts to push away, and leaves some
-- movement: steps on a sphere do not add up. So there are few in a day.
create function two_tower.is_withdrawn_often(p_lesson two_tower.lesson, p_place integer,
  p_lessons two_tower.lesson[], p_limit integer)
returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_count integer := (select count(*) from two_tower.training_examples x
    where x.user_id = p_lesson.user_id and x.post_id = p_lesson.post_id
      and x.event_type = p_lesson.signal and x.is_withdrawn
      and x.created_at > p_lesson.created_at - interval '1 day');
begin
  for v_earlier in 1..p_place - 1 loop
    v_count := v_count + (p_lessons[v_earlier].verdict = 'withdraw'
      and p_lessons[v_earlier].user_post_place = p_lesson.user_post_place
      and p_lessons[v_earlier].withdrawn = p_lesson.signal)::integer;
  end loop;
  return v_count >= p_limit;
end
$$;
comment on function two_tower.is_withdrawn_often(two_tower.lesson, integer, two_tower.lesson[], integer) is
  'Returns whether the user took back the same signal on the same post p_limit times within a day, this statement included.';

-- Verdicts are given in order, against what the user did before. What the user did is recorded
-- whatever the verdict is. Only what is learned sets a bit of user_posts.signals, so that it is
-- learned once.
create function two_tower.decide_verdicts(p_batch two_tower.batch) returns two_tower.batch
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_lessons two_tower.lesson[] := p_batch.lessons;
  v_user_posts two_tower.user_posts[] := p_batch.user_posts;
  v_users two_tower.user_embeddings[] := p_batch.users;
  v_limit integer := (p_batch.settings).learned_events_per_minute;
  v_is_frozen boolean := (p_batch.state).frozen_at is not null;
  v_lesson two_tower.lesson;
  v_user_post two_tower.user_posts;
  v_user two_tower.user_embeddings;
  v_post two_tower.live_embeddings;
  v_user_index integer;
  v_minute timestamptz;
  v_waiting integer[] := '{}';
  v_ends_waiting boolean := false;
begin
  p_batch.teaches := false;
  for v_place in 1..cardinality(v_lessons) loop
    v_lesson := v_lessons[v_place];
    v_user_post := v_user_posts[v_lesson.user_post_place];
    v_user_index := width_bucket(v_lesson.user_id, p_batch.user_ids);
    v_user := v_users[v_user_index];
    v_post := p_batch.posts[width_bucket(v_lesson.post_id, p_batch.post_ids)];
    v_minute := date_bin('1 minute', v_lesson.created_at, 'epoch');
    if p_batch.is_deferred then
      -- What is learned late counts in the minute that has begun.
      v_minute := greatest(v_minute, v_user.minute);
    end if;
    v_lesson.verdict := case
      when v_post.post_id is null then two_tower.decide_without_post(v_lesson)
      when v_lesson.strength = 0 and v_lesson.withdrawn is null then 'seen'
      when not v_post.is_listed and v_lesson.withdrawn is null then 'post_deleted'
      when v_post.author_id = v_lesson.user_id and v_lesson.withdrawn is null then 'own_post'
      when v_is_frozen or not p_batch.is_deferred and two_tower.has_events_waiting(v_lesson.post_id)
        then 'defer'
      when v_user_post.signals & v_lesson.withdrawn_bit = 0 then 'nothing_to_withdraw'
      when v_lesson.withdrawn is not null then 'withdraw'
      when v_user_post.signals & v_lesson.bit <> 0 then 'repeated'
      when two_tower.is_blocked_by(v_post.author_id, v_lesson.user_id) then 'blocked'
      when v_user_post.was_withdrawn and two_tower.is_withdrawn_often(v_lesson, v_place, v_lessons,
          (p_batch.settings).withdrawals_per_day) then 'withdrawn_often'
      when two_tower.waits_for_minute(v_lesson, v_user, v_minute, v_limit, p_batch.is_deferred)
        then 'wait'
      else 'learn' end;

    if v_lesson.verdict = 'wait' then
      v_waiting[v_user_index] :=
        coalesce(v_waiting[v_user_index], two_tower.count_waiting(v_lesson.user_id)) + 1;
      if v_waiting[v_user_index] > (p_batch.settings).waiting_events_per_user then
        v_lesson.verdict := 'rate_limited';
      else
        v_user.waits_until := coalesce(v_user.waits_until, v_minute + interval '1 minute');
        v_users[v_user_index] := v_user;
      end if;
    end if;
    v_ends_waiting := v_ends_waiting or v_user.waits_until is not null
      and v_lesson.verdict in ('withdraw', 'nothing_to_withdraw');

    v_user_post.signals := case
      when v_lesson.verdict in ('learn', 'seen') then v_user_post.signals | v_lesson.bit
      when v_lesson.verdict = 'withdraw' then v_user_post.signals & ~v_lesson.withdrawn_bit
      else v_user_post.signals end;
    if v_lesson.verdict in ('learn', 'withdraw') then
      p_batch.teaches := true;
      v_user.minute_count := (v_lesson.verdict = 'learn')::integer
        + case when v_user.minute = v_minute then v_user.minute_count else 0 end;
      v_user.minute := v_minute;
      v_users[v_user_index] := v_user;
    end if;
    if v_lesson.strength > 0 then
      v_user_post.is_engaged := true;
    elsif v_lesson.verdict in ('withdraw', 'nothing_to_withdraw', 'post_deleted',
      'post_unreadable') then
      v_user_post.is_engaged := exists (select from two_tower.signals g
        where g.strength > 0 and v_user_post.signals & g.bit <> 0);
    end if;
    v_user_post.was_withdrawn := v_user_post.was_withdrawn or v_lesson.verdict = 'withdraw';
    v_user_post.hidden_by := case
      when p_batch.is_deferred then v_user_post.hidden_by
      when v_lesson.event_type in ('hide', 'not_interested')
        then v_user_post.hidden_by | v_lesson.bit
      else v_user_post.hidden_by & ~coalesce(v_lesson.withdrawn_bit, 0) end;
    v_user_post.first_seen_at := least(v_user_post.first_seen_at, v_lesson.created_at);
    v_user_post.last_event_at := greatest(v_user_post.last_event_at, v_lesson.created_at);
    v_user_posts[v_lesson.user_post_place] := v_user_post;
    v_lessons[v_place] := v_lesson;
  end loop;
  p_batch.lessons := v_lessons;
  p_batch.user_posts := v_user_posts;
  p_batch.users := v_users;
  return case when v_ends_waiting then two_tower.end_waiting(p_batch) else p_batch end;
end
$$;
comment on function two_tower.decide_verdicts(two_tower.batch) is
  'Fills in the verdicts, and what the users did with the posts. Defers an event while its post is not encoded, while earlier events about the post wait, and during a freeze. Lets an event wait that is above its user''s bound of the minute. Raises 23503 for an unknown post.';

create function two_tower.record_views(p_lessons two_tower.lesson[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_lesson two_tower.lesson;
  v_new_ids uuid[] := '{}';
begin
  foreach v_lesson in array p_lessons loop
    perform two_tower.refuse_unknown_post(v_lesson.post_id);
    if not exists (select from two_tower.users u where u.id = v_lesson.user_id) then
      v_new_ids := v_new_ids || v_lesson.user_id;
    end if;
  end loop;
  if v_new_ids <> '{}' then
    perform two_tower.add_users(v_new_ids);
  end if;
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
  'Records what views leave behind. Needs no lock of the user, because it only adds the bit of a view, which no decision takes away. Raises 23503 for an unknown post or user.';

create function two_tower.record_verdicts(p_batch two_tower.batch) returns void
 language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_lesson two_tower.lesson;
  v_blocks boolean := false;
  v_leaves_rows boolean := false;
  v_waits boolean := false;
begin
  foreach v_lesson in array p_batch.lessons loop
    v_blocks := v_blocks or v_lesson.blocks_author;
    v_leaves_rows := v_leaves_rows or v_lesson.verdict not in ('learn', 'withdraw', 'seen');
    v_waits := v_waits or v_lesson.verdict = 'wait';
  end loop;
  insert into two_tower.user_posts as u (user_id, post_id, signals, is_engaged, hidden_by,
    was_withdrawn, first_seen_at, last_event_at)
  select p.user_id, p.post_id, p.signals, p.is_engaged, p.hidden_by, p.was_withdrawn,
    p.first_seen_at, p.last_event_at
  from unnest(p_batch.user_posts) p where p.user_id is not null
  order by p.user_id, p.post_id
  on conflict (user_id, post_id) do update set
    signals = excluded.signals | (u.signals & two_tower.view_bit()),
    is_engaged = excluded.is_engaged, hidden_by = excluded.hidden_by,
    was_withdrawn = excluded.was_withdrawn,
    first_seen_at = least(u.first_seen_at, excluded.first_seen_at),
    last_event_at = greatest(u.last_event_at, excluded.last_event_at);
  if v_blocks and not p_batch.is_deferred and exists (
    select from two_tower.sources s
    where s.relation = 'public.author_blocks'::regclass and s.state <> 'detached') then
    insert into public.author_blocks (user_id, author_id, kind, created_at)
    select distinct on (l.user_id, p.author_id) l.user_id, p.author_id, l.event_type, l.created_at
    from unnest(p_batch.lessons) l join two_tower.posts p on p.id = l.post_id
    where l.blocks_author and p.author_id <> l.user_id
    order by l.user_id, p.author_id, l.event_type <> 'block_author', l.event_id desc
    on conflict (user_id, author_id) do update set kind = excluded.kind
    where author_blocks.kind = 'mute_author' and excluded.kind = 'block_author';
  end if;
  if v_leaves_rows then
    insert into two_tower.deferred_events
      (event_id, user_id, post_id, event_type, dwell_ms, client_event_id, created_at,
       happened_at, reason)
    select l.event_id, l.user_id, l.post_id, l.event_type, l.dwell_ms, l.client_event_id,
      l.created_at, l.happened_at,
      case when l.verdict = 'wait' then 'minute_full'
        when (p_batch.state).frozen_at is null then 'post_not_encoded' else 'frozen' end
    from unnest(p_batch.lessons) l where l.verdict in ('defer', 'wait');
    insert into two_tower.unlearned_events
      (event_id, user_id, post_id, event_type, reason, created_at)
    select l.event_id, l.user_id, l.post_id, l.event_type, l.verdict, l.created_at
    from unnest(p_batch.lessons) l
    where l.verdict not in ('learn', 'withdraw', 'seen', 'defer', 'wait');
  end if;
  if v_waits then
    update two_tower.user_embeddings u set waits_until = w.waits_until
    from unnest(p_batch.users) w
    where u.user_id = w.user_id and u.waits_until is null and w.waits_until is not null;
  end if;
end
$$;
comment on function two_tower.record_verdicts(two_tower.batch) is
  'Stores what the users did, whom they block, and what is not learned now or ever. The users are locked, so all bits but that of a view are as decide_verdicts() read them.';
