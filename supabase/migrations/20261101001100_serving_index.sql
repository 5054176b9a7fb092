-- The serving index: a halfvec copy of the live vectors under HNSW. Live vectors themselves carry
-- no index, because updates would ruin it; and updates wear this one out too, only slowly. So there
-- are two sides: one answers, the other is empty or being built beside it, and state.serving_side
-- points. A build serves the first index, a worn one and a new model version alike. Small corpora
-- need no index and are scanned.

create table two_tower.serving_embeddings_0 (
  post_id bigint primary key,
  embedding extensions.halfvec(128) not null
);
comment on table two_tower.serving_embeddings_0 is
  'Side 0 of the serving index: copies of live vectors for approximate search. state.serving_side says which side answers.';
create table two_tower.serving_embeddings_1 (like two_tower.serving_embeddings_0 including all);
comment on table two_tower.serving_embeddings_1 is 'Side 1 of the serving index.';

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
comment on table two_tower.serving_builds is 'Every build of the serving index; the newest one answers (view serving_index).';
comment on column two_tower.serving_builds.replaced is 'Copies written since: each leaves a dead one in the graph.';
comment on column two_tower.serving_builds.recall is 'Share of the true 50 nearest live vectors that the index proposes, over a sample of users.';
comment on column two_tower.serving_builds.short_share is 'Share of the sample for whom the candidates of the index did not fill a page of 50.';
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
comment on view two_tower.serving_index is 'The index that answers: size, age, wear, recall sampled against exact search, short pages. No row: there is none, and all posts are scanned.';

create table two_tower.cursors (
  name text primary key,
  position bigint not null default 0
);
comment on table two_tower.cursors is 'How far continuous small steps have come: the last post, or event, that they looked at.';
insert into two_tower.cursors (name) values ('serving_round'), ('followed_events');

create function two_tower.needs_serving_index() returns boolean
language sql stable set search_path = '' as $$
  select s.exact_scan_limit < (
    select count(*) from (
      select from two_tower.live_embeddings v
      where v.slot = (select active_slot from two_tower.state)
      limit s.exact_scan_limit + 1) v)
  from two_tower.settings s;
$$;
comment on function two_tower.needs_serving_index() is 'Whether there are more posts than settings.exact_scan_limit.';

create function two_tower.serving_build_is_due() returns boolean
language sql stable set search_path = '' as $$
  select two_tower.needs_serving_index() and (s.serving_side is null or two_tower.slot_is_full())
  from two_tower.state s;
$$;
comment on function two_tower.serving_build_is_due() is 'Whether a worker must build: the first index, or the one of a version whose slot is full. A worn index is reported by check_serving_index().';

create function two_tower.copy_missing_posts(p_side smallint, p_slot smallint) returns bigint
language plpgsql set search_path = '' as $$
declare
  v_copied bigint;
begin
  execute format('
    with missing as materialized (
      select v.post_id from two_tower.live_embeddings v where v.slot = $1
      except select c.post_id from two_tower.serving_embeddings_%1$s c
    )
    insert into two_tower.serving_embeddings_%1$s (post_id, embedding)
    select v.post_id, v.embedding
    from missing m join two_tower.live_embeddings v on v.slot = $1 and v.post_id = m.post_id
    where not v.is_deleted order by v.post_id', p_side)
  using p_slot;
  get diagnostics v_copied = row_count;
  return v_copied;
end
$$;
comment on function two_tower.copy_missing_posts(smallint, smallint) is
  'Copies the posts of a slot that a side lacks. Returns how many.';

create function two_tower.build_serving_index(p_reason text default 'by hand') returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_state two_tower.state := (select s from two_tower.state s);
  v_side smallint := coalesce(1 - v_state.serving_side, 0);
  v_is_switch boolean := two_tower.slot_is_full();
  v_slot smallint := (v_state.active_slot + v_is_switch::integer) % 2;
  v_table text := format('two_tower.serving_embeddings_%s', v_side);
  v_started timestamptz := clock_timestamp();
  v_posts bigint;
  v_build bigint;
begin
  if not pg_try_advisory_xact_lock(two_tower.switch_lock() + 2) then
    raise exception 'another build of the serving index is running' using errcode = '55P03',
      hint = 'Wait for it: select * from two_tower.jobs where kind = ''build_serving_index''.';
  end if;
  execute format('truncate %s', v_table);
  execute format('drop index if exists %s_hnsw', v_table);
  v_posts := two_tower.copy_missing_posts(v_side, v_slot);
  perform set_config('maintenance_work_mem', (select least(s.serving_build_megabytes,
    64 + v_posts / 1000) from two_tower.settings s) || 'MB', true);
  execute format('create index serving_embeddings_%s_hnsw on %s
    using hnsw (embedding extensions.halfvec_ip_ops) with (ef_construction = 200)', v_side, v_table);
  v_posts := v_posts + two_tower.copy_missing_posts(v_side, v_slot);

  -- Nobody stores a vector between this lock and the commit, so nothing is missed.
  perform two_tower.lock_switch(10);
  v_posts := v_posts + two_tower.copy_missing_posts(v_side, v_slot);
  insert into two_tower.serving_builds (side, model_version, reason, posts, index_bytes, seconds)
  select v_side, case when v_is_switch then s.filling_version
      else two_tower.active_version('candidate_tower') end, p_reason, v_posts,
    pg_catalog.pg_relation_size((v_table || '_hnsw')::regclass),
    extract(epoch from clock_timestamp() - v_started)
  from two_tower.state s returning id into v_build;
  update two_tower.state set serving_side = v_side;
  if v_is_switch and not two_tower.flip_slots(true) then
    raise exception 'the switch was changed while its index was built' using errcode = '55000',
      hint = 'Build again: the job is tried again by itself.';
  end if;
  -- Not waited for: a tick that has this row may itself be waiting for the switch.
  update two_tower.schedules set last_run_at = null
  where kind in (select kind from two_tower.schedules where kind = 'check_serving_index'
                 for update skip locked);
  return v_build;
end
$$;
comment on function two_tower.build_serving_index(text) is
  'Definer: workers own no table. Builds the side that nobody reads from the live vectors and points to it; with a new version whose slot is full, switches to that too. Readers never wait, writers for the last moment only. All or nothing: a crash leaves what served. Returns the id of the build.';

create function two_tower.copy_to_serving_index(p_post_ids bigint[]) returns integer
language plpgsql set search_path = '' as $$
declare
  v_state two_tower.state := (select s from two_tower.state s);
  v_written integer;
begin
  if v_state.serving_side is null then
    return 0;
  end if;
  execute format('
    with posts as materialized (
      select v.post_id, v.embedding, v.is_deleted from two_tower.live_embeddings v
      where v.slot = $1 and v.post_id = any ($2)
    ), gone as (
      delete from %1$s c using posts p where c.post_id = p.post_id and p.is_deleted
    )
    insert into %1$s as c (post_id, embedding)
    select p.post_id, p.embedding
    from posts p
      left join %1$s o on o.post_id = p.post_id
      cross join two_tower.settings s
    where not p.is_deleted and (o.post_id is null
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
  'Brings the copies of these posts up to date: missing ones, and those that have drifted by settings.serving_drift_tolerance, are written, deleted posts removed. Returns how many were written.';

create function two_tower.add_to_serving_index() returns trigger
language plpgsql set search_path = '' as $$
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
comment on function two_tower.add_to_serving_index() is 'A new post is searchable at once, not when the refresh comes round to it.';
create trigger add_to_serving_index after insert on two_tower.live_embeddings
  referencing new table as new_rows
  for each statement execute function two_tower.add_to_serving_index();

create function two_tower.remove_from_serving_index() returns trigger
language plpgsql set search_path = '' as $$
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
comment on function two_tower.remove_from_serving_index() is 'A post that is removed for good takes its copy along. No foreign key: deleting posts would wait for a build.';
create trigger remove_from_serving_index after delete on two_tower.live_embeddings
  referencing old table as old_rows
  for each statement execute function two_tower.remove_from_serving_index();

-- New posts are shown to a few readers whatever their score, until they were shown often enough or
-- somebody engages. A pool of its own keeps that from costing a look at all posts.
create table two_tower.exploration_pool (
  post_id bigint primary key references public.posts (id) on delete cascade,
  shuffled bigint not null,
  impressions integer not null default 0
);
comment on table two_tower.exploration_pool is 'Posts that have not had settings.exploration_impressions yet and that nobody has engaged with.';
comment on column two_tower.exploration_pool.shuffled is 'A hash of the post: readers start at random places in this order.';
create index exploration_pool_shuffled_idx on two_tower.exploration_pool (shuffled);

create function two_tower.add_to_exploration_pool() returns trigger
language plpgsql set search_path = '' as $$
begin
  insert into two_tower.exploration_pool (post_id, shuffled)
  select n.post_id, hashint8extended(n.post_id, 0)
  from new_rows n join two_tower.state s on s.active_slot = n.slot
  where n.is_pretrained and not n.is_deleted
  order by n.post_id
  on conflict do nothing;
  return null;
end
$$;
comment on function two_tower.add_to_exploration_pool() is 'Every new post is explored.';
create trigger add_to_exploration_pool after insert on two_tower.live_embeddings
  referencing new table as new_rows
  for each statement execute function two_tower.add_to_exploration_pool();

-- Events that commit late are overtaken by the cursor. That costs an impression, or a refresh that
-- the round makes up for.
create function two_tower.follow_events(p_limit integer default 5000) returns integer
language plpgsql set search_path = '' as $$
declare
  v_newest bigint := (select max(id) from public.engagement_events);
  v_last bigint;
  v_engaged bigint[];
  v_shown bigint[];
  v_times integer[];
begin
  select greatest(position, v_newest - 20 * p_limit) into v_last
  from two_tower.cursors where name = 'followed_events';
  with next as materialized (
    select e.id, e.post_id, s.strength
    from (select id, post_id, event_type from public.engagement_events where id > v_last
          order by id limit p_limit) e
      join two_tower.signals s using (event_type)
  ), shown as (
    select post_id, count(*)::integer as times from next where strength = 0 group by post_id
  )
  select (select max(id) from next),
    (select array_agg(distinct post_id) from next where strength <> 0),
    (select array_agg(post_id) from shown), (select array_agg(times) from shown)
  into v_last, v_engaged, v_shown, v_times;
  if v_last is null then
    return 0;
  end if;
  update two_tower.exploration_pool p set impressions = p.impressions + n.times
  from unnest(v_shown, v_times) as n (post_id, times) where p.post_id = n.post_id;
  delete from two_tower.exploration_pool p using two_tower.settings s
  where p.post_id = any (v_engaged)
    or (p.post_id = any (v_shown) and p.impressions >= s.exploration_impressions);
  update two_tower.cursors set position = v_last where name = 'followed_events';
  return two_tower.copy_to_serving_index(v_engaged[1:500]);
end
$$;
comment on function two_tower.follow_events(integer) is
  'Looks at the next so many events: counts impressions of explored posts, and refreshes the served copies of posts that were engaged with. Returns how many copies were written.';

create function two_tower.refresh_serving_index(p_limit integer default 500) returns integer
language plpgsql set search_path = '' as $$
declare
  v_slot smallint := (select active_slot from two_tower.state);
  v_post_ids bigint[];
  v_written integer;
begin
  v_written := two_tower.follow_events();
  select array_agg(v.post_id) into v_post_ids from (
    select post_id from two_tower.live_embeddings
    where slot = v_slot
      and post_id > (select position from two_tower.cursors where name = 'serving_round')
    order by post_id limit p_limit) v;
  update two_tower.cursors set position = coalesce(v_post_ids[cardinality(v_post_ids)], 0)
  where name = 'serving_round';
  delete from two_tower.exploration_pool p using two_tower.live_embeddings v
  where p.post_id = any (v_post_ids) and v.slot = v_slot and v.post_id = p.post_id and v.is_deleted;
  v_written := v_written + two_tower.copy_to_serving_index(v_post_ids);
  if v_written > 0 then
    update two_tower.serving_builds set replaced = replaced + v_written
    where id = (select max(id) from two_tower.serving_builds);
  end if;
  return v_written;
end
$$;
comment on function two_tower.refresh_serving_index(integer) is
  'One bounded step that keeps the index fresh: posts of the newest events, then the next so many posts on a round that never ends, on which deleted posts are let go too. Returns how many copies were written.';

-- Each side by its name, and so with a plan of its own that locks that side alone: the other one
-- may be being built. The plan reads the index in order and asks of each post whether it was seen.
-- The limit that the planner sees is a constant, or it would plan for a tenth of the table.
create function two_tower.nearest_posts(p_vector extensions.vector, p_limit integer,
  p_user_id uuid default null, p_excluded bigint[] default '{}', p_is_wide boolean default false)
returns bigint[] language plpgsql stable set search_path = ''
  set plan_cache_mode = force_generic_plan as $$
declare
  v_side smallint := (select serving_side from two_tower.state);
  v_vector extensions.halfvec(128) := p_vector;
begin
  if v_side is null then
    return null;
  end if;
  perform set_config('hnsw.ef_search', least(1000, greatest(s.ef_search, p_limit))::text, true),
    set_config('hnsw.iterative_scan', case when p_is_wide then 'relaxed_order' else 'off' end, true)
  from two_tower.settings s;
  if v_side = 0 then
    return array(
      select n.post_id from (
        select s.post_id from two_tower.serving_embeddings_0 s
        where s.post_id <> all (p_excluded)
          and not (select exists (select from two_tower.user_posts u
            where u.user_id = p_user_id and u.post_id = s.post_id))
        order by s.embedding operator(extensions.<#>) v_vector limit 1000) n
      limit p_limit);
  end if;
  return array(
    select n.post_id from (
      select s.post_id from two_tower.serving_embeddings_1 s
      where s.post_id <> all (p_excluded)
        and not (select exists (select from two_tower.user_posts u
          where u.user_id = p_user_id and u.post_id = s.post_id))
      order by s.embedding operator(extensions.<#>) v_vector limit 1000) n
    limit p_limit);
end
$$;
comment on function two_tower.nearest_posts(extensions.vector, integer, uuid, bigint[], boolean) is
  'About the nearest so many posts (1,000 at most) by their served copies that the user has not seen; null where there is no serving index. p_is_wide: goes on beyond ef_search while posts are missing, to hnsw.max_scan_tuples; otherwise fewer come back.';

create function two_tower.check_serving_index(p_sample integer default 30) returns void
language plpgsql set search_path = '' as $$
declare
  v_build two_tower.serving_builds;
  v_slot smallint := (select active_slot from two_tower.state);
  v_over_fetch integer := (select over_fetch from two_tower.settings);
  v_percent real := (select least(100, 100 * 50.0 * p_sample / greatest(1, c.reltuples))
    from pg_catalog.pg_class c where c.oid = 'two_tower.user_embeddings'::regclass);
  v_recall double precision;
  v_short double precision;
begin
  if (select serving_side is null from two_tower.state) then
    return;
  end if;
  with sample as materialized (
    select u.user_id, two_tower.encode_user(u.user_id) as vector
    from (
      select user_id from two_tower.user_embeddings tablesample system (v_percent)
      where engagement_count > 0 order by random() limit p_sample) u
  )
  select avg((select count(*) from unnest(f.exact) e where e = any (f.near))
      / greatest(1, cardinality(f.exact))::double precision),
    avg(((
      select count(*) from unnest(f.unseen) as c (post_id)
        join two_tower.live_embeddings v on v.slot = v_slot and v.post_id = c.post_id
      where not v.is_deleted and two_tower.is_eligible(f.user_id, v.post_id, v.author_id)
    ) < 50)::integer)
  into v_recall, v_short
  from (
    select s.user_id, two_tower.nearest_posts(s.vector, v_over_fetch) as near,
      two_tower.nearest_posts(s.vector, v_over_fetch, s.user_id) as unseen,
      array(select v.post_id from two_tower.live_embeddings v
            where v.slot = v_slot and not v.is_deleted
            order by v.embedding operator(extensions.<#>) s.vector limit 50) as exact
    from sample s where s.vector is not null
  ) f;

  update two_tower.serving_builds set recall = v_recall, short_share = v_short,
    checked_at = two_tower.now(), recall_when_built = coalesce(recall_when_built, v_recall)
  where id = (select max(id) from two_tower.serving_builds) returning * into v_build;
  if exists (select from two_tower.settings s
             where v_build.recall < v_build.recall_when_built - s.serving_recall_tolerance
               or v_build.replaced > s.serving_rebuild_share * v_build.posts) then
    perform two_tower.enqueue_job('build_serving_index');
  end if;
end
$$;
comment on function two_tower.check_serving_index(integer) is
  'Samples users, compares what the index proposes with the true nearest 50, and asks for a build when recall has fallen by settings.serving_recall_tolerance or settings.serving_rebuild_share of the copies were replaced.';
