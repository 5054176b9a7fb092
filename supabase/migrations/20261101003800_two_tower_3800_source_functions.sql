-- What is written for each attached table: functions that know its columns. Where those change,
-- they are written anew. Their bodies are strings, so that they stand in the way of no change to
-- the app's table.

-- A part of a row is a column of the table, or an expression over its columns.
create function two_tower.find_column(p_source two_tower.sources, p_part text)
returns pg_catalog.pg_attribute
language sql stable set search_path = pg_catalog, pg_temp as $$
  select a from pg_attribute a
  where a.attrelid = p_source.relation and a.attname = p_part and a.attnum > 0
    and not a.attisdropped;
$$;
comment on function two_tower.find_column(two_tower.sources, text) is 'Returns the column of a source that a part of its rows is, or null for an expression.';

create function two_tower.write_part(p_source two_tower.sources, p_part text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when (two_tower.find_column(p_source, p_part)).attnum is null
    then format('(%s)', p_part) else format('t.%I', p_part) end;
$$;
comment on function two_tower.write_part(two_tower.sources, text) is 'Returns the SQL of a part of a row of t.';

create function two_tower.write_argument(p_source two_tower.sources, p_name text,
  p_default text default 'null') returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when p_source.arguments ->> p_name is null then p_default
    else two_tower.write_part(p_source, p_source.arguments ->> p_name) end;
$$;
comment on function two_tower.write_argument(two_tower.sources, text, text) is 'Returns the SQL of a named part of a row of t, or p_default where the source names none.';

-- Texts are compared and hashed by their bytes, whatever collations their columns have.
create function two_tower.write_text(p_source two_tower.sources) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select format('concat_ws(E''\n'', %s) collate "C"', string_agg(
    format(case when y.typcategory = 'A' then 'array_to_string(%s, '', '')' else '%s::text' end,
      two_tower.write_part(p_source, c.part)),
    ', ' order by c.place))
  from jsonb_array_elements_text(p_source.arguments -> 'content')
      with ordinality as c (part, place)
    left join pg_type y on y.oid = (two_tower.find_column(p_source, c.part)).atttypid;
$$;
comment on function two_tower.write_text(two_tower.sources) is 'Returns the SQL of the text of a row of t.';

-- Times that no clock shows, such as infinity, cannot be subtracted from one that does.
create function two_tower.write_time(p_source two_tower.sources) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when p_source.arguments ->> 'created_at' is null then 'null::timestamptz'
    else format('case when %1$s is not null then least(greatest(%1$s::timestamptz,
      ''0001-01-01 00:00+00''), ''9999-12-31 00:00+00'') end',
      two_tower.write_argument(p_source, 'created_at')) end;
$$;
comment on function two_tower.write_time(two_tower.sources) is 'Returns the SQL of the time of a row of t. One without a zone is in UTC.';

create function two_tower.write_author(p_source two_tower.sources, p_name text) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_author text := two_tower.write_argument(p_source, p_name);
  v_column pg_attribute := two_tower.find_column(p_source, p_source.arguments ->> p_name);
begin
  return case when v_column.atttypid = 'uuid'::regtype then v_author
    else format('two_tower.author_id_of(%s::text)', v_author) end;
end
$$;
comment on function two_tower.write_author(two_tower.sources, text) is 'Returns the SQL of the id of an author whom a row of t names.';

-- A column may have had another type when the registry met a key. What it cannot hold now is null.
-- Integers of any size are compared as bigint, which an index on them serves.
create function two_tower.write_cast(p_source two_tower.sources, p_key text) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case
      when p_source.key_type in ('text'::regtype, 'character varying'::regtype)
        then format('%s::text', p_key)
      else format('two_tower.canonical_key(%1$s, %2$L::regtype)::%2$s', p_key,
        case when p_source.key_type is distinct from 'uuid'::regtype and p_source.role = 'posts'
          then 'bigint' else 'uuid' end) end;
$$;
comment on function two_tower.write_cast(two_tower.sources, text) is 'Returns the SQL of a key of the registry as the table has it.';

-- The columns of each role's row, those of its key first, and their SQL.
create function two_tower.write_row(p_source two_tower.sources,
  out row_type text, out names text, out parts text, out keys text, out matches text)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  s constant two_tower.sources := p_source;
begin
  row_type := 'two_tower.' || left(s.role, -1) || '_row';
  case s.role
  when 'posts' then
    names := 'key, author_key, created_at, is_visible, content_hash, language, tags';
    keys := 'key';
    parts := format('%s::text collate "C", %s::text collate "C", %s, coalesce(%s, false),
      hashtextextended(%s, 0), %s::text collate "C", %s::text[] collate "C"',
      two_tower.write_argument(s, 'key'), two_tower.write_argument(s, 'author'),
      two_tower.write_time(s), two_tower.write_argument(s, 'visible', 'true'),
      two_tower.write_text(s), two_tower.write_argument(s, 'language'),
      two_tower.write_argument(s, 'tags'));
    matches := format('%s = %s', two_tower.write_argument(s, 'key'),
      two_tower.write_cast(s, 'r.key'));
  when 'profiles' then
    names := 'user_id, content_hash';
    keys := 'user_id';
    parts := format('%s, case when %2$s ~ ''\S'' then hashtextextended(%2$s, 0) end',
      two_tower.write_argument(s, 'user'), two_tower.write_text(s));
    matches := two_tower.write_argument(s, 'user') || ' = r.user_id';
  when 'follows' then
    names := 'follower_id, followed_id';
    keys := names;
    parts := format('%s, %s', two_tower.write_argument(s, 'follower'),
      two_tower.write_author(s, 'followed'));
    matches := format('(%s) = (r.follower_id, r.followed_id)', parts);
  else
    names := 'user_id, author_id, kind';
    keys := 'user_id, author_id';
    matches := format('%s, %s', two_tower.write_argument(s, 'user'),
      two_tower.write_author(s, 'author'));
    parts := format('%s, case when %s::text = ''mute_author'' then ''mute_author''
      else ''block_author'' end', matches, two_tower.write_argument(s, 'kind'));
    matches := format('(%s) = (r.user_id, r.author_id)', matches);
  end case;
end
$$;
comment on function two_tower.write_row(two_tower.sources) is
  'Returns what functions of a source are made of: the type of its rows, their columns, the SQL of each over a row of t, the columns of the key, and the condition that t is the row r.';

-- Ids that are not positive belong to the registry. Longer keys than these fit no index.
create function two_tower.write_filter(p_source two_tower.sources) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select format(case when p_source.lends_ids then '%s > 0'
      when p_source.key_type in ('text'::regtype, 'character varying'::regtype)
      then 'octet_length(%s) <= 2000' else 'true' end,
    two_tower.write_argument(p_source, 'key'));
$$;
comment on function two_tower.write_filter(two_tower.sources) is 'Returns the SQL of which rows of t are followed. Where keys are ids, the positive ones; where they are texts, those of at most 2,000 bytes.';

-- What a text looks like must not depend on the session that writes it: its hash would differ.
create function two_tower.write_settings() returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select 'set search_path = pg_catalog, pg_temp set timezone = ''UTC'' set datestyle = ''ISO, MDY''
    set intervalstyle = ''postgres'' set extra_float_digits = 1 set bytea_output = ''hex''';
$$;
comment on function two_tower.write_settings() is 'Returns the settings under which functions of sources read rows.';

create function two_tower.create_source_function(p_signature text, p_options text, p_body text,
  p_comment text, p_roles text default null)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  -- The name alone: it is quoted where it has to be, and no other function has it.
  v_function text := 'two_tower.' || substring(p_signature from '^("(?:[^"]|"")+"|[^(]+)\(');
begin
  execute format('create or replace function two_tower.%s %s as %L', p_signature, p_options,
    p_body);
  execute format('comment on function %s is %L', v_function, p_comment);
  execute format('alter function %s owner to %I', v_function,
    (select nspowner::regrole::text from pg_catalog.pg_namespace where nspname = 'two_tower'));
  execute format('revoke all on function %s from public, anon, authenticated, service_role',
    v_function);
  if p_roles is not null then
    execute format('grant execute on function %s to %s', v_function, p_roles);
  end if;
end
$$;
comment on function two_tower.create_source_function(text, text, text, text, text) is
  'Writes one function of a source, or writes it anew. p_roles: who may execute it beside its owner.';

-- A changed row is one that is not as it was: an update that touches nothing of what the source
-- says costs a comparison. A table of follows or blocks may name a pair twice: one that is gone
-- from a row is looked for in the others. The error of a conflict with another session is the app's
-- to see: it would have met it without the engine, too. Statements are planned once a session, for
-- any number of rows: planning is most of what a row costs. The plan may be made while the registry
-- is empty.
create function two_tower.write_follow_function(p_source two_tower.sources) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_row record := two_tower.write_row(p_source);
  v_is_pair boolean := p_source.role in ('follows', 'blocks');
begin
  perform two_tower.create_source_function(
    format('follow_source_%s() returns trigger', p_source.id),
    format('language plpgsql security definer %s
      set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off',
      two_tower.write_settings()),
    format($body$
#variable_conflict use_column
begin
  if tg_op = 'INSERT' then
    perform two_tower.store_%1$s(%2$s::smallint, array(
      select row(%4$s)::%3$s from new_rows t where %7$s));
  elsif tg_op = 'UPDATE' then
    perform two_tower.remove_%1$s(%2$s::smallint, %8$sarray(
      select row(o.*)::%3$s
      from (select %4$s from old_rows t where %7$s) as o (%5$s)
        left join (select %4$s from new_rows t where %7$s) as n (%5$s) using (%6$s)
      where n.%10$s is null)%9$s);
    perform two_tower.store_%1$s(%2$s::smallint, array(
      select row(c.*)::%3$s
      from (select %4$s from new_rows t where %7$s
            except select %4$s from old_rows t where %7$s) as c (%5$s)));
  elsif tg_op = 'DELETE' then
    perform two_tower.remove_%1$s(%2$s::smallint, %8$sarray(
      select row(%4$s)::%3$s from old_rows t where %7$s)%9$s);
  else
    perform two_tower.report_source(%2$s::smallint, 'emptied');
  end if;
  return null;
exception
  when serialization_failure or deadlock_detected then
    raise;
  when others then
    perform two_tower.report_source(%2$s::smallint, 'broken', sqlstate, sqlerrm);
    return null;
end
$body$, p_source.role, p_source.id, v_row.row_type, v_row.parts, v_row.names, v_row.keys,
      two_tower.write_filter(p_source),
      case when v_is_pair
        then format('array(select m from two_tower.missing_in_source_%s(', p_source.id) end,
      case when v_is_pair then ') m)' end, split_part(v_row.keys, ',', 1)),
    format(
      'Follows what is written to %s. Whatever goes wrong here, the write of the app stands, and the source is reported as broken. Definer: who writes there has no grant on the registry.',
      p_source.relation));
end
$$;
comment on function two_tower.write_follow_function(two_tower.sources) is 'Writes the function of the triggers on an attached table.';

create function two_tower.write_reading_functions(p_source two_tower.sources) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_row record := two_tower.write_row(p_source);
  v_options text := 'language sql stable security definer set row_security = off '
    || two_tower.write_settings();
begin
  perform two_tower.create_source_function(
    format('scan_source_%s(p_first bigint, p_last bigint) returns setof %s', p_source.id,
      v_row.row_type), v_options,
    format('
  select %s from %s t
  where t.ctid >= (''('' || $1 || '',0)'')::tid and t.ctid < (''('' || $2 || '',0)'')::tid
    and %s', v_row.parts, p_source.relation, two_tower.write_filter(p_source)),
    format(
      'Returns what %s says in its blocks from p_first to before p_last. Definer: all rows are read, whatever its policies say.',
      p_source.relation));
  perform two_tower.create_source_function(
    format('missing_in_source_%s(p_rows %s[]) returns setof %2$s', p_source.id, v_row.row_type),
    v_options,
    format('
  select r.* from unnest($1) r
  where not exists (select from %s t where %s and %s)', p_source.relation, v_row.matches,
      two_tower.write_filter(p_source)),
    format(
      'Returns those of the rows that are not in %s. Definer: all rows are read, whatever its policies say.',
      p_source.relation));
  if p_source.role in ('posts', 'profiles') then
    perform two_tower.create_source_function(
      format('texts_in_source_%s(p_keys text[]) returns table (key text, content text)',
        p_source.id), v_options,
      format('
  select %1$s::text, %2$s from %3$s t
  where %1$s = any (array(select %4$s from unnest($1) k))',
        two_tower.write_argument(p_source, case p_source.role when 'posts' then 'key'
          else 'user' end),
        two_tower.write_text(p_source), p_source.relation, two_tower.write_cast(p_source, 'k')),
      format(
        'Returns texts of rows of %s. Definer: all rows are read, whatever its policies say.',
        p_source.relation));
  end if;
  if p_source.role = 'posts' then
    perform two_tower.create_source_function(
      format('find_in_source_%s(p_keys text[]) returns setof two_tower.post_row', p_source.id),
      v_options,
      format('
  select %s from %s t
  where %s = any (array(select %s from unnest($1) k)) and %s',
        v_row.parts, p_source.relation, two_tower.write_argument(p_source, 'key'),
        two_tower.write_cast(p_source, 'k'), two_tower.write_filter(p_source)),
      format(
        'Returns what %s says of the rows with these keys. Definer: all rows are read, whatever its policies say.',
        p_source.relation));
  end if;
end
$$;
comment on function two_tower.write_reading_functions(two_tower.sources) is 'Writes the functions by which reconciliation and the encoder read an attached table.';
