-- What is written for each attached table of posts to ask it as the caller: which posts are
-- readable, which are new, and which have words that somebody muted.

create function two_tower.find_keys(p_source_id smallint, p_post_ids bigint[])
returns table (id bigint, key text)
language sql stable security definer set search_path = pg_catalog, pg_temp rows 20 as $$
  select p.id, p.key from two_tower.posts p
  where p.id = any (p_post_ids) and p.source_id = p_source_id;
$$;
comment on function two_tower.find_keys(smallint, bigint[]) is 'Returns the keys of posts of a source. Definer: clients have no grant on the registry.';

create function two_tower.find_ids(p_source_id smallint, p_keys text[]) returns setof bigint
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select p.id from two_tower.posts p where p.source_id = p_source_id and p.key = any (p_keys);
$$;
comment on function two_tower.find_ids(smallint, text[]) is 'Returns the ids of posts of a source by their keys. Definer: clients have no grant on the registry.';

-- What a caller may read is what a query of the caller returns. These are standard SQL without SET,
-- so that they become part of the query that asks. Keys are cast before the join: under a policy,
-- Postgres uses no index for a comparison that casts, since an error of the cast could tell. Where
-- clients may not read a column that says which rows are visible or new, the last keys count.
create function two_tower.write_readable_functions(p_source two_tower.sources) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_key text := two_tower.write_argument(p_source, 'key');
  v_newest text := format('where %s order by %s desc nulls last',
    two_tower.write_argument(p_source, 'visible', 'true'),
    two_tower.write_argument(p_source, 'created_at', v_key));
begin
  if exists (
    select from pg_catalog.pg_attribute a
    where a.attrelid = p_source.relation and a.attnum > 0 and not a.attisdropped
      and not has_column_privilege('authenticated', a.attrelid, a.attnum, 'select')
      and strpos(v_newest, a.attname) > 0) then
    v_newest := format('order by %s desc', v_key);
  end if;
  perform two_tower.create_source_function(
    format('%I(p_post_ids bigint[]) returns setof bigint', 'readable_' || p_source.name),
    'language sql stable rows 20',
    case when p_source.lends_ids then format('
  select %1$s::bigint from %2$s t where %1$s = any (p_post_ids) and %1$s > 0',
        v_key, p_source.relation)
      else format('
  select k.id
  from (select f.id, f.key::%s as key
        from two_tower.find_keys(%s::smallint, p_post_ids) f offset 0) k
    join %s t on %s = k.key', p_source.key_type, p_source.id, p_source.relation, v_key) end,
    format('Returns those of the posts whose rows of %s the caller may read.', p_source.relation),
    two_tower.list_callers(p_source));
  perform two_tower.create_source_function(
    format('%I(p_limit integer) returns setof bigint', 'newest_readable_' || p_source.name),
    'language sql stable rows 1000',
    format(case when p_source.lends_ids then '
  select n.key::bigint from (select %1$s as key from %3$s t %4$s limit p_limit) n'
      else '
  select i from two_tower.find_ids(%2$s::smallint, array(
    select %1$s::text from %3$s t %4$s limit p_limit)) i' end,
      v_key, p_source.id, p_source.relation, v_newest),
    format('Returns the newest posts whose rows of %s the caller may read.', p_source.relation),
    two_tower.list_callers(p_source));
  perform two_tower.create_source_function(
    format('%I(p_post_ids bigint[], p_words tsquery) returns setof bigint',
      'muted_in_' || p_source.name),
    'language sql stable rows 20',
    format('
  select k.id
  from (select f.id, f.key::%s as key
        from two_tower.find_keys(%s::smallint, p_post_ids) f offset 0) k
    join %s t on %s = k.key
  where to_tsvector(''simple'', two_tower.fold_text(%s)) @@ p_words',
      p_source.key_type, p_source.id, p_source.relation, v_key, two_tower.write_text(p_source)),
    format(
      'Returns those of the posts whose rows of %s the caller may read, and whose texts match.',
      p_source.relation),
    two_tower.list_callers(p_source));
end
$$;
comment on function two_tower.write_readable_functions(two_tower.sources) is 'Writes the functions that ask an attached table, as the caller, which posts are readable, and which of them have words in their texts.';

-- One source that does not answer, because its table was changed a moment ago, leaves the others: a
-- tick writes its functions anew. Only events about it are refused meanwhile, with what happened. A
-- client without a grant may read nothing there. A back end without one is told. Plans are kept:
-- with policies, planning for a few posts takes five times as long as asking.
create function two_tower.write_dispatchers() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_options text := 'language plpgsql stable set search_path = pg_catalog, pg_temp
    set plan_cache_mode = force_generic_plan rows 20';
  v_block text := '
  begin
    return query select r from two_tower.%1$I(%2$s) r;
  exception
    when insufficient_privilege then
      if two_tower.is_operator() then
        raise;
      end if;
    when others then%4$s
      raise warning ''source %% does not answer: %% (%%)'', %3$L, sqlerrm, sqlstate;
  end;';
  v_readable text;
  v_newest text;
  v_muted text;
  v_callers text;
begin
  select string_agg(
      case when not s.check_readable then format(E'\n  if p_is_event then
    return query select k.id from two_tower.find_keys(%s::smallint, p_post_ids) k;
  else', s.id) else '' end
      || format(v_block, 'readable_' || s.name, 'p_post_ids', s.name, format(E'
      if p_is_event
        and exists (select from two_tower.find_keys(%s::smallint, p_post_ids)) then
        raise;
      end if;', s.id))
      || case when not s.check_readable then E'\n  end if;' else '' end, '' order by s.id),
    string_agg(format(E'\n  if p_source is null or p_source = %L then', s.name)
      || format(v_block, 'newest_readable_' || s.name, 'p_limit', s.name, '')
      || E'\n  end if;', '' order by s.id),
    string_agg(format(v_block, 'muted_in_' || s.name, 'p_post_ids, p_words', s.name, ''), ''
      order by s.id),
    coalesce(max(two_tower.list_callers(s)), 'authenticated, service_role')
  into v_readable, v_newest, v_muted, v_callers
  from two_tower.sources s where s.role = 'posts' and s.state <> 'detached';
  perform two_tower.create_source_function(
    'find_readable(p_post_ids bigint[], p_is_event boolean default false) returns setof bigint',
    v_options, format(E'\nbegin%s\n  return;\nend\n', v_readable),
    'Returns those of the posts whose rows the caller may read in the app''s tables. p_is_event: posts of sources without check_readable count as readable, and a table that does not answer raises. Attaching a table writes it anew.',
    v_callers);
  perform two_tower.create_source_function(
    'find_newest_readable(p_limit integer, p_source text default null) returns setof bigint',
    v_options, format(E'\nbegin%s\n  return;\nend\n', v_newest),
    'Returns the newest p_limit posts of each source whose rows the caller may read; p_source: of this source alone. Attaching a table writes it anew.',
    v_callers);
  perform two_tower.create_source_function(
    'find_muted(p_post_ids bigint[], p_words tsquery) returns setof bigint',
    v_options, format(E'\nbegin%s\n  return;\nend\n', v_muted),
    'Returns those of the posts whose texts the caller may read in the app''s tables, and which match. Attaching a table writes it anew.',
    v_callers);
end
$$;
comment on function two_tower.write_dispatchers() is 'Writes the functions that ask all attached tables of posts what the caller may read.';
select two_tower.write_dispatchers();
