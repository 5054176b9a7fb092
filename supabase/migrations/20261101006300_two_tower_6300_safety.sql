-- When learning goes wrong. A freeze stops learning, by hand or on drift. Checkpoints keep what it
-- moved, and audits say which are good. A rollback leads back to one. A rollback is a switch like a
-- promotion's. The other slot is filled from the checkpoint in bounded steps of tick() while
-- readers go on, then the pointer flips.
--
-- Two sessions, a crash: a rollback begins with one short statement under the exclusive lock. It
-- freezes learning and makes deferred steps void. Each step after it commits by itself. Until the
-- flip all serve what served before. A crash in between leaves a state row that says how far it
-- got, and the next tick goes on.

create function two_tower.freeze(p_reason text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if coalesce(trim(p_reason), '') = '' then
    raise exception 'a freeze needs a reason' using errcode = '22023',
      hint = 'Call freeze(''what happened'').';
  end if;
  perform two_tower.lock_switch(10);
  update two_tower.state set frozen_at = two_tower.now(), frozen_reason = p_reason
    where frozen_at is null;
end
$$;
comment on function two_tower.freeze(text) is
  'Stops learning. Events are still recorded, and wait in deferred_events. Returns when no statement is learning any more. Raises 22023 without a reason, and 55P03 when a statement goes on learning for too long.';

create function two_tower.resume(p_learning_rate_factor real default 1,
  p_skip_frozen_events boolean default false)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if p_learning_rate_factor is null or not (
    p_learning_rate_factor > 0 and p_learning_rate_factor <= 1
  ) then
    raise exception 'the factor is not above 0 and at most 1' using errcode = '22023',
      hint = 'Call resume(0.5) to go on at half the learning rate.';
  elsif (select filling_checkpoint is not null from two_tower.state) then
    raise exception 'a rollback is in progress' using errcode = '55000',
      hint = 'Resume when ticks have finished it. two-tower rollback waits for that.';
  end if;
  with skipped as (
    delete from two_tower.deferred_events d where p_skip_frozen_events and d.reason = 'frozen'
    returning d.event_id, d.user_id, d.post_id, d.event_type, d.created_at
  )
  insert into two_tower.unlearned_events (event_id, user_id, post_id, event_type, reason,
    created_at)
  select s.event_id, s.user_id, s.post_id, s.event_type, 'skipped', s.created_at from skipped s;
  update two_tower.state
    set frozen_at = null, frozen_reason = null, learning_rate_factor = p_learning_rate_factor
  where id;
end
$$;
comment on function two_tower.resume(real, boolean) is
  'Ends a freeze: learning goes on, at a factor of its rate. The next ticks learn the events of the freeze, in order. p_skip_frozen_events: they are not learned, only recorded. Raises 22023 for a factor out of range, and 55000 during a rollback.';

create table two_tower.audits (
  id bigint generated always as identity primary key,
  made_at timestamptz not null default two_tower.now(),
  checkpoint_id bigint,
  findings jsonb not null,
  is_good boolean not null
);
comment on table two_tower.audits is 'Audits of the quality of the embeddings.';
comment on column two_tower.audits.checkpoint_id is 'The checkpoint that was just made. Null for an audit by itself.';
comment on column two_tower.audits.findings is 'For each metric its value and state (ok, warning, alert, unknown).';
comment on column two_tower.audits.is_good is 'Whether no metric was in its alert range.';

create function two_tower.measure_quality() returns table (name text, value double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
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
  -- The sum of all products of pairs is the square of the sum's length, less that of each by
  -- itself.
  select 'mean_cosine', (extensions.vector_norm(total) ^ 2 - n) / nullif(n * (n - 1), 0) from summed
  union all
  select 'norm_error', max(abs(extensions.vector_norm(embedding) - 1)) from live;
$$;
comment on function two_tower.measure_quality() is 'Returns the metrics of quality as they are now. value is null where there is nothing to measure.';

create function two_tower.run_audit(p_checkpoint bigint default null) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_findings jsonb;
  v_is_good boolean;
  v_id bigint;
begin
  select jsonb_object_agg(m.name, jsonb_build_object('value', m.value,
           'state', two_tower.grade_metric(t, m.value))),
         bool_and(two_tower.grade_metric(t, m.value) <> 'alert')
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
comment on function two_tower.run_audit(bigint) is 'Audits the embeddings as they are now, stores the findings, and raises alerts. Says of the checkpoint, if one is given, whether it is good. Returns the id of the audit.';

-- A crowd that moves one post stops there, before its drift stops all others.
create function two_tower.hold_posts() returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_post record;
  v_held integer := 0;
begin
  for v_post in
    select v.slot, v.post_id, m.distance
    from two_tower.measure_movement() m cross join two_tower.settings s
      join two_tower.live_embeddings v on v.post_id = m.post_id
        and v.slot = (select active_slot from two_tower.state)
    where m.distance > s.post_movement_limit
    order by v.post_id for no key update of v
  loop
    update two_tower.live_embeddings v set is_held = true
    where v.slot = v_post.slot and v.post_id = v_post.post_id;
    perform two_tower.open_alert('post_held', v_post.post_id::text, format(
      'Events moved post %s by a cosine distance of %s since the newest checkpoint. Further events do not move it until the next.',
      v_post.post_id, round(v_post.distance::numeric, 2)));
    v_held := v_held + 1;
  end loop;
  return v_held;
end
$$;
comment on function two_tower.hold_posts() is 'Holds posts that moved by more than settings.post_movement_limit from the newest checkpoint, and opens an alert for each. Returns how many.';

create function two_tower.release_posts() returns void
language sql set search_path = pg_catalog, pg_temp as $$
  update two_tower.live_embeddings v set is_held = false
  from (select h.slot, h.post_id from two_tower.live_embeddings h where h.is_held
        order by h.post_id, h.slot for no key update) h
  where v.slot = h.slot and v.post_id = h.post_id;
  update two_tower.alerts set closed_at = two_tower.now()
  where kind = 'post_held' and closed_at is null;
$$;
comment on function two_tower.release_posts() is 'Lets held posts move again. Each checkpoint does.';

create function two_tower.checkpoint(p_reason text default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_id bigint;
  v_active bigint := two_tower.active_version('candidate_tower');
begin
  perform pg_advisory_xact_lock(two_tower.bulk_lock());
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
    select v_id, u.user_id, u.embedding, u.engaged_sum, u.prior, u.prior_weight,
      u.prior_source, u.recent_post_ids, u.recent_strengths, u.positive_ids,
      u.positive_interests, u.interest_sums, u.engagement_count, u.reset_count
    from two_tower.user_embeddings u
    returning user_id
  )
  update two_tower.checkpoints set
    posts = (select count(*) from posts), users = (select count(*) from users),
    last_event_id = (select coalesce(max(e.id), 0) from public.engagement_events e)
  where id = v_id;
  perform two_tower.release_posts();
  perform two_tower.run_audit(v_id);
  perform two_tower.drop_old_checkpoints();
  return v_id;
end
$$;
comment on function two_tower.checkpoint(text) is 'Takes a snapshot, audits it, and drops old ones. Returns its id. p_reason: operator, or null for daily or, after a change of the candidate tower, promotion. Writes about 20 MB a second, and keeps no reader or learner waiting. Definer: workers own no table.';

create function two_tower.freeze_on_drift() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_alert two_tower.alerts;
begin
  select a.* into v_alert from two_tower.alerts a
    cross join two_tower.settings s cross join two_tower.state st
  where a.kind = 'metric_out_of_range' and a.subject = 'embedding_drift' and a.closed_at is null
    and not a.details ? 'froze' and s.freeze_on_drift and st.frozen_at is null;
  if not found or two_tower.stop_study_on_drift(v_alert) then
    return false;
  end if;
  perform two_tower.freeze(v_alert.message);
  update two_tower.alerts set details = details || '{"froze": true}' where id = v_alert.id;
  return true;
end
$$;
comment on function two_tower.freeze_on_drift() is 'Freezes learning when an alert of drift is open, and returns whether it did. Where study made most of the drift, switches that off first. Does so once per alert: after a resume() the operator''s word counts.';

create function two_tower.rollback(p_checkpoint bigint default null) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
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
  perform two_tower.lock_switch(10);
  update two_tower.model_weights
    set state = 'rejected', verdict = 'rejected: overtaken by a rollback'
  where state = 'candidate' and version = (select filling_version from two_tower.state);
  update two_tower.state set
    frozen_at = coalesce(frozen_at, two_tower.now()),
    frozen_reason = coalesce(frozen_reason, format('rollback to checkpoint %s', v_checkpoint.id)),
    epoch = epoch + 1, filling_version = v_checkpoint.candidate_tower,
    filled_up_to = two_tower.first_bigint(),
    filling_checkpoint = v_checkpoint.id, restored_up_to = '00000000-0000-0000-0000-000000000000'
  where id;
  insert into two_tower.rollbacks (checkpoint_id, after_event_id, last_event_id)
  select v_checkpoint.id, v_checkpoint.last_event_id, coalesce(max(e.id), 0)
  from public.engagement_events e;
  return v_checkpoint.id;
end
$$;
comment on function two_tower.rollback(bigint) is
  'Begins the way back to a checkpoint (null: the newest good one), and returns its id. Learning freezes, and deferred steps are void. Ticks restore posts and users, then the slots flip. resume() goes on from there. Events stay recorded; what they taught since is gone. Raises 22023 when there is no such checkpoint, and 55P03 when a statement goes on learning for too long.';

create function two_tower.restore_users(p_limit integer default 2000) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
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
    embedding = coalesce(c.embedding, two_tower.combine_user(n.zero, p.prior_weight, p.prior)),
    engaged_sum = coalesce(c.engaged_sum, n.zero),
    prior = p.prior, prior_weight = coalesce(p.prior_weight, 0), prior_source = p.prior_source,
    recent_post_ids = coalesce(c.recent_post_ids, '{}'),
    recent_strengths = coalesce(c.recent_strengths, '{}'),
    positive_ids = coalesce(c.positive_ids, '{}'),
    positive_interests = coalesce(c.positive_interests, '{}'),
    interest_sums = coalesce(c.interest_sums, '{}'),
    engagement_count = coalesce(c.engagement_count, 0)
  from two_tower.user_embeddings i
    cross join (select two_tower.zero_vector() as zero) n
    left join two_tower.checkpoint_users p
      on p.checkpoint_id = v_state.filling_checkpoint and p.user_id = i.user_id
    left join two_tower.checkpoint_users c
      on c.checkpoint_id = p.checkpoint_id and c.user_id = p.user_id
        and c.reset_count = i.reset_count
  where i.user_id = any (v_ids) and u.user_id = i.user_id;
  update two_tower.state
  set restored_up_to = coalesce(v_ids[cardinality(v_ids)], two_tower.last_uuid())
  where id;
  return cardinality(v_ids);
end
$$;
comment on function two_tower.restore_users(integer) is
  'In a rollback, gives the next p_limit users what the checkpoint has of them. Users whom it does not have start anew. Those who began anew since get their prior alone. Returns how many.';
