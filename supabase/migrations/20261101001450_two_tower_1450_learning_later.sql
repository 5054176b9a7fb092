-- What is learned later: events that waited for an embedding, for the end of a freeze, or for a
-- minute with room. Ticks call these, and so does who hands in encodings.

create function two_tower.take_deferred(p_event_ids bigint[]) returns two_tower.event[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_events two_tower.event[];
begin
  with taken as (
    delete from two_tower.deferred_events d where d.event_id = any (p_event_ids)
    returning d.event_id, d.user_id, d.post_id, d.event_type, d.dwell_ms, d.client_event_id,
      d.created_at, d.happened_at
  )
  select array_agg(row(t.event_id, t.user_id, t.post_id, t.event_type, t.dwell_ms,
    t.client_event_id, t.created_at, t.happened_at)::two_tower.event order by t.event_id)
  into v_events from taken t;
  return v_events;
end
$$;
comment on function two_tower.take_deferred(bigint[]) is 'Takes events out of the queue and returns them, in order. Whoever calls it learns them in the same transaction.';

create function two_tower.is_ready_to_learn(p_post_id bigint) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return exists (
      select from two_tower.live_embeddings v
      where v.slot = (select active_slot from two_tower.state) and v.post_id = p_post_id)
    or exists (select from two_tower.posts p
      where p.id = p_post_id and (not p.is_listed or p.is_unreadable));
end
$$;
comment on function two_tower.is_ready_to_learn(bigint) is 'Returns whether a post has an embedding, is deleted or can not be encoded.';

-- A queue by turns of posts, like the encoder's by turns of authors: 25,000 events that waited for
-- one post hold up none of another. A post that is not ready costs a look. So a walk ends after
-- 1,000 posts, and the next one goes on from there.
-- Two sessions: none waits for the other's position. They may walk the same posts.
create function two_tower.posts_to_learn(p_limit integer) returns bigint[]
language plpgsql set search_path = pg_catalog, pg_temp
  set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  v_start bigint := (select position from two_tower.cursors where name = 'deferred_posts');
  v_post_id bigint := v_start;
  v_post_ids bigint[] := '{}';
  v_is_round boolean := false;
begin
  for v_visit in 1..1000 loop
    exit when cardinality(v_post_ids) = p_limit;
    select d.post_id into v_post_id from two_tower.deferred_events d
    where d.reason <> 'minute_full' and d.post_id > v_post_id order by d.post_id limit 1;
    exit when v_is_round and (v_post_id is null or v_post_id > v_start);
    if v_post_id is null then
      v_post_id := two_tower.first_bigint();
      v_is_round := true;
    elsif two_tower.is_ready_to_learn(v_post_id) then
      v_post_ids := v_post_ids || v_post_id;
    end if;
  end loop;
  update two_tower.cursors set position = v_post_id
  where position <> v_post_id and name = (
    select c.name from two_tower.cursors c where c.name = 'deferred_posts'
    for no key update skip locked);
  return v_post_ids;
end
$$;
comment on function two_tower.posts_to_learn(integer) is
  'Returns at most p_limit posts whose deferred events can be learned, from where the last call ended. Looks at 1,000 posts: there may be more when it returns none.';

create function two_tower.learn_deferred(p_limit integer default 500,
  p_post_ids bigint[] default null) returns integer
language plpgsql set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set jit = off as $$
declare
  v_post_ids bigint[];
  v_event_ids bigint[];
  v_events two_tower.event[];
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  if (select frozen_at is not null from two_tower.state) then
    return 0;
  end if;
  v_post_ids := case when p_post_ids is null then two_tower.posts_to_learn(p_limit)
    else array(select p from unnest(p_post_ids) p where two_tower.is_ready_to_learn(p)) end;
  if v_post_ids = '{}' then
    return 0;
  end if;
  v_event_ids := array(
    select n.event_id
    from unnest(v_post_ids) as p (post_id)
      cross join lateral (
        select d.event_id from two_tower.deferred_events d
        where d.post_id = p.post_id and d.reason <> 'minute_full'
        order by d.event_id
        limit ceil(p_limit / cardinality(v_post_ids)::real)) n
    limit p_limit);
  -- Another session may hold some, and learn them first.
  v_events := two_tower.take_deferred(array(
    select d.event_id from two_tower.deferred_events d
    where d.event_id = any (v_event_ids) order by d.event_id for update));
  if v_events is not null then
    perform two_tower.learn_events(v_events, p_is_deferred => true);
  end if;
  return coalesce(cardinality(v_events), 0);
end
$$;
comment on function two_tower.learn_deferred(integer, bigint[]) is
  'Learns at most p_limit deferred events whose post has an embedding, is deleted or can not be encoded: of each post the earliest ones, and as many of each. Those above their user''s bound go on waiting, for a minute. p_post_ids: only events about these posts; null: about any. Returns how many. Returns 0 during a freeze.';

-- Two sessions: a user whose row another session holds is passed over. While it is held here, no
-- other session learns, queues or withdraws an event of that user. So the queue of a user is served
-- in its order, and what is taken from it is learned or, after a crash, still there.
create function two_tower.learn_waiting(p_limit integer default 500) returns integer
language plpgsql set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set jit = off as $$
declare
  v_limit integer := (select learned_events_per_minute from two_tower.settings);
  v_now timestamptz := two_tower.now();
  v_minute timestamptz := date_bin('1 minute', v_now, 'epoch');
  v_user record;
  v_user_ids uuid[] := '{}';
  v_event_ids bigint[] := '{}';
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  if (select frozen_at is not null from two_tower.state) then
    return 0;
  end if;
  for v_user in
    select u.user_id, case when u.minute = v_minute then u.minute_count else 0 end as learned
    from two_tower.user_embeddings u where u.waits_until <= v_now
    order by u.waits_until limit p_limit for no key update skip locked
  loop
    v_user_ids := v_user_ids || v_user.user_id;
    v_event_ids := v_event_ids || array(
      select d.event_id from two_tower.deferred_events d
      where d.user_id = v_user.user_id and d.reason = 'minute_full' order by d.event_id
      limit least(greatest(v_limit - v_user.learned, 0), p_limit - cardinality(v_event_ids)));
    exit when cardinality(v_event_ids) = p_limit;
  end loop;
  -- Nobody waits while these are learned, or they would wait behind themselves.
  update two_tower.user_embeddings u set
    waits_until = null, minute = v_minute,
    minute_count = case when u.minute = v_minute then u.minute_count else 0 end
  where u.user_id = any (v_user_ids);
  if v_event_ids <> '{}' then
    perform two_tower.learn_events(two_tower.take_deferred(v_event_ids), p_is_deferred => true);
  end if;
  update two_tower.user_embeddings u set
    waits_until = case when u.minute_count < v_limit then v_now
      else v_minute + interval '1 minute' end
  where u.user_id = any (v_user_ids) and two_tower.count_waiting(u.user_id) > 0;
  return cardinality(v_event_ids);
end
$$;
comment on function two_tower.learn_waiting(integer) is
  'Learns at most p_limit of the events that were above their user''s bound of a minute: of each user the earliest ones, as many as this minute has room for; first the users who wait longest. Returns how many. Returns 0 during a freeze.';
