-- For how long what is kept, and what that costs. Sizes are those of files, and counts those that
-- Postgres estimates: no table is read.

create view two_tower.retention with (security_invoker = true) as
with kept (relation, setting, always_for, until) as (
  values
    ('public.engagement_events'::regclass, 'events_kept_for', null::interval,
      'Partitions that are older are dropped.'),
    ('two_tower.unlearned_events', 'events_kept_for', null,
      'Partitions that are older are dropped.'),
    ('two_tower.training_examples', 'training_examples_kept_for', null,
      'Partitions that are older are dropped.'),
    ('two_tower.checkpoint_posts', 'checkpoints_kept', null, 'Of this number of checkpoints.'),
    ('two_tower.checkpoint_users', 'checkpoints_kept', null, 'Of this number of checkpoints.'),
    ('two_tower.model_tensors', 'weight_versions_kept', null, 'Of this number of versions.'),
    ('two_tower.requested_texts', 'requested_texts_kept_for', null, 'Since it was asked for.'),
    ('two_tower.live_embeddings', 'deleted_posts_kept_for', null, 'Since its row is gone.'),
    ('two_tower.base_embeddings', 'deleted_posts_kept_for', null, 'Since its row is gone.'),
    ('two_tower.posts', 'deleted_posts_kept_for', null, 'Since its row is gone.'),
    ('two_tower.metrics', null, '30 days', 'Since it was measured.'),
    ('two_tower.jobs', null, '1 day', 'Since it was done; 30 days where it died.'),
    ('two_tower.studies', null, '30 days', 'Since it began.'),
    ('two_tower.refreshes', null, '90 days', 'Since it ended.'),
    ('two_tower.cold_start_counts', null, '2 days', 'Of the hour that it counts.'),
    ('two_tower.update_latencies', null, '1 hour', 'Since it was measured.'),
    ('two_tower.user_posts', null, null, 'The user is deleted.'),
    ('two_tower.user_embeddings', null, null, 'The user is deleted.'),
    ('two_tower.profile_embeddings', null, null, 'The user is deleted.'),
    ('two_tower.told_interests', null, null, 'The user is deleted.'),
    ('two_tower.alerts', null, null, 'An operator deletes it.'),
    ('two_tower.audits', null, null, 'An operator deletes it.'),
    ('two_tower.setting_changes', null, null, 'An operator deletes it.')
), sized as (
  select
    k.relation, k.setting, k.always_for, k.until,
    coalesce(to_jsonb(s) ->> k.setting, k.always_for::text) as kept,
    case
      when k.setting like '%kept_for' and k.setting <> 'deleted_posts_kept_for'
        then (to_jsonb(s) ->> k.setting)::interval
      when k.setting = 'checkpoints_kept' then s.checkpoints_kept * interval '1 day'
      else k.always_for
    end as kept_for,
    (select sum(pg_total_relation_size(c.oid)) from pg_catalog.pg_class as c
      where c.oid = k.relation
        or c.oid in (select t.relid from pg_partition_tree(k.relation) as t))::bigint as bytes,
    (select coalesce(sum(greatest(c.reltuples, 0)), 0) from pg_catalog.pg_class as c
      where c.relkind = 'r' and (c.oid = k.relation
        or c.oid in (select t.relid from pg_partition_tree(k.relation) as t)))::bigint as rows,
    coalesce(
      -- Older partitions than the first hold a history that was imported.
      (select min(p.starts_at) from two_tower.partitions as p
        join two_tower.partitioned_tables as t on t.table_name = p.table_name
        where p.table_name = k.relation and p.starts_at < i.installed_at - t.step),
      i.installed_at
    ) as since
  from kept as k
  cross join two_tower.settings as s
  cross join (select min(f.installed_at) as installed_at from two_tower.installed_files as f) as i
)
select
  format('%I.%I', n.nspname, c.relname) as table_name, z.setting, z.kept, z.until,
  z.rows as estimated_rows, z.bytes,
  round(z.bytes / d.days)::bigint as bytes_a_day,
  round(z.bytes / d.days * extract(epoch from z.kept_for) / 86400)::bigint as bytes_when_full
from sized as z
join pg_catalog.pg_class as c on c.oid = z.relation
join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
left join lateral (
  select extract(epoch from least(z.kept_for, pg_catalog.now() - z.since)) / 86400 as days
) as d on pg_catalog.now() - z.since >= least(z.kept_for, interval '1 day')
  and z.kept_for > '0'
order by z.bytes desc, table_name;
comment on view two_tower.retention is 'Tables that grow: for how long what is kept, and what that takes on the disk, with indexes. It reads none of them.';
comment on column two_tower.retention.setting is 'The column of settings that says how long. Null where it is fixed, or where only deletion ends it.';
comment on column two_tower.retention.kept is 'How long, or how many. Null where only deletion ends it.';
comment on column two_tower.retention.until is 'From when on the time counts, or what ends it.';
comment on column two_tower.retention.estimated_rows is 'As Postgres estimates them.';
comment on column two_tower.retention.bytes_a_day is 'bytes over the time that they are of: how long they are kept or, if that is less, since the installation or the start of an imported history. Null where no time ends it, and on the first day.';
comment on column two_tower.retention.bytes_when_full is 'What that comes to, at this rate, when nothing more is added than dropped.';
