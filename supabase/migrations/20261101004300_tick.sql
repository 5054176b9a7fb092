-- The heartbeat. One call does what is due in bounded steps. pg_cron makes it where it exists, and
-- workers make it too.

create function two_tower.is_schedule_due(p_schedule two_tower.schedules) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select p_schedule.is_enabled
    and not exists (select from two_tower.jobs j
                    where j.kind = p_schedule.kind and j.state in ('pending', 'running'))
    and case
      when p_schedule.every is not null then
        coalesce(p_schedule.last_run_at + p_schedule.every <= two_tower.now(), true)
      else
        (select filling_version is null from two_tower.state)
        and (select count(*) from (
               select from public.engagement_events e
               where e.id > p_schedule.last_event_id
                 and e.event_type in (select event_type from two_tower.signals where strength <> 0)
               limit p_schedule.every_events) as new_events) >= p_schedule.every_events
    end;
$$;
comment on function two_tower.is_schedule_due(two_tower.schedules) is
  'Returns whether a schedule should run now. A schedule does not run while its last job is pending or running. A schedule by events does not run while a slot is being filled. Counts engagements where they are, so that no counter row slows down their writers.';

create function two_tower.start_due_schedules() returns text[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_schedule two_tower.schedules;
  v_started text[] := '{}';
begin
  for v_schedule in select * from two_tower.schedules where is_enabled
    order by kind for update skip locked loop
    continue when not two_tower.is_schedule_due(v_schedule);
    update two_tower.schedules set
      last_run_at = two_tower.now(),
      last_event_id = coalesce((select max(e.id) from public.engagement_events e), last_event_id)
    where kind = v_schedule.kind;
    if v_schedule.runs_in = 'worker' then
      perform two_tower.enqueue_job(v_schedule.kind);
    else
      execute format('select two_tower.%I()', v_schedule.kind);
    end if;
    v_started := v_started || v_schedule.kind;
  end loop;
  return v_started;
end
$$;
comment on function two_tower.start_due_schedules() is
  'Starts what is due: adds a job for the workers, or calls a bounded function here. Returns the kinds.';

-- Learning locks users before posts, and posts in order of id. Two such steps in one transaction
-- would break that order. So a tick takes one step: the next, in turn, that has something to do.
-- The turn moves on even if the step fails: what is broken in one must not stop the others.
create function two_tower.take_step() returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_steps text[] := '{fold_steps, learn_deferred, fill_slot, restore_users, erase_users}';
  v_turn bigint;
  v_step text;
  v_count integer;
begin
  if two_tower.freeze_on_drift() then
    return '{"froze": 1}';
  end if;
  update two_tower.cursors set position = position + 1 where name = 'tick'
    returning position into v_turn;
  for v_offset in 0..4 loop
    v_step := v_steps[1 + (v_turn + v_offset) % 5];
    begin
      v_count := case v_step
        when 'fold_steps' then two_tower.fold_steps(1000)
        when 'learn_deferred' then two_tower.learn_deferred(500)
        when 'restore_users' then two_tower.restore_users(2000)
        when 'erase_users' then two_tower.erase_users(1000)
        else two_tower.fill_slot(2000) end;
    exception when others then
      perform two_tower.open_alert('step_failed', v_step, sqlerrm,
        jsonb_build_object('sqlstate', sqlstate));
      return jsonb_build_object('failed', v_step);
    end;
    if v_count > 0 then
      return jsonb_build_object(v_step, v_count);
    end if;
  end loop;
  if (select filling_version is not null from two_tower.state)
    and not two_tower.needs_serving_index() then
    return jsonb_build_object('flip_slots', two_tower.flip_slots()::integer);
  end if;
  return '{}';
end
$$;
comment on function two_tower.take_step() is 'Takes one bounded step of what was deferred, in turn. Takes the flip when nothing else is left, a slot is full and no serving index is needed. Returns the step and its count, or {} if nothing was left to do. A step that fails changes nothing, opens an alert, and is tried again in its turn.';

create function two_tower.tick() returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_started text[];
  v_improved text;
begin
  if not pg_try_advisory_xact_lock(two_tower.tick_lock()) then
    return '{"skipped": "another tick is running"}';
  end if;
  perform two_tower.enqueue_job(w.kind)
  from (
    select 'encode_posts' as kind where exists (select from two_tower.posts_to_encode(1))
    union all
    select 'encode_profiles' where exists (select from two_tower.profiles_to_encode(1))
    union all
    select 'build_serving_index' where two_tower.is_serving_build_due()
  ) w
  where not exists (select from two_tower.jobs j
                    where j.kind = w.kind and j.state in ('pending', 'running'));
  v_improved := two_tower.improve_first_tower();
  if v_improved is not null then
    return jsonb_build_object(v_improved, 1);
  end if;
  v_started := two_tower.start_due_schedules();
  if v_started <> '{}' then
    return jsonb_build_object('started', v_started);
  end if;
  return two_tower.take_step()
    || jsonb_build_object('serving_refreshed', two_tower.refresh_serving_index(500));
end
$$;
comment on function two_tower.tick() is
  'Does what is due, in bounded steps, and returns what it did. Call it at any time, from anywhere: one runs at a time, and one makes up for missed calls.';

do $$
begin
  if exists (select from pg_catalog.pg_available_extensions where name = 'pg_cron') then
    create extension if not exists pg_cron;
    perform cron.schedule('two_tower_tick', '5 seconds', 'select two_tower.tick()');
  end if;
exception when others then
  raise notice 'pg_cron is not used (%): only the workers call two_tower.tick()', sqlerrm;
end
$$;
