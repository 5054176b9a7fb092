-- Pages, which clients call for. Each function of public is a thin SECURITY INVOKER wrapper. The
-- cores are SECURITY DEFINER and live in two_tower, which is not exposed. They act for auth.uid()
-- alone, so that calling one directly gains nothing. A core knows ids and no text. Which of them
-- the caller may read, the app's row level security says: every page passes through
-- find_readable(), which runs as the caller.

create function two_tower.require_user() returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_user_id uuid := auth.uid();
begin
  if v_user_id is null then
    raise exception 'the caller is not signed in' using errcode = '42501',
      hint = 'Call with the access token of a user. Backends call recommend_for() with the service role.';
  end if;
  return v_user_id;
end
$$;
comment on function two_tower.require_user() is 'Returns auth.uid(). Raises 42501 when the caller is not signed in.';

create function two_tower.require_reader(p_user_id uuid) returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if p_user_id is distinct from auth.uid() and not two_tower.is_operator() then
    raise exception 'the caller is not user %', p_user_id using errcode = '42501',
      hint = 'Call recommend(), or call with the service role.';
  end if;
  return p_user_id;
end
$$;
comment on function two_tower.require_reader(uuid) is 'Returns the user, if the caller may ask for this user''s page: the user, or an operator. Raises 42501 to others.';

create function two_tower.find_excluded(p_keys text[], p_source text) returns bigint[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
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
comment on function two_tower.find_excluded(text[], text) is 'Returns the ids of posts by their keys, in one source or, for null, in all. Passes over unknown keys. Definer: clients have no grant on the registry.';

create function two_tower.identify_post(p_post_id bigint, p_key text, p_source text) returns bigint
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return coalesce(p_post_id, case when p_key is not null
    then two_tower.find_post(p_key, p_source) end);
end
$$;
comment on function two_tower.identify_post(bigint, text, text) is 'Returns the id of a post that a caller names by id or by key; null for an unknown key. Definer: clients have no grant on the registry.';

create function two_tower.rank_for(p_user_id uuid, p_limit integer, p_exclude bigint[],
  p_source text, p_among bigint[] default null)
returns setof two_tower.page_row
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.recommend_for(two_tower.require_reader(p_user_id), p_limit, p_exclude,
    case when p_source is not null then (two_tower.choose_source(p_source)).id end, p_among);
$$;
comment on function two_tower.rank_for(uuid, integer, bigint[], text, bigint[]) is
  'The core of every page: ids and scores, no text. Raises 42501 for another user than the caller, and 22023 for an unknown source. Definer: clients have no grant on embeddings.';

create function two_tower.scan_limit() returns integer
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select exact_scan_limit from two_tower.settings;
$$;
comment on function two_tower.scan_limit() is 'Returns settings.exact_scan_limit. Definer: clients have no grant on settings.';

-- Nearly always the first round fills the page. Where the caller may read few of the posts, the
-- direction turns: what the caller may read is found first, and ranked then.
create function two_tower.page_for(p_user_id uuid, p_limit integer, p_exclude text[],
  p_source text default null)
returns setof two_tower.page_row
language plpgsql stable set search_path = pg_catalog, pg_temp rows 20 as $$
declare
  v_limit integer := least(500, greatest(1, coalesce(p_limit, 20)));
  v_excluded bigint[] := two_tower.find_excluded(coalesce(p_exclude, '{}'), p_source);
  v_round text;
  v_asked integer;
  v_found two_tower.page_row[];
  v_readable bigint[];
  v_page two_tower.page_row[] := '{}';
begin
  foreach v_round in array '{first, wide, turned}'::text[] loop
    v_asked := case v_round when 'wide' then greatest(v_limit, least(500, 10 * v_limit))
      else v_limit - cardinality(v_page) end;
    v_found := array(
      select r from two_tower.rank_for(p_user_id, v_asked, v_excluded, p_source,
        case v_round when 'turned' then array(
          select n from two_tower.find_newest_readable(two_tower.scan_limit(), p_source) n)
        end) r);
    v_readable := array(
      select r from two_tower.find_readable(array(select f.post_id from unnest(v_found) f)) r);
    v_page := v_page || array(
      select f from unnest(v_found) f where f.post_id = any (v_readable));
    exit when cardinality(v_page) >= v_limit or cardinality(v_found) < v_asked;
    v_excluded := v_excluded || array(select f.post_id from unnest(v_found) f);
  end loop;
  return query
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at,
    round(f.score::numeric, 3)::double precision, f.source, f.arm
  from unnest(v_page) with ordinality as f (post_id, post_key, post_source, author_id, created_at,
    score, source, arm, place)
  order by f.place limit v_limit;
end
$$;
comment on function two_tower.page_for(uuid, integer, text[], text) is
  'Returns a page of posts that the caller may read in the app''s tables. Asks for a page, then for a ten times longer one, then for the best of the newest settings.exact_scan_limit posts that the caller may read. Fewer come back only if more than that are readable. Scores are rounded.';

create function public.recommend(p_limit integer default 20, p_exclude text[] default '{}')
returns table (
  post_id bigint, post_key text, post_source text, author_id uuid, created_at timestamptz,
  score double precision, source text, arm text
) language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.page_for(two_tower.require_user(), p_limit, p_exclude);
$$;
comment on function public.recommend(integer, text[]) is
  'Returns posts of all attached tables for the signed-in user, best first, with score and source. Only posts that the user may read. p_limit: 1 to 500, default 20. p_exclude: keys of posts to leave out, such as those already on the page. Writes nothing, so it works by GET. The rows themselves come from recommended_<table>(). Raises 42501 when nobody is signed in.';

create function public.recommend_for(p_user_id uuid, p_limit integer default 20,
  p_exclude text[] default '{}')
returns table (
  post_id bigint, post_key text, post_source text, author_id uuid, created_at timestamptz,
  score double precision, source text, arm text
) language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.page_for(p_user_id, p_limit, p_exclude);
$$;
comment on function public.recommend_for(uuid, integer, text[]) is
  'For back ends with the service role: returns what recommend() returns to the user, as for a page that a server renders, or a digest by e-mail. The service role reads all rows, so the policies of the app''s tables do not count here. Raises 22023 without a user.';

create function two_tower.rank_similar(p_post_id bigint, p_limit integer)
returns setof two_tower.page_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_user_id uuid := two_tower.require_user();
  v_slot smallint := (select active_slot from two_tower.state);
  v_vector extensions.vector := (select embedding from two_tower.live_embeddings v
    where v.slot = v_slot and v.post_id = p_post_id);
begin
  return query
  select p.id, r.key, s.name, p.author_id, p.created_at,
    -(v.embedding operator(extensions.<#>) v_vector) as similarity, 'similar', null
  from unnest(coalesce(two_tower.find_nearest_posts(v_vector, p_limit), array(
      select n.post_id from two_tower.live_embeddings n where n.slot = v_slot and n.is_listed
      order by n.embedding operator(extensions.<#>) v_vector limit p_limit))) as near (post_id)
    join two_tower.live_embeddings v on v.slot = v_slot and v.post_id = near.post_id
    join two_tower.listed_posts p on p.id = v.post_id
    join two_tower.posts r on r.id = p.id
    join two_tower.sources s on s.id = p.source_id
  where v.post_id <> p_post_id
    and not exists (select from two_tower.withheld_authors a
                    where a.user_id = v_user_id and a.author_id = v.author_id)
  order by similarity desc, p.id
  limit case when v_vector is null then 0 else p_limit end;
end
$$;
comment on function two_tower.rank_similar(bigint, integer) is 'The core of similar_posts(). Definer: clients have no grant on embeddings.';

create function public.similar_posts(p_post_id bigint default null, p_limit integer default 20,
  p_post_key text default null, p_post_source text default null)
returns table (post_id bigint, post_key text, post_source text, author_id uuid,
  created_at timestamptz, score double precision)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_post_id bigint := two_tower.identify_post(p_post_id, p_post_key, p_post_source);
  v_found two_tower.page_row[];
  v_readable bigint[];
begin
  v_found := array(select r from two_tower.rank_similar(v_post_id, 200) r);
  v_readable := array(select r from two_tower.find_readable(
    v_post_id || array(select f.post_id from unnest(v_found) f)) r);
  return query
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at,
    round(f.score::numeric, 3)::double precision
  from unnest(v_found) f
  where f.post_id = any (v_readable) and v_post_id = any (v_readable)
  limit least(100, greatest(1, coalesce(p_limit, 20)));
end
$$;
comment on function public.similar_posts(bigint, integer, text, text) is 'Returns the posts whose live embeddings are nearest to that of a post, best first. The post is named by p_post_id, or by p_post_key and, where several tables are attached, p_post_source. Only posts that the caller may read. p_limit: 1 to 100, default 20. Returns nothing for a post that is not encoded, or not readable. Raises 42501 when nobody is signed in.';

create function two_tower.rank_popular(p_limit integer) returns setof two_tower.page_row
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select p.id, r.key, s.name, p.author_id, p.created_at,
    c.popularity / two_tower.compute_popularity(1, two_tower.now()), 'popular', null
  from two_tower.popular_candidates c
    join two_tower.listed_posts p on p.id = c.post_id
    join two_tower.posts r on r.id = p.id
    join two_tower.sources s on s.id = p.source_id
  where not exists (
    select from two_tower.withheld_authors a
      where a.user_id = two_tower.require_user() and a.author_id = p.author_id)
  order by c.popularity desc, p.id desc
  limit p_limit;
$$;
comment on function two_tower.rank_popular(integer) is 'The core of popular_posts(). Definer: clients have no grant on popularity.';

create function public.popular_posts(p_limit integer default 20)
returns table (post_id bigint, post_key text, post_source text, author_id uuid,
  created_at timestamptz, score double precision)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_found two_tower.page_row[] := array(select r from two_tower.rank_popular(500) r);
  v_readable bigint[] := array(
    select r from two_tower.find_readable(array(select f.post_id from unnest(v_found) f)) r);
begin
  return query
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at,
    round(f.score::numeric, 3)::double precision
  from unnest(v_found) f where f.post_id = any (v_readable)
  limit least(100, greatest(1, coalesce(p_limit, 20)));
end
$$;
comment on function public.popular_posts(integer) is 'Returns the posts with the highest decayed popularity, from a list that is a few minutes old. Only posts that the caller may read. p_limit: 1 to 100, default 20. Raises 42501 when nobody is signed in.';

create function two_tower.rank_followed(p_limit integer) returns setof two_tower.page_row
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select p.id, r.key, s.name, p.author_id, p.created_at, 0::double precision, 'followed', null
  from two_tower.listed_posts p
    join two_tower.posts r on r.id = p.id
    join two_tower.sources s on s.id = p.source_id
  where p.author_id in (select f.followed_id from two_tower.follows f
      where f.follower_id = two_tower.require_user())
    and not exists (select from two_tower.withheld_authors a
                    where a.user_id = two_tower.require_user() and a.author_id = p.author_id)
  order by p.created_at desc, p.id desc
  limit p_limit;
$$;
comment on function two_tower.rank_followed(integer) is 'The core of recent_from_followed(). Definer: clients have no grant on the registry.';

create function public.recent_from_followed(p_limit integer default 20)
returns table (post_id bigint, post_key text, post_source text, author_id uuid,
  created_at timestamptz)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_found two_tower.page_row[] := array(select r from two_tower.rank_followed(500) r);
  v_readable bigint[] := array(
    select r from two_tower.find_readable(array(select f.post_id from unnest(v_found) f)) r);
begin
  return query
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at
  from unnest(v_found) f where f.post_id = any (v_readable)
  limit least(100, greatest(1, coalesce(p_limit, 20)));
end
$$;
comment on function public.recent_from_followed(integer) is 'Returns the newest posts of authors whom the signed-in user follows. Only posts that the caller may read. p_limit: 1 to 100, default 20. Raises 42501 when nobody is signed in.';
