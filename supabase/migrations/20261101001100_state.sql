-- Where the engine stands: one row that says which slot of live vectors serves, what is being put
-- in place, and whether learning is frozen; and the locks under which that row changes.

create table two_tower.state (
  id boolean primary key default true constraint state_is_one_row check (id),
  active_slot smallint not null default 0 constraint there_are_two_slots
    check (active_slot in (0, 1)),
  serving_side smallint constraint there_are_two_sides check (serving_side in (0, 1)),
  filling_version bigint references two_tower.model_weights (version),
  filled_up_to bigint not null default 0,
  filling_checkpoint bigint,
  restored_up_to uuid,
  epoch integer not null default 0,
  frozen_at timestamptz,
  frozen_reason text,
  learning_rate_factor real not null default 1
    constraint learning_rate_factor_is_a_share
      check (learning_rate_factor > 0 and learning_rate_factor <= 1),
  constraint a_freeze_has_a_reason check ((frozen_at is null) = (frozen_reason is null))
);
comment on table two_tower.state is 'The pointer: which slot of live vectors serves, what is being filled, whether learning is frozen.';
comment on column two_tower.state.serving_side is 'The side of the serving index that answers; null when there is none and all posts are scanned.';
comment on column two_tower.state.filling_version is 'The candidate tower whose vectors are being written to the other slot; null when none.';
comment on column two_tower.state.filled_up_to is 'The other slot is filled for posts up to this id.';
comment on column two_tower.state.filling_checkpoint is 'The checkpoint that is being rolled back to; null when none.';
comment on column two_tower.state.restored_up_to is 'In a rollback, users up to this id have their state of the checkpoint again.';
comment on column two_tower.state.epoch is 'Raised by a rollback: deferred pushes of an older epoch are void.';
comment on column two_tower.state.learning_rate_factor is 'Lowered by resume() after a freeze.';
insert into two_tower.state default values;

-- Tables of a row or a few are never analysed by themselves, and guesses about them would ruin
-- plans.
analyze two_tower.settings, two_tower.signals, two_tower.state;

create table two_tower.cursors (
  name text primary key,
  position bigint not null default 0
);
comment on table two_tower.cursors is 'How far continuous small steps have come: the last post, or event, that they looked at.';
insert into two_tower.cursors (name) values ('serving_round'), ('followed_events');
insert into two_tower.cursors (name) values ('tick');

create function two_tower.last_uuid() returns uuid
language sql immutable parallel safe return 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid;
comment on function two_tower.last_uuid() is 'The largest id: all users are restored.';

-- Keys of advisory locks. They stand for whole activities, where a row would be a hot one.
create function two_tower.switch_lock() returns bigint
language sql immutable parallel safe return 2842384801;
comment on function two_tower.switch_lock() is
  'Key of the advisory lock between learning (shared) and a switch of slots (exclusive).';

create function two_tower.tick_lock() returns bigint
language sql immutable parallel safe return 2842384802;
comment on function two_tower.tick_lock() is 'Key of the advisory lock of the one tick() that runs.';

create function two_tower.bulk_lock() returns bigint
language sql immutable parallel safe return 2842384803;
comment on function two_tower.bulk_lock() is
  'Key of the advisory lock of what writes for minutes: a build of the serving index, or a checkpoint.';

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
  'Takes the switch lock exclusively. While it is waited for, new statements that learn wait too: so 2 s at most, and they go on between attempts. Raises 55P03 after the last one.';

create function two_tower.slots_to_write() returns table (slot smallint, version bigint)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select s.active_slot, two_tower.active_version('candidate_tower') from two_tower.state s
  union all
  select (1 - s.active_slot)::smallint, s.filling_version from two_tower.state s
    where s.filling_version is not null;
$$;
comment on function two_tower.slots_to_write() is
  'The slot that serves with its candidate tower and, while the other one is being filled, that one with its own.';
