-- Two-Tower: a recommendation engine that lives in this database and learns inside the INSERT of an
-- engagement.
--
--   public.posts --encode (worker)--> base_embeddings --candidate tower (SQL)--> live_embeddings
--
--   public.engagement_events --trigger--> user_embeddings, live_embeddings, training_examples
--                                     \--> deferred_steps --fold_steps()--> live_embeddings
--
--   user_embeddings, live_embeddings --> recommend()
--
--   training_examples --train (worker)--> model_weights --gate--> the other slot of
--                                         live_embeddings --flip--> the slot that serves
--
-- Two schemas. public holds what clients touch, each table under row level security. two_tower
-- holds everything else: it is never exposed over the API and no client role has a grant on any of
-- its tables. A public function is a thin SECURITY INVOKER wrapper; where it needs rights, it calls
-- a SECURITY DEFINER core in two_tower.
--
-- The plan of the house. A file is one room, and uses only what stands in it or before it; only
-- rows of tables (schedules, cursors) name functions of later files.
--
--   ground      schemas, clock, settings, signals, alerts, schedules, partitions
--   what the    content      profiles, posts, follows, blocks
--   app writes  engagement   events, and what each user did with each post
--   what is     models       weights of both towers, and the candidate tower in SQL
--   known       state        which slot serves, and the locks of a switch
--               vectors, embeddings, eligibility, training_examples, post_steps
--   a like      lessons, locks, verdicts, draws, rules, learning: the trigger, in its order
--               folding      the steps that it left for later
--   a post      encoding     from a text to vectors, and the events that waited for them
--   a user      author_blocks, checkpoints, erasure
--   a version   jobs, priors, model_switch, training_data, promotion_gate, first_projection
--   a page      experiments, serving_index, exploration, serving_upkeep, candidates, ranking
--   around it   monitoring, safety, api, tick, policies

create schema if not exists extensions;
create extension if not exists vector with schema extensions;

-- A project may have installed pgvector into public, where Supabase's own advisors flag it. Types
-- are known by their oid, so columns and indexes that use it do not notice the move; both schemas
-- are on the default search_path.
do $$
begin
  if (select n.nspname from pg_extension x join pg_namespace n on n.oid = x.extnamespace
      where x.extname = 'vector') <> 'extensions' then
    alter extension vector set schema extensions;
  end if;
end
$$;

create schema two_tower;
comment on schema two_tower is
  'Two-Tower: embeddings, training data, models, jobs. Private: never exposed over the API, no client has a grant on a table.';
revoke all on schema two_tower from public;
grant usage on schema two_tower to anon, authenticated, service_role;

create table two_tower.error_codes (
  sqlstate text primary key constraint sqlstate_has_five_characters
    check (sqlstate ~ '^[0-9A-Z]{5}$'),
  name text not null unique,
  meaning text not null
);
comment on table two_tower.error_codes is
  'The SQLSTATEs that Two-Tower raises and a caller may branch on. Each comes with a message and a hint.';
insert into two_tower.error_codes (sqlstate, name, meaning) values
  ('22023', 'invalid_parameter_value', 'An argument is missing, malformed or out of range.'),
  ('23503', 'foreign_key_violation',
    'An event names a post or a user that does not exist. Nothing of the statement was stored.'),
  ('23514', 'check_violation',
    'An event has an unknown type, or a dwell no duration. Nothing of the statement was stored.'),
  ('23505', 'unique_violation',
    'An event with this client_event_id is stored already: a retry, to be treated as success.'),
  ('42501', 'insufficient_privilege', 'The caller is not signed in, or not allowed to do this.'),
  ('55000', 'object_not_in_prerequisite_state',
    'Not now: a rollback is in progress, or an experiment is running, or is not.'),
  ('TT001', 'event_time_out_of_range',
    'created_at lies in the future or further back than settings.oldest_event_age.'),
  ('TT002', 'batch_too_large', 'record_engagements takes at most 500 events a call.'),
  ('TT003', 'lease_lost',
    'The job is no longer leased by this worker: its lease ended and another one may have it.'),
  ('TT004', 'weights_invalid',
    'A version of weights lacks a tensor, has the wrong shape, or a value is not finite.');
