-- How an app attaches its tables: one call each, which may be made again. Who calls owns the table
-- and is a member of the role that owns this schema.

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
  if v_table.relkind <> 'r' or v_table.relispartition then
    raise exception '% is not an ordinary table', p_relation using errcode = '42809',
      hint = 'Views, foreign tables and partitioned tables cannot be attached. Attach a table of their keys and texts, which the app keeps by a trigger.';
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
comment on function two_tower.require_owner(regclass) is 'Raises 42501 unless the caller may attach the table and the engine sees all its rows, and 42809 for what is not an ordinary table.';

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
    raise exception '% has no key of one column%', p_relation, coalesce(' called ' || p_column, '')
      using errcode = '42830', hint = 'Name a column that is unique and not null: key => ''slug''.';
  elsif v_key.atttypid::regtype not in ('smallint'::regtype, 'integer'::regtype, 'bigint'::regtype,
    'uuid'::regtype, 'text'::regtype, 'character varying'::regtype) then
    raise exception 'a key of type % is not supported', v_key.atttypid::regtype
      using errcode = '42804', hint = 'A key is smallint, integer, bigint, uuid, text or varchar.';
  end if;
  return v_key;
end
$$;
comment on function two_tower.find_key_column(regclass, text) is 'Returns the column that is the primary key, or the unique column that is named. Raises 42830 where there is none, and 42804 for a type that cannot be a key.';

-- Each expression must be what a stored generated column may be: a value of the row alone. A column
-- of a temporary copy of the table tries it.
create function two_tower.find_part_type(p_source two_tower.sources, p_name text, p_part text)
returns text language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_type text;
begin
  if p_source.columns ? p_part then
    return (select format_type(a.atttypid, null) from pg_attribute a
      where a.attrelid = p_source.relation
        and a.attnum = (p_source.columns ->> p_part)::smallint);
  end if;
  execute format('create temporary table two_tower_parts (like %s)', p_source.relation);
  execute format('alter table pg_temp.two_tower_parts add column two_tower_part boolean
    generated always as ((%s) is null) stored', p_part);
  execute format('create temporary view two_tower_part as
    select (%s) as part from pg_temp.two_tower_parts t', p_part);
  select format_type(a.atttypid, null) into v_type from pg_attribute a
  where a.attrelid = 'pg_temp.two_tower_part'::regclass;
  execute 'drop table pg_temp.two_tower_parts cascade';
  return v_type;
exception when syntax_error_or_access_rule_violation or feature_not_supported
  or invalid_schema_name or data_exception then
  raise exception '% => % cannot be used: %', p_name, p_part, sqlerrm using errcode = '22023',
    hint = 'Give a column of the table, or an expression over its columns: no subquery, nothing that depends on time or user. Qualify functions that are not of pg_catalog.';
end
$$;
comment on function two_tower.find_part_type(two_tower.sources, text, text) is 'Returns the type of a part of a source''s rows. Raises 22023 for a part that is neither a column nor an expression over the row.';

create function two_tower.require_parts(p_source two_tower.sources) returns two_tower.sources
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_part record;
  v_type text;
begin
  for v_part in
    select a.key as name, e.part
    from jsonb_each(p_source.arguments) a
      cross join lateral jsonb_array_elements_text(case jsonb_typeof(a.value)
        when 'array' then a.value else jsonb_build_array(a.value) end) as e (part)
  loop
    v_type := two_tower.find_part_type(p_source, v_part.name, v_part.part);
    if v_part.name in ('user', 'follower') and v_type <> 'uuid'
      or v_part.name = 'visible' and v_type <> 'boolean'
      or v_part.name = 'tags' and v_type not in ('text[]', 'character varying[]')
      or v_part.name = 'created_at' and v_type not in ('timestamp with time zone',
        'timestamp without time zone', 'date') then
      raise exception '% => % is of type %', v_part.name, v_part.part, v_type
        using errcode = '42804', hint = case v_part.name
          when 'visible' then 'It must be boolean.' when 'tags' then 'It must be text[].'
          when 'created_at' then 'It must be timestamptz, timestamp or date.'
          else 'Users are uuids, as auth.uid() is.' end;
    end if;
    if v_part.name = 'created_at' then
      p_source.arguments := p_source.arguments || jsonb_build_object('created_at_type', v_type);
    end if;
  end loop;
  return p_source;
end
$$;
comment on function two_tower.require_parts(two_tower.sources) is 'Returns the source with the type of its time. Raises 22023 for a part that cannot be used, and 42804 for one of the wrong type.';

-- The page of a source as rows of the app's table. A view, because PostgREST finds relationships of
-- a function's rows through the view that they are of. Columns that signed-in users may not read
-- are left out. The key is cast before the join, as in readable functions.
create function two_tower.write_page(p_source two_tower.sources) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_view text := format('public.%I', p_source.name || '_page');
  v_function text := format('public.%I', 'recommended_' || p_source.name);
  v_owner text := (select nspowner::regrole from pg_namespace where nspname = 'two_tower');
  v_own text[] := '{place, score, source, arm}';
  v_names text[];
  v_columns text;
  v_listed text;
  v_key name;
begin
  select array_agg(a.attname::text), string_agg(format('t.%I', a.attname), ', ' order by a.attnum),
    string_agg(format('v.%I', a.attname), ', ' order by a.attnum),
    max(a.attname) filter (
      where two_tower.write_argument(p_source, 'key') = format('t.%I', a.attname))
  into v_names, v_columns, v_listed, v_key
  from pg_attribute a
  where a.attrelid = p_source.relation and a.attnum > 0 and not a.attisdropped
    and (has_column_privilege('authenticated', a.attrelid, a.attnum, 'select')
      or not has_any_column_privilege('authenticated', a.attrelid, 'select')
      or two_tower.write_argument(p_source, 'key') = format('t.%I', a.attname));
  if v_names && v_own then
    v_own := array(select 'page_' || o from unnest(v_own) o);
  end if;
  execute format('drop function if exists %s(integer, text[])', v_function);
  execute format('drop view if exists %s', v_view);
  execute format('create view %s with (security_invoker = true) as
    select null::bigint as %I, null::double precision as %I, null::text as %I, null::text as %I, %s
    from %s t', v_view, v_own[1], v_own[2], v_own[3], v_own[4], v_columns, p_source.relation);
  execute format('comment on view %s is %L', v_view, format(
    'Rows of %s with their place on a page: what %s() returns. Read by itself, it is the table, with the caller''s rights, and without places.',
    p_source.relation, v_function));
  execute format('alter view %s owner to %I', v_view, v_owner);
  execute format('revoke all on %s from public, anon, authenticated, service_role', v_view);
  execute format('grant select on %s to authenticated, service_role', v_view);
  execute format('create function %s(p_limit integer default 20, p_exclude text[] default ''{}'')
    returns setof %s language sql stable set search_path = pg_catalog, pg_temp rows 20 as %L',
    v_function, v_view, format('
  select r.place, r.score, r.source, r.arm, %s
  from (select f.place, f.score, f.source, f.arm, f.post_key::%s as key
        from two_tower.page_for(two_tower.require_user(), p_limit, p_exclude, %L) with ordinality
          as f (post_id, post_key, post_source, author_id, created_at, score, source, arm, place)
        offset 0) r
    join %s v on v.%I = r.key
  order by r.place', v_listed, p_source.key_type, p_source.name, v_view, v_key));
  execute format('comment on function %s(integer, text[]) is %L', v_function, format(
    'Returns rows of %s for the signed-in user, best first, with %s, %s, %s and %s: as recommend() does, of this table alone. Select, filter and embed as in a table. Order by %2$s: embedding does not keep the order.',
    p_source.relation, v_own[1], v_own[2], v_own[3], v_own[4]));
  execute format('alter function %s(integer, text[]) owner to %I', v_function, v_owner);
  execute format('revoke all on function %s(integer, text[]) from public, anon, authenticated,
    service_role', v_function);
  execute format('grant execute on function %s(integer, text[]) to authenticated, service_role',
    v_function);
end
$$;
comment on function two_tower.write_page(two_tower.sources) is 'Writes the view <name>_page and the function recommended_<name>() of a source of posts.';

create function two_tower.read_columns(p_relation regclass) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select jsonb_object_agg(a.attname, a.attnum) from pg_attribute a
  where a.attrelid = p_relation and a.attnum > 0 and not a.attisdropped;
$$;
comment on function two_tower.read_columns(regclass) is 'Returns the columns of a table, with their numbers. Returns null for a table that is gone.';

create function two_tower.write_source(p_source two_tower.sources) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform two_tower.write_follow_function(p_source);
  perform two_tower.write_reading_functions(p_source);
  if p_source.role = 'posts' then
    perform two_tower.write_readable_functions(p_source);
    perform two_tower.write_dispatchers();
    perform two_tower.write_page(p_source);
  end if;
  update two_tower.sources s set written_for = two_tower.read_columns(s.relation)
  where s.id = p_source.id;
end
$$;
comment on function two_tower.write_source(two_tower.sources) is 'Writes all functions of a source for its table as it is now.';

create function two_tower.write_triggers(p_source two_tower.sources) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_trigger record;
begin
  for v_trigger in
    select * from (values ('insert', 'referencing new table as new_rows'),
      ('update', 'referencing old table as old_rows new table as new_rows'),
      ('delete', 'referencing old table as old_rows'), ('truncate', '')) as v (event, tables)
  loop
    execute format('drop trigger if exists two_tower_%s on %s', v_trigger.event, p_source.relation);
    execute format('create trigger two_tower_%s after %1$s on %s %s for each statement
      execute function two_tower.follow_source_%s()',
      v_trigger.event, p_source.relation, v_trigger.tables, p_source.id);
  end loop;
end
$$;
comment on function two_tower.write_triggers(two_tower.sources) is 'Puts the four triggers on an attached table, one a command.';

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

create function two_tower.attach_source(p_role text, p_relation regclass, p_name text,
  p_arguments jsonb, p_check_readable boolean default true)
returns text language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_source two_tower.sources;
  v_key pg_attribute;
  v_is_new boolean := false;
begin
  perform two_tower.require_owner(p_relation);
  perform pg_advisory_xact_lock(hashtextextended('two_tower.sources', 0));
  select * into v_source from two_tower.sources s where s.relation = p_relation;
  v_source.role := p_role;
  v_source.relation := p_relation;
  v_source.name := coalesce(p_name, v_source.name,
    (select relname::text from pg_class where oid = p_relation));
  v_source.columns := two_tower.read_columns(p_relation);
  if p_role = 'posts' then
    v_key := two_tower.find_key_column(p_relation, p_arguments ->> 'key');
    v_source.key_type := v_key.atttypid;
    p_arguments := p_arguments || jsonb_build_object('key', v_key.attname);
    v_source.lends_ids := coalesce(v_source.lends_ids, two_tower.lends_ids(p_relation, v_key));
  end if;
  v_source.arguments := jsonb_strip_nulls(p_arguments);
  v_source := two_tower.require_parts(v_source);
  if exists (select from two_tower.sources s where s.id is distinct from v_source.id
      and (s.name = v_source.name
        or s.role = p_role and p_role <> 'posts' and s.state <> 'detached')) then
    raise exception 'another table is attached as %, or holds the %', v_source.name, p_role
      using errcode = '42710', hint = 'Give another name =>, or detach that table first.';
  elsif v_source.id is null and p_role = 'posts'
    and to_regclass(format('public.%I', v_source.name || '_page')) is not null then
    raise exception 'public.% exists already', v_source.name || '_page' using errcode = '42710',
      hint = 'Give another name =>: the page of the table is named after it.';
  end if;
  if v_source.id is null then
    insert into two_tower.sources (name, role, relation, arguments, columns, key_type, lends_ids,
      is_walk_wanted)
    values (v_source.name, p_role, p_relation, v_source.arguments, v_source.columns,
      v_source.key_type, coalesce(v_source.lends_ids, false), false)
    returning id into v_source.id;
    v_is_new := true;
  end if;
  update two_tower.sources s set
    name = v_source.name, role = p_role, arguments = v_source.arguments,
    columns = v_source.columns, key_type = v_source.key_type, state = 'attached',
    check_readable = p_check_readable, walk = null, position = null,
    is_walk_wanted = not v_is_new or pg_relation_size(p_relation) > 0
  where s.id = v_source.id
  returning * into v_source;
  perform two_tower.write_source(v_source);
  perform two_tower.write_triggers(v_source);
  return v_source.name;
end
$$;
comment on function two_tower.attach_source(text, regclass, text, jsonb, boolean) is
  'Attaches a table, or attaches it anew. Rows that it has already are found by reconciliation, in steps of tick(). Returns the name of the source. Raises 42501 for who may not, 42809 for what is not an ordinary table, 42830 and 42804 for a key or part that does not fit, 22023 for an expression that cannot be used, 42710 for a name that is taken.';

create function two_tower.attach_posts(relation regclass, content text[],
  author text default null, created_at text default null, visible text default null,
  language text default null, tags text default null, key text default null,
  name text default null, check_readable boolean default true)
returns text language sql set search_path = pg_catalog, pg_temp as $$
  select two_tower.attach_source('posts', relation, name, jsonb_build_object('content', content,
    'author', author, 'created_at', created_at, 'visible', visible, 'language', language,
    'tags', tags, 'key', key), check_readable);
$$;
comment on function two_tower.attach_posts(regclass, text[], text, text, text, text, text, text, text, boolean) is
  'Attaches a table of posts: its rows are recommended. Writes to it are followed from now on, and ticks read the rows that it has already. content: columns or expressions whose texts are encoded. author, created_at, language: a column or an expression each; tags: one of type text[]. visible: the condition under which a row is recommended, such as status = ''published''. key: a column that is unique and not null; by default the primary key. name: recommended_<name>() is named after it; by default the name of the table. check_readable: whether an event is refused when its sender may not read the post. Call it again to change it. Returns the name. Raises what attach_source() raises.';

create function two_tower.attach_profiles(relation regclass, "user" text, content text[])
returns text language sql set search_path = pg_catalog, pg_temp as $$
  select two_tower.attach_source('profiles', relation, null,
    jsonb_build_object('user', "user", 'content', content));
$$;
comment on function two_tower.attach_profiles(regclass, text, text[]) is 'Attaches the table of profiles. Their texts give new users a first vector. user: the column of the user''s id, a uuid. content: columns or expressions whose texts are encoded. Returns the name. Raises what attach_source() raises.';

create function two_tower.attach_follows(relation regclass, follower text, followed text)
returns text language sql set search_path = pg_catalog, pg_temp as $$
  select two_tower.attach_source('follows', relation, null,
    jsonb_build_object('follower', follower, 'followed', followed));
$$;
comment on function two_tower.attach_follows(regclass, text, text) is 'Attaches the table of who follows whom. follower: the column of the user''s id, a uuid. followed: the column of the author, as posts name authors. Returns the name. Raises what attach_source() raises.';

create function two_tower.attach_blocks(relation regclass, "user" text, author text,
  kind text default null)
returns text language sql set search_path = pg_catalog, pg_temp as $$
  select two_tower.attach_source('blocks', relation, null,
    jsonb_build_object('user', "user", 'author', author, 'kind', kind));
$$;
comment on function two_tower.attach_blocks(regclass, text, text, text) is 'Attaches the table of who blocked whom. Detach public.author_blocks first. From then on this table decides, and events of type block_author and mute_author only teach. user: the column of the user''s id, a uuid. author: the column of the author, as posts name authors. kind: block_author or mute_author; by default all rows are blocks. Returns the name. Raises what attach_source() raises.';

create function two_tower.detach(relation regclass) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_source two_tower.sources;
  v_trigger text;
begin
  perform two_tower.require_owner(relation);
  perform pg_advisory_xact_lock(hashtextextended('two_tower.sources', 0));
  update two_tower.sources s set state = 'detached', walk = null, position = null,
    is_walk_wanted = true, may_remove_all = true
  where s.relation = detach.relation and s.state <> 'detached'
  returning s.* into v_source;
  if not found then
    raise exception '% is not attached', relation using errcode = '22023',
      hint = 'Attached tables: select relation, role, state from two_tower.sources.';
  end if;
  foreach v_trigger in array '{insert, update, delete, truncate}'::text[] loop
    execute format('drop trigger if exists two_tower_%s on %s', v_trigger, relation);
  end loop;
  if v_source.role = 'posts' then
    perform two_tower.write_dispatchers();
    execute format('drop function if exists public.%I(integer, text[])',
      'recommended_' || v_source.name);
    execute format('drop view if exists public.%I', v_source.name || '_page');
  end if;
end
$$;
comment on function two_tower.detach(regclass) is 'Detaches a table. Its posts are not recommended any more. They keep their ids and what was learned of them: attach the table again, and they are found. Raises 42501 for who may not, 22023 for a table that is not attached.';

-- The engine's own table of blocks goes the same way as an app's.
select two_tower.attach_blocks('public.author_blocks', 'user_id', author => 'author_id',
  kind => 'kind');
