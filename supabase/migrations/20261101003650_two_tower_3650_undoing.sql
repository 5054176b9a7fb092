-- What given users taught, or all that was taught in a range of time, is taken back: a replay of
-- the ledger (training_examples) by the mechanism of a withdrawal. Events stay recorded, and
-- signals stay given: a like stays a like, and has taught nothing.
--
-- Two sessions, a crash: a step is a transaction of its own. It locks one user, as who learns does,
-- and reverses steps of posts by the queue of deferred steps. The ledger says what is done.

create table two_tower.undos (
  id bigint generated always as identity primary key,
  requested_at timestamptz not null default two_tower.now(),
  requested_by text not null default two_tower.session_role(),
  reason text not null,
  is_of_users boolean not null,
  from_at timestamptz not null,
  until_at timestamptz not null,
  last_event_id bigint not null,
  position uuid not null default '00000000-0000-0000-0000-000000000000',
  lessons bigint not null default 0,
  finished_at timestamptz,
  constraint an_undo_goes_forward check (from_at < until_at)
);
comment on table two_tower.undos is 'What operators took back, and how far it has come.';
comment on column two_tower.undos.is_of_users is 'Of the users in undo_users alone. Else of all.';
comment on column two_tower.undos.from_at is 'Lessons of events that arrived from here on.';
comment on column two_tower.undos.until_at is 'Lessons of events that arrived before this.';
comment on column two_tower.undos.last_event_id is 'The newest event that was stored when it was asked for: later ones stand.';
comment on column two_tower.undos.position is 'Users up to this id are done. Zeros when all are.';
comment on column two_tower.undos.lessons is 'How many lessons were taken back.';
comment on column two_tower.undos.finished_at is 'Null while ticks are at it.';

create table two_tower.undo_users (
  undo_id bigint not null references two_tower.undos (id) on delete cascade,
  user_id uuid not null references two_tower.users (id) on delete cascade,
  primary key (undo_id, user_id)
);
comment on table two_tower.undo_users is 'Whose lessons an undo takes back.';
create index undo_users_user_id_idx on two_tower.undo_users (user_id);

create function two_tower.next_user_to_undo(p_undo two_tower.undos) returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if p_undo.is_of_users then
    return (select n.user_id from two_tower.undo_users n
      where n.undo_id = p_undo.id and n.user_id > p_undo.position order by n.user_id limit 1);
  end if;
  return (select x.user_id from two_tower.training_examples x
    where x.user_id > p_undo.position and x.created_at >= p_undo.from_at
      and x.created_at < p_undo.until_at and x.event_id <= p_undo.last_event_id
      and not x.is_withdrawn
    order by x.user_id limit 1);
end
$$;
comment on function two_tower.next_user_to_undo(two_tower.undos) is 'Returns the next user of whom an undo takes lessons back. Returns null when all are done.';

-- Oldest first: what is taken out of the front of a history leaves the weights of the others as
-- they are.
create function two_tower.undo_user(p_undo two_tower.undos, p_user_id uuid, p_limit integer)
returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_settings two_tower.settings;
  v_state two_tower.state;
  v_user two_tower.user_embeddings;
  v_example two_tower.training_examples;
  v_lesson two_tower.lesson;
  v_done record;
  v_undone integer := 0;
begin
  select * into v_user from two_tower.user_embeddings u where u.user_id = p_user_id
  for no key update;
  if not found then
    return 0;
  end if;
  select * into v_settings from two_tower.settings;
  select * into v_state from two_tower.state;
  for v_example in
    select x.* from two_tower.training_examples x
    where x.user_id = p_user_id and x.created_at >= p_undo.from_at
      and x.created_at < p_undo.until_at and x.event_id <= p_undo.last_event_id
      and not x.is_withdrawn
    order by x.event_id limit p_limit
  loop
    v_lesson := null;
    v_lesson.event_id := v_example.event_id;
    v_lesson.user_id := v_example.user_id;
    v_lesson.post_id := v_example.post_id;
    v_lesson.created_at := v_example.created_at;
    select g.strength into v_lesson.withdrawn_strength from two_tower.signals g
    where g.event_type = v_example.event_type;
    v_done := two_tower.withdraw_lesson(v_lesson, v_settings, v_state, v_example,
      v_example.post_emb::extensions.vector, v_user);
    v_user := v_done.p_user;
    if (v_done.steps).post_id is not null or (v_done.steps).pushed_ids <> '{}' then
      insert into two_tower.deferred_steps select (v_done.steps).*;
    end if;
    update two_tower.training_examples x set is_withdrawn = true, is_undone = true
    where x.user_id = v_example.user_id and x.post_id = v_example.post_id
      and x.event_id = v_example.event_id and x.created_at = v_example.created_at;
    v_undone := v_undone + 1;
  end loop;
  perform two_tower.write_learned(array[v_user], '{}', '{}', false);
  return v_undone;
end
$$;
comment on function two_tower.undo_user(two_tower.undos, uuid, integer) is 'Takes back the next p_limit lessons of one user, oldest first. Returns how many it took back.';

create function two_tower.undo_lessons(p_limit integer default 500) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_undo two_tower.undos;
  v_user_id uuid;
  v_undone integer;
  v_left integer := p_limit;
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  if (select s.filling_checkpoint is not null from two_tower.state s) then
    return 0;
  end if;
  select * into v_undo from two_tower.undos u where u.finished_at is null order by u.id limit 1
  for no key update;
  if not found then
    return 0;
  end if;
  -- Users are locked in the order of their ids.
  while v_left > 0 loop
    v_user_id := two_tower.next_user_to_undo(v_undo);
    exit when v_user_id is null;
    v_undone := two_tower.undo_user(v_undo, v_user_id, v_left);
    v_left := v_left - v_undone;
    if v_left > 0 then
      v_undo.position := v_user_id;
    end if;
  end loop;
  update two_tower.undos u set
    -- A walk that has ended names nobody.
    position = case when v_user_id is null then '00000000-0000-0000-0000-000000000000'
      else v_undo.position end,
    lessons = u.lessons + p_limit - v_left,
    finished_at = case when v_user_id is null then two_tower.now() end
  where u.id = v_undo.id;
  return greatest(1, p_limit - v_left);
end
$$;
comment on function two_tower.undo_lessons(integer) is 'Takes back the next p_limit lessons of the oldest undo that is not finished. Returns how many, and at least 1 while there is such an undo. Returns 0 when there is none, and during a rollback.';

-- Two sessions: it locks events alone, in the order of their ids, as who learns them does.
create function two_tower.skip_waiting(p_undo two_tower.undos) returns bigint
language sql set search_path = pg_catalog, pg_temp as $$
  with due as materialized (
    select d.event_id from two_tower.deferred_events d
      join two_tower.signals g on g.event_type = d.event_type
    where d.created_at >= p_undo.from_at and d.created_at < p_undo.until_at
      and g.withdraws is null
      and (not p_undo.is_of_users or d.user_id in (
        select n.user_id from two_tower.undo_users n where n.undo_id = p_undo.id))
    order by d.event_id for update of d
  ), ended as (
    delete from two_tower.deferred_events d using due where d.event_id = due.event_id
    returning d.event_id, d.user_id, d.post_id, d.event_type, d.created_at
  ), told as (
    insert into two_tower.unlearned_events
      (event_id, user_id, post_id, event_type, reason, created_at)
    select e.event_id, e.user_id, e.post_id, e.event_type, 'skipped', e.created_at from ended e
    returning 1
  )
  select count(*) from told;
$$;
comment on function two_tower.skip_waiting(two_tower.undos) is 'Takes the events of an undo that still wait to be learned out of the queue, but for withdrawals. They stay recorded. Returns how many.';

create function two_tower.undo(p_reason text, p_user_ids uuid[] default null,
  p_from timestamptz default null, p_until timestamptz default null)
returns bigint language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_undo two_tower.undos;
begin
  if coalesce(trim(p_reason), '') = '' or (p_user_ids is null and p_from is null)
    or coalesce(p_from, '-infinity') >= coalesce(p_until, 'infinity') then
    raise exception 'an undo needs a reason, and users or a time from which on'
      using errcode = '22023',
      hint = 'Call undo(''spam'', array[user, ...]), or undo(''a bug'', null, from, until).';
  elsif (select filling_checkpoint is not null from two_tower.state) then
    raise exception 'a rollback is in progress' using errcode = '55000',
      hint = 'Wait until ticks have finished it, then undo what is left.';
  end if;
  insert into two_tower.undos (reason, is_of_users, from_at, until_at, last_event_id)
  values (p_reason, p_user_ids is not null, coalesce(p_from, '-infinity'),
    coalesce(p_until, 'infinity'),
    coalesce((select max(e.id) from public.engagement_events e), 0))
  returning * into v_undo;
  insert into two_tower.undo_users (undo_id, user_id)
  select distinct v_undo.id, u.id from two_tower.users u where u.id = any (p_user_ids);
  perform two_tower.skip_waiting(v_undo);
  return v_undo.id;
end
$$;
comment on function two_tower.undo(text, uuid[], timestamptz, timestamptz) is
  'Begins to take back what p_user_ids taught (null: all users), by events that arrived from p_from on and before p_until (null: no bound), and returns its id. Ticks do it, 500 lessons at a time: undos says how far they are. Events stay recorded, and signals stay given. Those that still wait are never learned. What is trained already stays in the towers. Raises 22023 without a reason, or without users and p_from, and 55000 during a rollback.';

create function two_tower.finish_undos() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  while two_tower.undo_lessons(1000000) > 0 loop
    null;
  end loop;
  while two_tower.fold_steps(1000) > 0 loop
    null;
  end loop;
end
$$;
comment on function two_tower.finish_undos() is 'Does at once what ticks do of undos, and folds all deferred steps.';

create function two_tower.lessons_to_undo(p_undo two_tower.undos)
returns setof two_tower.training_examples
language sql stable set search_path = pg_catalog, pg_temp as $$
  select x.* from two_tower.training_examples x
  where x.created_at >= p_undo.from_at and x.created_at < p_undo.until_at
    and x.event_id <= p_undo.last_event_id and not x.is_withdrawn
    and (not p_undo.is_of_users or x.user_id in (
      select n.user_id from two_tower.undo_users n where n.undo_id = p_undo.id));
$$;
comment on function two_tower.lessons_to_undo(two_tower.undos) is 'Returns the lessons that an undo has still to take back.';

-- All of it is done, looked at, and rolled back. Variables outlive that.
create function two_tower.plan_undo(p_user_ids uuid[] default null,
  p_from timestamptz default null, p_until timestamptz default null)
returns table (kind text, id text, lessons bigint, distance double precision)
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_undo two_tower.undos;
  v_ids text[];
  v_lessons bigint[];
  v_vectors extensions.vector[];
  v_distances double precision[];
begin
  begin
    perform two_tower.finish_undos();
    v_undo.id := two_tower.undo('a dry run', p_user_ids, p_from, p_until);
    select u.* into v_undo from two_tower.undos u where u.id = v_undo.id;
    with taught as materialized (
      select x.post_id, x.user_id from two_tower.lessons_to_undo(v_undo) x
    ), moved as (
      select 'p' || t.post_id as id, count(*) as lessons, v.embedding::extensions.vector as vector
      from taught t join two_tower.live_embeddings v on v.post_id = t.post_id
        and v.slot = (select active_slot from two_tower.state)
      group by t.post_id, v.embedding
      union all
      select 'u' || t.user_id, count(*), u.embedding
      from taught t join two_tower.user_embeddings u on u.user_id = t.user_id
      group by t.user_id, u.embedding
    )
    select array_agg(m.id), array_agg(m.lessons), array_agg(m.vector)
    into v_ids, v_lessons, v_vectors from moved m;
    perform two_tower.finish_undos();
    select array_agg(case when extensions.vector_norm(n.before) > 0
        and extensions.vector_norm(coalesce(v.embedding, u.embedding)) > 0
        then 1 + (coalesce(v.embedding, u.embedding) operator(extensions.<#>) n.before) end
      order by n.place)
    into v_distances
    from unnest(v_ids, v_vectors) with ordinality as n (id, before, place)
      left join two_tower.live_embeddings v
        on v.post_id = case left(n.id, 1) when 'p' then substr(n.id, 2)::bigint end
        and v.slot = (select active_slot from two_tower.state)
      left join two_tower.user_embeddings u
        on u.user_id = case left(n.id, 1) when 'u' then substr(n.id, 2)::uuid end;
    raise exception 'the dry run ends';
  exception when raise_exception then
    if sqlerrm <> 'the dry run ends' then
      raise;
    end if;
  end;
  return query
    select case left(n.id, 1) when 'p' then 'post' else 'user' end, substr(n.id, 2), n.lessons,
      n.distance
    from unnest(v_ids, v_lessons, v_distances) as n (id, lessons, distance)
    order by n.distance desc nulls first, n.id;
end
$$;
comment on function two_tower.plan_undo(uuid[], timestamptz, timestamptz) is
  'Says what undo() would do, and changes nothing: for each post and user, how many lessons would be taken back, and how far it would move (cosine distance; null for a user of whom nothing is left). Does it all and rolls it back, so users and posts are locked meanwhile. Raises what undo() raises.';

create function two_tower.reopen_undone(p_checkpoint two_tower.checkpoints) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  update two_tower.training_examples x set is_withdrawn = false, is_undone = false
  from two_tower.undos u
  where u.requested_at > p_checkpoint.made_at and x.is_undone
    and x.event_id <= p_checkpoint.last_event_id
    and x.created_at >= u.from_at and x.created_at < u.until_at
    and (not u.is_of_users or exists (select from two_tower.undo_users n
      where n.undo_id = u.id and n.user_id = x.user_id));
$$;
comment on function two_tower.reopen_undone(two_tower.checkpoints) is 'Says of the lessons that a checkpoint holds, and that were undone since, that they are in force again: by a rollback they are. They can be undone once more.';
