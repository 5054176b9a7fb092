-- What is in the way of the engine's files in this database. It reads the catalogue and changes
-- nothing. A row for each finding, the worst first: what, and what to do.
--
-- Parameters: is_first (nothing of the engine is there yet), oldest_postgres, oldest_pgvector,
-- safe_pgvector, vector_schemas (where the files have pgvector), relations and functions (what the
-- files make in public), starter (those of the relations that the starter app makes).

with given as (
  select %(is_first)s::boolean as is_first,
    %(oldest_postgres)s::integer as oldest_postgres,
    %(oldest_pgvector)s::integer[] as oldest_pgvector,
    %(safe_pgvector)s::integer[] as safe_pgvector,
    %(vector_schemas)s::text[] as vector_schemas,
    %(relations)s::text[] as relations,
    %(starter)s::text[] as starter,
    %(functions)s::text[] as functions
),

caller as (
  select r.oid, r.rolname, r.rolsuper, r.rolbypassrls or r.rolsuper as bypasses_rls,
    r.rolcreaterole or r.rolsuper as makes_roles
  from pg_catalog.pg_roles r where r.rolname = current_user
),

pgvector as (
  select a.default_version as offered, x.extversion as installed, n.nspname as schema,
    string_to_array(substring(coalesce(x.extversion, a.default_version) from '^[0-9.]+'), '.')
      ::integer[] as version
  from (select) as always
  left join pg_catalog.pg_available_extensions a on a.name = 'vector'
  left join pg_catalog.pg_extension x on x.extname = 'vector'
  left join pg_catalog.pg_namespace n on n.oid = x.extnamespace
),

-- A relation's name is also that of a type.
taken as (
  select c.relname as name, case c.relkind when 'v' then 'View' when 'm' then 'View'
      when 'S' then 'Sequence' when 'i' then 'Index' else 'Table' end as kind
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = 'public'
  union
  select t.typname, 'Type' from pg_catalog.pg_type t
  join pg_catalog.pg_namespace n on n.oid = t.typnamespace and n.nspname = 'public'
  where t.typrelid = 0
),

auth_users as (
  select c.oid, u.atttypid
  from pg_catalog.pg_class c
  join pg_catalog.pg_namespace n on n.oid = c.relnamespace and n.nspname = 'auth'
  left join pg_catalog.pg_attribute u on u.attrelid = c.oid and u.attname = 'id'
  where c.relname = 'users'
),

findings (place, is_error, what, todo) as (
  select 1, true, 'Postgres ' || current_setting('server_version') || ' is too old',
    'upgrade the project to Postgres ' || g.oldest_postgres / 10000 || ' or newer'
  from given g where current_setting('server_version_num')::integer < g.oldest_postgres

  union all
  select 2, true, 'Role ' || role || ' is missing',
    'this is no Supabase project; two-tower up makes one on this machine'
  from unnest(array['anon', 'authenticated', 'service_role']) as role
  where not exists (select from pg_catalog.pg_roles r where r.rolname = role)

  union all
  select 3, true, 'Table auth.users is missing',
    'users are those of Supabase Auth: switch it on'
  where not exists (select from auth_users)

  union all
  select 3, true,
    'auth.users.id is ' || coalesce(pg_catalog.format_type(u.atttypid, null), 'missing')
      || ', not uuid', 'users are known by a uuid: this Auth cannot be used'
  from auth_users u where u.atttypid is distinct from 'uuid'::regtype

  union all
  select 3, true, 'Function auth.uid() that returns uuid is missing',
    'a user is auth.uid(): use Supabase Auth'
  where not exists (
    select from pg_catalog.pg_proc p
    join pg_catalog.pg_namespace n on n.oid = p.pronamespace and n.nspname = 'auth'
    where p.proname = 'uid' and p.pronargs = 0 and p.prorettype = 'uuid'::regtype
  )

  union all
  select 4, true, 'pgvector is missing on this server',
    'install it (package postgresql-NN-pgvector), 0.8.4 or newer'
  from pgvector v where v.installed is null and v.offered is null

  union all
  select 4, true, 'pgvector ' || coalesce(v.installed, v.offered) || ' is too old',
    case when v.installed <> v.offered
      then 'alter extension vector update; it must be '
      else 'upgrade the project or the package: it must be '
    end || array_to_string(g.oldest_pgvector, '.') || ' or newer'
  from pgvector v cross join given g where v.version < g.oldest_pgvector

  union all
  select 9, false, 'pgvector ' || coalesce(v.installed, v.offered)
      || ' can corrupt an HNSW index under concurrent writes',
    'update it to ' || array_to_string(g.safe_pgvector, '.') || ' when the server offers it'
  from pgvector v cross join given g
  where v.version >= g.oldest_pgvector and v.version < g.safe_pgvector

  union all
  select 4, true, 'pgvector lies in schema ' || quote_ident(v.schema) || ', files have it in '
      || written,
    'write them anew: delete the files that are not pushed, then two-tower install'
  from pgvector v cross join given g cross join unnest(g.vector_schemas) as written
  where v.installed is not null and written not in (v.schema, '"' || v.schema || '"')

  union all
  select 4, true, 'Role ' || c.rolname || ' may not create the extension pgvector',
    'run create extension vector with schema extensions as a superuser'
  from caller c cross join pgvector v
  where v.installed is null and v.offered is not null and not c.rolsuper
    and 'vector' <> all (regexp_split_to_array(
      coalesce(current_setting('supautils.privileged_extensions', true), ''), '\s*,\s*'))
    and not exists (
      select from pg_catalog.pg_available_extension_versions a
      where a.name = 'vector' and a.version = v.offered and (a.trusted or not a.superuser)
    )

  union all
  select 5, true, 'Role ' || c.rolname || ' may not create schemas in database '
      || current_database(), 'connect as role postgres, or as the owner of the database'
  from caller c
  where not pg_catalog.has_database_privilege(current_database(), 'create')

  union all
  select 5, true, 'Role ' || c.rolname || ' may not create tables in schema public',
    'connect as role postgres, or grant create on schema public to it'
  from caller c where not pg_catalog.has_schema_privilege('public', 'create')

  union all
  select 5, true, 'Role ' || c.rolname || ' is bound by row level security',
    'alter role ' || quote_ident(c.rolname) || ' bypassrls'
  from caller c where not c.bypasses_rls

  union all
  select 5, true, 'Role ' || c.rolname || ' may not create role two_tower_worker',
    'connect as role postgres, or create role two_tower_worker nologin'
  from caller c
  where not c.makes_roles
    and not exists (select from pg_catalog.pg_roles r where r.rolname = 'two_tower_worker')

  union all
  select 5, true, 'Role ' || c.rolname || ' may not refer to auth.users',
    'connect as role postgres, or grant select, references on auth.users to it'
  from caller c cross join auth_users u
  where not pg_catalog.has_table_privilege(u.oid, 'select')
    or not pg_catalog.has_table_privilege(u.oid, 'references')
    or not pg_catalog.has_schema_privilege('auth', 'usage')

  union all
  select 5, true, 'Schema two_tower belongs to role ' || pg_catalog.pg_get_userbyid(n.nspowner),
    'connect as that role'
  from given g join pg_catalog.pg_namespace n on n.nspname = 'two_tower'
  where not g.is_first and not pg_catalog.pg_has_role(n.nspowner, 'usage')

  union all
  select 6, true, 'Schema two_tower exists and is not the engine''s',
    'rename it, as in alter schema two_tower rename to tower_of_two'
  from given g join pg_catalog.pg_namespace n on n.nspname = 'two_tower' where g.is_first

  union all
  select 7, true, min(t.kind) || ' public.' || t.name || ' exists',
    case when t.name = any (g.starter)
      then 'leave out the starter app, and attach the table'
      else 'rename it: the engine''s own has this name'
    end
  from given g join taken t on t.name = any (g.relations) group by t.name, g.starter

  union all
  select 8, true, 'Function public.' || p.proname || ' exists',
    'rename it: clients could not tell it from the engine''s'
  from given g
  join pg_catalog.pg_proc p on p.proname = any (g.functions)
  join pg_catalog.pg_namespace n on n.oid = p.pronamespace and n.nspname = 'public'
  group by p.proname
)

select is_error, what || ': ' || todo || '.' as finding from findings
order by is_error desc, place, what
