-- What can be attached: tables, keys and parts of rows. What cannot is refused with a hint.

create function two_tower.require_owner(p_relation regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_engine_owner oid := (select nspowner from pg_namespace where nspname = 'two_tower');
  v_table pg_class := (select c from pg_class c where c.oid = p_relation);
begin
  if not pg_has_role(v_engine_owner, 'member')
    or not pg_has_role(v_table.relowner, 'member') then
    raise exception 'role % may not attach %', current_user, p_relation using errcode = '42501',
      hint = format('Attach it as a role that owns the table and is a member of %s.',
        v_engine_owner::regrole);
  end if;
end
$$;
comment on function two_tower.require_owner(regclass) is 'Raises 42501 unless the caller may attach and detach the table.';

create function two_tower.require_table(p_relation regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_engine_owner oid := (select nspowner from pg_namespace where nspname = 'two_tower');
  v_table pg_class := (select c from pg_class c where c.oid = p_relation);
begin
  if v_table.relkind <> 'r' or v_table.relpersistence = 't'
    or exists (select from pg_inherits i where p_relation in (i.inhrelid, i.inhparent)) then
    raise exception '% is not an ordinary table', p_relation using errcode = '42809',
      hint = 'Views, foreign and temporary tables, partitions, and tables with partitions or heirs cannot be attached. Attach a table of their keys and texts, which the app keeps by a trigger.';
  elsif not has_table_privilege(v_engine_owner, p_relation, 'select')
    or not has_schema_privilege(v_engine_owner, v_table.relnamespace, 'usage') then
    raise exception 'role % may not read %', v_engine_owner::regrole, p_relation
      using errcode = '42501', hint = format(
        'grant usage on schema %s to %s; grant select on %s to %2$s;',
        v_table.relnamespace::regnamespace, v_engine_owner::regrole, p_relation);
  end if;
  if v_table.relrowsecurity
    and not (select rolsuper or rolbypassrls from pg_roles where oid = v_engine_owner)
    and (v_table.relforcerowsecurity or not pg_has_role(v_engine_owner, v_table.relowner, 'usage'))
  then
    raise exception 'role % does not see all rows of %', v_engine_owner::regrole, p_relation
      using errcode = '42501', hint = format(
        'Its policies apply to that role: alter table %s no force row level security, or alter role %s bypassrls.',
        p_relation, v_engine_owner::regrole);
  end if;
end
$$;
comment on function two_tower.require_table(regclass) is 'Raises 42809 for what is not an ordinary table, and 42501 unless the engine sees all its rows.';

create function two_tower.base_type(p_type oid) returns regtype
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_type pg_type := (select y from pg_type y where y.oid = p_type);
begin
  while v_type.typtype = 'd' loop
    v_type := (select y from pg_type y where y.oid = v_type.typbasetype);
  end loop;
  return v_type.oid;
end
$$;
comment on function two_tower.base_type(oid) is 'Returns the type of which a domain is, or the type itself.';

create function two_tower.find_key_column(p_relation regclass, p_column text)
returns pg_catalog.pg_attribute
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_key pg_attribute;
begin
  select a.* into v_key
  from pg_index i join pg_attribute a on a.attrelid = i.indrelid and a.attnum = i.indkey[0]
  where i.indrelid = p_relation and i.indisunique and i.indisvalid and i.indimmediate
    and i.indnkeyatts = 1 and i.indpred is null and i.indexprs is null and a.attnotnull
    and case when p_column is null then i.indisprimary else a.attname = p_column end
  order by i.indisprimary desc limit 1;
  if not found then
    raise exception '% has no %', p_relation, case when p_column is null
        then 'primary key of one column'
        else format('column %s that is unique and not null', p_column) end
      using errcode = '42830',
        hint = 'Name a column that is unique and not null, such as key => ''slug''.';
  end if;
  v_key.atttypid := two_tower.base_type(v_key.atttypid);
  if v_key.atttypid::regtype not in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype,
    'uuid'::regtype, 'text'::regtype, 'character varying'::regtype) then
    raise exception 'a key of type % is not supported', v_key.atttypid::regtype
      using errcode = '42804', hint = 'A key is smallint, integer, bigint, uuid, text or varchar.';
  elsif exists (
    select from pg_collation c where c.oid = v_key.attcollation and not c.collisdeterministic) then
    raise exception 'column % has a collation to which different keys are equal', v_key.attname
      using errcode = '42804', hint = 'Name another unique column: key => ''slug''.';
  end if;
  return v_key;
end
$$;
comment on function two_tower.find_key_column(regclass, text) is 'Returns the column that is the primary key, or the unique column that is named, with its base type. Raises 42830 where there is none, and 42804 for a type or collation that cannot be a key.';

create function two_tower.lends_ids(p_relation regclass, p_key pg_attribute) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_is_positive boolean;
begin
  if p_key.atttypid::regtype not in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype)
    or exists (select from two_tower.sources s where s.role = 'posts') then
    return false;
  end if;
  execute format('select coalesce(min(%I), 1) > 0 from %s', p_key.attname, p_relation)
  into v_is_positive;
  return v_is_positive;
end
$$;
comment on function two_tower.lends_ids(regclass, pg_attribute) is 'Returns whether keys of a table become the ids of its posts: it is the first, and they are positive numbers.';

-- Each expression must be what a stored generated column may be: a value of the row alone. A column
-- of a temporary copy of the table tries it, and tells of which columns it is made.
create function two_tower.try_expression(p_relation regclass, p_expression text,
  out type oid, out columns text[])
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  execute format('create temporary table two_tower_parts (like %s)', p_relation);
  execute format('alter table pg_temp.two_tower_parts add column two_tower_part boolean
    generated always as ((%s) is null) stored', p_expression);
  execute format('create temporary view two_tower_part as
    select (%s) as part from pg_temp.two_tower_parts t', p_expression);
  select a.atttypid into type from pg_attribute a
  where a.attrelid = 'pg_temp.two_tower_part'::regclass;
  select array_agg(distinct a.attname::text) into columns
  from pg_depend d join pg_attribute a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
  where d.refobjid = 'pg_temp.two_tower_parts'::regclass;
  execute 'drop table pg_temp.two_tower_parts cascade';
end
$$;
comment on function two_tower.try_expression(regclass, text) is 'Returns the type of an expression over rows of a table, and the columns that it names. Raises what Postgres does of what is no such expression.';

create function two_tower.find_part_type(p_source two_tower.sources, p_name text, p_part text)
returns text language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_part record;
  v_virtual text;
begin
  begin
    select c.atttypid as type, array[c.attname::text] as columns into v_part
    from two_tower.find_column(p_source, p_part) c;
    if v_part.type is null then
      v_part := two_tower.try_expression(p_source.relation, p_part);
    end if;
  exception when syntax_error_or_access_rule_violation or feature_not_supported
    or invalid_schema_name or data_exception then
    raise exception '% => % cannot be used: %', p_name, p_part, sqlerrm using errcode = '22023',
      hint = 'Give a column of the table, or an expression over its columns: no subquery, nothing that depends on time or user. Qualify functions that are not of pg_catalog.';
  end;
  select a.attname into v_virtual from pg_attribute a
  where a.attrelid = p_source.relation and a.attgenerated = 'v'
    and a.attname = any (v_part.columns);
  if found then
    raise exception '% => % cannot be used: column % is virtual', p_name, p_part, v_virtual
      using errcode = '22023',
        hint = 'Triggers do not see virtual columns. Give the expression of the column, or make it a stored one.';
  end if;
  return format_type(two_tower.base_type(v_part.type), null);
end
$$;
comment on function two_tower.find_part_type(two_tower.sources, text, text) is 'Returns the base type of a part of a source''s rows. Raises 22023 for a part that is neither a column nor an expression over the row.';

-- What each part may be. A name or a text may be of any type: it is cast.
create function two_tower.require_parts(p_source two_tower.sources) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_part record;
  v_type text;
  v_hint text;
begin
  for v_part in
    select a.key as name, e.part
    from jsonb_each(p_source.arguments) a
      cross join lateral jsonb_array_elements_text(case jsonb_typeof(a.value)
        when 'array' then a.value else jsonb_build_array(a.value) end) as e (part)
  loop
    v_type := two_tower.find_part_type(p_source, v_part.name, v_part.part);
    v_hint := case
      when v_part.name in ('user', 'follower') and v_type <> 'uuid'
        then 'Users are uuids, as auth.uid() is.'
      when v_part.name = 'visible' and v_type <> 'boolean' then 'It must be boolean.'
      when v_part.name = 'tags' and v_type not in ('text[]', 'character varying[]')
        then 'It must be text[].'
      when v_part.name = 'created_at' and v_type not in ('timestamp with time zone',
        'timestamp without time zone', 'date') then 'It must be timestamptz, timestamp or date.'
      end;
    if v_hint is not null then
      raise exception '% => % is of type %', v_part.name, v_part.part, v_type
        using errcode = '42804', hint = v_hint;
    end if;
  end loop;
end
$$;
comment on function two_tower.require_parts(two_tower.sources) is 'Raises 22023 for a part of a source''s rows that cannot be used, and 42804 for one of the wrong type.';

create function two_tower.require_arguments(p_role text, p_arguments jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_name text;
begin
  foreach v_name in array case p_role when 'posts' then '{content}'
      when 'profiles' then '{user, content}' when 'follows' then '{follower, followed}'
      else '{user, author}' end::text[] loop
    if coalesce(p_arguments -> v_name, 'null') in ('null', '[]') then
      raise exception '% is missing', v_name using errcode = '22023',
        hint = format('Name a column: %s => %s.', v_name,
          case v_name when 'content' then '''{title,body}''' else '''user_id''' end);
    end if;
  end loop;
end
$$;
comment on function two_tower.require_arguments(text, jsonb) is 'Raises 22023 where a part is missing without which a table of this role says nothing.';

create function two_tower.require_free_name(p_source two_tower.sources, p_is_new boolean)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_other two_tower.sources;
  v_name text := p_source.name;
  v_taken text;
begin
  select * into v_other from two_tower.sources s
  where s.id is distinct from p_source.id and s.state <> 'detached'
    and (s.name = v_name or s.role = p_source.role and p_source.role <> 'posts')
  order by s.name <> v_name limit 1;
  if v_other.name = v_name then
    raise exception '% is attached as % already', v_other.relation, v_name using errcode = '42710',
      hint = 'Give another name: name => ''...''.';
  elsif found then
    raise exception 'the % are in % already', p_source.role, v_other.relation
      using errcode = '42710', hint = format(
        'One table can hold them. Detach that one first: select two_tower.detach(%L);',
        v_other.relation);
  elsif p_source.role <> 'posts' then
    return;
  -- newest_readable_<name> must be a name in Postgres, of at most 63 bytes.
  elsif octet_length(v_name) not between 1 and 47 then
    raise exception 'the name "%" has not 1 to 47 bytes', v_name using errcode = '42622',
      hint = 'Give a shorter one: name => ''...''.';
  end if;
  select n into v_taken from unnest(two_tower.list_page_functions(v_name) || (v_name || '_page')) n
  where p_is_new and (to_regclass(format('public.%I', n)) is not null
    or exists (select from pg_proc p
               where p.pronamespace = 'public'::regnamespace and p.proname = n));
  if found then
    raise exception 'public.% exists already', v_taken using errcode = '42710',
      hint = 'The pages of the table are named after it. Give another name: name => ''...''.';
  end if;
end
$$;
comment on function two_tower.require_free_name(two_tower.sources, boolean) is 'Raises 42710 where another table has the name or the role of a source, or where its page would replace something of the app. Raises 42622 for a name that is too long. p_is_new: the source has no page of this name yet.';
