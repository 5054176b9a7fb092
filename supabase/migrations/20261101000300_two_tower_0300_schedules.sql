-- What runs when. tick() reads these rows. A schedule that runs in a worker becomes a job. One that
-- runs in the database becomes a call of the function of that name. One that runs in either becomes
-- a job while a worker runs, else a call.

create table two_tower.schedules (
  kind text primary key,
  every interval,
  every_events integer,
  runs_in text not null constraint place_to_run_is_known
    check (runs_in in ('worker', 'database', 'either')),
  is_enabled boolean not null default true,
  last_run_at timestamptz,
  last_event_id bigint not null default 0,
  description text not null,
  constraint a_schedule_is_by_time_or_by_events
    check (every is not null or every_events is not null),
  constraint a_schedule_does_not_run_all_the_time check (every >= '1 second' and every_events > 0)
);
comment on table two_tower.schedules is 'What runs when. Change an interval, or disable a schedule, with an UPDATE. However many runs were missed, one makes up for them.';
comment on column two_tower.schedules.kind is 'The kind of the job or, in the database, the name of the function.';
comment on column two_tower.schedules.every is 'Runs when this time has passed since last_run_at. Of a schedule by events: if a twentieth of every_events was learned.';
comment on column two_tower.schedules.every_events is 'Runs after this number of learned engagements. Accounts count by their weight, each for at most a share (settings.account_share).';
comment on column two_tower.schedules.runs_in is 'worker: becomes a job. database: becomes a call within tick(). either: becomes a job while a worker runs, so that no tick waits for what takes minutes; else a call.';
comment on column two_tower.schedules.last_event_id is 'Of a schedule by events: the newest event that was counted, or that was there at the last run. The events after it count.';
comment on column two_tower.schedules.last_run_at is 'Set it to null to run a schedule by time at the next tick.';
insert into two_tower.schedules (kind, every, every_events, runs_in, description) values
  ('train_candidate_tower', null, 1000, 'worker',
    'Trains the candidate tower on the newest training pairs.'),
  ('study', '1 day', 1000, 'worker',
    'Repeats the newest positives, and moves posts by what it learns.'),
  ('train_user_tower', '1 hour', null, 'worker',
    'Trains the user tower. Encodes active users with the version that serves.'),
  ('create_partitions_ahead', '1 day', null, 'database',
    'Makes the partitions that will be needed soon.'),
  ('drop_old_partitions', '1 day', null, 'database',
    'Drops partitions that are older than settings keep them.'),
  ('request_reconciliation', '1 day', null, 'database',
    'Asks for a walk of every attached table, which finds what its triggers missed.'),
  ('sample_sources', '1 minute', null, 'database',
    'Samples attached tables for rows that no trigger met. Asks for a walk where there are some.'),
  ('request_refresh', '1 day', null, 'database',
    'Asks for a walk over all posts, which mends what is missing or of another version.'),
  ('request_recompute', '7 days', null, 'database',
    'Asks for a walk over all posts, which computes the vectors of untouched ones anew.'),
  ('link_accounts', '5 minutes', null, 'database',
    'Links imported users with the accounts that they got since.'),
  ('hold_posts', '1 minute', null, 'database',
    'Holds posts that were moved too far since the newest checkpoint.'),
  ('prune_jobs', '10 minutes', null, 'database',
    'Deletes jobs that were done a day ago, or died 30 days ago.'),
  ('prune_cron_history', '1 day', null, 'database',
    'Deletes what pg_cron keeps of ticks older than a day.'),
  ('refresh_popular_candidates', '5 minutes', null, 'database',
    'Lists the most popular posts, as candidates for pages.'),
  ('set_popularity_clock', '5 minutes', null, 'database',
    'Sets how fast popularity decays, by how much is engaged with.'),
  ('learn_warmth', '1 minute', null, 'database',
    'Learns from new readers how warm new readers should be served.'),
  ('check_serving_index', '1 hour', null, 'worker',
    'Samples the recall of the serving index. Asks for a build when the index is worn.'),
  ('checkpoint', '1 day', null, 'either',
    'Takes a snapshot to roll back to. Runs after each promotion too.'),
  ('run_audit', '7 days', null, 'either', 'Audits the quality of the embeddings.'),
  ('request_regrouping', '7 days', null, 'database',
    'Asks that the positives of users are grouped into interests anew.'),
  ('prune_weights', '1 day', null, 'database', 'Deletes the tensors of old versions.'),
  ('record_metrics', '1 minute', null, 'database',
    'Records the metrics of the view health, and raises alerts.');

-- Nothing is known yet that a user tower could learn, that could be grouped, or that is stale.
update two_tower.schedules set last_run_at = two_tower.now()
where kind in ('train_user_tower', 'request_regrouping', 'request_refresh', 'request_recompute');
