-- What is stored about one user: all of it, as rows of JSON, to the user and to back ends. Where
-- else a user's id stands, an operator can have searched, as after an erasure.

create table two_tower.personal_tables (
  place smallint primary key,
  relation regclass not null unique,
  user_column text not null,
  key_columns text[] not null,
  what text not null
);
comment on table two_tower.personal_tables is 'The tables of the engine with rows about a user, which export_my_data() returns in this order. Rows of app tables, posts too, are the app''s to return.';
comment on column two_tower.personal_tables.user_column is 'The column that holds the user.';
comment on column two_tower.personal_tables.key_columns is 'The columns that tell a user''s rows from each other: the order in which they are returned.';
comment on column two_tower.personal_tables.what is 'What a row says.';
insert into two_tower.personal_tables (place, relation, user_column, key_columns, what) values
  (1, 'two_tower.users', 'id', '{id}', 'Since when the engine knows the user.'),
  (2, 'public.engagement_events', 'user_id', '{created_at, id}', 'An event that the app sent.'),
  (3, 'two_tower.user_posts', 'user_id', '{post_id}', 'What the user did with a post.'),
  (4, 'two_tower.training_examples', 'user_id', '{post_id, event_id, created_at}',
    'What an event taught, with the vectors before it.'),
  (5, 'two_tower.unlearned_events', 'user_id', '{created_at, event_id}',
    'Why an event taught nothing.'),
  (6, 'two_tower.deferred_events', 'user_id', '{event_id}', 'An event that waits to be learned.'),
  (7, 'two_tower.deferred_steps', 'user_id', '{event_id}', 'A step that waits to be applied.'),
  (8, 'two_tower.user_embeddings', 'user_id', '{user_id}',
    'The taste: vectors, and what they are made of.'),
  (9, 'two_tower.checkpoint_users', 'user_id', '{checkpoint_id}',
    'The taste as it stood at a checkpoint.'),
  (10, 'two_tower.profile_embeddings', 'user_id', '{user_id}', 'What the profile''s text says.'),
  (11, 'two_tower.told_interests', 'user_id', '{place}', 'An interest that the user told.'),
  (12, 'two_tower.requested_texts', 'user_id', '{id}', 'A text that the user searched for.'),
  (13, 'public.muted_terms', 'user_id', '{kind, term}', 'A word or tag that the user muted.'),
  (14, 'public.author_blocks', 'user_id', '{author_id}', 'An author whom the user blocked.'),
  (15, 'two_tower.blocks', 'user_id', '{author_id}', 'The same, as pages ask for it.'),
  (16, 'two_tower.follows', 'follower_id', '{followed_id}', 'An author whom the user follows.'),
  (17, 'two_tower.author_steps', 'user_id', '{author_id}',
    'What a block of the user did to an author.'),
  (18, 'two_tower.author_embeddings', 'author_id', '{author_id}', 'The user as an author.'),
  (19, 'two_tower.model_authors', 'author_id', '{version}',
    'The user as an author, by a version of the user tower.'),
  (20, 'two_tower.active_readers', 'user_id', '{user_id}', 'That the user reads now.'),
  (21, 'two_tower.schedule_counts', 'user_id', '{kind}',
    'How much the user taught since a training.'),
  (22, 'two_tower.undo_users', 'user_id', '{undo_id}',
    'That an operator took back what the user taught.');

create function two_tower.read_export_cursor(p_cursor text, out place smallint, out keys text[])
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  place := coalesce(p_cursor::jsonb ->> 0, '0')::smallint;
  keys := array(select jsonb_array_elements_text(p_cursor::jsonb - 0));
end
$$;
comment on function two_tower.read_export_cursor(text) is 'Returns where a page of an export ends: the place of the table, and the key of the row. Raises data_exception for what is no JSON array.';

create function two_tower.write_export(p_table two_tower.personal_tables, p_after text[])
returns text language sql stable set search_path = pg_catalog, pg_temp as $$
  select format(
    'select to_jsonb(t), jsonb_build_array(%2$s) from %1$s t where t.%3$I = $1%4$s
     order by %2$s limit $2',
    p_table.relation, k.names, p_table.user_column,
    case when p_after is not null
      then format(' and (%s) > (%s)', k.names,
        (select string_agg(quote_nullable(a), ', ') from unnest(p_after) a)) else '' end)
  from (select string_agg(format('t.%I', c), ', ') as names
    from unnest(p_table.key_columns) c) k;
$$;
comment on function two_tower.write_export(two_tower.personal_tables, text[]) is 'Returns the query for the next rows of a user ($1), at most $2, after the one with the key p_after or from the first.';

create function two_tower.export_for(p_user_id uuid, p_limit integer default 100,
  p_cursor text default null)
returns table (table_name text, content jsonb, cursor text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
  set timezone = 'UTC' as $$
declare
  v_user_id uuid := two_tower.require_reader(p_user_id);
  v_after record;
  v_left integer := least(500, greatest(1, coalesce(p_limit, 100)));
  v_table two_tower.personal_tables;
  v_keys jsonb;
begin
  v_after := two_tower.read_export_cursor(p_cursor);
  if v_after.place <> 0 and not exists (
    select from two_tower.personal_tables t where t.place = v_after.place
      and cardinality(t.key_columns) = cardinality(v_after.keys)) then
    raise data_exception;
  end if;
  for v_table in
    select t.* from two_tower.personal_tables t where t.place >= v_after.place order by t.place
  loop
    for content, v_keys in
      execute two_tower.write_export(v_table,
        case when v_table.place = v_after.place then v_after.keys end)
      using v_user_id, v_left
    loop
      table_name := v_table.relation::text;
      cursor := jsonb_build_array(v_table.place) || v_keys;
      return next;
      v_left := v_left - 1;
    end loop;
    exit when v_left = 0;
  end loop;
exception when data_exception then
  raise exception 'p_cursor is not a cursor of this function' using errcode = '22023',
    hint = 'Pass the cursor of the last row of a page, or null for the first page.';
end
$$;
comment on function two_tower.export_for(uuid, integer, text) is 'The core of export_my_data() and export_user_data(). Answers the user and operators. Raises 42501 to others, and 22023 for a text that is no cursor. Definer: clients have no grant on what is stored.';

create function public.export_my_data(p_limit integer default 100, p_cursor text default null)
returns table (table_name text, content jsonb, cursor text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select e.table_name, e.content, e.cursor
  from two_tower.export_for(two_tower.require_user(), p_limit, p_cursor) e;
$$;
comment on function public.export_my_data(integer, text) is
  'Returns all that the engine stores about the signed-in user: a row of the engine''s tables each, as JSON, vectors too. two_tower.personal_tables names the tables. p_limit: 1 to 500, default 100. p_cursor: the cursor of the last row of the page before; a page with no rows ends it. Rows of the app''s own tables are the app''s to return. Raises 22023 for a text that is no cursor, and 42501 when nobody is signed in.';

create function public.export_user_data(p_user_id uuid, p_limit integer default 100,
  p_cursor text default null)
returns table (table_name text, content jsonb, cursor text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select e.table_name, e.content, e.cursor
  from two_tower.export_for(p_user_id, p_limit, p_cursor) e;
$$;
comment on function public.export_user_data(uuid, integer, text) is
  'For back ends with the service role: returns what export_my_data() returns to the user. Returns nothing for a user whom the engine does not know.';

create function two_tower.find_user_traces(p_user_id uuid)
returns table (table_name text, column_name text, found_rows bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_patterns text[] := array[format('%%%s%%', p_user_id),
    format('%%%s%%', replace(p_user_id::text, '-', ''))];
  v_column record;
begin
  for v_column in
    select n.nspname, c.relname, a.attname
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
      join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
      join pg_type y on y.oid = a.atttypid
    where n.nspname in ('two_tower', 'public') and c.relkind in ('r', 'p', 'm')
      and not c.relispartition
      and (y.typcategory in ('S', 'U') or (select e.typcategory in ('S', 'U') from pg_type e
        where e.oid = y.typelem and y.typcategory = 'A'))
      and format_type(a.atttypid, null) !~ '(vector|halfvec|bytea)(\[\])?$'
    order by n.nspname, c.relname, a.attnum
  loop
    execute format('select count(*) from %I.%I t where lower(t.%I::text) like any ($1)',
      v_column.nspname, v_column.relname, v_column.attname)
    into found_rows using v_patterns;
    if found_rows > 0 then
      table_name := format('%I.%I', v_column.nspname, v_column.relname);
      column_name := v_column.attname;
      return next;
    end if;
  end loop;
end
$$;
comment on function two_tower.find_user_traces(uuid) is 'For operators: searches every table of schemas two_tower and public, the app''s too, for the id of a user: as a uuid, and in texts, JSON and lists, with hyphens or without. Returns each column that has it, and in how many rows. Reads whole tables. Of an erased user, it returns nothing.';
