-- Where the engine stands, in one row: which slot serves, what is being filled, whether learning is
-- frozen. The locks under which that row changes follow.

create function two_tower.first_bigint() returns bigint
language sql immutable parallel safe return -9223372036854775808;
comment on function two_tower.first_bigint() is 'Returns the lowest bigint, from where a walk over ids of posts begins: ids can be negative. No post has this id.';

create table two_tower.state (
  id boolean primary key default true constraint state_is_one_row check (id),
  active_slot smallint not null default 0 constraint there_are_two_slots
    check (active_slot in (0, 1)),
  serving_side smallint constraint there_are_two_sides check (serving_side in (0, 1)),
  filling_version bigint references two_tower.model_weights (version),
  filled_up_to bigint not null default two_tower.first_bigint(),
  filling_checkpoint bigint,
  restored_up_to uuid,
  regrouped_up_to uuid,
  epoch integer not null default 0,
  frozen_at timestamptz,
  frozen_reason text,
  wrong_since timestamptz,
  learning_rate_factor real not null default 1
    constraint learning_rate_factor_is_a_share
      check (learning_rate_factor > 0 and learning_rate_factor <= 1),
  popularity_half_life interval not null default '7 days'
    constraint popularity_half_life_is_from_a_day_to_three_years
      check (popularity_half_life between '1 day' and '1096 days'),
  popularity_total double precision not null default '-infinity',
  popularity_clock double precision not null default 0,
  popularity_clock_at timestamptz not null default 'epoch',
  warmth double precision[] constraint warmth_is_known_for_new_readers
    check (cardinality(warmth) = 21),
  hash_seed bigint not null default hashtextextended(gen_random_uuid()::text, 0),
  constraint a_freeze_has_a_reason check ((frozen_at is null) = (frozen_reason is null)),
  constraint what_went_wrong_began_before_the_freeze check (wrong_since <= frozen_at)
);
comment on table two_tower.state is 'Where the engine stands, in one row: which slot serves, what is being filled, whether learning is frozen.';
comment on column two_tower.state.active_slot is 'The slot of live_embeddings that serves: 0 or 1.';
comment on column two_tower.state.serving_side is 'The side of the serving index that answers. Null when there is no index and all posts are scanned.';
comment on column two_tower.state.filling_version is 'The candidate tower for which the other slot is being filled. Null when none is.';
comment on column two_tower.state.filled_up_to is 'The other slot is filled for posts up to this id.';
comment on column two_tower.state.filling_checkpoint is 'The checkpoint that is being rolled back to. Null when none is.';
comment on column two_tower.state.restored_up_to is 'In a rollback, users up to this id have their state of the checkpoint again. Null when none is in progress.';
comment on column two_tower.state.regrouped_up_to is 'In a walk that groups positives anew, users up to this id are done. Null when none is in progress.';
comment on column two_tower.state.epoch is 'Raised by a rollback. Deferred steps of an older epoch are void.';
comment on column two_tower.state.frozen_at is 'Since when learning is frozen. Null when it is not.';
comment on column two_tower.state.frozen_reason is 'The reason that freeze() was given. Null when learning is not frozen.';
comment on column two_tower.state.wrong_since is 'Since when that for which learning is frozen went on, as freeze() was told: a rollback takes a checkpoint from before. Null when learning is not frozen.';
comment on column two_tower.state.learning_rate_factor is 'Factor of the learning rate. resume() sets it after a freeze.';
comment on column two_tower.state.popularity_half_life is 'The time in which a post''s popularity halves: read_popularity_clock().';
comment on column two_tower.state.popularity_total is 'Log2 of the sum of 2^popularity over all posts, when it was last summed up: set_popularity_clock(). Shares are of it. -infinity while settings.popularity_in_logits is 0: nothing asks for it.';
comment on column two_tower.state.popularity_clock is 'What the popularity clock read at popularity_clock_at.';
comment on column two_tower.state.popularity_clock_at is 'When the half-life was last set: set_popularity_clock().';
comment on column two_tower.state.warmth is 'The warmth of readers after 0 to 20 engagements, as evidence has it: learn_warmth(). Null before any.';
comment on column two_tower.state.hash_seed is 'The secret of this database: every hash that chooses a place is keyed with it, so that nobody can work out where an account or a post stands. It never changes, or users would change arms of experiments.';
insert into two_tower.state default values;

-- Autovacuum does not analyse tables of a few rows, and guesses about them would ruin plans.
analyze two_tower.settings, two_tower.signals, two_tower.state;

create table two_tower.cursors (
  name text primary key,
  position bigint not null
);
comment on table two_tower.cursors is 'How far continuous small steps have come.';
comment on column two_tower.cursors.name is 'serving_round, numbering_round, encoding_round, recent_posts, deferred_posts, followed_events, announced_events, warmth or tick.';
comment on column two_tower.cursors.position is 'The last post, number or event that the step looked at. Of tick: the number of turns.';
insert into two_tower.cursors (name, position) values
  ('serving_round', two_tower.first_bigint()), ('numbering_round', two_tower.first_bigint()),
  ('recent_posts', 0), ('deferred_posts', 0), ('followed_events', 0), ('warmth', 0),
  ('tick', 0);

-- What was undone must not be taken back once more by who withdraws it later.
create table two_tower.rollbacks (
  id bigint generated always as identity primary key,
  checkpoint_id bigint not null,
  after_event_id bigint not null,
  last_event_id bigint not null,
  rolled_back_at timestamptz not null default two_tower.now()
);
comment on table two_tower.rollbacks is 'Each rollback, with the events whose lessons it undid.';
comment on column two_tower.rollbacks.checkpoint_id is 'The checkpoint that was rolled back to, which may be dropped since.';
comment on column two_tower.rollbacks.after_event_id is 'What events after this one had taught is gone.';
comment on column two_tower.rollbacks.last_event_id is 'The newest event that was stored by then. Later ones stand.';

create function two_tower.is_rolled_back(p_event_id bigint) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return exists (select from two_tower.rollbacks r
    where p_event_id > r.after_event_id and p_event_id <= r.last_event_id);
end
$$;
comment on function two_tower.is_rolled_back(bigint) is 'Returns whether a rollback has undone what an event taught.';

create function two_tower.last_uuid() returns uuid
language sql immutable parallel safe return 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid;
comment on function two_tower.last_uuid() is 'Returns the largest uuid. In state.restored_up_to it means that all users are restored.';

-- Keys of advisory locks. Each stands for a whole activity, for which a row would be a hot one.
create function two_tower.switch_lock() returns bigint
language sql immutable parallel safe return 2842384801;
comment on function two_tower.switch_lock() is
  'Returns the key of the advisory lock between learning (shared) and a switch of slots (exclusive).';

create function two_tower.tick_lock() returns bigint
language sql immutable parallel safe return 2842384802;
comment on function two_tower.tick_lock() is 'Returns the key of the advisory lock of the one tick() that runs.';

create function two_tower.bulk_lock() returns bigint
language sql immutable parallel safe return 2842384803;
comment on function two_tower.bulk_lock() is
  'Returns the key of the advisory lock of what writes for minutes: a build of the serving index, or a checkpoint.';

create function two_tower.numbering_lock() returns bigint
language sql immutable parallel safe return 2842384804;
comment on function two_tower.numbering_lock() is
  'Returns the key of the advisory lock between sessions that give new posts a number (shared) and compact_numbers() (exclusive).';

create function two_tower.lock_switch(p_attempts integer) returns void
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
begin
  for v_attempt in 1..p_attempts loop
    begin
      perform pg_advisory_xact_lock(two_tower.switch_lock());
      return;
    exception when lock_not_available then
      if v_attempt = p_attempts then
        raise;
      end if;
    end;
    perform pg_sleep(0.5);
  end loop;
end
$$;
comment on function two_tower.lock_switch(integer) is
  'Takes the switch lock exclusively, in at most p_attempts attempts. While an attempt waits, new statements that learn wait behind it. So an attempt waits for at most 2 s, and they go on between attempts. Raises 55P03 after the last attempt.';

create function two_tower.slots_to_write() returns table (slot smallint, version bigint)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select s.active_slot, two_tower.active_version('candidate_tower') from two_tower.state s
  union all
  select (1 - s.active_slot)::smallint, s.filling_version from two_tower.state s
    where s.filling_version is not null;
$$;
comment on function two_tower.slots_to_write() is
  'Returns the slot that serves with its candidate tower. While the other slot is being filled, returns that one too, with the tower for which it is filled.';
