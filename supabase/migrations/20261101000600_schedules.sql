-- What runs when. tick() reads these rows: a schedule of a worker becomes a job, one of SQL is a
-- call of the function of that name.

create table two_tower.schedules (
  kind text primary key,
  every interval,
  every_events integer,
  runs_in text not null constraint place_to_run_is_known check (runs_in in ('worker', 'database')),
  is_enabled boolean not null default true,
  last_run_at timestamptz,
  last_event_id bigint not null default 0,
  description text not null,
  constraint a_schedule_is_by_time_or_by_events check ((every is null) <> (every_events is null)),
  constraint a_schedule_does_not_run_all_the_time check (every >= '1 second' and every_events > 0)
);
comment on table two_tower.schedules is 'What runs when. Change an interval, or disable a schedule, with an UPDATE. Runs that were missed are made up for once, not each.';
comment on column two_tower.schedules.every_events is 'Runs after so many learned engagements.';
comment on column two_tower.schedules.last_event_id is 'Engagements up to this id are counted.';
comment on column two_tower.schedules.last_run_at is 'Set it to null to run a schedule by time at the next tick.';
insert into two_tower.schedules (kind, every, every_events, runs_in, description) values
  ('train_candidate_tower', null, 1000, 'worker',
    'Trains the candidate tower on the newest training pairs.'),
  ('train_user_tower', '1 hour', null, 'worker',
    'Trains the user tower, and encodes active users with the version that serves.'),
  ('create_partitions_ahead', '1 day', null, 'database',
    'Makes the partitions that will be needed.'),
  ('drop_old_partitions', '1 day', null, 'database',
    'Archives: drops partitions that are older than settings keep them.'),
  ('prune_jobs', '1 day', null, 'database', 'Deletes jobs that ended long ago.'),
  ('refresh_popular_candidates', '5 minutes', null, 'database',
    'Lists the most popular posts, for large corpora.'),
  ('check_serving_index', '1 hour', null, 'worker',
    'Samples the recall of the serving index, and asks for a build when it is worn.'),
  ('checkpoint', '1 day', null, 'database', 'Snapshot to roll back to. Also after each promotion.'),
  ('run_audit', '7 days', null, 'database', 'Audits the quality of the embeddings.'),
  ('prune_weights', '1 day', null, 'database', 'Forgets tensors of versions long past.'),
  ('record_metrics', '1 minute', null, 'database', 'Writes the metrics of the health view.');

-- Nothing is known yet that a user tower could learn.
update two_tower.schedules set last_run_at = two_tower.now() where kind = 'train_user_tower';
