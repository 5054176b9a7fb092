-- What is measured, and what a value means.

create table two_tower.metrics (
  name text not null,
  measured_at timestamptz not null default two_tower.now(),
  value double precision,
  note text,
  primary key (name, measured_at)
);
comment on table two_tower.metrics is 'Measurements over time, written by record_metrics() and run_audit(). metric_targets says what they mean.';
comment on column two_tower.metrics.value is 'Null where there was nothing to measure.';
comment on column two_tower.metrics.note is 'Why the value, which is out of its range, is normal now. Null where it is not.';

create table two_tower.metric_targets (
  name text primary key,
  unit text not null,
  target_low double precision,
  target_high double precision,
  alert_low double precision,
  alert_high double precision,
  is_audited boolean not null default false,
  is_quality boolean not null default false,
  constraint quality_is_audited check (is_audited or not is_quality),
  description text not null,
  advice text
    constraint what_raises_an_alert_says_what_to_do
      check (advice is not null or (alert_low is null and alert_high is null))
);
comment on table two_tower.metric_targets is 'Target range and alert range of each metric. Outside the first is a warning, outside the second an alert. A bound that is null is none.';
comment on column two_tower.metric_targets.is_audited is 'Whether audits report the metric.';
comment on column two_tower.metric_targets.is_quality is 'Whether the metric is of the embeddings themselves. An audit that finds such a metric in its alert range is not good. One that passes by itself, such as posts that wait for the encoder, is none.';
comment on column two_tower.metric_targets.advice is 'What to do about an alert.';
insert into two_tower.metric_targets (name, unit, target_low, target_high, alert_low, alert_high,
  is_audited, is_quality, description, advice) values
  ('training_pairs_per_hour', 'pairs', 100, null, 10, null, false, false,
    'Training pairs of the last hour: positives and their negatives.',
    'Users engage, and nothing is learned: see two_tower.unlearned_events and deferred_events.'),
  ('negatives_per_positive', 'ratio', 5, 10, 3, 20, true, false,
    'Negatives for each positive of the last hour.',
    'Few posts can be drawn: see that posts are listed (two_tower.posts) and encoded (a worker).'),
  ('update_latency', 'milliseconds', null, 10, null, 50, false, false,
    'What learning an event takes, at the 95th percentile of a sample of the last hour.',
    'Look for statements that hold locks (pg_stat_activity), and for a busy disk.'),
  ('cold_start_ctr', 'share', 0.01, null, 0.005, null, false, false,
    'Of those who viewed a new post, in its first impressions, the share who engaged, over a day.',
    'Look at the newest posts: spam, or texts that the encoder cannot read (unreadable_posts).'),
  ('post_coverage', 'share', 0.99, null, 0.9, null, true, false,
    'Share of posts with a live embedding, by samples of rows, new posts and those that wait.',
    'Start a worker, or more of them: two-tower worker. sources.missing_rows: see that ticks run.'),
  ('user_coverage', 'share', 0.9, null, 0.7, null, true, true,
    'Share of the users with learned events whose vector is not zero.',
    'Look at users with engagements and a zero vector. Roll back if a change made them.'),
  ('deferred_steps', 'rows', null, 5000, null, 100000, false, false,
    'Rows of deferred steps that wait to be folded.',
    'Ticks do not keep up: see that tick() is called (metrics_age).'),
  ('deferred_events', 'rows', null, 1000, null, 100000, false, false,
    'Events that wait for an embedding, or for the end of a freeze.',
    'Start a worker: their posts have no vectors yet.'),
  ('waiting_events', 'rows', null, 10000, null, 100000, false, false,
    'Events above settings.learned_events_per_minute of their users, which wait to be learned.',
    'Some users send too much: look at two_tower.most_moving_users.'),
  ('longest_wait', 'minutes', null, 30, null, 120, false, false,
    'For how long the first of these events waits. A full queue of a user takes 17 minutes.',
    'Ticks do not keep up: see that tick() is called (metrics_age).'),
  ('dead_jobs', 'jobs', null, 0, null, 0, false, false,
    'Jobs of the last day that failed, or ended with their workers, in each of their attempts.',
    'Read last_error: select * from two_tower.jobs where state = ''dead''.'),
  ('embedding_drift', 'cosine distance per day', null, 0.1, null, 0.3, true, true,
    'Movement since the newest checkpoint, in one version: the smaller median of posts and users.',
    'Freeze, look at two_tower.most_moved_posts, roll back or undo, resume slower.'),
  ('serving_recall', 'share', 0.9, null, 0.7, null, false, false,
    'Share of the 50 nearest posts that the serving index proposes, over a sample of users.',
    'A worker builds the index anew by itself. If none does, start one.'),
  ('week_cosine', 'cosine', 0.95, null, 0.9, null, true, false,
    'Mean between vectors of posts now and in the checkpoint of about a week ago. From audits.',
    'Look at two_tower.most_moved_posts. If no reason is good, roll back or undo.'),
  ('training_balance', 'ratio', 0.1, 0.25, 0.1, 0.5, true, false,
    'Positives for each negative, drawn or given, of the last week. From audits.',
    'See settings.negatives_per_positive, and which events users send (two_tower.signals).'),
  ('partition_runway', 'days', 2, null, 1, null, false, false,
    'For how long there are partitions for what comes.',
    'See that tick() is called (metrics_age), and which statement reads the table for hours.'),
  ('mean_cosine', 'cosine', null, 0.3, null, 0.6, true, true,
    'Mean between the 200 most engaged posts. Near 1 the space has collapsed. From audits.',
    'Roll back: two-tower rollback --dry-run says to where.'),
  ('norm_error', 'length', null, 0.0001, null, 0.001, true, true,
    'Largest distance of a live embedding''s length from 1. From audits.',
    'Roll back: two-tower rollback --dry-run says to where.'),
  ('workers', 'workers', null, null, null, null, false, false,
    'Workers seen within 30 seconds, or with a lease. unattended_work says whether one is missing.',
    null),
  ('unattended_work', 'seconds', null, 120, null, 600, false, false,
    'For how long the first of jobs, posts and texts waits while no worker runs. 0 while one does.',
    'Start a worker: two-tower worker. If one should run, its log says why it ended.'),
  ('waiting_jobs', 'jobs', null, null, null, null, false, false,
    'Jobs that are due and not claimed.',
    null),
  ('waiting_posts', 'posts', null, null, null, null, false, false,
    'Posts that wait for the encoder, counted up to 10,000.',
    null),
  ('waiting_texts', 'texts', null, null, null, null, false, false,
    'Texts of embed_text() that wait for the encoder, counted up to 10,000.',
    null),
  ('oldest_waiting_job', 'seconds', null, 300, null, 3600, false, false,
    'How long the job that has been due longest has waited.',
    'Start a worker, or more of them: two-tower worker.'),
  ('oldest_waiting_post', 'seconds', null, 60, null, 3600, false, false,
    'How long the oldest of these posts has waited.',
    'Start a worker, or more of them: two-tower worker.'),
  ('oldest_waiting_text', 'seconds', null, 10, null, 3600, false, false,
    'How long the text that asked for the encoder first has waited.',
    'Start a worker, or more of them: two-tower worker.'),
  ('unreadable_posts', 'share', null, 0.05, null, 0.5, false, false,
    'Share of the newest 1,000 posts whose texts settings.encoder cannot read.',
    'Set settings.encoder to a model that reads the language of the posts.'),
  ('broken_sources', 'tables', null, 0, null, null, false, false,
    'Attached tables that are not followed.',
    null),
  ('open_alerts', 'alerts', null, 0, null, null, false, false, 'Alerts that are open.',
    null),
  ('is_frozen', 'boolean', null, 0, null, null, false, false, '1 while learning is frozen.',
    null),
  ('posts', 'posts', null, null, null, null, false, false,
    'Posts of the registry, as Postgres estimates them.',
    null),
  ('users', 'users', null, null, null, null, false, false,
    'Users with a vector, as Postgres estimates them.',
    null),
  ('events', 'events', null, null, null, null, false, false,
    'Events that are kept, as Postgres estimates them.',
    null);

create function two_tower.grade_metric(p_target two_tower.metric_targets, p_value double precision)
returns text language sql immutable set search_path = pg_catalog, pg_temp as $$
  select case
    when p_value is null then 'unknown'
    when p_value < p_target.alert_low or p_value > p_target.alert_high then 'alert'
    when p_value < p_target.target_low or p_value > p_target.target_high then 'warning'
    else 'ok' end;
$$;
comment on function two_tower.grade_metric(two_tower.metric_targets, double precision) is 'Returns ok, warning, alert or, for null, unknown.';
