-- Removes Two-Tower from this project. Written by two-tower uninstall.
--
-- The app's tables and their rows stay, those of the starter app too. pgvector stays. Role
-- two_tower_worker stays, without rights in this database: other databases of the server may use it.

do $$
declare
  v_function text;
  v_column record;
  v_source record;
begin
  if to_regclass('cron.job') is not null then
    perform cron.unschedule(j.jobid) from cron.job j where j.jobname = 'two_tower_tick';
  end if;

  if to_regclass('realtime.messages') is not null then
    drop policy if exists "readers receive what two_tower tells them" on realtime.messages;
  end if;

  -- Columns of the app that take the engine's time take the server's from now on.
  for v_column in
    select d.adrelid::regclass as relation, a.attname as name
    from pg_catalog.pg_attrdef d
    join pg_catalog.pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
    join pg_catalog.pg_class c on c.oid = d.adrelid
    where c.relnamespace <> to_regnamespace('two_tower')
      and pg_catalog.pg_get_expr(d.adbin, d.adrelid) = 'two_tower.now()'
  loop
    execute format('alter table %s alter column %I set default now()',
      v_column.relation, v_column.name);
  end loop;

  -- Pages of attached tables stand in public, and refer to the engine in strings alone.
  for v_source in select s.name from two_tower.sources s where s.role = 'posts' loop
    foreach v_function in array two_tower.list_page_functions(v_source.name) loop
      execute format('drop function if exists public.%I(integer, text[], jsonb, text) cascade',
        v_function);
    end loop;
    execute format('drop view if exists public.%I cascade', v_source.name || '_page');
  end loop;

  if exists (select from pg_catalog.pg_roles where rolname = 'two_tower_worker') then
    revoke all on schema extensions from two_tower_worker;
  end if;
end
$$;

drop function if exists
  :functions
  cascade;
drop table if exists public.author_blocks, public.muted_terms, public.engagement_events cascade;
drop schema if exists two_tower cascade;
