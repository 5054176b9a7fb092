-- When learning goes wrong: checkpoints of what it moved, audits that say which are good, a freeze
-- on drift, and the way back. A rollback is a switch like a promotion's: the other slot is filled
-- from the checkpoint in bounded steps of tick() while readers go on, then the pointer flips.
--
-- Two sessions, a crash: a rollback begins with one short statement under the exclusive lock
-- (learning is frozen, what was queued is void), and each step after it commits by itself. Until
-- the flip all serve what served before. A crash in between leaves a state row that says how far
-- it got, and the next tick goes on.

create table two_tower.checkpoints (
  id bigint generated always as identity primary key,
  made_at timestamptz not null default two_tower.now(),
  reason text not null
    constraint reason_of_a_checkpoint_is_known check (reason in ('daily', 'promotion', 'operator')),
  candidate_tower bigint not null references two_tower.model_weights (version),
  user_tower bigint references two_tower.model_weights (version),
  posts bigint not null default 0,
  users bigint not null default 0,
  is_good boolean
);
comment on table two_tower.checkpoints is 'Snapshots of what learning moved: live vectors of engaged posts (about 60 MB per 100,000), users with their recent engagements (about 180 MB per 100,000).';
comment on column two_tower.checkpoints.is_good is 'Whether its audit found nothing in an alert range.';
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
comment on table two_tower.checkpoint_posts is 'Posts that somebody had engaged with, as they stood. One partition per checkpoint: forgetting one is a drop.';

create table two_tower.checkpoint_users (
  checkpoint_id bigint not null,
  user_id uuid not null,
  embedding extensions.vector(128) not null,
  engaged_sum extensions.vector(128) not null,
  base_embedding extensions.vector(128),
  base_weight real not null,
  base_source two_tower.base_source,
  recent_post_ids bigint[] not null,
  recent_strengths real[] not null,
  engagement_count integer not null,
  primary key (checkpoint_id, user_id)
) partition by list (checkpoint_id);
comment on table two_tower.checkpoint_users is 'Users as they stood. One partition per checkpoint; rows of deleted users are erased.';

create table two_tower.audits (
  id bigint generated always as identity primary key,
  made_at timestamptz not null default two_tower.now(),
  checkpoint_id bigint,
  findings jsonb not null,
  is_good boolean not null
);
comment on table two_tower.audits is 'Audits of the quality of the embeddings, of a checkpoint (checkpoint_id) or of the present.';
comment on column two_tower.audits.findings is 'By metric: value and state (ok, warning, alert, unknown).';

create function two_tower.measure_quality() returns table (name text, value double precision)
language sql stable set search_path = '' as $$
  with live as materialized (
    select v.post_id, v.embedding, v.engagement_count from two_tower.live_embeddings v
    where v.slot = (select active_slot from two_tower.state)
  ), top as (
    select embedding from live where engagement_count > 0
    order by engagement_count desc, post_id limit 200
  ), summed as (
    select extensions.sum(embedding) as total, count(*)::double precision as n from top
  )
  select m.name, m.value
  from two_tower.measure_metrics() m join two_tower.metric_targets t using (name)
  where t.is_quality
  union all
  -- The sum of all products of pairs is the square of the sum's length less that of each by itself.
  select 'mean_cosine', (extensions.vector_norm(total) ^ 2 - n) / nullif(n * (n - 1), 0) from summed
  union all
  select 'norm_error', max(abs(extensions.vector_norm(embedding) - 1)) from live;
$$;
comment on function two_tower.measure_quality() is 'The metrics of quality as they are now. Null where there is nothing to measure.';

create function two_tower.run_audit(p_checkpoint bigint default null) returns bigint
language plpgsql set search_path = '' as $$
declare
  v_findings jsonb;
  v_is_good boolean;
  v_id bigint;
begin
  select jsonb_object_agg(m.name, jsonb_build_object('value', m.value,
           'state', two_tower.state_of(t, m.value))),
         bool_and(two_tower.state_of(t, m.value) <> 'alert')
  into v_findings, v_is_good
  from two_tower.measure_quality() m join two_tower.metric_targets t using (name);
  insert into two_tower.audits (checkpoint_id, findings, is_good)
  values (p_checkpoint, v_findings, v_is_good) returning id into v_id;
  update two_tower.checkpoints set is_good = v_is_good where id = p_checkpoint;
  insert into two_tower.metrics (name, value)
  select f.key, (f.value ->> 'value')::double precision from jsonb_each(v_findings) f
  on conflict (name, measured_at) do update set value = excluded.value;
  perform two_tower.raise_alerts();
  return v_id;
end
$$;
comment on function two_tower.run_audit(bigint) is 'Audits the embeddings as they are now, stores the findings, and raises alerts. Says of the checkpoint, if one is given, whether it is good.';

create function two_tower.drop_old_checkpoints() returns integer
language plpgsql security definer set search_path = '' as $$
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
end
$$;
comment on function two_tower.drop_old_checkpoints() is 'Definer: workers own no table. Keeps the newest settings.checkpoints_kept, and the newest good one. Returns how many went.';

create function two_tower.checkpoint(p_reason text default null) returns bigint
language plpgsql security definer set search_path = '' as $$
declare
  v_id bigint;
  v_active bigint := two_tower.active_version('candidate_tower');
begin
  perform pg_advisory_xact_lock(two_tower.switch_lock() + 2);
  insert into two_tower.checkpoints (reason, candidate_tower, user_tower)
  values (coalesce(p_reason, case when v_active = (
            select candidate_tower from two_tower.checkpoints order by id desc limit 1)
            is not false then 'daily' else 'promotion' end),
          v_active, two_tower.active_version('user_tower'))
  returning id into v_id;
  execute format('create table two_tower.checkpoint_posts_%s partition of
    two_tower.checkpoint_posts for values in (%s)', v_id, v_id);
  execute format('create table two_tower.checkpoint_users_%s partition of
    two_tower.checkpoint_users for values in (%s)', v_id, v_id);
  -- One statement, so that posts and users are of one moment. It waits for no writer.
  with posts as (
    insert into two_tower.checkpoint_posts
    select v_id, v.post_id, v.embedding, v.engagement_count, v.popularity
    from two_tower.live_embeddings v
    where v.slot = (select active_slot from two_tower.state) and not v.is_pretrained
    returning post_id
  ), users as (
    insert into two_tower.checkpoint_users
    select v_id, u.user_id, u.embedding, u.engaged_sum, u.base_embedding, u.base_weight,
      u.base_source, u.recent_post_ids, u.recent_strengths, u.engagement_count
    from two_tower.user_embeddings u
    returning user_id
  )
  update two_tower.checkpoints set
    posts = (select count(*) from posts), users = (select count(*) from users)
  where id = v_id;
  perform two_tower.run_audit(v_id);
  perform two_tower.drop_old_checkpoints();
  return v_id;
end
$$;
comment on function two_tower.checkpoint(text) is 'Definer: workers own no table. Takes a snapshot, audits it, drops old ones, and returns its id. p_reason: operator; null for daily or, after a change of the candidate tower, promotion. Writes about 20 MB a second and keeps nobody waiting.';

create function two_tower.freeze_on_drift() returns boolean
language plpgsql set search_path = '' as $$
declare
  v_alert two_tower.alerts;
begin
  select a.* into v_alert from two_tower.alerts a
    cross join two_tower.settings s cross join two_tower.state st
  where a.kind = 'metric_out_of_range' and a.subject = 'embedding_drift' and a.closed_at is null
    and not a.details ? 'froze' and s.freeze_on_drift and st.frozen_at is null;
  if not found then
    return false;
  end if;
  perform two_tower.freeze(v_alert.message);
  update two_tower.alerts set details = details || '{"froze": true}' where id = v_alert.id;
  return true;
end
$$;
comment on function two_tower.freeze_on_drift() is 'Freezes learning when an alert of drift is open, once per alert: after a resume() it is the operator''s word that counts.';

create function two_tower.rollback(p_checkpoint bigint default null) returns bigint
language plpgsql set search_path = '' as $$
declare
  v_checkpoint two_tower.checkpoints;
begin
  select * into v_checkpoint from two_tower.checkpoints c
  where c.id = p_checkpoint or (p_checkpoint is null and c.is_good) order by c.id desc limit 1;
  if not found then
    raise exception '%', case when p_checkpoint is null then 'there is no good checkpoint'
        else format('there is no checkpoint %s', p_checkpoint) end using errcode = '22023',
      hint = 'select * from two_tower.checkpoints';
  end if;
  perform pg_advisory_xact_lock(two_tower.switch_lock());
  update two_tower.model_weights
    set state = 'rejected', verdict = 'rejected: overtaken by a rollback'
  where state = 'candidate' and version = (select filling_version from two_tower.state);
  update two_tower.state set
    frozen_at = coalesce(frozen_at, two_tower.now()),
    frozen_reason = coalesce(frozen_reason, format('rollback to checkpoint %s', v_checkpoint.id)),
    epoch = epoch + 1, filling_version = v_checkpoint.candidate_tower, filled_up_to = 0,
    filling_checkpoint = v_checkpoint.id, restored_up_to = '00000000-0000-0000-0000-000000000000';
  return v_checkpoint.id;
end
$$;
comment on function two_tower.rollback(bigint) is
  'Begins the way back to a checkpoint (null: the newest good one) and returns its id. Learning freezes, queued steps are void, ticks restore posts and users, then the slots flip. resume() goes on from there; events stay recorded, and what they taught since is gone.';

create function two_tower.restore_users(p_limit integer default 2000) returns integer
language plpgsql set search_path = '' as $$
declare
  v_state two_tower.state;
  v_ids uuid[];
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  select * into v_state from two_tower.state for no key update;
  if v_state.filling_checkpoint is null or v_state.restored_up_to = two_tower.last_uuid() then
    return 0;
  end if;
  v_ids := array(select u.user_id from two_tower.user_embeddings u
    where u.user_id > v_state.restored_up_to order by u.user_id limit p_limit for no key update);
  update two_tower.user_embeddings u set
    embedding = coalesce(c.embedding, n.zero), engaged_sum = coalesce(c.engaged_sum, n.zero),
    base_embedding = c.base_embedding, base_weight = coalesce(c.base_weight, 0),
    base_source = c.base_source, recent_post_ids = coalesce(c.recent_post_ids, '{}'),
    recent_strengths = coalesce(c.recent_strengths, '{}'),
    engagement_count = coalesce(c.engagement_count, 0)
  from unnest(v_ids) as i (user_id)
    cross join (select array_fill(0::real, array[128])::extensions.vector as zero) n
    left join two_tower.checkpoint_users c
      on c.checkpoint_id = v_state.filling_checkpoint and c.user_id = i.user_id
  where u.user_id = i.user_id;
  update two_tower.state set restored_up_to
    = coalesce(v_ids[cardinality(v_ids)], two_tower.last_uuid());
  return cardinality(v_ids);
end
$$;
comment on function two_tower.restore_users(integer) is
  'In a rollback: gives the next so many users what the checkpoint has of them; those that it does not know start anew. Returns how many.';

create function two_tower.restore_user_tower(p_checkpoint bigint) returns void
language plpgsql set search_path = '' as $$
declare
  v_version bigint := (select user_tower from two_tower.checkpoints where id = p_checkpoint);
begin
  if v_version is not null then
    perform two_tower.activate_version(v_version);
  else
    update two_tower.model_weights set state = 'archived'
    where tower = 'user_tower' and state = 'active';
  end if;
end
$$;
comment on function two_tower.restore_user_tower(bigint) is 'Makes the user tower of a checkpoint serve again, or none.';

create function two_tower.prune_weights() returns integer
language plpgsql set search_path = '' as $$
declare
  v_pruned integer;
begin
  with old as (
    select w.version
    from (select version, state, row_number() over (partition by tower order by version desc)
            as place from two_tower.model_weights) w
    where w.place > (select weight_versions_kept from two_tower.settings)
      and w.state in ('rejected', 'archived')
      and not exists (select from two_tower.checkpoints c
        where w.version in (c.candidate_tower, c.user_tower))
      and not exists (select from two_tower.live_embeddings v
        where v.model_version = w.version and v.slot = (select active_slot from two_tower.state))
  ), gone as (
    delete from two_tower.model_tensors t using old where t.version = old.version
    returning t.version
  )
  select count(distinct version) into v_pruned from gone;
  return v_pruned;
end
$$;
comment on function two_tower.prune_weights() is
  'Forgets the tensors of versions long past (settings.weight_versions_kept per tower), but never of one that serves, is being put in place, or that a checkpoint needs. Metrics of all stay. Returns how many versions lost theirs.';
