-- Pages of a source as rows of the app's table: <name>_page and what returns rows of it.

create function two_tower.list_page_functions(p_name text) returns text[]
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select array['recommended_' || p_name, 'most_popular_' || p_name];
$$;
comment on function two_tower.list_page_functions(text) is 'Returns the names of the functions of public that write_page() writes for a source.';

create function two_tower.drop_page(p_name text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_function text;
begin
  foreach v_function in array two_tower.list_page_functions(p_name) loop
    execute format('drop function if exists public.%I(integer, text[], jsonb, text)', v_function);
  end loop;
  execute format('drop view if exists public.%I', p_name || '_page');
end
$$;
comment on function two_tower.drop_page(text) is 'Drops the view and the functions that write_page() wrote. Raises 2BP01 where something of the app depends on them.';

create function two_tower.write_page_function(p_source two_tower.sources, p_name text,
  p_kind text, p_user text, p_columns text, p_key text, p_callers text, p_comment text)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_view text := format('public.%I', p_source.name || '_page');
  v_signature text := format('public.%I(integer, text[], jsonb, text)', p_name);
begin
  execute format('create or replace function public.%I(
      p_limit integer default 20, p_exclude text[] default ''{}'', p_filter jsonb default null,
      p_cursor text default null)
    returns setof %s language sql stable set search_path = pg_catalog, pg_temp rows 20 as %L',
    p_name, v_view, format('
  select r.place, r.score, r.source, r.arm, r.cursor, %s
  from (select f.place, f.score, f.source, f.arm, f.cursor, f.post_key::%s as key
        from two_tower.page_for(%s, p_limit, p_exclude, %L, %L, p_filter => p_filter,
            p_cursor => p_cursor) with ordinality
          as f (post_id, post_key, post_source, author_id, created_at, score, source, arm, cursor,
            place)
        offset 0) r
    join %s v on v.%I = r.key
  order by r.place', p_columns, p_source.key_type, p_user, p_source.name, p_kind, v_view, p_key));
  execute format('comment on function %s is %L', v_signature, p_comment);
  execute format('alter function %s owner to %I', v_signature,
    (select nspowner::regrole from pg_namespace where nspname = 'two_tower'));
  execute format('revoke all on function %s from public, anon, authenticated, service_role',
    v_signature);
  execute format('grant execute on function %s to %s', v_signature, p_callers);
end
$$;
comment on function two_tower.write_page_function(two_tower.sources, text, text, text, text, text, text, text) is 'Writes a function of public that returns a page of a source, of this kind (see rank_for()) and for the user whom the expression p_user names. p_columns: those of the view, p_key: the one that holds the key.';

-- A view, because PostgREST finds relationships of
-- a function's rows through the view that they are of. Columns that signed-in users may not read
-- are left out. The key is cast before the join, as in readable functions.
create function two_tower.write_page(p_source two_tower.sources) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_view text := format('public.%I', p_source.name || '_page');
  v_functions text[] := two_tower.list_page_functions(p_source.name);
  v_about text;
  v_own text[] := '{place, score, source, arm, cursor}';
  v_names text[];
  v_columns text;
  v_rows text;
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
  while v_names && v_own loop
    v_own := array(select 'page_' || o from unnest(v_own) o);
  end loop;
  v_rows := format('create or replace view %s with (security_invoker = true) as
    select null::bigint as %I, null::double precision as %I, null::text as %I, null::text as %I,
      null::text as %I, %s
    from %s t', v_view, v_own[1], v_own[2], v_own[3], v_own[4], v_own[5], v_columns,
    p_source.relation);
  begin
    execute v_rows;
  exception when invalid_table_definition then -- more changed than that columns were added
    perform two_tower.drop_page(p_source.name);
    execute v_rows;
  end;
  execute format('comment on view %s is %L', v_view, format(
    'Rows of %s with their place on a page: what %s() returns. Read by itself, it is the table, with the caller''s rights, and without places.',
    p_source.relation, array_to_string(v_functions, '() and ')));
  execute format('alter view %s owner to %I', v_view,
    (select nspowner::regrole from pg_namespace where nspname = 'two_tower'));
  execute format('revoke all on %s from public, anon, authenticated, service_role', v_view);
  execute format('grant select on %s to %s', v_view, two_tower.list_callers(p_source));
  v_about := format(
    'with %s, %s, %s, %s and %s. Select, filter and embed as in a table. Order by %1$s: embedding does not keep the order.',
    v_own[1], v_own[2], v_own[3], v_own[4], v_own[5]);
  perform two_tower.write_page_function(p_source, v_functions[1], 'recommended',
    'two_tower.require_user()', v_listed, v_key, 'authenticated, service_role', format(
      'Returns rows of %s for the signed-in user, best first, as recommend() does, %s',
      p_source.relation, v_about));
  perform two_tower.write_page_function(p_source, v_functions[2], 'popular', 'auth.uid()',
    v_listed, v_key, two_tower.list_callers(p_source), format(
      'Returns popular rows of %s that the caller may read, %s', p_source.relation, v_about));
  perform two_tower.close_alert('page_is_old', p_source.name);
end
$$;
comment on function two_tower.write_page(two_tower.sources) is 'Writes the view <name>_page and the functions recommended_<name>() and most_popular_<name>() of a source of posts.';

-- Who is not signed in calls nothing, unless the app asks for it.
create function two_tower.grant_popular() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_granted boolean := exists (select from two_tower.sources s
    where s.popular_for_anon and s.role = 'posts' and s.state <> 'detached');
  v_grant text := case when v_granted then 'grant %s on %s to anon'
    else 'revoke %s on %s from anon' end;
  v_function regprocedure;
begin
  execute format(v_grant, 'usage', 'schema two_tower');
  for v_function in
    select p.oid from pg_proc p where p.pronamespace = 'two_tower'::regnamespace
      and p.proname = any ('{page_for, rank_for, turns_for, find_excluded, scan_limit,
        find_keys, find_ids, is_operator, session_role, filter_for, muted_for, shown_before,
        cursor_after}')
  loop
    execute format(v_grant, 'execute', 'function ' || v_function);
  end loop;
end
$$;
comment on function two_tower.grant_popular() is 'Lets those who are not signed in reach most_popular_<name>(), if a source is attached with popular_for_anon, and nothing otherwise.';
