-- Metrics are stored, and alerts raised. An alert is for an incident: what is normal for a project
-- that is young, small, frozen or importing gets a note instead.

create function two_tower.is_importing() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select exists (select from two_tower.jobs j
    where j.kind = 'encode_posts' and j.state = 'running' and j.lease_until > two_tower.now());
$$;
comment on function two_tower.is_importing() is 'Returns whether a worker encodes posts now.';

-- Bounded: it runs every minute.
create function two_tower.explain_metrics() returns table (name text, note text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with facts as materialized (
    select s.frozen_at is not null as is_frozen, two_tower.is_importing() as is_importing,
      not two_tower.has_worker() as has_no_worker,
      exists (select from two_tower.sources w
        where w.role = 'posts' and w.state = 'attached' and w.missing_rows > 0
          and (w.walk is not null or w.is_walk_wanted)) as is_walking,
      (select count(*) from (select from two_tower.user_embeddings u
        where u.engagement_count > 0 limit 10) u) < 10 as has_few_users,
      (select count(*) from (select from two_tower.live_embeddings v
        where v.slot = s.active_slot limit 40) v) < 40 as has_few_posts,
      (select count(*) from (select from two_tower.update_latencies
        where measured_at > two_tower.now() - interval '1 hour' limit 20) u) < 20 as has_few_times,
      n.labelled < 20 and n.weak >= 20 as is_weak, n.labelled < 20 as is_quiet
    from two_tower.state s
      cross join lateral (
        select count(*) filter (where g.label) as labelled,
          count(*) filter (where g.label is null and g.strength > 0) as weak
        from (select e.id, e.event_type, e.created_at from public.engagement_events e
          order by e.id desc limit 1000) e
          join two_tower.signals g on g.event_type = e.event_type
        where e.created_at > two_tower.now() - interval '1 hour'
          and not exists (select from two_tower.unlearned_events x
            where x.event_id = e.id and x.created_at = e.created_at)
          and not exists (select from two_tower.deferred_events d where d.event_id = e.id)) n
  )
  select distinct on (n.name) n.name, r.note
  from facts f
    cross join lateral (values
      (1, f.is_frozen, 'Learning is frozen.',
        '{training_pairs_per_hour, deferred_events, waiting_events, longest_wait}'::text[]),
      (2, f.has_no_worker, 'No worker runs: see unattended_work.',
        '{post_coverage, deferred_events, oldest_waiting_job, oldest_waiting_post,
          oldest_waiting_text}'),
      (3, f.is_importing, 'A worker is encoding them.',
        '{post_coverage, deferred_events, oldest_waiting_post}'),
      (4, f.is_walking, 'A walk of an attached table is bringing rows in.', '{post_coverage}'),
      (5, f.is_weak, 'Nothing stronger than clicks comes in, and towers learn nothing from these.'
          ' That is so until signals.label is true for click.',
        '{training_pairs_per_hour, negatives_per_positive}'),
      (6, f.is_quiet, 'Few users engage at this hour.',
        '{training_pairs_per_hour, negatives_per_positive}'),
      (7, f.has_few_users, 'Fewer than 10 users have taught anything.',
        '{user_coverage, embedding_drift, week_cosine, mean_cosine, training_balance}'),
      (8, f.has_few_posts, 'There are fewer than 40 posts.',
        '{negatives_per_positive, mean_cosine, training_balance}'),
      (9, f.has_few_times, 'Few events were timed.', '{update_latency}')
    ) as r (place, is_so, note, names)
    cross join unnest(r.names) as n (name)
  where r.is_so order by n.name, r.place;
$$;
comment on function two_tower.explain_metrics() is 'Returns why values of metrics out of their range are normal now, for those of which they are: learning is frozen, posts are being imported, few users engage, or the project is small. Where no worker runs, that is the one incident.';

create function two_tower.store_metrics(p_names text[], p_values double precision[]) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  insert into two_tower.metrics (name, value, note)
  select m.name, m.value,
    case when two_tower.grade_metric(t, m.value) in ('warning', 'alert') then e.note end
  from unnest(p_names, p_values) as m (name, value)
    left join two_tower.metric_targets t using (name)
    left join two_tower.explain_metrics() e using (name)
  on conflict (name, measured_at) do update set value = excluded.value, note = excluded.note;
$$;
comment on function two_tower.store_metrics(text[], double precision[]) is 'Stores values of metrics, each with a note where it is out of its range for a reason that is no incident.';

create function two_tower.raise_alerts() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_metric record;
begin
  for v_metric in
    select h.name, h.value, h.unit, h.state, h.description from two_tower.health h order by h.name
  loop
    if v_metric.state = 'alert' then
      perform two_tower.open_alert('metric_out_of_range', v_metric.name,
        format('%s is %s. %s', v_metric.name,
          coalesce(trim_scale(round(v_metric.value::numeric, 4))::text, v_metric.unit),
          v_metric.description),
        jsonb_build_object('value', v_metric.value));
    else
      perform two_tower.close_alert('metric_out_of_range', v_metric.name);
    end if;
  end loop;
end
$$;
comment on function two_tower.raise_alerts() is 'Opens an alert for each metric in its alert range. Closes the alerts of metrics that have left it, or of which there is nothing to measure any more.';

create function two_tower.record_metrics() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform two_tower.store_metrics(array_agg(m.name), array_agg(m.value))
    from two_tower.measure_metrics() m;
  delete from two_tower.metrics where (name, measured_at) in (
    select name, measured_at from two_tower.metrics
    where measured_at < two_tower.now() - interval '30 days' limit 1000);
  delete from two_tower.update_latencies where event_id in (
    select u.event_id from two_tower.update_latencies u
    where u.measured_at < two_tower.now() - interval '1 hour' limit 10000);
  perform two_tower.raise_alerts();
end
$$;
comment on function two_tower.record_metrics() is 'Stores the metrics, and raises alerts. Deletes at most 1,000 measurements that are older than 30 days.';

create view two_tower.open_alerts with (security_invoker = true) as
select
  a.kind, a.subject, a.message, coalesce(h.advice, k.advice) as advice, k.page, a.opened_at,
  a.last_seen_at, a.occurrences
from two_tower.alerts as a
left join two_tower.alert_kinds as k on k.kind = a.kind
left join two_tower.health as h on a.kind = 'metric_out_of_range' and h.name = a.subject
where a.closed_at is null;
comment on view two_tower.open_alerts is 'What an operator should look at now, and what to do about it.';
comment on column two_tower.open_alerts.advice is 'What to do.';
comment on column two_tower.open_alerts.page is 'Where the documents say more.';
