"""What a database is, as text: the objects of chosen schemas, without oids and owners' order."""

from __future__ import annotations

from psycopg.rows import tuple_row

from python_jobs.db import Connection


def _privileges(acl: str, kind: str, owner: str) -> str:
    """SQL for a sorted list of grants; "nothing said" and the defaults spelt out are the same."""
    return f"""array(
          select format('%%s %%s %%s', grantee::regrole, privilege_type, is_grantable)
          from aclexplode(coalesce({acl}, acldefault({kind}, {owner}))) order by 1
        )"""


_RELATION_KIND = '(case c.relkind when $$S$$ then $$s$$ else $$r$$ end)::"char"'
_RELATION_PRIVILEGES = _privileges("c.relacl", _RELATION_KIND, "c.relowner")

_PARTS = {
    "schemas": f"""
        select nspname, pg_get_userbyid(nspowner), {_privileges("nspacl", "'n'", "nspowner")},
          obj_description(oid, 'pg_namespace')
        from pg_namespace where nspname = any(%(schemas)s)
    """,
    "relations": f"""
        select c.oid::regclass::text, c.relkind::text, c.relpersistence::text,
          pg_get_userbyid(c.relowner), {_RELATION_PRIVILEGES},
          c.reloptions::text, c.relrowsecurity,
          c.relforcerowsecurity, c.relispartition, pg_get_expr(c.relpartbound, c.oid),
          case c.relkind when 'p' then pg_get_partkeydef(c.oid) end,
          case when c.relkind in ('v', 'm') then pg_get_viewdef(c.oid) end,
          obj_description(c.oid, 'pg_class')
        from pg_class c where c.relnamespace::regnamespace::text = any(%(schemas)s)
    """,
    "columns": """
        select a.attrelid::regclass::text, a.attname, a.attnum,
          format_type(a.atttypid, a.atttypmod),
          a.attnotnull, a.attidentity::text, a.attgenerated::text, a.attstorage::text,
          a.attacl::text, pg_get_expr(d.adbin, d.adrelid), col_description(a.attrelid, a.attnum)
        from pg_attribute a
        join pg_class c on c.oid = a.attrelid
        left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
        where c.relnamespace::regnamespace::text = any(%(schemas)s)
          and c.relkind in ('r', 'p', 'v', 'm', 'c') and a.attnum > 0 and not a.attisdropped
    """,
    "constraints": """
        select coalesce(nullif(conrelid, 0)::regclass::text, contypid::regtype::text), conname,
          pg_get_constraintdef(oid), convalidated, obj_description(oid, 'pg_constraint')
        from pg_constraint where connamespace::regnamespace::text = any(%(schemas)s)
    """,
    "indexes": """
        select pg_get_indexdef(i.indexrelid), i.indisvalid,
          obj_description(i.indexrelid, 'pg_class')
        from pg_index i join pg_class c on c.oid = i.indexrelid
        where c.relnamespace::regnamespace::text = any(%(schemas)s)
    """,
    "functions": f"""
        select p.oid::regprocedure::text, p.prokind::text, pg_get_userbyid(p.proowner),
          {_privileges("p.proacl", "'f'", "p.proowner")},
          case when p.prokind <> 'a' then pg_get_functiondef(p.oid) end,
          obj_description(p.oid, 'pg_proc')
        from pg_proc p where p.pronamespace::regnamespace::text = any(%(schemas)s)
          and not exists (
            select from pg_depend d where d.objid = p.oid and d.deptype = 'e'
          )
    """,
    "types": f"""
        select t.oid::regtype::text, t.typtype::text, format_type(t.typbasetype, t.typtypmod),
          {_privileges("t.typacl", "'T'", "t.typowner")},
          obj_description(t.oid, 'pg_type'),
          (select array_agg(enumlabel::text order by enumsortorder) from pg_enum
            where enumtypid = t.oid)
        from pg_type t where t.typnamespace::regnamespace::text = any(%(schemas)s)
          and t.typtype in ('d', 'e', 'r')
    """,
    "policies": """
        select polrelid::regclass::text, polname, polcmd::text, polpermissive,
          array(select r::regrole::text from unnest(polroles) as r order by 1),
          pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid),
          obj_description(oid, 'pg_policy')
        from pg_policy
        where polrelid in (
          select oid from pg_class where relnamespace::regnamespace::text = any(%(schemas)s)
        )
    """,
    "triggers": """
        select tgrelid::regclass::text, tgname, tgenabled::text, pg_get_triggerdef(oid),
          obj_description(oid, 'pg_trigger')
        from pg_trigger where not tgisinternal
          and tgfoid in (
            select oid from pg_proc where pronamespace::regnamespace::text = any(%(schemas)s)
          )
    """,
    "default privileges": """
        select defaclrole::regrole::text, defaclnamespace::regnamespace::text, defaclobjtype::text,
          defaclacl::text
        from pg_default_acl
    """,
    "extensions": "select extname, extnamespace::regnamespace::text from pg_extension",
    "history": "select version, name, statements from supabase_migrations.schema_migrations",
}

SCHEMAS = ("public", "two_tower", "supabase_migrations")

# Written for each attached table of posts: invoker functions, which become part of the query that
# asks, as the caller.
READABLE = (
    "two_tower.muted_in_posts",
    "two_tower.newest_readable_posts",
    "two_tower.readable_posts",
)

# SQL functions without a search_path of their own, which would keep them from being inlined: their
# bodies are expressions, bound to what they name when they are made. With a call of each.
INLINED = {
    "two_tower.view_bit": "two_tower.view_bit()",
    "two_tower.first_bigint": "two_tower.first_bigint()",
    "two_tower.last_uuid": "two_tower.last_uuid()",
    "two_tower.switch_lock": "two_tower.switch_lock()",
    "two_tower.tick_lock": "two_tower.tick_lock()",
    "two_tower.bulk_lock": "two_tower.bulk_lock()",
    "two_tower.numbering_lock": "two_tower.numbering_lock()",
    "two_tower.zero_vector": "two_tower.zero_vector(i)",
    "two_tower.scale": "two_tower.scale(r, v)",
    "two_tower.decay_strength": "two_tower.decay_strength(r, r, d)",
    "two_tower.weigh_strength": "two_tower.weigh_strength(r, r)",
    "two_tower.cap_posts": "two_tower.cap_posts(r, i)",
    "two_tower.popularity_in_likes": "two_tower.popularity_in_likes(d, d)",
    "two_tower.weigh_post": "two_tower.weigh_post(d, d, d, r, r)",
    "two_tower.author_id_of": "two_tower.author_id_of(t)",
    "two_tower.combine_user": "two_tower.combine_user(v, r, v)",
}
# Those of them that return rows.
INLINED_ROWS = {"two_tower.matching_posts": "two_tower.matching_posts(null)"}


def describe(connection: Connection, schemas: tuple[str, ...] = SCHEMAS) -> dict[str, list[str]]:
    """Everything that the migrations make, one sorted list of lines per kind of object."""
    connection.execute("set local search_path = ''")
    described = {}
    for part, query in _PARTS.items():
        cursor = connection.cursor(row_factory=tuple_row)  # columns without names
        rows = cursor.execute(query.encode(), {"schemas": list(schemas)}).fetchall()
        described[part] = sorted(repr(row) for row in rows)
    connection.rollback()
    return described
