-- What an operator looks at: a switch for learning, metrics over time, and one view that says
-- whether all is well.

create function two_tower.freeze(p_reason text) returns void
language plpgsql set search_path = '' as $$
begin
  if coalesce(trim(p_reason), '') = '' then
    raise exception 'a freeze needs a reason' using errcode = '22023',
      hint = 'freeze(''what happened'')';
  end if;
  perform pg_advisory_xact_lock(two_tower.switch_lock());
  update two_tower.state set frozen_at = two_tower.now(), frozen_reason = p_reason
    where frozen_at is null;
end
$$;
comment on function two_tower.freeze(text) is
  'Stops learning. Events are still recorded; what they teach waits in deferred_events. Returns when no statement is learning any more.';

create function two_tower.resume(p_learning_rate_factor real default 1,
  p_skip_frozen_events boolean default false)
returns void language sql set search_path = '' as $$
  with skipped as (
    delete from two_tower.deferred_events d where p_skip_frozen_events and d.reason = 'frozen'
    returning d.event
  )
  insert into two_tower.unlearned_events (event_id, user_id, post_id, event_type, reason,
    created_at)
  select (event).id, (event).user_id, (event).post_id, (event).event_type, 'skipped',
    (event).created_at
  from skipped;
  update two_tower.state
    set frozen_at = null, frozen_reason = null, learning_rate_factor = p_learning_rate_factor;
$$;
comment on function two_tower.resume(real, boolean) is
  'Learning goes on, at a factor of its rate. The events of the freeze are learned by the next ticks, in order, or skipped: they stay recorded.';

create table two_tower.alerts (
  id bigint generated always as identity primary key,
  kind text not null,
  subject text not null default '',
  message text not null,
  details jsonb not null default '{}',
  occurrences bigint not null default 1,
  opened_at timestamptz not null default two_tower.now(),
  last_seen_at timestamptz not null default two_tower.now(),
  closed_at timestamptz
);
comment on table two_tower.alerts is 'What an operator should look at. One open alert per kind and subject; closing it lets the next occurrence open another.';
comment on column two_tower.alerts.subject is 'What it is about, within its kind: a post, a metric, a version.';
comment on column two_tower.alerts.occurrences is 'How often it was raised since it was opened.';
create unique index one_open_alert_per_kind_and_subject on two_tower.alerts (kind, subject)
  where closed_at is null;

create function two_tower.open_alert(p_kind text, p_subject text, p_message text,
  p_details jsonb default '{}')
returns void language sql set search_path = '' as $$
  insert into two_tower.alerts as a (kind, subject, message, details)
  values (p_kind, p_subject, p_message, p_details)
  on conflict (kind, subject) where closed_at is null do update set
    message = excluded.message, details = excluded.details, occurrences = a.occurrences + 1,
    last_seen_at = excluded.last_seen_at;
$$;
comment on function two_tower.open_alert(text, text, text, jsonb) is 'Opens an alert, or counts one more occurrence of the one that is open.';

create table two_tower.metrics (
  name text not null,
  measured_at timestamptz not null default two_tower.now(),
  value double precision,
  primary key (name, measured_at)
);
comment on table two_tower.metrics is 'Measurements over time, written by record_metrics(). What they mean stands in metric_targets.';

create table two_tower.metric_targets (
  name text primary key,
  unit text not null,
  target_low double precision,
  target_high double precision,
  alert_low double precision,
  alert_high double precision,
  description text not null
);
comment on table two_tower.metric_targets is 'Target range and alert range of each metric: outside the first is a warning, outside the second an alert.';
insert into two_tower.metric_targets (name, unit, target_low, target_high, alert_low, alert_high,
  description) values
  ('training_pairs_per_hour', 'pairs', 100, null, 10, null, 'Training pairs of the last hour.'),
  ('negatives_per_positive', 'ratio', 5, 10, 3, 20,
    'Negatives for each positive pair of the last hour.'),
  ('post_coverage', 'share', 0.99, null, 0.9, null,
    'Posts of the last day that have an embedding.'),
  ('user_coverage', 'share', 0.9, null, 0.7, null,
    'Users with learned events whose vector is not zero.'),
  ('deferred_pushes', 'rows', null, 5000, null, 100000,
    'Pushes on negatives that wait to be folded in.'),
  ('deferred_events', 'rows', null, 1000, null, 100000,
    'Events that wait for an embedding or for the end of a freeze.'),
  ('dead_jobs', 'jobs', null, 0, null, 5, 'Jobs that failed for good in the last day.');

create function two_tower.measure_metrics() returns table (name text, value double precision)
language sql stable set search_path = '' as $$
  with recent as (
    select count(*) filter (where x.label) as positives,
      coalesce(sum(cardinality(x.negative_ids)), 0) as negatives
    from two_tower.training_examples x where x.created_at > two_tower.now() - interval '1 hour'
  )
  select 'training_pairs_per_hour', positives + negatives from recent
  union all select 'negatives_per_positive', negatives / nullif(positives, 0)::double precision
    from recent
  union all select 'post_coverage', avg((b.base_embedding is not null)::integer)
    from two_tower.base_embeddings b join public.posts p on p.id = b.post_id
    where p.created_at > two_tower.now() - interval '1 day' and p.deleted_at is null
  union all select 'user_coverage', avg((extensions.vector_norm(u.embedding) > 0)::integer)
    from (select * from two_tower.user_embeddings where engagement_count > 0 order by user_id
      limit 10000) u
  union all select 'deferred_pushes', count(*)
    from (select from two_tower.deferred_pushes limit 200000) q
  union all select 'deferred_events', count(*)
    from (select from two_tower.deferred_events limit 200000) q
  union all select 'dead_jobs', count(*) from two_tower.jobs
    where state = 'dead' and finished_at > two_tower.now() - interval '1 day';
$$;
comment on function two_tower.measure_metrics() is 'The metrics as they are now. Null where there is nothing to measure.';

create function two_tower.record_metrics() returns void
language sql set search_path = '' as $$
  insert into two_tower.metrics (name, value) select m.name, m.value
    from two_tower.measure_metrics() m
  on conflict do nothing;
  delete from two_tower.metrics where (name, measured_at) in (
    select name, measured_at from two_tower.metrics
    where measured_at < two_tower.now() - interval '30 days' limit 1000);
$$;
comment on function two_tower.record_metrics() is 'Stores the metrics, and forgets some of those older than 30 days.';

create view two_tower.health with (security_invoker = true) as
select
  t.name, m.value, t.unit, t.target_low, t.target_high, t.alert_low, t.alert_high,
  case
    when m.value is null then 'unknown'
    when m.value < t.alert_low or m.value > t.alert_high then 'alert'
    when m.value < t.target_low or m.value > t.target_high then 'warning'
    else 'ok'
  end as state,
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
    when (string_to_array(x.extversion, '.')::integer [])[1:3] < array[0, 8, 4] then 'warning'
      else 'ok'
  end,
  pg_catalog.now(), 'pgvector ' || x.extversion ||
    ': before 0.8.4 an HNSW index can be damaged by concurrent insert and vacuum.'
from pg_catalog.pg_extension as x where x.extname = 'vector';
comment on view two_tower.health is 'The latest value of each metric against its target and alert range, and what to know about this installation.';

create view two_tower.overview with (security_invoker = true) as
select
  (select count(*) from public.posts) as posts,
  (select count(*) from two_tower.live_embeddings as v
    where v.slot = s.active_slot) as encoded_posts,
  (select count(*) from two_tower.user_embeddings) as users,
  (select count(*) from public.engagement_events) as events,
  (select count(*) from two_tower.deferred_events) as deferred_events,
  (select count(*) from two_tower.deferred_pushes) as deferred_pushes,
  c.learning_rule,
  two_tower.active_version('candidate_tower') as candidate_tower,
  two_tower.active_version('user_tower') as user_tower,
  s.filling_version, s.frozen_at, s.frozen_reason
from two_tower.state as s
cross join two_tower.settings as c;
comment on view two_tower.overview is 'One row: how much there is, which rule and versions are at work, whether learning is frozen. Counts tables: for people, not for programs in a loop.';
