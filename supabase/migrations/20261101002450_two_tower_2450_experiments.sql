-- Experiments: arms that differ in settings of serving, for shares of the users. The arm of a user
-- is a keyed hash of user and experiment, so nobody is stored and nobody changes sides. One
-- experiment runs at a time, so that each result has one cause.

create table two_tower.experiments (
  name text primary key,
  description text not null default '',
  users_wanted integer not null default 1000
    constraint users_wanted_are_some check (users_wanted >= 2),
  started_at timestamptz,
  ended_at timestamptz,
  constraint what_ended_was_started check (ended_at is null or started_at is not null)
);
comment on table two_tower.experiments is 'What is, was or will be compared. start_experiment() starts one, end_experiment() ends it.';
comment on column two_tower.experiments.users_wanted is 'How many users each arm needs before its result is read. Who reads it earlier, and stops when it pleases, finds differences that are none.';
comment on column two_tower.experiments.started_at is 'Null until start_experiment().';
comment on column two_tower.experiments.ended_at is 'Null until end_experiment().';
create unique index one_running_experiment on two_tower.experiments ((true))
  where started_at is not null and ended_at is null;

create table two_tower.experiment_arms (
  experiment text not null references two_tower.experiments (name) on delete cascade,
  arm text not null,
  share double precision not null constraint share_is_a_share check (share between 0 and 1),
  overrides jsonb not null default '{}',
  primary key (experiment, arm)
);
comment on table two_tower.experiment_arms is 'The arms of an experiment. Users outside of all shares are in no arm, and are served as ever.';
comment on column two_tower.experiment_arms.share is 'Share of the users who are in this arm, 0 to 1. The shares of an experiment sum to at most 1.';
comment on column two_tower.experiment_arms.overrides is 'Settings of serving for this arm, such as {"exploration_share": 0.1}. {} for a control, which the others are compared with.';

-- The table's own checks say whether an override is valid. The overrides are tried and rolled back.
create function two_tower.check_overrides(p_overrides jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_served text[] := '{cold_until, popularity_weight, followed_weight, recency_weight,
    recency_half_life, exploration_share, author_share, followed_author_share, over_fetch,
    ranks_by, followed_share, followed_new_for, copy_similarity, seen_again_after}';
  v_unknown text;
  v_row two_tower.settings;
begin
  select k into v_unknown from jsonb_object_keys(p_overrides) k where k <> all (v_served) limit 1;
  if found then
    raise exception '% is no setting of serving', v_unknown using errcode = '22023',
      hint = 'An arm may override: ' || array_to_string(v_served, ', ');
  end if;
  begin
    select (jsonb_populate_record(s, p_overrides)).* into v_row from two_tower.settings s;
    update two_tower.settings set
      cold_until = v_row.cold_until, popularity_weight = v_row.popularity_weight,
      followed_weight = v_row.followed_weight, recency_weight = v_row.recency_weight,
      recency_half_life = v_row.recency_half_life, exploration_share = v_row.exploration_share,
      author_share = v_row.author_share,
      followed_author_share = v_row.followed_author_share, over_fetch = v_row.over_fetch,
      ranks_by = v_row.ranks_by, followed_share = v_row.followed_share,
      followed_new_for = v_row.followed_new_for, copy_similarity = v_row.copy_similarity,
      seen_again_after = v_row.seen_again_after
    where id;
    raise exception using errcode = 'TT000';
  exception
    when sqlstate 'TT000' then return;
    when check_violation or not_null_violation or data_exception then
      raise exception 'an override is out of range: %', sqlerrm using errcode = '22023',
        hint = 'See the checks and the comments of two_tower.settings.';
  end;
end
$$;
comment on function two_tower.check_overrides(jsonb) is 'Raises 22023 for an override that is unknown, is not of serving, or that settings would refuse.';

-- A result is of arms as they were when users were dealt out. Two sessions: whoever starts the
-- experiment, or changes an arm, holds its row.
create function two_tower.check_arm() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_started text;
begin
  perform from two_tower.experiments e
  where e.name in (old.experiment, new.experiment) order by e.name for no key update;
  select e.name into v_started from two_tower.experiments e
  where e.name in (old.experiment, new.experiment) and e.started_at is not null;
  if found then
    raise exception 'experiment % was started: its arms stay as they are', v_started
      using errcode = '55000',
        hint = 'End it, and start another: results belong to the arms of one start.';
  end if;
  if tg_op <> 'DELETE' then
    perform two_tower.check_overrides(new.overrides);
    return new;
  end if;
  return old;
end
$$;
comment on function two_tower.check_arm() is 'Raises 22023 for overrides that settings would refuse, and 55000 for an arm of an experiment that was started.';
create trigger check_arm before insert or update or delete on two_tower.experiment_arms
  for each row execute function two_tower.check_arm();

create function two_tower.start_experiment(p_name text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_running text;
begin
  perform from two_tower.experiments e where e.name = p_name for no key update;
  if (select coalesce(sum(share), 0) not between 1e-9 and 1 + 1e-9
      from two_tower.experiment_arms where experiment = p_name) then
    raise exception 'experiment % has no arms, or shares of more than 1', p_name
      using errcode = '22023',
        hint = 'Give it rows of two_tower.experiment_arms with shares of at most 1 in all.';
  end if;
  select name into v_running from two_tower.experiments
  where started_at is not null and ended_at is null;
  if found then
    raise exception 'experiment % is running', v_running using errcode = '55000',
      hint = 'End it first: select two_tower.end_experiment(...)';
  end if;
  update two_tower.experiments set started_at = two_tower.now()
  where name = p_name and started_at is null;
  if not found then
    raise exception 'experiment % was run already', p_name using errcode = '55000',
      hint = 'Insert a new experiment: results belong to one start.';
  end if;
end
$$;
comment on function two_tower.start_experiment(text) is 'Serves the arms from now on. Raises 22023 for bad arms. Raises 55000 when an experiment is running, or this one was run.';

create function two_tower.end_experiment(p_name text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  update two_tower.experiments set ended_at = two_tower.now()
  where name = p_name and started_at is not null and ended_at is null;
  if not found then
    raise exception 'experiment % is not running', p_name using errcode = '55000',
      hint = 'See which one is: select * from two_tower.experiments';
  end if;
end
$$;
comment on function two_tower.end_experiment(text) is 'Serves all users as ever again. The results stay. Raises 55000 when the experiment is not running.';

create function two_tower.choose_arm(p_experiment text, p_user_id uuid) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select a.arm
  from (
    select arm, sum(share) over (order by arm) as upper
    from two_tower.experiment_arms where experiment = p_experiment
  ) a
  where (hashtextextended(p_experiment || p_user_id::text, (select hash_seed from two_tower.state))
      & 1048575) / 1048576.0 < a.upper
  order by a.arm limit 1;
$$;
comment on function two_tower.choose_arm(text, uuid) is 'Returns the arm of a user in an experiment, or null.';

-- These are called for every page, mostly while no experiment runs. plpgsql keeps their plans.
create function two_tower.find_served_arm(p_user_id uuid) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return (select two_tower.choose_arm(e.name, p_user_id) from two_tower.experiments e
          where e.started_at is not null and e.ended_at is null);
end
$$;
comment on function two_tower.find_served_arm(uuid) is 'Returns the arm that a user is in now. Returns null when no experiment runs, or the user is outside of its shares.';

create function two_tower.choose_settings(p_user_id uuid) returns two_tower.settings
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_settings two_tower.settings;
  v_overrides jsonb;
begin
  select * into v_settings from two_tower.settings;
  select a.overrides into v_overrides
  from two_tower.experiments e join two_tower.experiment_arms a on a.experiment = e.name
  where e.started_at is not null and e.ended_at is null
    and a.arm = two_tower.choose_arm(e.name, p_user_id);
  if found then
    v_settings := jsonb_populate_record(v_settings, v_overrides);
  end if;
  return v_settings;
end
$$;
comment on function two_tower.choose_settings(uuid) is 'Returns the settings that a user is served with: those of the user''s arm where an experiment runs.';

create function two_tower.compare_with_static(p_share double precision default 0.5)
returns text language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_name text := 'online against static, ' || to_char(two_tower.now() at time zone 'UTC',
    'YYYY-MM-DD HH24:MI:SS');
begin
  if p_share is null or p_share not between 0.01 and 0.99 then
    raise exception 'the share of static pages is not from 0.01 to 0.99' using errcode = '22023',
      hint = 'Call compare_with_static(0.1) to serve one user in ten without what was learned.';
  end if;
  insert into two_tower.experiments (name, description)
  values (v_name, 'What learning from engagements adds to the texts alone.');
  insert into two_tower.experiment_arms (experiment, arm, share, overrides)
  values (v_name, 'online', 1 - p_share, '{}'), (v_name, 'static', p_share, '{"ranks_by": "text"}');
  perform two_tower.start_experiment(v_name);
  return v_name;
end
$$;
comment on function two_tower.compare_with_static(double precision) is
  'Starts the experiment of online learning against static embeddings, and returns its name. p_share of the users get pages by texts alone. See experiment_results, and end it with end_experiment(). Raises 22023 for a share out of range, and 55000 when an experiment is running.';

create view two_tower.experiment_results with (security_invoker = true) as
with active as (
  select x.name, e.user_id, two_tower.choose_arm(x.name, e.user_id) as arm,
    count(*) filter (where e.event_type = 'view') as views,
    count(*) filter (where s.strength > 0) as positives
  from two_tower.experiments as x
  inner join public.engagement_events as e
    on e.created_at >= x.started_at and e.created_at < coalesce(x.ended_at, 'infinity')
  inner join two_tower.signals as s on s.event_type = e.event_type
  group by x.name, e.user_id
), summed as (
  select name, arm, count(*) as users, sum(views) as views, sum(positives) as positives,
    avg(positives::double precision / greatest(1, views)) as rate,
    stddev_samp(positives::double precision / greatest(1, views)) / sqrt(count(*)) as error
  from active group by name, arm
), listed as (
  select coalesce(s.name, a.experiment) as name, coalesce(s.arm, a.arm) as arm,
    coalesce(s.users, 0) as users, coalesce(s.views, 0) as views,
    coalesce(s.positives, 0) as positives, s.rate, s.error
  from summed as s
  full join (
    select k.experiment, k.arm
    from two_tower.experiment_arms as k
    inner join two_tower.experiments as x on x.name = k.experiment and x.started_at is not null
  ) as a on a.experiment = s.name and a.arm = s.arm
), compared as (
  select r.*, x.users_wanted, r.arm = c.arm as is_control,
    (r.users - a.share * o.users) / nullif(sqrt(a.share * (1 - a.share) * o.users), 0) as ratio_z,
    case when r.arm <> c.arm then r.rate - c.rate end as difference,
    case when r.arm <> c.arm then 1.96 * sqrt(r.error ^ 2 + c.error ^ 2) end as margin,
    least(r.users, c.users) as users_compared
  from listed as r
  inner join two_tower.experiments as x on x.name = r.name
  left join two_tower.experiment_arms as a on a.experiment = r.name and a.arm = r.arm
  left join lateral (
    select sum(s.users) as users from listed as s where s.name = r.name
  ) as o on true
  left join lateral (
    select s.arm, s.users, s.rate, s.error
    from listed as s
    inner join two_tower.experiment_arms as k on k.experiment = s.name and k.arm = s.arm
    where s.name = r.name
    order by k.overrides <> '{}', s.arm limit 1
  ) as c on true
)
select
  name as experiment, coalesce(arm, '(outside)') as arm, users, views, positives,
  rate as positives_per_view, error as standard_error, ratio_z as sample_ratio_z, difference,
  difference - margin as difference_low, difference + margin as difference_high,
  case
    when arm is null then null
    when abs(ratio_z) > 3.29 then 'the shares are off: do not read this'
    when is_control then 'what others are compared with'
    when users_compared < users_wanted
      then format('not enough yet: %s of %s users', users_compared, users_wanted)
    when difference - margin > 0 then 'better'
    when difference + margin < 0 then 'worse'
    else 'no difference seen'
  end as verdict
from compared;
comment on view two_tower.experiment_results is 'What came of each arm of each experiment that was started, since its start. Users with events count.';
comment on column two_tower.experiment_results.arm is '(outside): the users in no arm.';
comment on column two_tower.experiment_results.positives is 'Events of a type with a strength above 0. A dwell counts whatever its duration.';
comment on column two_tower.experiment_results.positives_per_view is 'Mean over users of positives per view.';
comment on column two_tower.experiment_results.standard_error is 'Standard error of positives_per_view.';
comment on column two_tower.experiment_results.sample_ratio_z is 'How far the number of users is from what the share says, in standard deviations. Beyond 3.29 (one in a thousand by chance) the arms are no random halves of the same users: one of them loses users, or events.';
comment on column two_tower.experiment_results.difference is 'positives_per_view less that of the control: the first arm without overrides, or else the first.';
comment on column two_tower.experiment_results.difference_low is 'Where the 95 % interval of the difference begins.';
comment on column two_tower.experiment_results.difference_high is 'Where the 95 % interval of the difference ends.';
comment on column two_tower.experiment_results.verdict is 'What may be said of the arm. Null for users in no arm.';
