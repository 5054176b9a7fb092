-- The heartbeat. One call does what is due in bounded steps. pg_cron makes it where it exists, and
-- workers make it too.

create table two_tower.schedule_counts (
  user_id uuid not null references two_tower.users (id) on delete cascade,
  kind text not null,
  engagements integer not null,
  primary key (user_id, kind)
);
comment on table two_tower.schedule_counts is 'How much each user taught since the last run of a schedule by events.';
comment on column two_tower.schedule_counts.kind is 'schedules.kind.';
comment on column two_tower.schedule_counts.engagements is 'Learned events, as far as schedules.last_event_id.';

-- An event that commits late, or is learned late, is passed over: the count only says when to
-- train.
create function two_tower.count_engagements(p_kind text, p_limit integer default 5000)
returns void language plpgsql set search_path = pg_catalog, pg_temp
  set enable_bitmapscan = off as $$
begin
  with read as materialized (
    select e.id, e.user_id, e.post_id, e.event_type, e.created_at
    from public.engagement_events e
    where e.id > (select last_event_id from two_tower.schedules where kind = p_kind)
    order by e.id limit p_limit
  ), learned as (
    select r.user_id, count(*) as engagements
    from read r join two_tower.users u on u.id = r.user_id
    where r.event_type in (select event_type from two_tower.signals where strength <> 0)
      and (select exists (
        select from two_tower.training_examples x
        where x.user_id = r.user_id and x.post_id = r.post_id and x.event_id = r.id
          and x.created_at = r.created_at and not x.is_withdrawn))
    group by r.user_id
  ), counted as (
    insert into two_tower.schedule_counts as c (user_id, kind, engagements)
    select l.user_id, p_kind, l.engagements from learned l order by l.user_id
    on conflict (user_id, kind) do update set engagements = c.engagements + excluded.engagements
  )
  update two_tower.schedules set last_event_id = (select max(id) from read)
  where kind = p_kind and exists (select from read);
end
$$;
comment on function two_tower.count_engagements(text, integer) is
  'Counts what was learned since the last call for a schedule by events, by user. Reads at most p_limit events, so that a flood of events that teach nothing costs a tick no more than others.';

create function two_tower.has_engagements(p_kind text, p_count integer) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  with account as materialized (
    select c.engagements,
      two_tower.weigh_account(u.active_days, s.account_weight_days) as weight, s.account_share
    from two_tower.schedule_counts c
      join two_tower.user_embeddings u using (user_id)
      cross join two_tower.settings s
    where c.kind = p_kind
  ), cap as (
    select p_count * greatest(max(account_share), 2 / nullif(sum(weight), 0)) as engagements
    from account
  )
  select coalesce(
    sum(a.weight * least(a.engagements, greatest(1, c.engagements))) >= p_count, false)
  from account a cross join cap c;
$$;
comment on function two_tower.has_engagements(text, integer) is
  'Returns whether p_count engagements were learned since the last run of a schedule. Accounts count by their weight, each for at most settings.account_share of p_count or, where they are few, 2 / accounts.';

create function two_tower.is_schedule_due(p_schedule two_tower.schedules) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select p_schedule.is_enabled
    and not exists (select from two_tower.jobs j
                    where j.kind = p_schedule.kind and j.state in ('pending', 'running'))
    and case
      when p_schedule.every_events is null then
        coalesce(p_schedule.last_run_at + p_schedule.every <= two_tower.now(), true)
      else
        (select filling_version is null from two_tower.state)
        and (p_schedule.kind <> 'study' or two_tower.may_study())
        and two_tower.has_engagements(p_schedule.kind, case
          when coalesce(p_schedule.last_run_at + p_schedule.every <= two_tower.now(),
            p_schedule.every is not null)
            then ceil(p_schedule.every_events / 20.0)::integer else p_schedule.every_events end)
    end;
$$;
comment on function two_tower.is_schedule_due(two_tower.schedules) is
  'Returns whether a schedule should run now. A schedule does not run while its last job is pending or running. A schedule by events does not run while a slot is being filled. One that has a time too runs with a twentieth of its events when that has passed. A study also asks may_study(). Engagements are counted where they are (count_engagements()), so that no counter row slows down their writers.';

create function two_tower.start_due_schedules() returns text[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_schedule two_tower.schedules;
  v_started text[] := '{}';
begin
  for v_schedule in select * from two_tower.schedules where is_enabled
    order by kind for update skip locked loop
    if v_schedule.every_events is not null then
      perform two_tower.count_engagements(v_schedule.kind);
    end if;
    continue when not two_tower.is_schedule_due(v_schedule);
    update two_tower.schedules set
      last_run_at = two_tower.now(),
      last_event_id = coalesce((select max(e.id) from public.engagement_events e), last_event_id)
    where kind = v_schedule.kind;
    delete from two_tower.schedule_counts where kind = v_schedule.kind;
    if v_schedule.runs_in = 'worker'
      or v_schedule.runs_in = 'either' and two_tower.has_worker() then
      perform two_tower.enqueue_job(v_schedule.kind);
    else
      perform two_tower.try_call(v_schedule.kind);
    end if;
    v_started := v_started || v_schedule.kind;
  end loop;
  return v_started;
end
$$;
comment on function two_tower.start_due_schedules() is
  'Starts what is due: adds a job for the workers, or calls a bounded function here. One that fails opens an alert and stops no other. Returns the kinds.';

-- Learning locks users before posts, and posts in order of id. Two such steps in one transaction
-- would break that order. So a tick takes one step: the next, in turn, that has something to do.
-- The turn moves on even if the step fails: what is broken in one must not stop the others.
-- Two sessions: who hands in encodings holds the switch lock, and asks for the numbering lock. So
-- no tick asks for the switch lock while it holds the numbering lock, of compact_numbers().
create function two_tower.take_step() returns jsonb
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_steps text[] := '{fold_steps, learn_deferred, learn_waiting, apply_post_changes,
    reconcile_sources, fill_slot, restore_users, erase_users, purge_posts, prune_requested_texts,
    announce, refresh_recent_posts, compact_numbers, encode_anew, regroup_interests,
    refresh_told_interests, undo_lessons, refresh_posts}';
  v_limits integer[] := '{1000, 500, 500, 1000, 1, 2000, 2000, 1000, 1000, 1000, null, null, 1000,
    1000, 200, 1000, 500, 1000}';
  v_place integer;
  v_turn bigint;
  v_step text;
  v_done record;
  v_is_filling boolean := (select filling_version is not null from two_tower.state);
begin
  v_done := two_tower.try_call('freeze_on_drift');
  if v_done.answer::boolean then
    return '{"froze": 1}';
  end if;
  update two_tower.cursors set position = position + 1 where name = 'tick'
    returning position into v_turn;
  for v_offset in 1..cardinality(v_steps) loop
    v_place := 1 + (v_turn + v_offset) % cardinality(v_steps);
    v_step := v_steps[v_place];
    continue when v_is_filling and v_step = 'compact_numbers' and v_turn % 2 = 0;
    v_done := two_tower.try_call(v_step, v_limits[v_place]);
    if v_done.has_failed then
      return jsonb_build_object('failed', v_step);
    elsif v_done.answer::integer > 0 then
      return jsonb_build_object(v_step, v_done.answer::integer);
    end if;
  end loop;
  if v_is_filling and not two_tower.is_serving_build_due() then
    if v_turn % 2 = 1 then
      return '{"flip_slots": "next tick"}';
    end if;
    v_done := two_tower.try_call('flip_slots');
    return jsonb_build_object('flip_slots', coalesce(v_done.answer::boolean, false)::integer);
  end if;
  return '{}';
end
$$;
comment on function two_tower.take_step() is 'Takes one bounded step of what was deferred, in turn. Takes the flip when nothing else is left, a slot is full and no serving index must be built first. Returns the step and its count, or {} if nothing was left to do. A step that fails changes nothing, opens an alert, and is tried again in its turn.';

create function two_tower.tick() returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_started text[];
  v_done record;
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
  v_done := two_tower.try_call('improve_first_tower');
  if v_done.answer is not null then
    return jsonb_build_object(v_done.answer, 1);
  end if;
  v_started := two_tower.start_due_schedules();
  if v_started <> '{}' then
    return jsonb_build_object('started', v_started);
  end if;
  return two_tower.take_step() || jsonb_build_object('serving_refreshed',
    coalesce((two_tower.try_call('refresh_serving_index', 500)).answer::integer, 0));
end
$$;
comment on function two_tower.tick() is
  'Does what is due, in bounded steps, and returns what it did. Call it at any time, from anywhere: one runs at a time, and one makes up for missed calls. Definer: workers have no grant on tables.';

create function two_tower.prune_cron_history() returns integer
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_deleted integer := 0;
begin
  if to_regclass('cron.job_run_details') is not null then
    execute '
      delete from cron.job_run_details d using cron.job j
      where j.jobid = d.jobid and j.jobname = ''two_tower_tick''
        and d.end_time < pg_catalog.now() - interval ''1 day''';
    get diagnostics v_deleted = row_count;
  end if;
  return v_deleted;
end
$$;
comment on function two_tower.prune_cron_history() is
  'Deletes what pg_cron keeps of ticks that ended more than a day ago: 17,280 rows a day. Returns how many. Definer: workers have no grant on cron.';

do $$
declare
  -- The platform ends statements after two minutes, those of its scheduler too.
  v_command text := 'set statement_timeout = 0; select two_tower.tick()';
begin
  if exists (select from pg_catalog.pg_available_extensions where name = 'pg_cron') then
    create extension if not exists pg_cron;
    begin
      perform cron.schedule('two_tower_tick', '5 seconds', v_command);
    exception when invalid_parameter_value then
      -- Before 1.5 pg_cron knows no seconds.
      perform cron.schedule('two_tower_tick', '* * * * *', v_command);
    end;
  end if;
exception when others then
  raise notice 'pg_cron is not used (%): only the workers call two_tower.tick()', sqlerrm;
end
$$;
