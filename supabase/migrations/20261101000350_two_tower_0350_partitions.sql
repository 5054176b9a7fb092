-- Partitions by time: one mechanism for all tables that grow with events. The default partition
-- takes what lies outside the others, such as imported history, or a replay under another clock.

create table two_tower.partitioned_tables (
  table_name regclass primary key,
  step interval not null,
  ahead integer not null default 3 constraint some_partitions_are_made_ahead check (ahead > 0),
  kept_for_setting text not null,
  storage_options text not null default ''
);
comment on table two_tower.partitioned_tables is
  'The tables that are partitioned by created_at, and how.';
comment on column two_tower.partitioned_tables.step is 'The time that one partition covers.';
comment on column two_tower.partitioned_tables.ahead is 'How many partitions are made ahead of the present one.';
comment on column two_tower.partitioned_tables.kept_for_setting is 'The column of settings that says how long partitions are kept.';
comment on column two_tower.partitioned_tables.storage_options is 'Storage options of each partition, as in create table ... with (...).';

create table two_tower.partitions (
  partition_name text primary key,
  table_name regclass not null references two_tower.partitioned_tables (table_name)
    on delete cascade,
  starts_at timestamptz not null,
  ends_at timestamptz not null,
  constraint a_partition_covers_time check (starts_at < ends_at),
  unique (table_name, starts_at)
);
comment on table two_tower.partitions is 'The partitions that exist, with their ranges. The default partitions are not among them.';
comment on column two_tower.partitions.starts_at is 'The first moment of the range.';
comment on column two_tower.partitions.ends_at is 'The first moment after the range.';

create function two_tower.make_storage_clause(p_table regclass) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce('with (' || nullif(t.storage_options, '') || ')', '')
  from two_tower.partitioned_tables t where t.table_name = p_table;
$$;
comment on function two_tower.make_storage_clause(regclass) is 'Returns the storage options of a table''s partitions as a clause of create table, or an empty text.';

-- The app may add columns and drop them. Two partitions may have them in different order, and no
-- statement writes a generated one.
create function two_tower.stored_columns(p_table regclass) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
  from pg_catalog.pg_attribute a
  where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped and a.attgenerated = '';
$$;
comment on function two_tower.stored_columns(regclass) is 'Returns the columns of a table as a list in SQL, without generated ones.';

-- An identity column is the parent's: a partition takes it on when it is attached.
-- Attaching takes a weaker lock on the parent than creating a partition in place, so writers go on.
create function two_tower.create_partition(p_table regclass, p_starts_at timestamptz,
  p_ends_at timestamptz)
returns void language plpgsql set search_path = pg_catalog, pg_temp set timezone = 'UTC' as $$
declare
  v_relation text := (select relname from pg_catalog.pg_class where oid = p_table);
  v_name text := format('%s_%s', v_relation, to_char(p_starts_at, 'YYYYMMDD'));
  v_columns text := two_tower.stored_columns(p_table);
begin
  execute format('create table two_tower.%I (like %s including all excluding identity) %s',
    v_name, p_table, two_tower.make_storage_clause(p_table));
  execute format('
    with moved as (
      delete from two_tower.%1$I where created_at >= %2$L and created_at < %3$L returning %5$s
    )
    insert into two_tower.%4$I (%5$s) select %5$s from moved',
    v_relation || '_history', p_starts_at, p_ends_at, v_name, v_columns);
  execute format('alter table %s attach partition two_tower.%I for values from (%L) to (%L)',
    p_table, v_name, p_starts_at, p_ends_at);
  insert into two_tower.partitions (partition_name, table_name, starts_at, ends_at)
  values (v_name, p_table, p_starts_at, p_ends_at);
end
$$;
comment on function two_tower.create_partition(regclass, timestamptz, timestamptz) is
  'Makes one partition, and moves into it what the default partition holds of its range. It lies in two_tower, where no client role has a grant.';

-- Attaching and dropping wait for whoever reads the whole table, and later statements queue behind
-- them. So they wait for at most one second, and are tried again at the next tick.
create function two_tower.create_partitions_ahead() returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp set timezone = 'UTC' set lock_timeout = '1s' as $$
declare
  v_table record;
  v_end timestamptz;
  v_created integer := 0;
begin
  for v_table in select * from two_tower.partitioned_tables
    order by table_name::text for update loop
    loop
      select max(ends_at) into v_end from two_tower.partitions
        where table_name = v_table.table_name;
      v_end := coalesce(v_end, date_trunc(
        case when v_table.step >= '1 month' then 'month' else 'week' end, pg_catalog.now()));
      exit when v_end > pg_catalog.now() + v_table.ahead * v_table.step;
      perform two_tower.create_partition(v_table.table_name, v_end, v_end + v_table.step);
      v_created := v_created + 1;
    end loop;
  end loop;
  return v_created;
exception when lock_not_available then
  update two_tower.schedules set last_run_at = null where kind = 'create_partitions_ahead';
  return 0;
end
$$;
comment on function two_tower.create_partitions_ahead() is
  'Makes the partitions that will be needed soon. Returns how many. Returns 0 when a long reader is in the way; the next tick tries again. Uses the real time, not the replaceable clock: partitions are storage. Definer: workers own no table.';

create function two_tower.create_partitions_back_to(p_from timestamptz) returns integer
language plpgsql set search_path = pg_catalog, pg_temp set timezone = 'UTC' as $$
declare
  v_table record;
  v_start timestamptz;
  v_kept interval;
  v_created integer := 0;
begin
  for v_table in select * from two_tower.partitioned_tables
    order by table_name::text for update loop
    select (to_jsonb(s) ->> v_table.kept_for_setting)::interval into v_kept
    from two_tower.settings s;
    if p_from < pg_catalog.now() - v_kept then
      raise exception 'partitions of % are kept for %', v_table.table_name, v_kept
        using errcode = '22023', hint = format(
          'drop_old_partitions() would drop them. Raise settings.%s first.',
          v_table.kept_for_setting);
    end if;
    loop
      select min(starts_at) into v_start from two_tower.partitions
      where table_name = v_table.table_name;
      exit when v_start <= p_from;
      perform two_tower.create_partition(v_table.table_name, v_start - v_table.step, v_start);
      v_created := v_created + 1;
    end loop;
  end loop;
  return v_created;
end
$$;
comment on function two_tower.create_partitions_back_to(timestamptz) is
  'For operators, before they import a long history: makes partitions back to p_from. Otherwise all of the history lies in the default partition. That one is never dropped, and is scanned when a partition is attached. Returns how many it made. Raises 22023 where they would be dropped at once.';

create function two_tower.partition_by_time(p_table regclass, p_step interval,
  p_kept_for_setting text, p_storage_options text default '')
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  insert into two_tower.partitioned_tables (table_name, step, kept_for_setting, storage_options)
  values (p_table, p_step, p_kept_for_setting, p_storage_options);
  execute format('create table two_tower.%I partition of %s default %s',
    (select relname || '_history' from pg_catalog.pg_class where oid = p_table), p_table,
    two_tower.make_storage_clause(p_table));
  perform two_tower.create_partitions_ahead();
end
$$;
comment on function two_tower.partition_by_time(regclass, interval, text, text) is
  'Puts a partitioned table under this management. Makes a default partition, the present one, and some ahead.';

create function two_tower.drop_old_partitions() returns integer
language plpgsql security definer
set search_path = pg_catalog, pg_temp set lock_timeout = '1s' as $$
declare
  v_part record;
  v_dropped integer := 0;
begin
  for v_part in
    select p.partition_name from two_tower.partitions p
      join two_tower.partitioned_tables t using (table_name)
    where p.ends_at < pg_catalog.now()
      - (select (to_jsonb(s) ->> t.kept_for_setting)::interval from two_tower.settings s)
    order by p.ends_at limit 10
  loop
    execute format('drop table two_tower.%I', v_part.partition_name);
    delete from two_tower.partitions where partition_name = v_part.partition_name;
    v_dropped := v_dropped + 1;
  end loop;
  return v_dropped;
exception when lock_not_available then
  update two_tower.schedules set last_run_at = null where kind = 'drop_old_partitions';
  return 0;
end
$$;
comment on function two_tower.drop_old_partitions() is 'Drops at most ten partitions that are older than settings keep them. Returns how many. Returns 0 when a long reader is in the way; the next tick tries again. Definer: workers own no table.';
