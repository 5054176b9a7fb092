-- The serving index: a halfvec copy of the live embeddings under HNSW. Live embeddings themselves
-- carry no index, because updates would ruin it. Updates wear this one out too, only slowly. So
-- there are two sides: one answers, the other is empty or being built beside it. state.serving_side
-- points to the one that answers. A build makes the first index, replaces a worn one, or serves a
-- new version. Small corpora need no index and are scanned.

create table two_tower.serving_embeddings_0 (
  post_id bigint primary key,
  source_id smallint not null,
  embedding extensions.halfvec(128) not null
);
comment on table two_tower.serving_embeddings_0 is
  'Side 0 of the serving index: copies of live embeddings for approximate search. state.serving_side says which side answers.';

create table two_tower.serving_embeddings_1 (like two_tower.serving_embeddings_0 including all);
comment on table two_tower.serving_embeddings_1 is 'Side 1 of the serving index: see side 0.';

create table two_tower.serving_builds (
  id bigint generated always as identity primary key,
  side smallint not null,
  model_version bigint not null references two_tower.model_weights (version),
  reason text not null,
  posts bigint not null,
  index_bytes bigint not null,
  seconds double precision not null,
  built_at timestamptz not null default two_tower.now(),
  replaced bigint not null default 0,
  recall_when_built double precision,
  recall double precision,
  short_share double precision,
  checked_at timestamptz
);
comment on table two_tower.serving_builds is 'Every build of the serving index. The newest one answers (view serving_index).';
comment on column two_tower.serving_builds.side is 'The side that was built: 0 or 1.';
comment on column two_tower.serving_builds.model_version is 'The candidate tower that served with it.';
comment on column two_tower.serving_builds.reason is 'Who or what asked for the build.';
comment on column two_tower.serving_builds.posts is 'How many posts it held when it was built.';
comment on column two_tower.serving_builds.index_bytes is 'Size of the HNSW index when it was built.';
comment on column two_tower.serving_builds.seconds is 'How long the build took.';
comment on column two_tower.serving_builds.replaced is 'Copies written by refreshes since the build. A replaced copy leaves a dead one in the graph.';
comment on column two_tower.serving_builds.recall_when_built is 'recall at the first check.';
comment on column two_tower.serving_builds.recall is 'Share of the true 50 nearest live embeddings that the index proposes, over a sample of users.';
comment on column two_tower.serving_builds.short_share is 'Share of the sampled users for whom the candidates of the index did not fill a page of 50.';
comment on column two_tower.serving_builds.checked_at is 'When check_serving_index() sampled it last.';
create index serving_builds_model_version_idx on two_tower.serving_builds (model_version);

create view two_tower.serving_index with (security_invoker = true) as
select
  b.side, b.model_version, b.reason, b.posts as posts_when_built, b.seconds as build_seconds,
  pg_catalog.pg_relation_size(
    format('two_tower.serving_embeddings_%s_hnsw', b.side)::regclass) as index_bytes,
  b.built_at, two_tower.now() - b.built_at as age,
  b.replaced, b.recall_when_built, b.recall, b.short_share, b.checked_at
from two_tower.state as s
cross join lateral (select * from two_tower.serving_builds order by id desc limit 1) as b
where s.serving_side is not null;
comment on view two_tower.serving_index is 'The index that answers: size, age, wear, recall sampled against exact search, short pages. It has no row when there is no index and all posts are scanned.';

create function two_tower.is_serving_build_due() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select two_tower.needs_serving_index() and (s.serving_side is null
    or two_tower.is_slot_full() and not two_tower.may_keep_index())
  from two_tower.state s;
$$;
comment on function two_tower.is_serving_build_due() is 'Returns whether a worker must build the first index, or the one of a version whose slot is full. check_serving_index() asks for the replacement of a worn one, and flip_slots() of one that a rollback kept.';

-- Statistics know nothing of a slot that was filled just now. So each post is looked up: a join
-- would compare all posts with all.
create function two_tower.copy_missing_posts(p_side smallint, p_slot smallint) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_copied bigint;
begin
  execute format('
    with missing as materialized (
      select v.post_id from two_tower.live_embeddings v where v.slot = $1
      except select c.post_id from two_tower.serving_embeddings_%1$s c
    )
    insert into two_tower.serving_embeddings_%1$s (post_id, source_id, embedding)
    select v.post_id, v.source_id, v.embedding
    from missing m
      cross join lateral (select v.* from two_tower.live_embeddings v
        where v.slot = $1 and v.post_id = m.post_id offset 0) v
    where v.is_listed order by v.post_id', p_side)
  using p_slot;
  get diagnostics v_copied = row_count;
  return v_copied;
end
$$;
comment on function two_tower.copy_missing_posts(smallint, smallint) is
  'Copies to a side the posts of a slot that it lacks. Returns how many.';

create function two_tower.build_serving_index(p_reason text default 'by hand') returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_state two_tower.state := (select s from two_tower.state s);
  v_side smallint := coalesce(1 - v_state.serving_side, 0);
  v_is_switch boolean := two_tower.is_slot_full();
  v_slot smallint := (v_state.active_slot + v_is_switch::integer) % 2;
  v_table text := format('two_tower.serving_embeddings_%s', v_side);
  v_started timestamptz := clock_timestamp();
  v_posts bigint;
  v_build bigint;
begin
  if not pg_try_advisory_xact_lock(two_tower.bulk_lock()) then
    raise exception 'another build of the serving index, or a checkpoint, is running'
      using errcode = '55P03', hint = 'Build again later. A worker tries its job again by itself.';
  end if;
  execute format('truncate %s', v_table);
  execute format('drop index if exists %s_hnsw', v_table);
  v_posts := two_tower.copy_missing_posts(v_side, v_slot);
  perform set_config('maintenance_work_mem', (select least(s.serving_build_megabytes,
    64 + v_posts / 1000) from two_tower.settings s) || 'MB', true);
  execute format('create index serving_embeddings_%s_hnsw on %s
    using hnsw (embedding extensions.halfvec_ip_ops) with (ef_construction = 200)',
    v_side, v_table);
  v_posts := v_posts + two_tower.copy_missing_posts(v_side, v_slot);

  -- Nobody stores a vector between this lock and the commit, so nothing is missed.
  perform two_tower.lock_switch(10);
  if not exists (
    select from two_tower.state s
    where s.active_slot = v_state.active_slot and (not v_is_switch
      or s.filling_version = v_state.filling_version and two_tower.is_slot_full())
  ) then
    raise exception 'the switch was changed while its index was built' using errcode = '55000',
      hint = 'Build again. A worker tries its job again by itself.';
  end if;
  v_posts := v_posts + two_tower.copy_missing_posts(v_side, v_slot);
  insert into two_tower.serving_builds (side, model_version, reason, posts, index_bytes, seconds)
  select v_side, case when v_is_switch then s.filling_version
      else two_tower.active_version('candidate_tower') end, p_reason, v_posts,
    pg_catalog.pg_relation_size((v_table || '_hnsw')::regclass),
    extract(epoch from clock_timestamp() - v_started)
  from two_tower.state s returning id into v_build;
  update two_tower.state set serving_side = v_side where id;
  if v_is_switch then
    perform two_tower.flip_slots(true);
  end if;
  -- This does not wait: a tick that has the row may itself be waiting for the switch.
  update two_tower.schedules set last_run_at = null
  where kind in (select kind from two_tower.schedules where kind = 'check_serving_index'
                 for update skip locked);
  return v_build;
end
$$;
comment on function two_tower.build_serving_index(text) is
  'Builds the side that nobody reads from the live embeddings, and points to it. Switches to a new version too, where its slot is full. Readers never wait, writers only for the last moment. All or nothing: a crash leaves what served. Returns the id of the build. Raises 55P03 while another build or a checkpoint runs, and 55000 when the switch changed meanwhile. Definer: workers own no table.';

create function two_tower.copy_to_serving_index(p_post_ids bigint[]) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_state two_tower.state := (select s from two_tower.state s);
  v_written integer;
begin
  if v_state.serving_side is null then
    return 0;
  end if;
  execute format('
    with posts as materialized (
      select v.post_id, v.source_id, v.embedding, v.is_listed from two_tower.live_embeddings v
      where v.slot = $1 and v.post_id = any ($2)
    ), gone as (
      delete from %1$s c using posts p where c.post_id = p.post_id and not p.is_listed
    )
    insert into %1$s as c (post_id, source_id, embedding)
    select p.post_id, p.source_id, p.embedding
    from posts p
      left join %1$s o on o.post_id = p.post_id
      cross join two_tower.settings s
    where p.is_listed and (o.post_id is null
      or (o.embedding::extensions.vector operator(extensions.<=>) p.embedding)
        > s.serving_drift_tolerance)
    order by p.post_id
    on conflict (post_id) do update set embedding = excluded.embedding',
    format('two_tower.serving_embeddings_%s', v_state.serving_side))
  using v_state.active_slot, p_post_ids;
  get diagnostics v_written = row_count;
  return v_written;
end
$$;
comment on function two_tower.copy_to_serving_index(bigint[]) is
  'Brings the copies of these posts up to date. Writes missing ones, and those that drifted by more than settings.serving_drift_tolerance. Removes those that are not listed. Returns how many it wrote.';

create function two_tower.add_to_serving_index() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_post_ids bigint[];
begin
  select array_agg(n.post_id) into v_post_ids
  from new_rows n join two_tower.state s on s.active_slot = n.slot and s.serving_side is not null;
  if v_post_ids is not null then
    perform two_tower.copy_to_serving_index(v_post_ids);
  end if;
  return null;
end
$$;
comment on function two_tower.add_to_serving_index() is 'Copies a new post at once, so that it is searchable before the refresh comes round to it.';
create trigger add_to_serving_index after insert on two_tower.live_embeddings
  referencing new table as new_rows
  for each statement execute function two_tower.add_to_serving_index();

create function two_tower.remove_from_serving_index() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_side smallint := (select serving_side from two_tower.state);
begin
  if v_side is not null then
    execute format('delete from two_tower.serving_embeddings_%s c using old_rows o
      where c.post_id = o.post_id', v_side);
  end if;
  return null;
end
$$;
comment on function two_tower.remove_from_serving_index() is 'Removes the copy of a post that is removed for good. A foreign key would do it too, but then deleting posts would wait for a build.';
create trigger remove_from_serving_index after delete on two_tower.live_embeddings
  referencing old table as old_rows
  for each statement execute function two_tower.remove_from_serving_index();

-- Each side stands by its name, and so has a plan of its own that locks that side alone: the other
-- one may be being built. The plan reads the index in order, and asks of each post whether it was
-- seen. The limit that the planner sees is a constant, or it would plan for a tenth of the table.
-- A search meets more posts than it keeps. Where the nearest are seen, or their copies are old, the
-- next of those it met make up for it, and the graph is not searched again (max_scan_tuples 1).
create function two_tower.find_nearest_posts(p_vector extensions.vector, p_limit integer,
  p_user_id uuid default null, p_excluded bigint[] default '{}', p_is_wide boolean default false,
  p_source_id smallint default null, p_filter two_tower.page_filter default null,
  p_breadth integer default null)
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan as $$
declare
  v_side smallint := (select serving_side from two_tower.state);
  v_vector extensions.halfvec(128) := p_vector;
begin
  if v_side is null then
    return null;
  end if;
  perform set_config('hnsw.ef_search',
      least(1000, greatest(coalesce(p_breadth, s.ef_search), p_limit))::text, true),
    set_config('hnsw.iterative_scan', 'relaxed_order', true),
    set_config('hnsw.max_scan_tuples', case when p_is_wide then '20000' else '1' end, true)
  from two_tower.settings s;
  if v_side = 0 then
    return array(
      select n.post_id from (
        select s.post_id from two_tower.serving_embeddings_0 s
        where s.post_id <> all (p_excluded)
          and (p_source_id is null or s.source_id = p_source_id)
          and (p_filter is null or (select exists (
            select from two_tower.matching_posts(p_filter) m where m.id = s.post_id)))
          and not (select exists (select from two_tower.user_posts u
            where u.user_id = p_user_id and u.post_id = s.post_id))
        order by s.embedding operator(extensions.<#>) v_vector limit 1000) n
      limit p_limit);
  end if;
  return array(
    select n.post_id from (
      select s.post_id from two_tower.serving_embeddings_1 s
      where s.post_id <> all (p_excluded)
        and (p_source_id is null or s.source_id = p_source_id)
        and (p_filter is null or (select exists (
          select from two_tower.matching_posts(p_filter) m where m.id = s.post_id)))
        and not (select exists (select from two_tower.user_posts u
          where u.user_id = p_user_id and u.post_id = s.post_id))
      order by s.embedding operator(extensions.<#>) v_vector limit 1000) n
    limit p_limit);
end
$$;
comment on function two_tower.find_nearest_posts(extensions.vector, integer, uuid, bigint[], boolean, smallint,
  two_tower.page_filter, integer) is
  'Returns about the nearest p_limit posts (at most 1,000), by their served copies, that the user has not seen. Returns null where there is no serving index. Where the nearest are seen, it goes on among those that the search met. p_is_wide: while posts are missing, it searches on, to 20,000 posts; otherwise fewer come back. p_source_id: posts of this source alone; null: of all. p_filter: those that match alone. p_breadth: of the search, in place of settings.ef_search.';
