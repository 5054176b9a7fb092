-- What an operator looks at: metrics over time, and one view that says whether all is well.

create table two_tower.metrics (
  name text not null,
  measured_at timestamptz not null default two_tower.now(),
  value double precision,
  primary key (name, measured_at)
);
comment on table two_tower.metrics is 'Measurements over time, written by record_metrics() and run_audit(). metric_targets says what they mean.';
comment on column two_tower.metrics.value is 'Null where there was nothing to measure.';

create table two_tower.metric_targets (
  name text primary key,
  unit text not null,
  target_low double precision,
  target_high double precision,
  alert_low double precision,
  alert_high double precision,
  is_quality boolean not null default false,
  description text not null
);
comment on table two_tower.metric_targets is 'Target range and alert range of each metric. Outside the first is a warning, outside the second an alert. A bound that is null is none.';
comment on column two_tower.metric_targets.is_quality is 'Whether the metric is of the embeddings themselves. An audit that finds such a metric in its alert range is not good.';
insert into two_tower.metric_targets (name, unit, target_low, target_high, alert_low, alert_high,
  is_quality, description) values
  ('training_pairs_per_hour', 'pairs', 100, null, 10, null, false,
    'Training pairs of the last hour: positives and their negatives.'),
  ('negatives_per_positive', 'ratio', 5, 10, 3, 20, false,
    'Negatives for each positive of the last hour.'),
  ('update_latency', 'milliseconds', null, 10, null, 50, false,
    'What learning an event takes, at the 95th percentile of a sample of the last hour.'),
  ('cold_start_ctr', 'share', 0.01, null, 0.005, null, false,
    'Of those who viewed a new post, in its first impressions, the share who engaged, over a day.'),
  ('post_coverage', 'share', 0.99, null, 0.9, null, true,
    'Share of the posts of the last day that have a base embedding.'),
  ('user_coverage', 'share', 0.9, null, 0.7, null, true,
    'Share of the users with learned events whose vector is not zero.'),
  ('deferred_steps', 'rows', null, 5000, null, 100000, false,
    'Rows of deferred steps that wait to be folded.'),
  ('deferred_events', 'rows', null, 1000, null, 100000, false,
    'Events that wait for an embedding, or for the end of a freeze.'),
  ('waiting_events', 'rows', null, 10000, null, 100000, false,
    'Events above settings.learned_events_per_minute of their users, which wait to be learned.'),
  ('longest_wait', 'minutes', null, 30, null, 120, false,
    'For how long the first of these events waits. A full queue of a user takes 17 minutes.'),
  ('dead_jobs', 'jobs', null, 0, null, 5, false, 'Jobs that failed for good in a day.'),
  ('embedding_drift', 'cosine distance per day', null, 0.1, null, 0.3, true,
    'Movement since the newest checkpoint, in one version: the smaller median of posts and users.'),
  ('serving_recall', 'share', 0.9, null, 0.7, null, false,
    'Share of the 50 nearest posts that the serving index proposes, over a sample of users.'),
  ('mean_cosine', 'cosine', null, 0.3, null, 0.6, true,
    'Mean between the 200 most engaged posts. Near 1 the space has collapsed. From audits.'),
  ('norm_error', 'length', null, 0.0001, null, 0.001, true,
    'Largest distance of a live embedding''s length from 1. From audits.'),
  ('workers', 'workers', 1, null, null, null, false,
    'Workers that were seen within 30 seconds, or have a job whose lease goes on.'),
  ('waiting_jobs', 'jobs', null, null, null, null, false, 'Jobs that are due and not claimed.'),
  ('waiting_posts', 'posts', null, null, null, null, false,
    'Posts that wait for the encoder, counted up to 10,000.'),
  ('waiting_texts', 'texts', null, null, null, null, false,
    'Texts of embed_text() that wait for the encoder, counted up to 10,000.'),
  ('oldest_waiting_job', 'seconds', null, 300, null, 3600, false,
    'How long the job that has been due longest has waited.'),
  ('oldest_waiting_post', 'seconds', null, 60, null, 3600, false,
    'How long the oldest of these posts has waited.'),
  ('oldest_waiting_text', 'seconds', null, 10, null, 3600, false,
    'How long the text that asked for the encoder first has waited.'),
  ('unreadable_posts', 'share', null, 0.05, null, 0.5, false,
    'Share of the newest 1,000 posts whose texts settings.encoder cannot read.'),
  ('broken_sources', 'tables', null, 0, null, null, false,
    'Attached tables that are not followed.'),
  ('open_alerts', 'alerts', null, 0, null, null, false, 'Alerts that are open.'),
  ('is_frozen', 'boolean', null, 0, null, null, false, '1 while learning is frozen.'),
  ('posts', 'posts', null, null, null, null, false,
    'Posts of the registry, as Postgres estimates them.'),
  ('users', 'users', null, null, null, null, false,
    'Users with a vector, as Postgres estimates them.'),
  ('events', 'events', null, null, null, null, false,
    'Events that are kept, as Postgres estimates them.');

create function two_tower.grade_metric(p_target two_tower.metric_targets, p_value double precision)
returns text language sql immutable set search_path = pg_catalog, pg_temp as $$
  select case
    when p_value is null then 'unknown'
    when p_value < p_target.alert_low or p_value > p_target.alert_high then 'alert'
    when p_value < p_target.target_low or p_value > p_target.target_high then 'warning'
    else 'ok' end;
$$;
comment on function two_tower.grade_metric(two_tower.metric_targets, double precision) is 'Returns ok, warning, alert or, for null, unknown.';

-- Neither a few accounts that move many posts, nor many accounts that move a few, are drift of all.
create function two_tower.measure_drift() returns double precision
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_share real := (select 100 * least(1, 2000 / greatest(r.reltuples, 1))
    from pg_catalog.pg_class r where r.oid = 'two_tower.user_embeddings'::regclass);
begin
  return (
    with post as materialized (
      select * from two_tower.measure_movement()
    ), account as (
      select avg(p.distance) as distance
      from two_tower.user_embeddings u tablesample system (v_share)
        cross join lateral unnest(u.recent_post_ids) as r (post_id)
        join post p on p.post_id = r.post_id
      group by u.user_id
    )
    select least(
        (select percentile_cont(0.5) within group (order by distance) from post),
        (select percentile_cont(0.5) within group (order by distance) from account))
      / (select max(days) from post)
  );
end
$$;
comment on function two_tower.measure_drift() is
  'Returns drift: the cosine distance from the newest checkpoint, per day, of the posts that were engaged with since. It is the smaller of two medians: over posts, and over accounts, each with the mean of those of its last engagements. Accounts are a sample of about 2,000. Returns null after a change of the candidate tower: a promotion is not drift.';

-- Cheap: what is counted stands in small partial indexes, and the rest Postgres estimates.
create function two_tower.measure_queues() returns table (name text, value double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with clock as materialized (select two_tower.now() as now), due as materialized (
    select j.run_at from two_tower.jobs j, clock c where j.state = 'pending' and j.run_at <= c.now
  ), texts as materialized (
    select t.requested_at from two_tower.requested_texts t
    where t.content is not null order by t.turn_at limit 10000
  ), posts as materialized (
    select p.requested_at from two_tower.due_posts p, clock c
    where p.requested_at <= c.now order by p.turn limit 10000
  ), rows as materialized (
    select t.name, sum(r.reltuples) filter (where r.reltuples >= 0) as value
    from (values ('posts', 'two_tower.posts'), ('users', 'two_tower.user_embeddings'),
        ('events', 'public.engagement_events')) as t (name, relation)
      join pg_catalog.pg_class r on r.relkind = 'r' and (r.oid = t.relation::regclass
        or r.oid in (select p.relid from pg_partition_tree(t.relation::regclass) p))
    group by t.name
  )
  select 'workers', count(*) from (
      select w.name from two_tower.workers w, clock c
      where w.seen_at > c.now - interval '30 seconds'
      union
      select j.worker from two_tower.jobs j, clock c
      where j.state = 'running' and j.lease_until > c.now) w
  union all select 'waiting_jobs', count(*) from due
  union all select 'waiting_posts', count(*) from posts
  union all select 'waiting_texts', count(*) from texts
  union all select 'oldest_waiting_job',
    coalesce(extract(epoch from max(c.now - d.run_at)), 0) from due d, clock c
  union all select 'oldest_waiting_post',
    coalesce(extract(epoch from max(c.now - p.requested_at)), 0) from posts p, clock c
  union all select 'oldest_waiting_text',
    coalesce(extract(epoch from max(c.now - t.requested_at)), 0) from texts t, clock c
  union all select 'broken_sources', count(*) from two_tower.sources where state = 'broken'
  union all select 'open_alerts', count(*) from two_tower.alerts where closed_at is null
  union all select 'is_frozen', (frozen_at is not null)::integer from two_tower.state
  union all select r.name, r.value from rows r;
$$;
comment on function two_tower.measure_queues() is 'Returns the metrics of what waits, and of how much there is. Reads no large table.';

create function two_tower.measure_metrics() returns table (name text, value double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with recent as (
    select count(*) filter (where x.label) as positives,
      coalesce(sum(cardinality(x.negative_ids)), 0) as negatives
    from two_tower.training_examples x where x.created_at > two_tower.now() - interval '1 hour'
  )
  select 'training_pairs_per_hour', positives + negatives from recent
  union all select 'negatives_per_positive', negatives / nullif(positives, 0)::double precision
    from recent
  union all select 'update_latency', percentile_cont(0.95) within group (order by u.milliseconds)
    from two_tower.update_latencies u where u.measured_at > two_tower.now() - interval '1 hour'
  union all select 'cold_start_ctr', two_tower.cold_start_ctr()
  union all select 'post_coverage', avg((p.encoded_hash is not null)::integer)
    from two_tower.posts p
    where p.created_at between two_tower.now() - interval '1 day' and two_tower.now()
      and p.is_listed
  union all select 'user_coverage', avg((extensions.vector_norm(u.embedding) > 0)::integer)
    from (select * from two_tower.user_embeddings where engagement_count > 0 order by user_id
      limit 10000) u
  union all select 'unreadable_posts', avg(n.is_unreadable::integer)
    from (select p.is_unreadable from two_tower.posts p
      where p.is_listed and p.encoded_hash is not null
      order by p.created_at desc, p.id limit 1000) n
  union all select 'deferred_steps', count(*)
    from (select from two_tower.deferred_steps limit 200000) q
  union all select 'deferred_events', count(*)
    from (select from two_tower.deferred_events where reason <> 'minute_full' limit 200000) q
  union all select w.name, w.value
    from (
      select count(*)::double precision as events,
        extract(epoch from two_tower.now() - min(q.deferred_at))::double precision / 60 as minutes
      from (select d.deferred_at from two_tower.deferred_events d
        where d.reason = 'minute_full' limit 200000) q
    ) m cross join lateral (
      values ('waiting_events', m.events), ('longest_wait', coalesce(m.minutes, 0))
    ) as w (name, value)
  union all select 'dead_jobs', count(*) from two_tower.jobs
    where state = 'dead' and finished_at > two_tower.now() - interval '1 day'
  union all select 'serving_recall', (select recall from two_tower.serving_index)
  union all select 'embedding_drift', two_tower.measure_drift()
  union all select * from two_tower.measure_study()
  union all select * from two_tower.measure_queues();
$$;
comment on function two_tower.measure_metrics() is 'Returns the metrics as they are now, but those that only audits measure. value is null where there is nothing to measure.';

-- Asked of the catalogue: names of a schema that one may not use would raise.
create function two_tower.lacks_broadcast_policy() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (
    select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'realtime' and c.relname = 'messages'
      and not exists (select from pg_catalog.pg_policy p
        where p.polrelid = c.oid and p.polname = 'readers receive what two_tower tells them'));
$$;
comment on function two_tower.lacks_broadcast_policy() is 'Returns whether Realtime is here and no policy lets readers receive broadcasts: see allow_broadcasts().';

-- A restore can lose what lies outside of the schemas that were dumped, such as the job of pg_cron.
-- Somebody can disable a trigger. Each is silent by itself.
create function two_tower.find_missing_parts() returns text[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_missing text[];
  v_is_scheduled boolean := true;
begin
  v_missing := array(
    select format('trigger %s on %s', n.trigger_name, n.table_name)
    from (
      values
        ('request_erasure', 'two_tower.users'), ('learn_from_events', 'public.engagement_events'),
        ('resolve_post_key', 'public.engagement_events'),
        ('clamp_happened_at', 'public.engagement_events'),
        ('check_readable', 'public.engagement_events'),
        ('admit_muted_term', 'public.muted_terms'),
        ('check_arm', 'two_tower.experiment_arms'),
        ('learn_from_blocks', 'two_tower.blocks'), ('unlearn_blocks', 'two_tower.blocks'),
        ('keep_row', 'two_tower.settings'), ('change_encoder', 'two_tower.settings'),
        ('record_setting_change', 'two_tower.settings'),
        ('record_signal_change', 'two_tower.signals'),
        ('add_to_serving_index', 'two_tower.live_embeddings'),
        ('remove_from_serving_index', 'two_tower.live_embeddings'),
        ('add_to_exploration_pool', 'two_tower.live_embeddings')
      union all
      select 'two_tower_' || e.event, s.relation::text
      from two_tower.sources s
        cross join unnest('{insert, update, delete, truncate}'::text[]) as e (event)
      where s.state <> 'detached'
    ) as n (trigger_name, table_name)
    where not exists (
      select from pg_catalog.pg_trigger t
      where t.tgrelid = to_regclass(n.table_name) and t.tgname = n.trigger_name
        and t.tgenabled <> 'D')
    order by 1);
  if to_regclass('cron.job') is not null then
    execute 'select exists (select from cron.job where jobname = ''two_tower_tick'' and active)'
    into v_is_scheduled;
  end if;
  return v_missing
    || case when not v_is_scheduled then array['job two_tower_tick of pg_cron'] end
    || case when two_tower.lacks_broadcast_policy()
        and (select announced_readers > 0 from two_tower.settings)
      then array['policy of broadcasts: call two_tower.allow_broadcasts()'] end;
end
$$;
comment on function two_tower.find_missing_parts() is
  'Returns what the migrations made and what is gone or disabled since: triggers, the job of pg_cron, the policy of broadcasts. Empty when all is there. Definer: workers have no grant on cron.';

create view two_tower.health with (security_invoker = true) as
select
  t.name, m.value, t.unit, t.target_low, t.target_high, t.alert_low, t.alert_high,
  two_tower.grade_metric(t, m.value) as state,
  m.measured_at, t.description
from two_tower.metric_targets as t
left join lateral (
  select x.value, x.measured_at from two_tower.metrics as x where x.name = t.name
    order by x.measured_at desc limit 1
) as m on true
union all
select
  'pgvector', null, 'version', null, null, null, null,
  case
    when (string_to_array(x.extversion, '.')::integer[])[1:3] < array[0, 8, 4] then 'alert'
    else 'ok'
  end,
  pg_catalog.now(), 'pgvector ' || x.extversion
    || ': before 0.8.4, concurrent insert and vacuum can damage an HNSW index.'
from pg_catalog.pg_extension as x where x.extname = 'vector'
union all
select
  'missing_parts', cardinality(m.parts), 'parts', null, 0, null, 0,
  case when m.parts = '{}' then 'ok' else 'alert' end, pg_catalog.now(),
  case when m.parts = '{}' then 'All that the migrations made is there.'
    else 'Gone or disabled: ' || array_to_string(m.parts, ', ') || '.' end
from (select two_tower.find_missing_parts() as parts) as m
union all
select
  'metrics_age', m.age, 'seconds', null, 120, null, 600,
  case when m.age > 600 then 'alert' when m.age > 120 then 'warning' else 'ok' end,
  pg_catalog.now(), 'How long ago tick() recorded metrics. It does so every minute.'
from (
  select extract(epoch from two_tower.now() - max(x.measured_at))::double precision as age
  from two_tower.metrics as x where x.name = 'workers'
) as m;
comment on view two_tower.health is 'The latest value of each metric against its target range and alert range, and what to know about this installation.';
comment on column two_tower.health.state is 'ok, warning, alert or unknown.';

create function two_tower.raise_alerts() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_metric record;
begin
  for v_metric in
    select h.name, h.value, h.state, h.description from two_tower.health h
    where h.state in ('ok', 'warning', 'alert') order by h.name
  loop
    if v_metric.state = 'alert' then
      perform two_tower.open_alert('metric_out_of_range', v_metric.name,
        format('%s is %s. %s', v_metric.name, v_metric.value, v_metric.description),
        jsonb_build_object('value', v_metric.value));
    else
      perform two_tower.close_alert('metric_out_of_range', v_metric.name);
    end if;
  end loop;
end
$$;
comment on function two_tower.raise_alerts() is 'Opens an alert for each metric in its alert range. Closes the alerts of metrics that have left it.';

create function two_tower.record_metrics() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  insert into two_tower.metrics (name, value) select m.name, m.value
    from two_tower.measure_metrics() m
  on conflict (name, measured_at) do update set value = excluded.value;
  delete from two_tower.metrics where (name, measured_at) in (
    select name, measured_at from two_tower.metrics
    where measured_at < two_tower.now() - interval '30 days' limit 1000);
  delete from two_tower.update_latencies where event_id in (
    select u.event_id from two_tower.update_latencies u
    where u.measured_at < two_tower.now() - interval '1 hour' limit 10000);
  perform two_tower.raise_alerts();
end
$$;
comment on function two_tower.record_metrics() is 'Stores the metrics, and raises alerts. Deletes at most 1,000 measurements that are older than 30 days.';

-- What waits is measured anew: a figure of a minute ago would hide that ticks have stopped.
create function public.read_metrics()
returns table (name text, value double precision, unit text, target_low double precision,
  target_high double precision, alert_low double precision, alert_high double precision,
  state text, description text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select h.name, v.value, h.unit, h.target_low, h.target_high, h.alert_low, h.alert_high,
    case when q.name is null then h.state else two_tower.grade_metric(t, v.value) end,
    h.description
  from two_tower.health h
    left join two_tower.metric_targets t using (name)
    left join two_tower.measure_queues() q using (name)
    cross join lateral (
      select case when q.name is null then h.value else q.value end as value) v
  order by h.name;
$$;
comment on function public.read_metrics() is
  'For back ends with the service role, such as an exporter to Prometheus: returns a row for each figure of two_tower.health. What waits, and how much there is, is measured at the moment of the call; the rest when tick() last recorded it, at most a minute ago. value is null, and state unknown, where there is nothing to measure. Names do not change. It is cheap: call it as often as you like.';

create view two_tower.overview with (security_invoker = true) as
select
  (select count(*) from two_tower.posts) as posts,
  (select count(*) from two_tower.live_embeddings as v
    where v.slot = s.active_slot) as encoded_posts,
  (select count(*) from two_tower.user_embeddings) as users,
  (select count(*) from public.engagement_events) as events,
  w.deferred_events, w.waiting_events, w.longest_wait,
  (select count(*) from two_tower.deferred_steps) as deferred_steps, c.learning_rule,
  two_tower.active_version('candidate_tower') as candidate_tower,
  (select case when not m.config ? 'start' then 'trained'
      when m.config ? 'centred_on' then 'centred'
      when m.config ? 'fitted_on' then 'fitted' else 'data-free' end
    from two_tower.model_weights as m
    where m.version = two_tower.active_version('candidate_tower')) as projection,
  (select d.step from two_tower.first_tower_due() as d) as projection_due,
  two_tower.active_version('user_tower') as user_tower,
  s.filling_version, s.frozen_at, s.frozen_reason
from two_tower.state as s
cross join two_tower.settings as c
cross join (
  select
    count(*) filter (where d.reason <> 'minute_full') as deferred_events,
    count(*) filter (where d.reason = 'minute_full') as waiting_events,
    two_tower.now() - min(d.deferred_at) filter (where d.reason = 'minute_full') as longest_wait
  from two_tower.deferred_events as d
) as w;
comment on view two_tower.overview is 'One row: how much there is, which rule and versions are at work, whether learning is frozen. It counts tables: for people, not for programs in a loop.';
comment on column two_tower.overview.encoded_posts is 'Posts with a live embedding.';
comment on column two_tower.overview.deferred_events is 'Events that wait for an embedding, or for the end of a freeze.';
comment on column two_tower.overview.waiting_events is 'Events that wait because the minute of their user was full.';
comment on column two_tower.overview.longest_wait is 'For how long the first of waiting_events waits.';
comment on column two_tower.overview.projection is 'How the candidate tower that serves came about: data-free, fitted, centred or trained.';
comment on column two_tower.overview.projection_due is 'What a tick will make of the first projection. Null for nothing.';
comment on column two_tower.overview.filling_version is 'The candidate tower for which a slot is being filled. Null for none.';
