-- What a page is asked to keep to, and what its reader has muted. A filter is part of each search:
-- every gatherer of candidates asks matching_posts(). Where few posts match, they are the
-- candidates, and nothing is searched.

create type two_tower.page_filter as (
  author_ids uuid[],
  follower_id uuid,
  created_after timestamptz,
  languages text[],
  tags text[],
  post_ids bigint[],
  muted_tags text[]
);
comment on type two_tower.page_filter is 'Which posts may stand on a page. What is null sets no condition.';
comment on column two_tower.page_filter.follower_id is 'The reader, where only authors whom the reader follows are asked for.';
comment on column two_tower.page_filter.tags is 'A post has one of these at least.';
comment on column two_tower.page_filter.muted_tags is 'A post has none of these.';

-- No list of what waits to be indexed: each search would read it.
create index posts_tags_idx on two_tower.posts using gin (tags) with (fastupdate = off)
  where is_listed and encoded_hash is not null;
create index posts_language_idx on two_tower.posts (language, created_at desc)
  where is_listed and encoded_hash is not null and language is not null;

-- A standard body without SET, so that it becomes part of the query that asks.
create function two_tower.matching_posts(p_filter two_tower.page_filter)
returns setof two_tower.posts language sql stable
begin atomic
  select p.* from two_tower.posts p
  where (p_filter.post_ids is null or p.id = any (p_filter.post_ids))
    and (p_filter.author_ids is null or p.author_id = any (p_filter.author_ids))
    and (p_filter.created_after is null or p.created_at >= p_filter.created_after)
    and (p_filter.languages is null or p.language = any (p_filter.languages))
    and (p_filter.tags is null or p.tags && p_filter.tags)
    and (p_filter.muted_tags is null or (p.tags && p_filter.muted_tags) is not true)
    and (p_filter.follower_id is null or exists (
      select from two_tower.follows f
      where f.follower_id = p_filter.follower_id and f.followed_id = p.author_id));
end;
comment on function two_tower.matching_posts(two_tower.page_filter) is 'Returns the posts of the registry that a filter lets through: of null, all.';

create function two_tower.read_list(p_filter jsonb, p_name text, p_most integer, p_longest integer)
returns text[] language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_list jsonb := p_filter -> p_name;
begin
  if p_filter ->> p_name is null then
    return null;
  elsif jsonb_typeof(v_list) <> 'array' or exists (
    select from jsonb_array_elements(v_list) e
    where jsonb_typeof(e) not in ('string', 'number')) then
    raise exception '% of p_filter is no list of texts', p_name using errcode = '22023',
      hint = format('Give {"%s": ["..."]}.', p_name);
  elsif jsonb_array_length(v_list) > p_most or exists (
    select from jsonb_array_elements_text(v_list) e where octet_length(e) > p_longest) then
    raise exception '% of p_filter are at most %, of at most % bytes each', p_name, p_most,
      p_longest using errcode = 'TT002', hint = 'Give a shorter list.';
  end if;
  return array(select e from jsonb_array_elements_text(v_list) e);
end
$$;
comment on function two_tower.read_list(jsonb, text, integer, integer) is 'Returns a list of a filter, or null where it names none. Raises 22023 for what is no list of texts or numbers, and TT002 for more than p_most of them or one of more than p_longest bytes.';

create function two_tower.read_max_age(p_filter jsonb) returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_age interval;
begin
  if p_filter ->> 'max_age' is null then
    return null;
  elsif jsonb_typeof(p_filter -> 'max_age') = 'string' then
    v_age := (p_filter ->> 'max_age')::interval;
    if v_age > interval '0' and isfinite(two_tower.now() - v_age) then
      return two_tower.now() - v_age;
    end if;
  end if;
  raise data_exception;
exception when data_exception then
  raise exception 'max_age of p_filter is no interval above zero' using errcode = '22023',
    hint = 'Give {"max_age": "7 days"}.';
end
$$;
comment on function two_tower.read_max_age(jsonb) is 'Returns since when posts of a filter were created, or null where it says nothing of that. Raises 22023 for what is no interval above zero.';

-- Keys are looked up one by one, also where they are many and the plan was made for few.
create function two_tower.find_keyed_posts(p_keys text[], p_source text) returns bigint[]
language plpgsql stable set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off as $$
begin
  return array(
    select p.id
    from two_tower.sources s
      cross join unnest(p_keys) as k (key)
      join two_tower.posts p
        on p.source_id = s.id and p.key = two_tower.canonical_key(k.key, s.key_type)
    where s.role = 'posts' and (p_source is null or s.name = p_source));
end
$$;
comment on function two_tower.find_keyed_posts(text[], text) is 'Returns the ids of posts by their keys, in one source or, for null, in all. Passes over unknown keys.';

create function two_tower.read_filter(p_filter jsonb, p_user_id uuid, p_source text default null)
returns two_tower.page_filter language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_filter two_tower.page_filter;
  v_unknown text;
  v_list text[];
begin
  select array_agg(m.term) into v_filter.muted_tags
  from public.muted_terms m where m.user_id = p_user_id and m.kind = 'tag';
  if p_filter is null or jsonb_typeof(p_filter) = 'null' then
    return v_filter;
  elsif jsonb_typeof(p_filter) <> 'object' then
    raise exception 'p_filter is not an object' using errcode = '22023',
      hint = 'Give {"tags": ["boats"], "max_age": "7 days"}.';
  end if;
  select left(k, 100) into v_unknown from jsonb_object_keys(p_filter) k
  where k <> all ('{authors,followed,keys,languages,max_age,tags}'::text[]) limit 1;
  if found then
    raise exception 'p_filter has an unknown name: %', v_unknown using errcode = '22023',
      hint = 'The names are authors, followed, keys, languages, max_age and tags.';
  elsif jsonb_typeof(p_filter -> 'followed') not in ('boolean', 'null') then
    raise exception 'followed of p_filter is not true or false' using errcode = '22023',
      hint = 'Give {"followed": true}.';
  end if;
  v_list := two_tower.read_list(p_filter, 'authors', 100, 200);
  if v_list is not null then
    v_filter.author_ids := array(select two_tower.author_id_of(a) from unnest(v_list) a);
  end if;
  if p_filter -> 'followed' = 'true' then
    v_filter.follower_id := coalesce(p_user_id, '00000000-0000-0000-0000-000000000000');
  end if;
  v_filter.created_after := two_tower.read_max_age(p_filter);
  v_filter.languages := two_tower.read_list(p_filter, 'languages', 100, 200);
  v_filter.tags := two_tower.read_list(p_filter, 'tags', 100, 200);
  v_list := two_tower.read_list(p_filter, 'keys', 1000, 2000);
  if v_list is not null then
    v_filter.post_ids := two_tower.find_keyed_posts(v_list, p_source);
  end if;
  return v_filter;
end
$$;
comment on function two_tower.read_filter(jsonb, uuid, text) is
  'Returns what a filter says, with the tags that the user has muted. Names: authors (keys), followed (true), max_age (an interval), languages, tags (any of them), keys (of posts). An empty list lets nothing through. Raises 22023 for another name or a value of the wrong type, and TT002 for a list or text that is too long.';

-- Whoever asks for followed authors is met by way of them.
create function two_tower.write_match_query(p_filter two_tower.page_filter) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select 'select m.id from two_tower.matching_posts(row(
      ($1).author_ids, null, ($1).created_after, ($1).languages, ($1).tags, ($1).post_ids,
      ($1).muted_tags)::two_tower.page_filter) m'
    || case when (p_filter).follower_id is not null then ' join two_tower.follows f
      on f.follower_id = ($1).follower_id and f.followed_id = m.author_id' else '' end
    || ' where m.is_listed and m.encoded_hash is not null and ($2 is null or m.source_id = $2)
      limit $3';
$$;
comment on function two_tower.write_match_query(two_tower.page_filter) is 'Returns the SQL of a search for encoded posts that match a filter. Its parameters: the filter, a source or null, a limit.';

-- The planner's estimate knows all conditions together, and asking for it runs nothing. A volatile
-- function, because no other may ask.
create function two_tower.estimate_matches(p_filter two_tower.page_filter, p_source_id smallint)
returns double precision language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_plan jsonb;
begin
  execute 'explain (format json) ' || two_tower.write_match_query(p_filter)
  into v_plan using p_filter, p_source_id, null::bigint;
  return v_plan #>> '{0,Plan,Plan Rows}';
end
$$;
comment on function two_tower.estimate_matches(two_tower.page_filter, smallint) is 'Returns about how many encoded posts match a filter, as of the last analyze.';

-- To rank m of n posts takes about as long as a search that meets over_fetch * n / m of them. So
-- they are few where m is at most the root of over_fetch * n.
create function two_tower.list_few(p_filter two_tower.page_filter, p_source_id smallint)
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_most integer;
  v_ids bigint[];
begin
  if p_filter is null and (p_source_id is null or not exists (
    select from two_tower.sources s
    where s.role = 'posts' and s.state <> 'detached' and s.id <> p_source_id)) then
    return null;
  end if;
  select least(s.exact_scan_limit, sqrt(s.over_fetch * nullif(greatest(c.reltuples, 0), 0)))
  into v_most
  from two_tower.settings s cross join pg_catalog.pg_class c
  where c.oid = 'two_tower.posts'::regclass;
  if two_tower.estimate_matches(p_filter, p_source_id) > v_most then
    return null;
  end if;
  execute format('select array(%s)', two_tower.write_match_query(p_filter))
  into v_ids using p_filter, p_source_id, v_most + 1;
  return case when cardinality(v_ids) <= v_most then v_ids end;
end
$$;
comment on function two_tower.list_few(two_tower.page_filter, smallint) is 'Returns all encoded posts of a source (null: of all) that match a filter, if these are few: at most settings.exact_scan_limit, and at most the root of settings.over_fetch times all posts. Returns null where they are more, or nothing is asked for.';

create function two_tower.narrow_posts(p_filter two_tower.page_filter, p_source_id smallint,
  p_among bigint[])
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if p_among is null then
    return two_tower.list_few(p_filter, p_source_id);
  elsif p_filter is null then
    return p_among;
  end if;
  return array(
    select m.id from unnest(p_among) as a (id)
      cross join lateral (
        select p.id from two_tower.matching_posts(p_filter) p where p.id = a.id) m);
end
$$;
comment on function two_tower.narrow_posts(two_tower.page_filter, smallint, bigint[]) is 'Returns the posts to which a search is narrowed: those of p_among that match a filter, or all that match where they are few. Returns null where all posts are to be searched.';
