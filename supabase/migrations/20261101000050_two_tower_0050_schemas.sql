-- Two-Tower: a recommendation engine in this database. It learns inside the INSERT of an
-- engagement.
--
--   the app's tables --trigger--> posts (registry) --encode (worker)--> base_embeddings
--                                             --candidate tower (SQL)--> live_embeddings
--
--   public.engagement_events --trigger--> user_embeddings, live_embeddings, training_examples
--                                     \--> deferred_steps --fold_steps()--> live_embeddings
--
--   user_embeddings, live_embeddings --> recommend() --the app's policies--> a page
--
--   training_examples --train (worker)--> model_weights --gate--> the other slot of
--                                         live_embeddings --flip--> the slot that serves
--
-- There are two schemas. public holds what clients touch, each table under row level security.
-- two_tower holds everything else. It is never exposed over the API, and no client role has a grant
-- on its tables. A function of public is a thin SECURITY INVOKER wrapper. Where it needs rights, it
-- calls a SECURITY DEFINER core in two_tower. The core knows ids and no text. Which posts a caller
-- may get, the policies of the app's tables say.
--
-- The plan of the house: a file is one room, and uses only what stands in it or before it. Only
-- rows of tables (schedules, cursors) name functions of later files.
--
--   ground      schemas, clock, settings, signals, alerts, schedules, partitions
--   what the    content       attached tables, the registry of posts, mirrors of follows and blocks
--   app writes  registration  how rows come into them
--               users         of whom anything is stored, and how their erasure begins
--               engagement    events, and what each user did with each post
--               muted_terms   words and tags that a reader does not want to meet
--   what is     models       weights of both towers, and the candidate tower in SQL
--   known       state        which slot serves, and the locks of a switch
--               vectors, embeddings, eligibility, training_examples
--               popularity   its clock, and what engagements add
--               post_steps
--   a like      lessons, locks, verdicts, draws, rules, interests, withdrawals, learning: the
--               trigger, in its order
--               learning_later  events that wait for an embedding, a minute or the end of a freeze
--               regrouping   interests by the vectors of today
--               folding      the steps that it left for later
--   a post      text_queue   which texts wait for a worker, and whose turn it is
--               encoding     from a text to vectors, and the events that waited for them
--               numbering    keeps the numbers dense by which posts are drawn
--   a user      author_blocks, checkpoints, erasure, told_interests
--               warmth       how far a reader's page has gone from popular to personal
--   a version   jobs, priors, resets, model_switch, training_data,
--               studies, study_data: a job that repeats the newest positives
--               promotion_gate, first_projection
--   a page      experiments, filters, serving_index, exploration, likeness, serving_upkeep,
--               candidates, scores, warmth_evidence, exploring, copies, owed_places,
--               told_places, ranking, recommending
--   a search    texts       what callers want encoded
--               telling     what readers say of themselves
--               encoder     from one encoder to another
--               refreshing  all posts are looked at, daily and weekly
--   around it   metric_targets, monitoring, study_health, recording_metrics
--               safety
--               undoing      what users, or an hour, taught is taken back
--               rollback
--               investigating  who moved what
--   a client    source_functions  what is written for each attached table
--               readable     what asks its policies
--               cursors      what a scroll has shown
--               requests     what a caller names
--               shelves      an author's posts, a tag's
--               feeds, explanations, control, previewing, moderation, recording
--   any app     pages         rows of an attached table, as pages
--               attachable, attaching: which tables can be attached, and how
--               mending, reconciliation: what became of the table, and what triggers missed
--               sampling     whether they missed any
--               restoring    events that were restored, and are learned once more
--   the beat    broadcasts  what readers and operators are told by Realtime
--               tick
--               personal_data  what is stored about one user
--               retention    for how long what is kept
--               policies
--   an app      starter: tables to start from, attached like any others. Optional

create schema if not exists extensions;
create extension if not exists vector with schema extensions;

-- A project may have pgvector elsewhere. These files name the schema that it lies in: two-tower
-- writes it into them.
do $$
begin
  if to_regtype('extensions.vector') is null then
    raise exception 'pgvector does not lie in schema extensions' using errcode = '42704',
      hint = 'Write the files by two-tower install: it names the schema that pgvector lies in.';
  end if;
end
$$;

create schema two_tower;
comment on schema two_tower is
  'Two-Tower: embeddings, training data, models, jobs. Private: never exposed over the API. No client role has a grant on a table.';
revoke all on schema two_tower from public;
grant usage on schema two_tower to anon, authenticated, service_role;

-- Stamps of files differ between projects. Numbers do not.
create table two_tower.installed_files (
  number text primary key constraint number_has_four_digits check (number ~ '^[0-9]{4}$'),
  name text not null unique,
  hash text not null constraint hash_is_a_sha256 check (hash ~ '^[0-9a-f]{64}$'),
  installed_at timestamptz not null default pg_catalog.now()
);
comment on table two_tower.installed_files is
  'The files of the engine that this database has. Each file, as two-tower install and two-tower migrate write it, ends by adding its row.';
comment on column two_tower.installed_files.number is 'NNNN of the file <stamp>_two_tower_NNNN_name.sql. Stamps differ between projects.';
comment on column two_tower.installed_files.hash is 'sha256 of the text of the file in the release, before the schema of pgvector is written into it.';

create table two_tower.error_codes (
  sqlstate text primary key constraint sqlstate_has_five_characters
    check (sqlstate ~ '^[0-9A-Z]{5}$'),
  name text not null unique,
  meaning text not null
);
comment on table two_tower.error_codes is
  'The SQLSTATEs that Two-Tower raises and that a caller may branch on. Each error has a message and a hint.';
comment on column two_tower.error_codes.name is 'The name of the condition: Postgres''s own or, for TT..., ours.';
comment on column two_tower.error_codes.meaning is 'What went wrong, and what became of the statement.';
insert into two_tower.error_codes (sqlstate, name, meaning) values
  ('22023', 'invalid_parameter_value', 'An argument is missing, malformed or out of range.'),
  ('22P02', 'invalid_text_representation',
    'A value is not of the type of its field or argument. Nothing was stored.'),
  ('22003', 'numeric_value_out_of_range',
    'A number is too large for its field or argument. Nothing was stored.'),
  ('22P05', 'untranslatable_character',
    'A text holds \u0000, which Postgres can not store. Nothing was stored. The whole body is'
      || ' refused before any event of it is read: take it out of all texts.'),
  ('55P03', 'lock_not_available',
    'A statement that learns, or a build, holds the lock for too long. Nothing was changed.'),
  ('23503', 'foreign_key_violation',
    'An event names a post or a user that does not exist. Nothing was stored.'),
  ('23514', 'check_violation',
    'The event type is unknown, or dwell_ms is negative, or a dwell lacks it. Nothing was stored.'),
  ('23505', 'unique_violation',
    'An event with this client_event_id is stored already. Treat the retry as a success.'),
  ('42501', 'insufficient_privilege', 'The caller is not signed in, or not allowed to do this.'),
  ('42710', 'duplicate_object', 'Another table is attached under this name or in this role.'),
  ('42804', 'datatype_mismatch',
    'A column or expression of an attached table has the wrong type.'),
  ('42809', 'wrong_object_type', 'What is to be attached is not an ordinary table.'),
  ('42830', 'invalid_foreign_key',
    'The table has no key of one column that is unique and not null.'),
  ('42622', 'name_too_long',
    'The name of an attached table is too long for what is named after it.'),
  ('23502', 'not_null_violation', 'An event names no post. Nothing was stored.'),
  ('55000', 'object_not_in_prerequisite_state',
    'Not now: a rollback or another experiment runs, or this experiment is over or not running.'),
  ('TT001', 'event_time_out_of_range',
    'created_at lies in the future, or further back than settings.oldest_event_age.'),
  ('TT002', 'too_large',
    'A batch has more than 500 events or a megabyte, p_exclude more than 1,000 keys, a list of'
      || ' p_filter too many texts, a reader more than 200 muted terms or 20 told interests, a told'
      || ' one more than 200 characters, or a text more than settings.requested_text_length.'),
  ('TT003', 'lease_lost',
    'This worker no longer has the job. Its lease ended, and another worker may have taken it.'),
  ('TT004', 'weights_invalid',
    'A version does not exist, lacks a tensor, or has one that is unknown or has the wrong shape.'),
  ('TT005', 'too_many_texts',
    'The user asked for settings.requested_texts_per_minute new texts within a minute. Wait.');
