-- Snapshots of what learning moved, to roll back to. safety makes them. Erasure and the switch of
-- models read them.

create table two_tower.checkpoints (
  id bigint generated always as identity primary key,
  made_at timestamptz not null default two_tower.now(),
  reason text not null
    constraint reason_of_a_checkpoint_is_known check (reason in ('daily', 'promotion', 'operator')),
  candidate_tower bigint not null references two_tower.model_weights (version),
  user_tower bigint references two_tower.model_weights (version),
  last_event_id bigint not null default 0,
  posts bigint not null default 0,
  users bigint not null default 0,
  engagements bigint not null default 0,
  is_good boolean
);
comment on table two_tower.checkpoints is 'Snapshots of what learning moved: live embeddings of touched posts, and users with their recent engagements. 100,000 posts take about 60 MB, 100,000 users about 180 MB.';
comment on column two_tower.checkpoints.reason is 'daily, promotion or operator.';
comment on column two_tower.checkpoints.candidate_tower is 'The version that served.';
comment on column two_tower.checkpoints.user_tower is 'The version that served. Null when none did.';
comment on column two_tower.checkpoints.last_event_id is 'The newest event that it has learned.';
comment on column two_tower.checkpoints.posts is 'How many posts it holds.';
comment on column two_tower.checkpoints.users is 'How many users had taught something.';
comment on column two_tower.checkpoints.engagements is 'How many engagements these users are made of. 0: the checkpoint is empty.';
comment on column two_tower.checkpoints.is_good is 'Whether its audit found no quality of the embeddings in its alert range. Null before the audit.';
create index checkpoints_candidate_tower_idx on two_tower.checkpoints (candidate_tower);
create index checkpoints_user_tower_idx on two_tower.checkpoints (user_tower);

create table two_tower.checkpoint_posts (
  checkpoint_id bigint not null,
  post_id bigint not null,
  embedding extensions.vector(128) not null,
  engagement_count integer not null,
  popularity double precision not null,
  primary key (checkpoint_id, post_id)
) partition by list (checkpoint_id);
comment on table two_tower.checkpoint_posts is 'Touched posts as they stood. One partition per checkpoint, so that deleting a checkpoint is a drop.';

create table two_tower.checkpoint_users (
  checkpoint_id bigint not null,
  user_id uuid not null,
  embedding extensions.vector(128) not null,
  engaged_sum extensions.vector(128) not null,
  prior extensions.vector(128),
  prior_weight real not null,
  prior_source two_tower.prior_source,
  recent_post_ids bigint[] not null,
  recent_strengths real[] not null,
  positive_ids bigint[] not null,
  positive_interests smallint[] not null,
  interest_sums extensions.halfvec(128)[] not null,
  engagement_count integer not null,
  reset_count integer not null,
  primary key (checkpoint_id, user_id)
) partition by list (checkpoint_id);
comment on table two_tower.checkpoint_users is 'Users as they stood. One partition per checkpoint. Rows of deleted users are erased.';
comment on column two_tower.checkpoint_users.reset_count is 'user_embeddings.reset_count. A user who began anew since gets nothing back but the prior.';

-- Dropping waits for whoever reads a checkpoint, and later readers queue behind it.
create function two_tower.drop_old_checkpoints() returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp set lock_timeout = '1s' as $$
declare
  v_id bigint;
  v_dropped integer := 0;
begin
  for v_id in
    select c.id from two_tower.checkpoints c
    where c.id not in (select id from two_tower.checkpoints order by id desc
                       limit (select checkpoints_kept from two_tower.settings))
      and c.id is distinct from (select max(id) from two_tower.checkpoints where is_good)
      and c.id is distinct from (select filling_checkpoint from two_tower.state)
    order by c.id
  loop
    execute format('drop table two_tower.checkpoint_posts_%s, two_tower.checkpoint_users_%s',
      v_id, v_id);
    delete from two_tower.checkpoints where id = v_id;
    v_dropped := v_dropped + 1;
  end loop;
  return v_dropped;
exception when lock_not_available then
  return 0;
end
$$;
comment on function two_tower.drop_old_checkpoints() is 'Keeps the newest settings.checkpoints_kept checkpoints, the newest good one, and the one that is being rolled back to. Drops the others. Returns how many. Returns 0 when a long reader is in the way: the next checkpoint tries again. Definer: workers own no table.';

-- What runs every minute reads no more of a large checkpoint than this.
create function two_tower.sample_checkpoint(p_checkpoint_id bigint, p_posts integer default 10000)
returns setof two_tower.checkpoint_posts
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_posts bigint := (select c.posts from two_tower.checkpoints c where c.id = p_checkpoint_id);
begin
  if v_posts > 0 then
    return query execute format(
      'select * from two_tower.checkpoint_posts_%s tablesample system (%s)', p_checkpoint_id,
      least(100, 100.0 * p_posts / v_posts));
  end if;
end
$$;
comment on function two_tower.sample_checkpoint(bigint, integer) is 'Returns all posts of a checkpoint, or about p_posts of them where there are more: others each time.';

-- A promotion is not movement. A checkpoint that is being audited is measured from the one before.
create function two_tower.measure_movement(p_post_ids bigint[] default null)
returns table (post_id bigint, distance double precision, days double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select c.post_id, 1 + (v.embedding operator(extensions.<#>) c.embedding),
    greatest(1, extract(epoch from two_tower.now() - n.made_at) / 86400)
  from (select * from two_tower.checkpoints where is_good is not null
      order by id desc limit 1) n
    cross join lateral (
      select * from two_tower.sample_checkpoint(n.id) where p_post_ids is null
      union all
      select k.* from unnest(p_post_ids) as i (post_id)
        join two_tower.checkpoint_posts k on k.checkpoint_id = n.id and k.post_id = i.post_id) c
    join two_tower.live_embeddings v on v.post_id = c.post_id
      and v.slot = (select active_slot from two_tower.state)
  where n.candidate_tower = two_tower.active_version('candidate_tower')
    and v.engagement_count <> c.engagement_count;
$$;
comment on function two_tower.measure_movement(bigint[]) is 'Returns, of these posts or of sample_checkpoint(), those that were engaged with since the newest audited checkpoint: their cosine distance from it, and its age in days. A checkpoint of today counts as a day old. Returns nothing after a change of the candidate tower.';
