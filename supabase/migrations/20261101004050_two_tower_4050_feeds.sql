-- Pages, which clients call for. Each function of public is a thin SECURITY INVOKER wrapper of
-- page_for(). The core, rank_for(), is SECURITY DEFINER and lives in two_tower, which is not
-- exposed. It acts for auth.uid() alone, so that calling it directly gains nothing. It knows ids
-- and no text. Which posts the caller may read, the app's row level security says: every page
-- passes through find_readable(), which runs as the caller.

create function two_tower.turns_for(p_user_id uuid, p_limit integer, p_author_ids uuid[])
returns integer[] language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select two_tower.take_turns(two_tower.require_reader(p_user_id), p_limit, p_author_ids);
$$;
comment on function two_tower.turns_for(uuid, integer, uuid[]) is 'Returns what take_turns() does, to the user and to operators. Raises 42501 to others. Definer: clients have no grant on settings and follows.';

-- What a page is made of beside recommend_for(). Each takes its candidates from all posts or, of
-- p_among, from these alone. The nearest 1,000 posts leave authors to choose from.
create function two_tower.list_similar(p_vector extensions.vector, p_limit integer,
  p_excluded bigint[], p_among bigint[], p_filter two_tower.page_filter)
returns table (post_id bigint, score double precision, author_id uuid)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_slot smallint := (select active_slot from two_tower.state);
  v_near bigint[] := p_among;
begin
  if p_vector is null then
    return;
  end if;
  if v_near is null then
    v_near := coalesce(
      two_tower.find_nearest_posts(p_vector, 1000, null, p_excluded, p_filter is not null, null,
        p_filter),
      array(select v.post_id from two_tower.live_embeddings v
        where v.slot = v_slot and v.is_listed and v.post_id <> all (p_excluded)
          and (p_filter is null
            or v.post_id in (select m.id from two_tower.matching_posts(p_filter) m))
        order by v.embedding operator(extensions.<#>) p_vector limit 1000));
  end if;
  return query
  select v.post_id, -(v.embedding operator(extensions.<#>) p_vector), p.author_id
  from two_tower.read_likeness(array(
      select n.id
      from (
        select g.id, g.place, q.author_id is not null as has_author, row_number() over (
          partition by q.author_id order by g.place) as number
        from unnest(v_near) with ordinality as g (id, place)
          join two_tower.posts q on q.id = g.id
        where g.id <> all (p_excluded)
      ) n cross join two_tower.settings s
      order by case when n.has_author
        then (n.number - 1) / two_tower.cap_posts(s.author_share, p_limit) else 0 end, n.place
      limit case when p_among is null then 3 * p_limit end)) v
    join two_tower.posts p on p.id = v.post_id;
end
$$;
comment on function two_tower.list_similar(extensions.vector, integer, bigint[], bigint[], two_tower.page_filter) is 'Returns posts near to a vector, with their cosine: three times p_limit, for which the authors of the nearest 1,000 take turns. Returns nothing for null.';

-- A vector is never an argument of what clients may call: they would measure others by it.
create function two_tower.find_vector(p_user_id uuid, p_post_id bigint, p_text text)
returns extensions.vector language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if p_text is not null then
    return two_tower.run_candidate_tower(two_tower.find_text(p_user_id, p_text));
  end if;
  return (select v.embedding from two_tower.read_likeness(array[p_post_id]) v);
end
$$;
comment on function two_tower.find_vector(uuid, bigint, text) is 'Returns the vector of a post or, given a text, of a text of the user''s own. Null for what is not encoded.';

create function two_tower.list_popular(p_excluded bigint[], p_among bigint[],
  p_filter two_tower.page_filter)
returns table (post_id bigint, score double precision, author_id uuid)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select c.post_id, two_tower.popularity_in_likes(c.popularity, u.of_one_like), c.author_id
  from (
    select two_tower.read_popularity_clock(two_tower.now(), s) as of_one_like
    from two_tower.state s
  ) u cross join (
    select l.post_id, l.popularity, l.author_id from two_tower.popular_candidates l
    where p_among is null and (p_filter is null or (select exists (
      select from two_tower.matching_posts(p_filter) m where m.id = l.post_id)))
    union all
    select v.post_id, v.popularity, v.author_id from two_tower.live_embeddings v
    where v.slot = (select active_slot from two_tower.state) and v.post_id = any (p_among)
  ) c
  where c.post_id <> all (p_excluded);
$$;
comment on function two_tower.list_popular(bigint[], bigint[], two_tower.page_filter) is 'Returns popular posts, with their popularity in likes of now.';

create function two_tower.list_followed(p_user_id uuid, p_limit integer, p_excluded bigint[],
  p_among bigint[], p_filter two_tower.page_filter)
returns table (post_id bigint, score double precision, author_id uuid)
language sql stable set search_path = pg_catalog, pg_temp set enable_bitmapscan = off as $$
  select p.id, extract(epoch from p.created_at)::double precision, p.author_id
  from (
    select n.id, n.created_at, f.followed_id as author_id
    from two_tower.follows f
      cross join lateral (
        select w.id, w.created_at
        from (
          select q.id, q.created_at from two_tower.posts q
          where q.author_id = f.followed_id and q.is_listed and q.encoded_hash is not null
            and q.created_at <= two_tower.now()
          order by q.created_at desc limit 1000 + cardinality(p_excluded)) w
        where w.id <> all (p_excluded) and (p_filter is null or (select exists (
          select from two_tower.matching_posts(p_filter) m where m.id = w.id)))
        limit p_limit) n
    where f.follower_id = p_user_id and p_among is null
    union all
    select q.id, q.created_at, q.author_id
    from two_tower.follows f
      -- Two rows: what is known to be false is no condition that the index of due_posts knows.
      cross join (values (false), (true)) as e (is_edited)
      cross join lateral (
        select d.id from two_tower.due_posts d
        where d.turn = uuid_hash_extended(f.followed_id, 0) and d.is_edited = e.is_edited
        order by d.requested_at desc, d.id desc limit p_limit) w
      cross join lateral (select p.* from two_tower.posts p where p.id = w.id offset 0) q
    where f.follower_id = p_user_id and p_among is null and not e.is_edited
      and q.author_id = f.followed_id and q.created_at <= two_tower.now()
      and q.id <> all (p_excluded)
    union all
    select q.id, q.created_at, q.author_id
    from two_tower.posts q
      join two_tower.follows f on f.follower_id = p_user_id and f.followed_id = q.author_id
    where q.id = any (p_among) and q.id <> all (p_excluded)
  ) p
  where p_filter is null or (select exists (
    select from two_tower.matching_posts(p_filter) m where m.id = p.id));
$$;
comment on function two_tower.list_followed(uuid, integer, bigint[], bigint[], two_tower.page_filter) is 'Returns posts of followed authors, with their time as score: the newest p_limit of each, and as many that wait for the encoder.';

-- Beside what is recommended, posts are looked up from the best one down until the page is full.
-- Authors take turns on these pages too.
create function two_tower.rank_for(p_user_id uuid, p_limit integer, p_excluded bigint[],
  p_source text default null, p_among bigint[] default null, p_kind text default 'recommended',
  p_post_id bigint default null, p_text text default null,
  p_filter two_tower.page_filter default null)
returns setof two_tower.page_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
  set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
declare
  v_user_id uuid := two_tower.require_reader(p_user_id);
  v_source_id smallint := case when p_source is not null
    then (two_tower.choose_source(p_source)).id end;
  v_vector extensions.vector := case when p_kind in ('similar', 'search')
    then two_tower.find_vector(v_user_id, p_post_id, p_text) end;
  v_ids bigint[];
  v_scores double precision[];
  v_authors uuid[];
  v_filter two_tower.page_filter := p_filter;
  v_among bigint[];
begin
  if v_filter.follower_id is not null then
    v_filter.follower_id := coalesce(v_user_id, v_filter.follower_id); -- nobody else's
  end if;
  if p_kind = 'recommended' then
    return query
    select * from two_tower.recommend_for(v_user_id, p_limit, p_excluded, v_source_id, p_among,
      v_filter);
    return;
  end if;
  v_among := case when v_filter is null or p_kind in ('followed', 'author', 'trending')
    then p_among else two_tower.narrow_posts(v_filter, v_source_id, p_among) end;
  -- Of equal ones the newest first: ids that no key lent count down.
  select array_agg(u.post_id order by u.score desc, greatest(u.post_id, ~u.post_id) desc),
    array_agg(u.score order by u.score desc, greatest(u.post_id, ~u.post_id) desc),
    array_agg(u.author_id order by u.score desc, greatest(u.post_id, ~u.post_id) desc)
  into v_ids, v_scores, v_authors
  from (
    select * from two_tower.list_similar(v_vector, p_limit,
      array_remove(p_excluded || p_post_id, null), v_among, v_filter)
    where v_vector is not null
    union all
    select * from two_tower.list_popular(p_excluded, v_among, v_filter)
    where p_kind = 'popular'
    union all
    select * from two_tower.list_followed(v_user_id, p_limit, p_excluded, v_among, v_filter)
    where p_kind = 'followed'
    union all
    select * from two_tower.list_of_author(v_user_id, p_text, p_limit, p_excluded, v_among,
      v_filter)
    where p_kind = 'author'
    union all
    select * from two_tower.list_trending(v_user_id, p_text, p_excluded, v_among, v_filter)
    where p_kind = 'trending'
  ) u;
  return query
  select p.id, p.key, s.name, p.author_id, p.created_at, r.score, p_kind, null::text,
    null::text
  from (
    select c.post_id, c.score
    from (
      select t.post_id, t.score
      from unnest(v_ids, v_scores, two_tower.take_turns(v_user_id, p_limit, v_authors))
        with ordinality as t (post_id, score, turn, place)
      order by t.turn, t.place offset 0
    ) c
    where (select exists (select from two_tower.listed_posts p
      where p.id = c.post_id and (v_source_id is null or p.source_id = v_source_id)
        and (v_filter is null
          or exists (select from two_tower.matching_posts(v_filter) m where m.id = p.id))
        and not (select exists (select from two_tower.withheld_authors a
          where a.user_id = v_user_id and a.author_id = p.author_id))))
    limit p_limit
  ) r
    join two_tower.posts p on p.id = r.post_id
    join two_tower.sources s on s.id = p.source_id
  order by r.score desc, greatest(p.id, ~p.id) desc;
end
$$;
comment on function two_tower.rank_for(uuid, integer, bigint[], text, bigint[], text, bigint, text,
  two_tower.page_filter) is
  'The core of every page: ids and scores, no text. p_kind: recommended, or similar (to p_post_id), search (by p_text, which the user had encoded), popular, followed, author (p_text: the key) or trending (p_text: a tag, or null). p_source: posts of this source alone. p_among: only of these. p_filter: those that match alone; whose followed authors are asked for is p_user_id. Does not ask who may read a post. Raises 42501 for another user than the caller, and 22023 for an unknown source. Definer: clients have no grant on embeddings.';

create function two_tower.scan_limit() returns integer
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select exact_scan_limit from two_tower.settings;
$$;
comment on function two_tower.scan_limit() is 'Returns settings.exact_scan_limit. Definer: clients have no grant on settings.';

-- Nearly always the first round fills the page. Where the caller may read few of the posts, the
-- direction turns: what the caller may read is found first, and ranked then. It turns at once where
-- nothing of the first round is readable. What is recommended, followed, of an author or trending
-- comes back in full, so that less than was asked for is all there is. Where nothing at all is
-- similar, there is no vector to be similar to. So neither reads the app's table for nothing.
create function two_tower.page_for(p_user_id uuid, p_limit integer, p_exclude text[] default '{}',
  p_source text default null, p_kind text default 'recommended', p_post_id bigint default null,
  p_text text default null, p_filter jsonb default null, p_cursor text default null)
returns setof two_tower.page_row
language plpgsql stable set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan rows 20 as $$
declare
  v_limit integer := least(500, greatest(1, coalesce(p_limit, 20)));
  v_excluded bigint[] := two_tower.find_excluded(coalesce(p_exclude, '{}'), p_source)
    || case when p_cursor is not null then two_tower.shown_before(p_user_id, p_cursor) end;
  v_filter two_tower.page_filter := two_tower.filter_for(p_user_id, p_filter, p_source);
  v_muted tsquery := two_tower.muted_for(p_user_id);
  v_round text;
  v_asked integer;
  v_found two_tower.page_row[];
  v_readable bigint[];
  v_page two_tower.page_row[] := '{}';
  v_turns integer[];
  v_cursor text;
begin
  foreach v_round in array '{first, wide, turned}'::text[] loop
    continue when v_round = 'wide' and v_page = '{}';
    v_asked := case when v_round = 'wide' or v_round = 'turned' and v_muted is not null
      then least(500, 10 * v_limit) else v_limit - cardinality(v_page) end;
    v_found := array(
      select r from two_tower.rank_for(p_user_id, v_asked, v_excluded, p_source,
        case v_round when 'turned' then array(
          select n from two_tower.find_newest_readable(two_tower.scan_limit(), p_source) n) end,
        p_kind, p_post_id, p_text, v_filter) r);
    v_readable := array(
      select r from two_tower.find_readable(array(select f.post_id from unnest(v_found) f)) r);
    if v_muted is not null then
      v_readable := array(select r from unnest(v_readable) r
        except select m from two_tower.find_muted(v_readable, v_muted) m);
    end if;
    v_page := v_page || array(
      select f from unnest(v_found) f where f.post_id = any (v_readable));
    exit when cardinality(v_page) >= v_limit
      or v_found = '{}' and p_kind in ('similar', 'search')
      or cardinality(v_found) < v_asked
        and p_kind in ('recommended', 'followed', 'author', 'trending');
    v_excluded := v_excluded || array(select f.post_id from unnest(v_found) f);
  end loop;
  v_turns := case when cardinality(v_page) > v_limit then two_tower.turns_for(p_user_id, v_limit,
    array(select f.author_id from unnest(v_page) f)) end;
  v_page := array(
    select v_page[p] from generate_subscripts(v_page, 1) p order by v_turns[p], p limit v_limit);
  v_cursor := case when p_kind in ('recommended', 'popular') and v_page <> '{}' then
    two_tower.cursor_after(p_user_id, p_cursor, array(select f.post_id from unnest(v_page) f)) end;
  return query
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at,
    round(f.score::numeric, 2)::double precision, f.source, f.arm,
    case when f.place = cardinality(v_page) then v_cursor end
  from unnest(v_page) with ordinality as f (post_id, post_key, post_source, author_id, created_at,
    score, source, arm, cursor, place);
end
$$;
comment on function two_tower.page_for(uuid, integer, text[], text, text, bigint, text, jsonb,
  text) is
  'Returns a page of posts that the caller may read in the app''s tables. Asks for a page, then (if any of that is readable) for a ten times longer one, then for the best of the newest settings.exact_scan_limit posts that the caller may read. Fewer come back only if more than that are readable. Posts with a word that the user has muted are taken for unreadable. p_kind: see rank_for(). p_filter: see read_filter(). p_cursor: that of the page before, whose posts and those before are left out. Scores are rounded.';

create function public.recommend(p_limit integer default 20, p_exclude text[] default '{}',
  p_filter jsonb default null, p_cursor text default null)
returns table (
  post_id bigint, post_key text, post_source text, author_id uuid, created_at timestamptz,
  score double precision, source text, arm text, cursor text
) language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.page_for(two_tower.require_user(), p_limit, p_exclude,
    p_filter => p_filter, p_cursor => p_cursor);
$$;
comment on function public.recommend(integer, text[], jsonb, text) is
  'Returns posts for the signed-in user, best first, with score and source, of all attached tables. Only posts that the user may read. p_limit: 1 to 500, default 20. p_exclude: keys of posts to leave out, such as those already on the page, at most 1,000. A key leaves out the posts of all tables that have it. p_filter: which posts may stand on the page, by authors, followed, max_age, languages, tags and keys; the page is full if enough posts match. p_cursor: cursor of the last row of the page before; what was shown on this scroll does not come again, about the last 1,500 posts. Writes nothing, so it works by GET. recommended_<table>() returns the rows themselves. Raises 42501 when nobody is signed in, 22023 for another filter or cursor, and TT002 for lists that are too long.';

create function public.recommend_for(p_user_id uuid, p_limit integer default 20,
  p_exclude text[] default '{}', p_filter jsonb default null, p_cursor text default null)
returns table (
  post_id bigint, post_key text, post_source text, author_id uuid, created_at timestamptz,
  score double precision, source text, arm text, cursor text
) language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.page_for(p_user_id, p_limit, p_exclude, p_filter => p_filter,
    p_cursor => p_cursor);
$$;
comment on function public.recommend_for(uuid, integer, text[], jsonb, text) is
  'For back ends with the service role: returns what recommend() returns to the user, as for a page that a server renders, or a digest by e-mail. The service role reads all rows, so the policies of the app''s tables do not count here. Raises 22023 without a user.';

create function public.similar_posts(p_post_id bigint default null, p_limit integer default 20,
  p_post_key text default null, p_post_source text default null, p_filter jsonb default null)
returns table (post_id bigint, post_key text, post_source text, author_id uuid,
  created_at timestamptz, score double precision)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_user_id uuid := two_tower.require_user();
  v_post_id bigint := two_tower.identify_post(p_post_id, p_post_key, p_post_source);
begin
  if exists (select from two_tower.find_readable(array[v_post_id])) then
    return query
    select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at, f.score
    from two_tower.page_for(v_user_id, least(100, coalesce(p_limit, 20)), p_kind => 'similar',
      p_post_id => v_post_id, p_filter => p_filter) f;
  end if;
end
$$;
comment on function public.similar_posts(bigint, integer, text, text, jsonb) is 'Returns the posts that are most like a post, best first: by what readers of either have in common, and by their texts. The post is named by p_post_id, or by p_post_key and, where several tables are attached, p_post_source. Only posts that the caller may read. p_limit: 1 to 100, default 20. p_filter: as of recommend(). Returns nothing for a post that is not encoded, or not readable. Raises 42501 when nobody is signed in.';

create function public.search_posts(p_text text, p_limit integer default 20,
  p_filter jsonb default null)
returns table (post_id bigint, post_key text, post_source text, author_id uuid,
  created_at timestamptz, score double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at, f.score
  from two_tower.page_for(two_tower.require_caller(), least(100, coalesce(p_limit, 20)),
    p_kind => 'search', p_text => coalesce(p_text, ''), p_filter => p_filter) f;
$$;
comment on function public.search_posts(text, integer, jsonb) is 'Returns the posts whose live embeddings are nearest to a text that embed_text() has ready for the caller, best first. Returns nothing for any other text: call embed_text() first. Only posts that the caller may read, of no author with whom there is a block. p_limit: 1 to 100, default 20. p_filter: as of recommend(). Writes nothing, so it works by GET. Raises 42501 when nobody is signed in.';

create function public.popular_posts(p_limit integer default 20, p_filter jsonb default null)
returns table (post_id bigint, post_key text, post_source text, author_id uuid,
  created_at timestamptz, score double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at, f.score
  from two_tower.page_for(two_tower.require_user(), least(100, coalesce(p_limit, 20)),
    p_kind => 'popular', p_filter => p_filter) f;
$$;
comment on function public.popular_posts(integer, jsonb) is 'Returns the posts with the highest decayed popularity, from a list that is a few minutes old. Only posts that the caller may read. p_limit: 1 to 100, default 20. p_filter: as of recommend(). Raises 42501 when nobody is signed in.';

create function public.recent_from_followed(p_limit integer default 20)
returns table (post_id bigint, post_key text, post_source text, author_id uuid,
  created_at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at
  from two_tower.page_for(two_tower.require_user(), least(100, coalesce(p_limit, 20)),
    p_kind => 'followed') f;
$$;
comment on function public.recent_from_followed(integer) is 'Returns the newest posts of authors whom the signed-in user follows. Only posts that the caller may read. p_limit: 1 to 100, default 20. Raises 42501 when nobody is signed in.';
