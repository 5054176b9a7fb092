-- How an app attaches its tables: one call each, which may be made again. Who calls owns the table
-- and is a member of the role that owns this schema.

create function two_tower.sources_lock() returns bigint
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select hashtextextended('two_tower.sources', 0);
$$;
comment on function two_tower.sources_lock() is 'Returns the key of the advisory lock under which sources are attached, detached and mended.';

create function two_tower.read_columns(p_relation regclass) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select jsonb_object_agg(a.attname, jsonb_build_array(a.attnum,
    format_type(a.atttypid, a.atttypmod),
    has_column_privilege('authenticated', a.attrelid, a.attnum, 'select')))
  from pg_attribute a where a.attrelid = p_relation and a.attnum > 0 and not a.attisdropped;
$$;
comment on function two_tower.read_columns(regclass) is 'Returns the columns of a table by their names: number, type, and whether clients may read them. Returns null for a table that is gone.';

create function two_tower.rename_part(p_source two_tower.sources, p_part text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce((
    select a.attname::text from pg_attribute a
    where a.attrelid = p_source.relation and p_source.relation_id = p_source.relation::oid
      and a.attnum = (p_source.columns -> p_part ->> 0)::smallint and not a.attisdropped), p_part);
$$;
create function two_tower.rename_arguments(p_source two_tower.sources) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  select jsonb_object_agg(a.key, case jsonb_typeof(a.value)
    when 'array' then (
      select jsonb_agg(two_tower.rename_part(p_source, e.part) order by e.place)
      from jsonb_array_elements_text(a.value) with ordinality as e (part, place))
    else to_jsonb(two_tower.rename_part(p_source, a.value #>> '{}')) end)
  from jsonb_each(p_source.arguments) a;
$$;
comment on function two_tower.rename_part(two_tower.sources, text) is 'Returns a part of a source''s rows: a column by its name of today.';
comment on function two_tower.rename_arguments(two_tower.sources) is 'Returns what was attached, each column by its name of today.';

create function two_tower.write_source(p_source two_tower.sources) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform two_tower.write_reading_functions(p_source);
  perform two_tower.write_follow_function(p_source);
  if p_source.role = 'posts' then
    perform two_tower.write_readable_functions(p_source);
    perform two_tower.write_dispatchers();
    perform two_tower.grant_popular();
  end if;
  update two_tower.sources s set arguments = p_source.arguments, key_type = p_source.key_type,
    relation_id = s.relation::oid, relation_name = s.relation::text,
    columns = two_tower.read_columns(s.relation)
  where s.id = p_source.id;
end
$$;
comment on function two_tower.write_source(two_tower.sources) is 'Writes the functions of a source for its table as it is now.';

create function two_tower.list_source_functions(p_source two_tower.sources) returns text[]
language sql stable set search_path = pg_catalog, pg_temp as $$
  select array(
    select format(n.name, p_source.id)
    from unnest('{follow_source_%s, scan_source_%s, missing_in_source_%s, texts_in_source_%s,
      find_in_source_%s}'::text[]) with ordinality as n (name, place)
    where n.place <= case p_source.role when 'posts' then 5 when 'profiles' then 4 else 3 end
    union all
    select n.name || p_source.name
    from unnest('{readable_, newest_readable_, muted_in_}'::text[]) as n (name)
    where p_source.role = 'posts');
$$;
comment on function two_tower.list_source_functions(two_tower.sources) is 'Returns the names of the functions of a source in this schema.';

create function two_tower.is_written(p_source two_tower.sources) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select p_source.columns = two_tower.read_columns(p_source.relation)
    and p_source.relation_id = p_source.relation::oid
    and p_source.relation_name = p_source.relation::text
    and (select count(*) from pg_trigger t join pg_proc p on p.oid = t.tgfoid
      where t.tgrelid = p_source.relation and p.proname = 'follow_source_' || p_source.id) = 4
    and not exists (
      select from unnest(two_tower.list_source_functions(p_source)) as n (name)
      where not exists (
        select from pg_proc p
        where p.pronamespace = 'two_tower'::regnamespace and p.proname = n.name))
    and (p_source.role <> 'posts'
      or to_regclass(format('public.%I', p_source.name || '_page')) is not null
        and not exists (
          select from unnest(two_tower.list_page_functions(p_source.name)) as n (name)
          where to_regprocedure(format('public.%I(integer, text[], jsonb, text)', n.name))
            is null));
$$;
comment on function two_tower.is_written(two_tower.sources) is 'Returns whether the functions, triggers and page of a source are there, and are for its table as it is now.';

create function two_tower.write_triggers(p_source two_tower.sources) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_trigger record;
begin
  for v_trigger in
    select * from (values ('insert', 'referencing new table as new_rows'),
      ('update', 'referencing old table as old_rows new table as new_rows'),
      ('delete', 'referencing old table as old_rows'), ('truncate', '')) as v (event, tables)
    where not exists (
      select from pg_trigger t
      where t.tgrelid = p_source.relation and t.tgname = 'two_tower_' || v.event)
  loop
    execute format('create trigger two_tower_%s after %1$s on %s %s for each statement
      execute function two_tower.follow_source_%s()',
      v_trigger.event, p_source.relation, v_trigger.tables, p_source.id);
  end loop;
end
$$;
comment on function two_tower.write_triggers(two_tower.sources) is 'Puts those of the four triggers on an attached table that it lacks, one a command.';

create function two_tower.drop_source(p_source two_tower.sources) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_function regprocedure;
begin
  if p_source.role = 'posts' then
    perform two_tower.write_dispatchers();
    perform two_tower.grant_popular();
    perform two_tower.drop_page(p_source.name);
  end if;
  for v_function in
    select p.oid from pg_proc p where p.pronamespace = 'two_tower'::regnamespace
      and p.proname = any (two_tower.list_source_functions(p_source))
  loop
    execute format('drop function %s cascade', v_function);
  end loop;
  perform two_tower.close_alert('source_broken', p_source.name);
  perform two_tower.close_alert('source_lost_posts', p_source.name);
  perform two_tower.close_alert('page_is_old', p_source.name);
end
$$;
comment on function two_tower.drop_source(two_tower.sources) is 'Drops what was written for a source that is detached: page, functions, and with them the triggers.';

create function two_tower.detach_dropped() returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_source two_tower.sources;
  v_count integer := 0;
begin
  for v_source in
    update two_tower.sources s set state = 'detached', walk = null, position = null,
      is_walk_wanted = true
    where s.state <> 'detached' and not exists (select from pg_class c where c.oid = s.relation)
    returning s.*
  loop
    perform two_tower.drop_source(v_source);
    v_count := v_count + 1;
  end loop;
  return v_count;
end
$$;
comment on function two_tower.detach_dropped() is 'Detaches sources whose tables are gone. Returns how many.';

-- A table that was dropped and made again is the same source: its posts keep their ids.
create function two_tower.find_source(p_role text, p_relation regclass, p_name text)
returns two_tower.sources
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_source two_tower.sources;
  v_name text := coalesce(p_name, (select relname::text from pg_class where oid = p_relation));
begin
  select * into v_source from two_tower.sources s
  where s.relation = p_relation
    or s.role = p_role and s.name = v_name
      and not exists (select from pg_class c where c.oid = s.relation)
  order by s.relation = p_relation desc, s.id desc limit 1;
  if v_source.role <> p_role and (v_source.state <> 'detached' or v_source.is_walk_wanted
    or v_source.walk is not null) then
    raise exception '% is attached as a table of %', p_relation, v_source.role
      using errcode = '42710', hint = format(
        'First: select two_tower.detach(%L); select two_tower.reconcile(%L);',
        p_relation, v_source.name);
  elsif v_source.role <> p_role then
    v_source.lends_ids := false;
    v_source.key_type := null;
  elsif found then
    v_source.arguments := two_tower.rename_arguments(v_source);
  end if;
  -- Only pages are named after their tables.
  v_source.name := coalesce(p_name, v_source.name, case
    when p_role <> 'posts' and exists (select from two_tower.sources s where s.name = v_name)
      then p_relation::text else v_name end);
  v_source.role := p_role;
  v_source.relation := p_relation;
  return v_source;
end
$$;
comment on function two_tower.find_source(text, regclass, text) is 'Returns the source of a table as it was attached last, or one without an id. Raises 42710 where the table is attached in another role.';

create function two_tower.store_source(p_source two_tower.sources, p_old two_tower.sources,
  p_is_rekeyed boolean)
returns two_tower.sources language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_source two_tower.sources;
begin
  if p_old.id is null then
    insert into two_tower.sources (name, role, relation, relation_id, relation_name, arguments,
      columns, key_type, lends_ids, check_readable, popular_for_anon, is_walk_wanted)
    values (p_source.name, p_source.role, p_source.relation, p_source.relation,
      p_source.relation::text, p_source.arguments, two_tower.read_columns(p_source.relation),
      p_source.key_type, coalesce(p_source.lends_ids, false), p_source.check_readable,
      p_source.popular_for_anon,
      p_source.role <> 'posts' or pg_relation_size(p_source.relation) > 0)
    returning * into v_source;
    return v_source;
  end if;
  if p_old.state <> 'detached' and (p_old.name, p_old.role) <> (p_source.name, p_source.role) then
    update two_tower.sources s set state = 'detached' where s.id = p_old.id;
    perform two_tower.drop_source(p_old);
  end if;
  update two_tower.sources s set
    name = p_source.name, role = p_source.role, relation = p_source.relation,
    arguments = p_source.arguments, key_type = p_source.key_type, lends_ids = p_source.lends_ids,
    check_readable = p_source.check_readable, popular_for_anon = p_source.popular_for_anon,
    state = 'attached', walk = null, position = null,
    is_walk_wanted = true, may_remove_all = p_is_rekeyed
  where s.id = p_old.id
  returning * into v_source;
  return v_source;
end
$$;
comment on function two_tower.store_source(two_tower.sources, two_tower.sources, boolean) is 'Stores a source that is attached, or attached anew, and asks for a walk. p_old: it as it was. p_is_rekeyed: all its posts have other keys than before. Returns it.';

create function two_tower.attach_source(p_role text, p_relation regclass, p_name text,
  p_arguments jsonb, p_check_readable boolean default true,
  p_popular_for_anon boolean default false)
returns text language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_old two_tower.sources;
  v_source two_tower.sources;
  v_key pg_attribute;
  v_is_rekeyed boolean := false;
begin
  perform two_tower.require_owner(p_relation);
  perform two_tower.require_table(p_relation);
  perform two_tower.require_arguments(p_role, p_arguments);
  -- What is written from here on is followed, and what was written before is walked over.
  execute format('lock table %s in share row exclusive mode', p_relation);
  perform pg_advisory_xact_lock(two_tower.sources_lock());
  perform two_tower.detach_dropped();
  v_source := two_tower.find_source(p_role, p_relation, p_name);
  v_old := (select s from two_tower.sources s where s.id = v_source.id);
  if p_role in ('posts', 'profiles') then
    v_key := two_tower.find_key_column(p_relation, coalesce(p_arguments ->> 'key',
      p_arguments ->> 'user'));
  end if;
  if p_role = 'posts' then
    v_is_rekeyed := v_source.arguments ->> 'key' <> v_key.attname;
    v_source.lends_ids := case when v_source.id is null then two_tower.lends_ids(p_relation, v_key)
      else v_source.lends_ids and not v_is_rekeyed end;
    v_source.key_type := v_key.atttypid;
    p_arguments := p_arguments || jsonb_build_object('key', v_key.attname);
  end if;
  v_source.arguments := jsonb_strip_nulls(p_arguments);
  v_source.check_readable := p_check_readable;
  v_source.popular_for_anon := p_popular_for_anon;
  perform two_tower.require_parts(v_source);
  perform two_tower.require_free_name(v_source,
    v_old.id is null or v_old.state = 'detached' or v_old.name <> v_source.name);
  v_source := two_tower.store_source(v_source, v_old, v_is_rekeyed);
  perform two_tower.write_source(v_source);
  perform two_tower.write_triggers(v_source);
  if p_role = 'posts' then
    perform two_tower.write_page(v_source);
  end if;
  return v_source.name;
end
$$;
comment on function two_tower.attach_source(text, regclass, text, jsonb, boolean, boolean) is
  'Attaches a table, or attaches it anew. Rows that it has already are found by reconciliation, in steps of tick(). Returns the name of the source. Raises 42501 for who may not, 42809 for what is not an ordinary table, 42830 and 42804 for a key or part that does not fit, 22023 for an expression that cannot be used, 42710 for a name that is taken.';

create function two_tower.attach_posts(relation regclass, content text[],
  author text default null, created_at text default null, visible text default null,
  language text default null, tags text default null, key text default null,
  name text default null, check_readable boolean default true,
  popular_for_anon boolean default false)
returns text language sql set search_path = pg_catalog, pg_temp as $$
  select two_tower.attach_source('posts', relation, name, jsonb_build_object('content', content,
    'author', author, 'created_at', created_at, 'visible', visible, 'language', language,
    'tags', tags, 'key', key), check_readable, popular_for_anon);
$$;
comment on function two_tower.attach_posts(regclass, text[], text, text, text, text, text, text, text, boolean, boolean) is
  'Attaches a table of posts: its rows are recommended. Writes to it are followed from now on, and ticks read the rows that it has already. content: columns or expressions whose texts are encoded. author, created_at, language: a column or an expression each; tags: one of type text[]. visible: the condition under which a row is recommended, such as status = ''published''. key: a column that is unique and not null; by default the primary key. name: recommended_<name>() and most_popular_<name>() are named after it; by default the name of the table. check_readable: whether an event is refused when its sender may not read the post. popular_for_anon: whether those who are not signed in may call most_popular_<name>(), under the table''s policies for anon. Call it again to change it. Returns the name. Raises what attach_source() raises.';

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
  perform pg_advisory_xact_lock(two_tower.sources_lock());
  update two_tower.sources s set state = 'detached', walk = null, position = null,
    is_walk_wanted = true
  where s.relation = detach.relation and s.state <> 'detached'
  returning s.* into v_source;
  if not found then
    raise exception '% is not attached', relation using errcode = '22023',
      hint = 'Attached tables: select relation, role, state from two_tower.sources.';
  end if;
  foreach v_trigger in array '{insert, update, delete, truncate}'::text[] loop
    execute format('drop trigger if exists two_tower_%s on %s', v_trigger, relation);
  end loop;
  perform two_tower.drop_source(v_source);
end
$$;
comment on function two_tower.detach(regclass) is 'Detaches a table. Its posts are not recommended any more. They keep their ids and what was learned of them: attach the table again, and they are found. Raises 42501 for who may not, 22023 for a table that is not attached.';

-- The engine's own table of blocks goes the same way as an app's.
select two_tower.attach_blocks('public.author_blocks', 'user_id', author => 'author_id',
  kind => 'kind');
