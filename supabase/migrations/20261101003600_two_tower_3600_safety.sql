-- When learning goes wrong. A freeze stops learning, by hand or on drift. Checkpoints keep what it
-- moved, and audits say which are good. A rollback (the next file) leads back to one.

create function two_tower.freeze(p_reason text, p_since timestamptz default null) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if coalesce(trim(p_reason), '') = '' then
    raise exception 'a freeze needs a reason' using errcode = '22023',
      hint = 'Call freeze(''what happened'').';
  elsif p_since > two_tower.now() then
    raise exception 'what went wrong began in the future' using errcode = '22023',
      hint = 'Say since when it goes on: freeze(''what happened'', now() - interval ''2 hours'').';
  end if;
  perform two_tower.lock_switch(10);
  update two_tower.state set frozen_at = two_tower.now(), frozen_reason = p_reason,
    wrong_since = two_tower.now()
  where frozen_at is null;
  update two_tower.state set wrong_since = least(p_since, frozen_at) where p_since is not null;
end
$$;
comment on function two_tower.freeze(text, timestamptz) is
  'Stops learning. Events are still recorded, and wait in deferred_events. p_since: when what went wrong began, by default now; a rollback takes a checkpoint from before. Called again, it changes p_since alone. Returns when no statement is learning any more. Raises 22023 without a reason or for a time in the future, and 55P03 when a statement goes on learning for too long.';

create function two_tower.resume(p_learning_rate_factor real default 1,
  p_skip_frozen_events boolean default false)
returns boolean language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_was_frozen boolean := (select frozen_at is not null from two_tower.state);
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
  update two_tower.state set frozen_at = null, frozen_reason = null, wrong_since = null,
    learning_rate_factor = p_learning_rate_factor
  where id;
  return v_was_frozen;
end
$$;
comment on function two_tower.resume(real, boolean) is
  'Ends a freeze: learning goes on, at a factor of its rate. The next ticks learn the events of the freeze, in order. p_skip_frozen_events: they are not learned, only recorded. Returns whether learning was frozen: if not, the factor alone changes. Raises 22023 for a factor out of range, and 55000 during a rollback.';

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
comment on column two_tower.audits.is_good is 'Whether no metric of quality (metric_targets.is_quality) was in its alert range.';

create function two_tower.measure_week() returns double precision
language sql stable set search_path = pg_catalog, pg_temp as $$
  select avg(-(v.embedding operator(extensions.<#>) c.embedding))
  from (select n.id from two_tower.checkpoints n
      where n.candidate_tower = two_tower.active_version('candidate_tower')
        and n.made_at <= two_tower.now() - interval '5 days'
      order by abs(extract(epoch from two_tower.now() - interval '7 days' - n.made_at)) limit 1) w
    cross join lateral two_tower.sample_checkpoint(w.id) c
    join two_tower.live_embeddings v on v.post_id = c.post_id
      and v.slot = (select active_slot from two_tower.state);
$$;
comment on function two_tower.measure_week() is 'Returns the mean cosine between the vectors of posts now and in the checkpoint of about a week ago (at least five days). Null where there is none of this candidate tower.';

create function two_tower.measure_balance() returns double precision
language sql stable set search_path = pg_catalog, pg_temp as $$
  select count(*) filter (where x.label) / nullif(sum(cardinality(x.negative_ids))
    + count(*) filter (where not x.label), 0)::double precision
  from (select label, negative_ids from two_tower.training_examples
    where created_at > two_tower.now() - interval '7 days' and label is not null
      and not is_withdrawn limit 100000) x;
$$;
comment on function two_tower.measure_balance() is 'Returns the positives for each negative of the training pairs of the last week, of at most 100,000 events.';

create function two_tower.measure_quality() returns table (name text, value double precision)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_slot smallint := (select active_slot from two_tower.state);
  v_share real := (select 100 * least(1, 200000 / greatest(r.reltuples, 1))
    from pg_catalog.pg_class r where r.oid = 'two_tower.live_embeddings'::regclass);
begin
  return query
  with live as materialized (
    select v.post_id, v.embedding, v.engagement_count
    from two_tower.live_embeddings v tablesample system (v_share) where v.slot = v_slot
  ), top as (
    select embedding from live where engagement_count > 0
    order by engagement_count desc, post_id limit 200
  ), summed as (
    select extensions.sum(embedding) as total, count(*)::double precision as n from top
  )
  select m.name, m.value
  from two_tower.measure_metrics() m join two_tower.metric_targets t using (name)
  where t.is_audited
  union all
  -- The sum of all products of pairs is the square of the sum's length, less that of each by
  -- itself.
  select 'mean_cosine', (extensions.vector_norm(total) ^ 2 - n) / nullif(n * (n - 1), 0) from summed
  union all
  select 'norm_error', max(abs(extensions.vector_norm(embedding) - 1)) from live
  union all
  select 'week_cosine', two_tower.measure_week()
  union all
  select 'training_balance', two_tower.measure_balance();
end
$$;
comment on function two_tower.measure_quality() is 'Returns the metrics that audits report, as they are now, of a sample of about 200,000 rows of live_embeddings. value is null where there is nothing to measure.';

create function two_tower.run_audit(p_checkpoint bigint default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_findings jsonb;
  v_is_good boolean;
  v_id bigint;
begin
  perform two_tower.store_metrics(array_agg(m.name), array_agg(m.value))
    from two_tower.measure_quality() m;
  select jsonb_object_agg(h.name, jsonb_build_object('value', h.value, 'state', h.state)),
         bool_and(h.state <> 'alert' or not t.is_quality)
  into v_findings, v_is_good
  from two_tower.health h join two_tower.metric_targets t using (name) where t.is_audited;
  insert into two_tower.audits (checkpoint_id, findings, is_good)
  values (p_checkpoint, v_findings, v_is_good) returning id into v_id;
  update two_tower.checkpoints set is_good = v_is_good where id = p_checkpoint;
  perform two_tower.raise_alerts();
  return v_id;
end
$$;
comment on function two_tower.run_audit(bigint) is 'Audits the embeddings as they are now, stores the findings, and raises alerts. Says of the checkpoint, if one is given, whether it is good. Returns the id of the audit. Definer: workers have no grant on tables.';

-- A crowd that moves one post stops there. One that moves most of what is engaged with is drift: it
-- stops all.
create function two_tower.hold_posts() returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_post record;
  v_held integer := 0;
begin
  for v_post in
    select v.slot, v.post_id, m.distance
    from (
        select * from two_tower.measure_movement() union
        select * from two_tower.measure_movement(array(
          select distinct e.post_id
          from (select post_id from public.engagement_events order by id desc limit 5000) e))) m
      cross join two_tower.settings s
      join two_tower.live_embeddings v on v.post_id = m.post_id
        and v.slot = (select active_slot from two_tower.state)
    where m.distance > s.post_movement_limit and not v.is_held
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
comment on function two_tower.hold_posts() is 'Holds posts that moved by more than settings.post_movement_limit from the newest checkpoint, and opens an alert for each. Looks at the posts of the newest 5,000 events, and at sample_checkpoint(). Returns how many.';

create function two_tower.release_posts() returns void
language sql set search_path = pg_catalog, pg_temp as $$
  update two_tower.live_embeddings v set is_held = false
  from (select h.slot, h.post_id from two_tower.live_embeddings h where h.is_held
        order by h.post_id, h.slot for no key update) h
  where v.slot = h.slot and v.post_id = h.post_id;
  update two_tower.alerts set closed_at = two_tower.now()
  where kind in ('post_held', 'post_moved_in_concert') and closed_at is null;
$$;
comment on function two_tower.release_posts() is 'Lets held posts move again, and closes the alerts of posts that a crowd moved. Each checkpoint does, and each rollback.';

create function two_tower.checkpoint(p_reason text default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_id bigint;
  v_active bigint := two_tower.active_version('candidate_tower');
  v_table text;
begin
  perform pg_advisory_xact_lock(two_tower.bulk_lock());
  insert into two_tower.checkpoints (reason, candidate_tower, user_tower)
  values (coalesce(p_reason, case when v_active = (
            select candidate_tower from two_tower.checkpoints order by id desc limit 1)
            is not false then 'daily' else 'promotion' end),
          v_active, two_tower.active_version('user_tower'))
  returning id into v_id;
  foreach v_table in array '{checkpoint_posts, checkpoint_users}'::text[] loop
    execute format('create table two_tower.%1$s_%2$s (like two_tower.%1$s including all,
      constraint is_of_this_checkpoint check (checkpoint_id = %2$s))', v_table, v_id);
  end loop;
  -- One statement, so that posts and users are of one moment. It waits for no writer.
  execute format('
    with posts as (
      insert into two_tower.checkpoint_posts_%1$s
      select %1$s, v.post_id, v.embedding, v.engagement_count, v.popularity
      from two_tower.live_embeddings v
      where v.slot = (select active_slot from two_tower.state) and not v.is_pretrained
      returning post_id
    ), users as (
      insert into two_tower.checkpoint_users_%1$s
      select %1$s, u.user_id, u.embedding, u.engaged_sum, u.prior, u.prior_weight,
        u.prior_source, u.recent_post_ids, u.recent_strengths, u.positive_ids,
        u.positive_interests, u.interest_sums, u.engagement_count, u.reset_count
      from two_tower.user_embeddings u
      returning engagement_count
    )
    update two_tower.checkpoints set
      posts = (select count(*) from posts),
      users = (select count(*) from users where engagement_count > 0),
      engagements = (select coalesce(sum(engagement_count), 0) from users),
      last_event_id = (select coalesce(max(e.id), 0) from public.engagement_events e)
    where id = %1$s', v_id);
  -- Attached when it is full, so that nobody waits to read older ones meanwhile. The constraint
  -- spares reading it again.
  foreach v_table in array '{checkpoint_posts, checkpoint_users}'::text[] loop
    execute format('alter table two_tower.%1$s attach partition two_tower.%1$s_%2$s
      for values in (%2$s)', v_table, v_id);
    execute format('alter table two_tower.%1$s_%2$s drop constraint is_of_this_checkpoint',
      v_table, v_id);
  end loop;
  perform two_tower.run_audit(v_id);
  perform two_tower.drop_old_checkpoints();
  -- Last: who likes a post that was held waits for it.
  perform two_tower.release_posts();
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
