-- What an operator looks at: how metrics are measured, and one view that says whether all is well.

-- Neither a few accounts that move many posts, nor many accounts that move a few, are drift of all.
-- Medians are lower ones: one of two posts is not most of them.
create function two_tower.measure_drift() returns double precision
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_share real := (select 100 * least(1, 500 / greatest(r.reltuples, 1))
    from pg_catalog.pg_class r where r.oid = 'two_tower.user_embeddings'::regclass);
begin
  return (
    with post as materialized (
      select * from two_tower.measure_movement()
    ), recent as materialized (
      select u.user_id, r.post_id
      from two_tower.user_embeddings u tablesample system (v_share)
        cross join lateral unnest(u.recent_post_ids) as r (post_id)
    ), account as (
      select avg(m.distance) as distance
      from two_tower.measure_movement(array(select distinct r.post_id from recent r)) m
        join recent n on n.post_id = m.post_id
      group by n.user_id
    )
    select least(
        (select percentile_disc(0.5) within group (order by distance) from post),
        (select percentile_disc(0.5) within group (order by distance) from account))
      / (select max(days) from post)
  );
end
$$;
comment on function two_tower.measure_drift() is
  'Returns drift: the cosine distance from the newest checkpoint, per day, of the posts that were engaged with since. Posts that are held count. It is the smaller of two lower medians: over posts, and over accounts, each with the mean of those of its last engagements. Accounts are a sample of about 500, posts one of about 10,000. Returns null after a change of the candidate tower: a promotion is not drift.';

-- Cheap: what is counted stands in small partial indexes, and the rest Postgres estimates.
create function two_tower.measure_queues() returns table (name text, value double precision)
language sql stable set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off
  as $$
  with clock as materialized (select two_tower.now() as now), due as materialized (
    select j.run_at from two_tower.jobs j, clock c where j.state = 'pending' and j.run_at <= c.now
  ), texts as materialized (
    select t.requested_at from two_tower.requested_texts t
    where t.content is not null order by t.turn_at limit 10000
  ), posts as materialized (
    select p.requested_at from two_tower.due_posts p, clock c
    where p.requested_at <= c.now order by p.turn limit 10000
  ), alive as materialized (
    select count(distinct w.name) as workers from two_tower.live_workers w
  ), oldest (name, seconds) as materialized (
    select 'oldest_waiting_job', coalesce(extract(epoch from max(c.now - d.run_at)), 0)
      from due d, clock c
    union all
    select 'oldest_waiting_post', coalesce(extract(epoch from max(c.now - p.requested_at)), 0)
      from posts p, clock c
    union all
    select 'oldest_waiting_text', coalesce(extract(epoch from max(c.now - t.requested_at)), 0)
      from texts t, clock c
  ), rows as materialized (
    select t.name, sum(r.reltuples) filter (where r.reltuples >= 0) as value
    from (values ('posts', 'two_tower.posts'), ('users', 'two_tower.user_embeddings'),
        ('events', 'public.engagement_events')) as t (name, relation)
      join pg_catalog.pg_class r on r.relkind = 'r' and (r.oid = t.relation::regclass
        or r.oid in (select p.relid from pg_partition_tree(t.relation::regclass) p))
    group by t.name
  )
  select 'workers', a.workers from alive a
  union all select 'waiting_jobs', count(*) from due
  union all select 'waiting_posts', count(*) from posts
  union all select 'waiting_texts', count(*) from texts
  union all select o.name, o.seconds from oldest o
  union all select 'unattended_work', case when a.workers = 0 then max(o.seconds) else 0 end
    from alive a cross join oldest o group by a.workers
  union all select 'broken_sources', count(*) from two_tower.sources where state = 'broken'
  union all select 'open_alerts', count(*) from two_tower.alerts where closed_at is null
  union all select 'is_frozen', (frozen_at is not null)::integer from two_tower.state
  union all select r.name, r.value from rows r;
$$;
comment on function two_tower.measure_queues() is 'Returns the metrics of what waits, and of how much there is. Reads no large table.';

create function two_tower.sample_new_posts() returns table (is_there boolean)
language sql stable set search_path = pg_catalog, pg_temp as $$
  (select v.post_id is not null or n.is_unreadable
    from (select p.id, p.is_unreadable from two_tower.posts p
        where p.created_at between two_tower.now() - interval '1 day' and two_tower.now()
          and p.is_listed and p.encoded_hash is not null
        order by p.created_at desc, p.id limit 1000) n
      left join two_tower.live_embeddings v
        on v.slot = (select active_slot from two_tower.state) and v.post_id = n.id)
  union all
  (select false from two_tower.due_posts d
    where not d.is_edited and d.requested_at <= two_tower.now() limit 1000);
$$;
comment on function two_tower.sample_new_posts() is 'Returns of at most 1,000 encoded posts of a day whether they have a vector, or cannot have one, and false for at most 1,000 that wait for the encoder.';

create function two_tower.measure_metrics() returns table (name text, value double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with recent as (
    select count(*) filter (where x.label) as positives,
      coalesce(sum(cardinality(x.negative_ids)), 0) as negatives
    from two_tower.training_examples x where x.created_at > two_tower.now() - interval '1 hour'
  )
  select 'training_pairs_per_hour', positives + negatives from recent
  union all select 'negatives_per_positive', negatives / nullif(positives, 0)::double precision
    from recent
  union all select 'update_latency', percentile_cont(0.95) within group (order by u.milliseconds)
    from two_tower.update_latencies u where u.measured_at > two_tower.now() - interval '1 hour'
  union all select 'cold_start_ctr', two_tower.cold_start_ctr()
  -- Null where there is no row. The share of rows that the registry knows, times the share of
  -- known posts that have a vector.
  union all select 'post_coverage', case when r.sampled > 0 or c.share is not null
      then (1 - r.missing / greatest(r.sampled, 1)) * coalesce(c.share, 1) end
    from (select coalesce(sum(s.missing_rows), 0)::double precision as missing,
        coalesce(sum(s.sampled_rows), 0) as sampled
        from two_tower.sources s where s.role = 'posts' and s.state = 'attached') r
      cross join (select avg(n.is_there::integer) as share from two_tower.sample_new_posts() n) c
  union all select 'user_coverage', avg((extensions.vector_norm(u.embedding) > 0)::integer)
    from (select * from two_tower.user_embeddings where engagement_count > 0 order by user_id
      limit 10000) u
  union all select 'partition_runway', extract(epoch from min(r.ends_at) - pg_catalog.now()) / 86400
    from (select max(p.ends_at) as ends_at from two_tower.partitions p group by p.table_name) r
  union all select 'unreadable_posts', avg(n.is_unreadable::integer)
    from (select p.is_unreadable from two_tower.posts p
      where p.is_listed and p.encoded_hash is not null
      order by p.created_at desc, p.id limit 1000) n
  union all select 'deferred_steps', count(*)
    from (select from two_tower.deferred_steps limit 200000) q
  union all select 'deferred_events', count(*)
    from (select from two_tower.deferred_events where reason <> 'minute_full' limit 200000) q
  union all select w.name, w.value
    from (
      select count(*)::double precision as events,
        extract(epoch from two_tower.now() - min(q.deferred_at))::double precision / 60 as minutes
      from (select d.deferred_at from two_tower.deferred_events d
        where d.reason = 'minute_full' limit 200000) q
    ) m cross join lateral (
      values ('waiting_events', m.events), ('longest_wait', coalesce(m.minutes, 0))
    ) as w (name, value)
  union all select 'dead_jobs', count(*) from two_tower.jobs
    where state = 'dead' and attempts >= max_attempts
      and finished_at > two_tower.now() - interval '1 day'
  union all select 'serving_recall', (select recall from two_tower.serving_index)
  union all select 'embedding_drift', two_tower.measure_drift()
  union all select * from two_tower.measure_study()
  union all select * from two_tower.measure_queues();
$$;
comment on function two_tower.measure_metrics() is 'Returns the metrics as they are now, but those that only audits measure. value is null where there is nothing to measure.';

-- Asked of the catalogue: names of a schema that one may not use would raise.
create function two_tower.lacks_broadcast_policy() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (
    select from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    where n.nspname = 'realtime' and c.relname = 'messages'
      and not exists (select from pg_catalog.pg_policy p
        where p.polrelid = c.oid and p.polname = 'readers receive what two_tower tells them'));
$$;
comment on function two_tower.lacks_broadcast_policy() is 'Returns whether Realtime is here and no policy lets readers receive broadcasts: see allow_broadcasts().';

-- A restore can lose what lies outside of the schemas that were dumped, such as the job of pg_cron.
-- Somebody can disable a trigger. Each is silent by itself.
create function two_tower.find_missing_parts() returns text[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_missing text[];
  v_is_scheduled boolean := true;
begin
  v_missing := array(
    select format('trigger %s on %s', n.trigger_name, n.table_name)
    from (
      values
        ('request_erasure', 'two_tower.users'), ('learn_from_events', 'public.engagement_events'),
        ('resolve_post_key', 'public.engagement_events'),
        ('clamp_happened_at', 'public.engagement_events'),
        ('check_readable', 'public.engagement_events'),
        ('admit_muted_term', 'public.muted_terms'),
        ('check_arm', 'two_tower.experiment_arms'),
        ('learn_from_blocks', 'two_tower.blocks'), ('unlearn_blocks', 'two_tower.blocks'),
        ('keep_row', 'two_tower.settings'), ('change_encoder', 'two_tower.settings'),
        ('record_setting_change', 'two_tower.settings'),
        ('record_signal_change', 'two_tower.signals'),
        ('add_to_serving_index', 'two_tower.live_embeddings'),
        ('remove_from_serving_index', 'two_tower.live_embeddings'),
        ('add_to_exploration_pool', 'two_tower.live_embeddings')
      union all
      select 'two_tower_' || e.event, s.relation::text
      from two_tower.sources s
        cross join unnest('{insert, update, delete, truncate}'::text[]) as e (event)
      where s.state <> 'detached'
    ) as n (trigger_name, table_name)
    where not exists (
      select from pg_catalog.pg_trigger t
      where t.tgrelid = to_regclass(n.table_name) and t.tgname = n.trigger_name
        and t.tgenabled <> 'D')
    order by 1);
  if to_regclass('cron.job') is not null then
    execute 'select exists (select from cron.job where jobname = ''two_tower_tick'' and active)'
    into v_is_scheduled;
  end if;
  return v_missing
    || case when not v_is_scheduled then array['job two_tower_tick of pg_cron'] end
    || case when two_tower.lacks_broadcast_policy()
        and (select announced_readers > 0 from two_tower.settings)
      then array['policy of broadcasts: call two_tower.allow_broadcasts()'] end;
end
$$;
comment on function two_tower.find_missing_parts() is
  'Returns what the migrations made and what is gone or disabled since: triggers, the job of pg_cron, the policy of broadcasts. Empty when all is there. Definer: workers have no grant on cron.';

create view two_tower.health with (security_invoker = true) as
select
  t.name, m.value, t.unit, t.target_low, t.target_high, t.alert_low, t.alert_high,
  case when m.note is null then two_tower.grade_metric(t, m.value) else 'ok' end as state,
  m.measured_at, t.description, m.note, t.advice
from two_tower.metric_targets as t
left join lateral (
  select x.value, x.measured_at, x.note from two_tower.metrics as x where x.name = t.name
    order by x.measured_at desc limit 1
) as m on true
union all
select
  'pgvector', null, 'version', null, null, null, null,
  case
    when (string_to_array(x.extversion, '.')::integer[])[1:3] < array[0, 8, 4] then 'alert'
    else 'ok'
  end,
  pg_catalog.now(), 'pgvector ' || x.extversion
    || ': before 0.8.4, concurrent insert and vacuum can damage an HNSW index.',
  null, 'Update pgvector, then: alter extension vector update.'
from pg_catalog.pg_extension as x where x.extname = 'vector'
union all
select
  'missing_parts', cardinality(m.parts), 'parts', null, 0, null, 0,
  case when m.parts = '{}' then 'ok' else 'alert' end, pg_catalog.now(),
  case when m.parts = '{}' then 'All that the migrations made is there.'
    else 'Gone or disabled: ' || array_to_string(m.parts, ', ') || '.' end,
  null, 'Make what is missing anew, as the migration that names it does, or enable it.'
from (select two_tower.find_missing_parts() as parts) as m
union all
select
  'metrics_age', m.age, 'seconds', null, 120, null, 600,
  case when m.age > 600 then 'alert' when m.age > 120 then 'warning' else 'ok' end,
  pg_catalog.now(), 'How long ago tick() recorded metrics. It does so every minute.',
  null, 'Nobody calls tick(): start a worker, or look at the job two_tower_tick of pg_cron.'
from (
  select extract(epoch from two_tower.now() - max(x.measured_at))::double precision as age
  from two_tower.metrics as x where x.name = 'workers'
) as m;
comment on view two_tower.health is 'The latest value of each metric against its target range and alert range, and what to know about this installation.';
comment on column two_tower.health.state is 'ok, warning, alert or unknown. ok with a note: out of range, and normal now.';
comment on column two_tower.health.note is 'Why a value out of its range is normal now. Null where it is not.';
comment on column two_tower.health.advice is 'What to do about an alert. Null for what raises none.';

-- What waits is measured anew: a figure of a minute ago would hide that ticks have stopped.
-- Definer: a monitor logs in as a worker does, and has no grant on tables.
create function two_tower.read_health()
returns table (name text, value double precision, unit text, target_low double precision,
  target_high double precision, alert_low double precision, alert_high double precision,
  state text, description text, advice text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select h.name, v.value, h.unit, h.target_low, h.target_high, h.alert_low, h.alert_high,
    case when q.name is null or h.note is not null then h.state
      else two_tower.grade_metric(t, v.value) end,
    h.description, h.advice
  from two_tower.health h
    left join two_tower.metric_targets t using (name)
    left join two_tower.measure_queues() q using (name)
    cross join lateral (
      select case when q.name is null then h.value else q.value end as value) v
  order by h.name;
$$;
comment on function two_tower.read_health() is 'Returns a row for each figure of health. What waits, and how much there is, is measured at the moment of the call. Definer: two-tower metrics runs with the role of workers, who have no grant on tables.';

create function public.read_metrics()
returns table (name text, value double precision, unit text, target_low double precision,
  target_high double precision, alert_low double precision, alert_high double precision,
  state text, description text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select h.name, h.value, h.unit, h.target_low, h.target_high, h.alert_low, h.alert_high, h.state,
    h.description
  from two_tower.read_health() h;
$$;
comment on function public.read_metrics() is
  'For back ends with the service role, such as an exporter to Prometheus: returns a row for each figure of two_tower.health. What waits, and how much there is, is measured at the moment of the call; the rest when tick() last recorded it, at most a minute ago. value is null, and state unknown, where there is nothing to measure. Names do not change. It is cheap: call it as often as you like.';

create view two_tower.overview with (security_invoker = true) as
select
  (select count(*) from two_tower.posts) as posts,
  (select count(*) from two_tower.live_embeddings as v
    where v.slot = s.active_slot) as encoded_posts,
  (select count(*) from two_tower.user_embeddings) as users,
  (select count(*) from public.engagement_events) as events,
  w.deferred_events, w.waiting_events, w.longest_wait,
  (select count(*) from two_tower.deferred_steps) as deferred_steps, c.learning_rule,
  two_tower.active_version('candidate_tower') as candidate_tower,
  (select case when not m.config ? 'start' then 'trained'
      when m.config ? 'centred_on' then 'centred'
      when m.config ? 'fitted_on' then 'fitted' else 'data-free' end
    from two_tower.model_weights as m
    where m.version = two_tower.active_version('candidate_tower')) as projection,
  (select d.step from two_tower.first_tower_due() as d) as projection_due,
  two_tower.active_version('user_tower') as user_tower,
  s.filling_version, s.frozen_at, s.frozen_reason
from two_tower.state as s
cross join two_tower.settings as c
cross join (
  select
    count(*) filter (where d.reason <> 'minute_full') as deferred_events,
    count(*) filter (where d.reason = 'minute_full') as waiting_events,
    two_tower.now() - min(d.deferred_at) filter (where d.reason = 'minute_full') as longest_wait
  from two_tower.deferred_events as d
) as w;
comment on view two_tower.overview is 'One row: how much there is, which rule and versions are at work, whether learning is frozen. It counts tables: for people, not for programs in a loop.';
comment on column two_tower.overview.encoded_posts is 'Posts with a live embedding.';
comment on column two_tower.overview.deferred_events is 'Events that wait for an embedding, or for the end of a freeze.';
comment on column two_tower.overview.waiting_events is 'Events that wait because the minute of their user was full.';
comment on column two_tower.overview.longest_wait is 'For how long the first of waiting_events waits.';
comment on column two_tower.overview.projection is 'How the candidate tower that serves came about: data-free, fitted, centred or trained.';
comment on column two_tower.overview.projection_due is 'What a tick will make of the first projection. Null for nothing.';
comment on column two_tower.overview.filling_version is 'The candidate tower for which a slot is being filled. Null for none.';
