-- The objects of the app that fall with the engine: all that depends on it and is no part of it.
--
-- Parameter: functions, the signatures of the engine's functions in public.

with recursive engine as (
  -- Depending "automatically" or "internally" on an object means to be a part of it.
  select d.classid, d.objid, 0 as objsubid from pg_catalog.pg_depend d
  where d.refclassid = 'pg_namespace'::regclass
    and d.refobjid = pg_catalog.to_regnamespace('two_tower')
  union
  select 'pg_class'::regclass, pg_catalog.to_regclass(name), 0
  from unnest(array['public.author_blocks', 'public.muted_terms',
    'public.engagement_events']) as name
  union
  select 'pg_proc'::regclass, pg_catalog.to_regprocedure(signature), 0
  from unnest(%(functions)s::text[]) as signature
  union
  select 'pg_class'::regclass, pg_catalog.to_regclass(format('public.%%I', s.name || '_page')), 0
  from two_tower.sources s where s.role = 'posts'
  union
  select 'pg_proc'::regclass, pg_catalog.to_regprocedure(
    format('public.%%I(integer, text[], jsonb, text)', n.name)), 0
  from two_tower.sources s cross join unnest(two_tower.list_page_functions(s.name)) as n (name)
  where s.role = 'posts'
  union
  select d.classid, d.objid, 0 from pg_catalog.pg_depend d
  join engine e on e.classid = d.refclassid and e.objid = d.refobjid
  where d.deptype in ('a', 'i', 'P', 'S')
),

falling as (
  select e.classid, e.objid, e.objsubid from engine e where e.objid is not null
  union
  select next.* from falling f cross join lateral (
    select d.classid, d.objid, d.objsubid from pg_catalog.pg_depend d
    where d.refclassid = f.classid and d.refobjid = f.objid
      and (f.objsubid = 0 or d.refobjsubid = f.objsubid)
    union all
    -- A view falls with its rule.
    select d.refclassid, d.refobjid, d.refobjsubid from pg_catalog.pg_depend d
    where d.classid = f.classid and d.objid = f.objid
      and f.classid = 'pg_rewrite'::regclass and d.deptype = 'i'
  ) as next
),

of_the_app as (
  select f.* from falling f
  where not exists (
    select from engine e where e.classid = f.classid and e.objid = f.objid
  )
)

select pg_catalog.pg_describe_object(f.classid, f.objid, f.objsubid) as description
from of_the_app f
where not exists (
  -- Parts of what is listed are not listed again.
  select from pg_catalog.pg_depend d
  join of_the_app whole on whole.classid = d.refclassid and whole.objid = d.refobjid
    and whole.objsubid in (0, d.refobjsubid)
  where d.classid = f.classid and d.objid = f.objid and d.deptype in ('a', 'i')
    and (d.refclassid, d.refobjid, d.refobjsubid) <> (f.classid, f.objid, f.objsubid)
)
and not exists (
  -- The engine's triggers on tables of the app.
  select from pg_catalog.pg_trigger t
  join pg_catalog.pg_proc p on p.oid = t.tgfoid
  where f.classid = 'pg_trigger'::regclass and t.oid = f.objid
    and p.pronamespace = pg_catalog.to_regnamespace('two_tower')
)
and not exists (
  -- Columns that keep a default.
  select from pg_catalog.pg_attrdef d
  where f.classid = 'pg_attrdef'::regclass and d.oid = f.objid
    and pg_catalog.pg_get_expr(d.adbin, d.adrelid) = 'two_tower.now()'
)
order by 1
