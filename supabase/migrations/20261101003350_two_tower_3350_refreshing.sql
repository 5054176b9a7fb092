-- All posts are looked at once a day, and computed anew once a week. What learning and encoding
-- write is right when they write it. A refresh finds what was lost or overtaken since: a post whose
-- encoding or vector is gone, one that an earlier tower or another encoder made, a vector that is
-- not what the tower says, a row that differs from the registry.
--
-- It is a walk over the registry in order of id, in small steps of tick(). Each step holds only the
-- posts that it mends, and passes over those that another session holds. A walk that has worked as
-- long as it may ends there. The next of its kind goes on from that post.

create table two_tower.refreshes (
  id bigint generated always as identity primary key,
  kind text not null constraint kind_of_refresh_is_known check (kind in ('daily', 'weekly')),
  time_limit interval not null constraint a_refresh_may_work check (time_limit > '0'),
  began_at timestamptz not null default two_tower.now(),
  ended_at timestamptz,
  worked interval not null default '0',
  position bigint not null default two_tower.first_bigint(),
  is_whole boolean not null default false,
  posts bigint not null default 0,
  mended bigint not null default 0,
  constraint a_walk_that_ended_whole_has_ended check (ended_at is not null or not is_whole)
);
comment on table two_tower.refreshes is 'Walks over all posts that mend what is stale: a row each, for 90 days.';
comment on column two_tower.refreshes.kind is 'daily: what is missing or of another version is mended. weekly: vectors of untouched posts are computed anew too, and compared.';
comment on column two_tower.refreshes.time_limit is 'For how long its steps may work, added up.';
comment on column two_tower.refreshes.ended_at is 'Null while it goes on.';
comment on column two_tower.refreshes.worked is 'For how long its steps have worked.';
comment on column two_tower.refreshes.position is 'The last post that it looked at. Where it came to the end of the registry, the place before the first.';
comment on column two_tower.refreshes.is_whole is 'Whether it came to the end of the registry. If not, the next of its kind goes on from position.';
comment on column two_tower.refreshes.posts is 'How many posts it looked at.';
comment on column two_tower.refreshes.mended is 'How many of them were stale and are mended, or asked for from the encoder.';
create unique index one_refresh_of_a_kind_at_a_time on two_tower.refreshes (kind)
  where ended_at is null;

create function two_tower.begin_refresh(p_kind text, p_time_limit interval) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  insert into two_tower.refreshes (kind, time_limit, position)
  select p_kind, p_time_limit, coalesce(
    (select r.position from two_tower.refreshes r where r.kind = p_kind order by r.id desc limit 1),
    two_tower.first_bigint())
  on conflict (kind) where ended_at is null do nothing;
  delete from two_tower.refreshes where ended_at < two_tower.now() - interval '90 days';
$$;
comment on function two_tower.begin_refresh(text, interval) is 'Begins a walk over all posts, daily or weekly, of at most p_time_limit of work. Does nothing while one of its kind goes on.';

create function two_tower.request_refresh() returns void
language sql set search_path = pg_catalog, pg_temp as $$
  select two_tower.begin_refresh('daily', '5 minutes');
$$;
comment on function two_tower.request_refresh() is 'Asks for a walk over all posts that mends what is missing or of another version: the daily one.';

create function two_tower.request_recompute() returns void
language sql set search_path = pg_catalog, pg_temp as $$
  select two_tower.begin_refresh('weekly', '10 minutes');
$$;
comment on function two_tower.request_recompute() is 'Asks for a walk over all posts that computes vectors of untouched posts anew too: the weekly one.';

-- A text that waits for the encoder is no fault: whatever it lacks comes with its encoding. What an
-- encoder changed since is asked for by encode_anew() while that goes on.
create function two_tower.find_stale_posts(p_post_ids bigint[], p_is_recomputed boolean)
returns table (post_id bigint, fault text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with s as materialized (
    select t.active_slot, two_tower.active_encoder() as encoder,
      two_tower.active_version('candidate_tower') as version,
      exists (select from two_tower.cursors where name = 'encoding_round') as is_encoded_anew
    from two_tower.state t
  ), on_its_way as materialized (
    select c.post_id from two_tower.post_changes c where c.post_id = any (p_post_ids)
  )
  select p.id, f.fault
  from s
    cross join two_tower.posts p
    left join two_tower.base_embeddings b on b.post_id = p.id
    left join two_tower.live_embeddings v on v.slot = s.active_slot and v.post_id = p.id
    cross join lateral (
      select case when p_is_recomputed and v.is_pretrained
        then two_tower.project_text(b.base_embedding, b.encoder, s.version) end as vector
      offset 0) projected
    cross join lateral (
      select case
        when p.is_unreadable or p.encoded_hash is distinct from p.content_hash then null
        when b.post_id is null then case when p.is_listed then 'lost encoding' end
        when b.encoder <> s.encoder then case when not s.is_encoded_anew then 'old encoder' end
        when v.post_id is null then 'lost vector'
        when v.is_pretrained and v.model_version <> s.version then 'old tower'
        when extensions.vector_norm(projected.vector) > 0
          and projected.vector operator(extensions.<=>) v.embedding > 1e-4 then 'wrong vector'
      end as fault
      union all
      select 'differs from registry'
      where (v.author_id, v.created_at, v.is_listed)
          is distinct from (p.author_id, greatest(p.created_at, p.arrived_at), p.is_listed)
        and v.post_id is not null and p.id not in (select w.post_id from on_its_way w)) f
  where p.id = any (p_post_ids) and f.fault is not null;
$$;
comment on function two_tower.find_stale_posts(bigint[], boolean) is 'Returns what is stale of these posts, and why. p_is_recomputed: computes the vectors of untouched posts too, and compares.';

create function two_tower.project_anew(p_post_ids bigint[]) returns bigint[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_slot smallint := (select active_slot from two_tower.state);
  v_version bigint := two_tower.active_version('candidate_tower');
  v_projected bigint[];
begin
  with held as materialized (
    select v.post_id from two_tower.live_embeddings v
    where v.slot = v_slot and v.post_id = any (p_post_ids) and v.is_pretrained
    order by v.post_id for no key update skip locked
  ), projected as materialized (
    select h.post_id,
      two_tower.project_text(b.base_embedding, b.encoder, v_version) as embedding
    from held h join two_tower.base_embeddings b using (post_id)
    offset 0
  ), written as (
    update two_tower.live_embeddings v set model_version = v_version,
      embedding = case when extensions.vector_norm(n.embedding) > 0 then n.embedding
        else v.embedding end
    from projected n where v.slot = v_slot and v.post_id = n.post_id
    returning v.post_id
  )
  select coalesce(array_agg(w.post_id), '{}') into v_projected from written w;
  perform two_tower.copy_to_serving_index(v_projected);
  return v_projected;
end
$$;
comment on function two_tower.project_anew(bigint[]) is 'Writes the vectors of untouched posts as the candidate tower that serves projects them. Passes over those that another session holds. Returns those that it wrote.';

-- The registry comes last, as where encodings are stored: a transaction of the app may hold a post
-- there and wait for what is locked here. What it holds is left to the next walk.
create function two_tower.mend_posts(p_post_ids bigint[], p_is_recomputed boolean) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_lost bigint[];
  v_overtaken bigint[];
  v_unencoded bigint[];
  v_changed bigint[];
  v_mended integer;
begin
  select array_agg(s.post_id) filter (where s.fault = 'lost vector'),
    array_agg(s.post_id) filter (where s.fault in ('old tower', 'wrong vector')),
    array_agg(s.post_id) filter (where s.fault in ('lost encoding', 'old encoder')),
    array_agg(s.post_id) filter (where s.fault = 'differs from registry')
  into v_lost, v_overtaken, v_unencoded, v_changed
  from two_tower.find_stale_posts(p_post_ids, p_is_recomputed) s;
  if v_lost is not null then
    v_lost := two_tower.add_live_embeddings(v_lost, (select active_slot from two_tower.state));
  end if;
  v_overtaken := two_tower.project_anew(v_overtaken);
  insert into two_tower.post_changes (post_id) select unnest(v_changed);
  with held as materialized (
    select p.id from two_tower.posts p where p.id = any (v_unencoded)
    order by p.id for no key update skip locked
  ), asked as (
    -- A hash that is no text's says that the post has an embedding until the text is encoded.
    update two_tower.posts p set requested_at = two_tower.now(),
      encoded_hash = case when exists (
        select from two_tower.base_embeddings b where b.post_id = p.id) then ~p.content_hash end
    from held h where p.id = h.id
    returning p.id
  )
  select count(*) into v_mended from asked;
  return v_mended + coalesce(cardinality(v_lost), 0) + cardinality(v_overtaken)
    + coalesce(cardinality(v_changed), 0);
end
$$;
comment on function two_tower.mend_posts(bigint[], boolean) is 'Mends what find_stale_posts() finds of these posts. Adds vectors, projects untouched posts anew, asks the encoder for texts, and leaves what differs from the registry to apply_post_changes(). Returns of how many.';

create function two_tower.refresh_posts(p_limit integer default 1000) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_started timestamptz := clock_timestamp();
  v_refresh two_tower.refreshes;
  v_post_ids bigint[];
begin
  if not exists (select from two_tower.refreshes r where r.ended_at is null) then
    return 0;
  end if;
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  if (select filling_version is not null from two_tower.state) then
    return 0;
  end if;
  select * into v_refresh from two_tower.refreshes r where r.ended_at is null
  order by r.id limit 1 for update skip locked;
  if not found then
    return 0;
  end if;
  v_post_ids := array(select p.id from two_tower.posts p where p.id > v_refresh.position
    order by p.id limit p_limit);
  v_refresh.mended := v_refresh.mended
    + two_tower.mend_posts(v_post_ids, v_refresh.kind = 'weekly');
  v_refresh.worked := v_refresh.worked + (clock_timestamp() - v_started);
  v_refresh.is_whole := cardinality(v_post_ids) < p_limit;
  update two_tower.refreshes r set
    mended = v_refresh.mended, worked = v_refresh.worked, is_whole = v_refresh.is_whole,
    posts = r.posts + cardinality(v_post_ids),
    position = case when v_refresh.is_whole then two_tower.first_bigint()
      else v_post_ids[p_limit] end,
    ended_at = case when v_refresh.is_whole or v_refresh.worked >= r.time_limit
      then two_tower.now() end
  where r.id = v_refresh.id;
  return cardinality(v_post_ids);
end
$$;
comment on function two_tower.refresh_posts(integer) is 'Takes one step of the oldest walk that goes on: looks at the next p_limit posts, and mends what is stale. Ends the walk at the end of the registry, or when its time is used up. Waits while a slot is being filled: that computes all posts anew. Returns how many posts it looked at.';
