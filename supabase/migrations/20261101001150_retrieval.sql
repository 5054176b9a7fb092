-- Retrieval: from a user to a page of posts. Candidates are the nearest posts, popular ones, recent
-- ones of followed authors, and new ones to explore. Each filter stands where it costs least:
-- what was seen is left out while candidates are gathered, deleted and own posts where a post's
-- row is read anyway, and authors are looked up from the best post down until the page is full.
-- "not (select exists" where it says so: that is asked row by row, however much a user has seen.
-- A page that is short is made again from a scan of all posts; one that is short after that, or
-- fails, is filled by simpler rules. Nothing here writes.

create view two_tower.withheld_authors with (security_invoker = true) as
select b.user_id, b.author_id from public.author_blocks as b
union all
select b.author_id as user_id, b.user_id as author_id from public.author_blocks as b;
comment on view two_tower.withheld_authors is
  'Whose posts a user does not get: authors whom the user blocked or muted, and those who blocked or muted the user.';

create function two_tower.is_eligible(p_user_id uuid, p_post_id bigint, p_author_id uuid)
returns boolean language plpgsql stable set search_path = '' as $$
begin
  return p_author_id is distinct from p_user_id
    and not exists (select from two_tower.user_posts u
      where u.user_id = p_user_id and u.post_id = p_post_id)
    and not exists (select from two_tower.withheld_authors a
      where a.user_id = p_user_id and a.author_id = p_author_id);
end
$$;
comment on function two_tower.is_eligible(uuid, bigint, uuid) is
  'The rule: not the user''s own, not seen, engaged with or hidden (each leaves a row in user_posts), and not by a withheld author. Whether the post is deleted is for the caller to ask. For few posts at a time: what serves many has the same three conditions inline.';

create table two_tower.popular_candidates (
  post_id bigint primary key references public.posts (id) on delete cascade,
  popularity double precision not null
);
comment on table two_tower.popular_candidates is 'The most popular posts, listed every few minutes: candidates beside the personal ones.';
create index popular_candidates_popularity_idx
  on two_tower.popular_candidates (popularity desc, post_id desc);

create function two_tower.refresh_popular_candidates() returns void
language sql set search_path = '' as $$
  with top as materialized (
    select v.post_id, v.popularity from two_tower.live_embeddings v
    where v.slot = (select active_slot from two_tower.state) and not v.is_deleted
    order by v.popularity desc, v.post_id desc limit 1000
  ), gone as (
    delete from two_tower.popular_candidates p
      where not exists (select from top t where t.post_id = p.post_id)
  )
  insert into two_tower.popular_candidates as p (post_id, popularity)
  select post_id, popularity from top order by post_id
  on conflict (post_id) do update set popularity = excluded.popularity;
$$;
comment on function two_tower.refresh_popular_candidates() is 'Lists the thousand most popular posts.';

create type two_tower.reader as (
  user_id uuid,
  vector extensions.vector,
  warmth double precision,
  "time" timestamptz,
  popularity_unit double precision,
  popularity_scale double precision,
  popularity_weight double precision,
  recency_weight double precision,
  recency_half_life double precision,
  followed_weight double precision,
  exploration_share double precision,
  posts_per_author integer,
  over_fetch integer
);
comment on type two_tower.reader is 'A user at the moment of a request, with the settings that serve this user.';

-- A user's ranking goes from popular and fresh to personal over the first settings.cold_until
-- engagements, with the root of their share: the first ones say most, and there is no cliff.
create function two_tower.reader_of(p_user_id uuid) returns two_tower.reader
language plpgsql stable set search_path = '' as $$
declare
  v_settings two_tower.settings := two_tower.settings_for(p_user_id);
  v_vector extensions.vector := two_tower.encode_user(p_user_id);
  v_now timestamptz := two_tower.now();
  v_unit double precision := two_tower.popularity_of(1, v_now, v_settings.popularity_half_life);
  v_share double precision := 0;
begin
  if extensions.vector_norm(v_vector) > 0 then
    select greatest(case when u.base_embedding is null then 0 else 0.1 end,
      u.engagement_count / greatest(1, v_settings.cold_until)::double precision)
    into v_share from two_tower.user_embeddings u where u.user_id = p_user_id;
    if v_settings.cold_until = 0 then
      v_share := 1;
    end if;
  end if;
  return row(
    p_user_id, v_vector, sqrt(least(1, v_share)), v_now, v_unit,
    ln(1 + greatest(1, (select popularity from two_tower.popular_candidates
                        order by popularity desc, post_id desc limit 1) / v_unit)),
    v_settings.popularity_weight, v_settings.recency_weight,
    extract(epoch from v_settings.recency_half_life), v_settings.followed_weight,
    v_settings.exploration_share, v_settings.posts_per_author,
    v_settings.over_fetch)::two_tower.reader;
end
$$;
comment on function two_tower.reader_of(uuid) is
  'The user as recommend() serves them now. vector is null, and warmth 0, for a user of whom nothing is known; popularity_scale is the log of the highest popularity in likes of now.';

-- All posts are met, so what leaves them out is hashed once. Withheld authors are few: "not in"
-- does it on the scan. What a user has seen can outgrow that, and is joined, beside narrow rows.
create function two_tower.scanned_posts(p_vector extensions.vector, p_limit integer,
  p_user_id uuid, p_excluded bigint[])
returns bigint[] language plpgsql stable set search_path = '' set enable_seqscan = on as $$
declare
  v_slot smallint := (select active_slot from two_tower.state);
begin
  return array(
    with seen as materialized (
      select u.post_id from two_tower.user_posts u where u.user_id = p_user_id
    )
    select c.post_id
    from (
      select v.post_id, v.embedding operator(extensions.<#>) p_vector as distance
      from two_tower.live_embeddings v
      where v.slot = v_slot and not v.is_deleted and v.author_id is distinct from p_user_id
        and v.post_id <> all (p_excluded)
        and (v.author_id is null or v.author_id not in (select a.author_id
          from two_tower.withheld_authors a where a.user_id = p_user_id)) offset 0
    ) c
    where not exists (select from seen u where u.post_id = c.post_id)
    order by c.distance, c.post_id desc limit p_limit);
end
$$;
comment on function two_tower.scanned_posts(extensions.vector, integer, uuid, bigint[]) is
  'The nearest eligible posts, exactly, from a scan of all.';

create function two_tower.explored_posts(p_reader two_tower.reader, p_limit integer,
  p_excluded bigint[])
returns bigint[] language plpgsql stable set search_path = '' as $$
declare
  v_place bigint := hashtextextended(
    p_reader.user_id::text || date_trunc('hour', p_reader.time), 0);
  -- A share of less than a post is a post on that share of the pages.
  v_count integer := floor(p_limit * p_reader.exploration_share + (v_place & 1023) / 1024.0);
  v_slot smallint := (select active_slot from two_tower.state);
begin
  if v_count = 0 then
    return '{}';
  end if;
  return array(
    select v.post_id
    from (
      (select e.post_id from two_tower.exploration_pool e
       where e.shuffled >= v_place order by e.shuffled limit 20 + 5 * v_count)
      union all
      (select e.post_id from two_tower.exploration_pool e
       where e.shuffled < v_place order by e.shuffled limit 20 + 5 * v_count)
    ) pool
      join two_tower.live_embeddings v on v.slot = v_slot and v.post_id = pool.post_id
    where v.is_pretrained and not v.is_deleted and v.post_id <> all (p_excluded)
      and two_tower.is_eligible(p_reader.user_id, v.post_id, v.author_id)
    limit v_count);
end
$$;
comment on function two_tower.explored_posts(two_tower.reader, integer, bigint[]) is
  'New posts that few have seen, the next ones in a shuffled order from a place that depends on reader and hour: settings.exploration_share of a page.';

-- Of many followed authors, a hundred are asked each hour, from a place that moves.
create function two_tower.listed_posts(p_reader two_tower.reader, p_limit integer,
  p_excluded bigint[])
returns bigint[] language plpgsql stable set search_path = '' as $$
declare
  v_place uuid := md5(p_reader.user_id::text || date_trunc('hour', p_reader.time))::uuid;
  v_newest integer := case when p_reader.warmth < 1 then p_limit else 0 end;
begin
  return array(
    select c.post_id
    from (
      (select post_id from two_tower.popular_candidates
       order by popularity desc, post_id desc limit p_limit)
      union all
      (select id from public.posts where deleted_at is null
       order by created_at desc limit v_newest)
    ) c
    where c.post_id <> all (p_excluded)
      and not (select exists (select from two_tower.user_posts u
        where u.user_id = p_reader.user_id and u.post_id = c.post_id))
    union all
    (select p.id
     from (
       (select f.followed_id from public.follows f
        where f.follower_id = p_reader.user_id and f.followed_id >= v_place
        order by f.followed_id limit 100)
       union all
       (select f.followed_id from public.follows f
        where f.follower_id = p_reader.user_id and f.followed_id < v_place
        order by f.followed_id limit 100)
       limit 100
     ) f
       cross join lateral (
         select p.id, p.created_at from public.posts p
         where p.author_id = f.followed_id and p.deleted_at is null and p.id <> all (p_excluded)
           and not (select exists (select from two_tower.user_posts u
             where u.user_id = p_reader.user_id and u.post_id = p.id))
         order by p.created_at desc limit 5) p
     order by p.created_at desc limit p_limit));
end
$$;
comment on function two_tower.listed_posts(two_tower.reader, integer, bigint[]) is
  'Candidates beside the nearest that the reader has not seen: popular ones, recent ones of followed authors and, while the reader is cold, the newest.';

-- The score is a sum of named parts, so that explain_recommendation can show it.
create function two_tower.score_posts(p_reader two_tower.reader, p_post_ids bigint[])
returns table (
  post_id bigint, author_id uuid, personal double precision, popular double precision,
  fresh double precision, followed double precision
) language plpgsql stable set search_path = '' rows 300 as $$
declare
  v_slot smallint := (select active_slot from two_tower.state);
  v_coldness double precision := 1 - p_reader.warmth;
begin
  return query
  select v.post_id, v.author_id,
    case when p_reader.warmth = 0 then 0
      else p_reader.warmth * -(v.embedding operator(extensions.<#>) p_reader.vector) end,
    (v_coldness + p_reader.popularity_weight)
      * ln(1 + v.popularity / p_reader.popularity_unit) / p_reader.popularity_scale,
    case when v_coldness = 0 then 0
      else v_coldness * p_reader.recency_weight
        * 2 ^ -least(1000, greatest(0, extract(epoch from p_reader.time - v.created_at)::float8)
                           / p_reader.recency_half_life) end,
    case when f.follower_id is null then 0 else p_reader.followed_weight end
  from two_tower.live_embeddings v
    left join public.follows f
      on f.follower_id = p_reader.user_id and f.followed_id = v.author_id
  where v.slot = v_slot and v.post_id = any (p_post_ids) and not v.is_deleted
    and v.author_id is distinct from p_reader.user_id;
end
$$;
comment on function two_tower.score_posts(two_tower.reader, bigint[]) is
  'Scores posts for a reader; deleted ones and the reader''s own are left out. personal: warmth * cosine of the re-encoded user with the live vector. popular: log of the decayed popularity over the largest. fresh: halves with age. followed: by a followed author. The score is their sum.';

create function two_tower.rank_posts(p_reader two_tower.reader, p_limit integer,
  p_candidates bigint[], p_explored bigint[],
  out ids bigint[], out scores double precision[], out sources text[])
language plpgsql stable set search_path = '' as $$
begin
  select array_agg(r.post_id), array_agg(r.score), array_agg(r.source) into ids, scores, sources
  from (
    select c.post_id, c.score, c.source
    from (
      select s.post_id, s.author_id, x.score,
        case when x.is_explored then 'exploration'
          when s.personal >= greatest(s.popular, s.fresh, s.followed) then 'personal'
          when s.followed >= greatest(s.popular, s.fresh) then 'followed'
          when s.popular >= s.fresh then 'popular' else 'fresh' end as source
      from two_tower.score_posts(p_reader, p_candidates || p_explored) s
        cross join lateral (
          select s.personal + s.popular + s.fresh + s.followed as score,
            s.post_id = any (p_explored) as is_explored) x
      order by not x.is_explored,
        s.author_id is not null and row_number() over (
          partition by s.author_id order by x.score desc, s.post_id desc)
          > p_reader.posts_per_author,
        x.score desc, s.post_id desc
      offset 0
    ) c
    where not (select exists (select from two_tower.withheld_authors a
      where a.user_id = p_reader.user_id and a.author_id = c.author_id))
    limit p_limit
  ) r;
end
$$;
comment on function two_tower.rank_posts(two_tower.reader, integer, bigint[], bigint[]) is
  'The best of the candidates, none of which the reader has seen: those to explore, then by score, with posts of an author who already has settings.posts_per_author on the page behind all others. Authors are looked up from the best post down, until the page is full.';

-- The page by the live vectors. Nearly always the first search fills it.
create function two_tower.learned_page(p_user_id uuid, p_limit integer, p_excluded bigint[],
  out ids bigint[], out scores double precision[], out sources text[])
language plpgsql stable set search_path = '' as $$
declare
  v_reader two_tower.reader := two_tower.reader_of(p_user_id);
  v_count integer := least(1000, greatest(v_reader.over_fetch, 3 * p_limit));
  v_explored bigint[] := two_tower.explored_posts(v_reader, p_limit, p_excluded);
  v_listed bigint[] := two_tower.listed_posts(v_reader,
    case when v_reader.warmth < 1 then v_count else p_limit end, p_excluded);
  v_near bigint[];
  v_search text;
begin
  foreach v_search in array '{index, wide, scan}'::text[] loop
    if v_reader.vector is not null then
      v_near := case v_search
        when 'scan' then
          two_tower.scanned_posts(v_reader.vector, v_count, p_user_id, p_excluded)
        else two_tower.nearest_posts(v_reader.vector, v_count, p_user_id, p_excluded,
          v_search = 'wide') end;
      continue when v_near is null;
    end if;
    select r.ids, r.scores, r.sources into ids, scores, sources
    from two_tower.rank_posts(v_reader, p_limit, v_listed || v_near, v_explored) r;
    exit when cardinality(ids) >= p_limit or v_reader.vector is null;
  end loop;
end
$$;
comment on function two_tower.learned_page(uuid, integer, bigint[]) is
  'A page by the live vectors, best first, explored posts before all: from the serving index, from a wider search where that leaves the page short, and from a scan of all where that does too or there is no index.';

-- Simpler rules, for what is left of a page. They look at posts alone, encoded or not.
create function two_tower.fallback_posts(p_rule text, p_user_id uuid, p_excluded bigint[],
  p_limit integer)
returns table (post_id bigint, score double precision)
language plpgsql stable set search_path = '' as $$
declare
  v_content extensions.vector;
begin
  if p_rule = 'content' then
    select extensions.sum(array_fill(r.strength, array[384])::extensions.vector
      operator(extensions.*) b.base_embedding)
    into v_content
    from two_tower.user_embeddings u
      cross join unnest(u.recent_post_ids, u.recent_strengths) as r (post_id, strength)
      join two_tower.base_embeddings b
        on b.post_id = r.post_id and b.base_embedding is not null
    where u.user_id = p_user_id;
    return query
    select c.post_id, -(c.base_embedding operator(extensions.<=>) v_content)
    from (
      select b.post_id, b.base_embedding, p.author_id
      from (select id, author_id from public.posts where deleted_at is null
            order by created_at desc limit 20000) p
        join two_tower.base_embeddings b on b.post_id = p.id
      where b.base_embedding is not null and extensions.vector_norm(v_content) > 0
        and b.post_id <> all (p_excluded)
      order by b.base_embedding operator(extensions.<=>) v_content, b.post_id desc offset 0
    ) c
    where two_tower.is_eligible(p_user_id, c.post_id, c.author_id) limit p_limit;
  elsif p_rule = 'popular' then
    return query
    select c.post_id, 0::double precision
    from (select p.id as post_id, p.author_id
          from two_tower.popular_candidates l
            join public.posts p on p.id = l.post_id and p.deleted_at is null
          order by l.popularity desc, l.post_id desc offset 0) c
    where c.post_id <> all (p_excluded)
      and two_tower.is_eligible(p_user_id, c.post_id, c.author_id)
    limit p_limit;
  else
    return query
    select p.id, 0::double precision
    from (select id, author_id from public.posts where deleted_at is null
          order by created_at desc, id desc offset 0) p
    where p.id <> all (p_excluded) and two_tower.is_eligible(p_user_id, p.id, p.author_id)
    limit p_limit;
  end if;
end
$$;
comment on function two_tower.fallback_posts(text, uuid, bigint[], integer) is
  'Eligible posts by a simple rule: content (frozen text vectors of the newest posts near those of what the user engaged with), popular, or recent.';

-- Sessions keep their plans, also those made while tables were empty: nothing but scanned_posts()
-- may read one whole.
create function two_tower.recommend_for(p_user_id uuid, p_limit integer default 20,
  p_exclude bigint[] default '{}')
returns table (
  post_id bigint, author_id uuid, content text, created_at timestamptz, score double precision,
    source text, arm text
) language plpgsql stable set search_path = '' set jit = off
  set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
declare
  v_limit integer := least(500, greatest(1, coalesce(p_limit, 20)));
  v_excluded bigint[] := coalesce(p_exclude, '{}');
  v_arm text := two_tower.served_arm(p_user_id);
  v_ids bigint[];
  v_scores double precision[];
  v_sources text[];
  v_rules text[] := '{recent}';
  v_rule text;
begin
  if p_user_id is null then
    raise exception 'a user is needed' using errcode = '22023',
      hint = 'recommend() takes the signed-in user.';
  end if;
  begin
    select l.ids, l.scores, l.sources into v_ids, v_scores, v_sources
    from two_tower.learned_page(p_user_id, v_limit, v_excluded) l;
  exception when others then
    raise warning 'recommend() falls back to simpler rules: % (%)', sqlerrm, sqlstate;
    v_rules := '{content, popular, recent}';
  end;
  foreach v_rule in array v_rules loop
    exit when cardinality(v_ids) >= v_limit;
    begin
      select v_ids || array_agg(f.post_id), v_scores || array_agg(f.score),
        v_sources || array_agg(v_rule)
      into v_ids, v_scores, v_sources
      from two_tower.fallback_posts(v_rule, p_user_id, v_ids || v_excluded,
        v_limit - coalesce(cardinality(v_ids), 0)) f;
    exception when others then
      raise warning 'recommend() skips the rule %: % (%)', v_rule, sqlerrm, sqlstate;
    end;
  end loop;
  return query
  select p.id, p.author_id, p.content, p.created_at, r.score, r.source, v_arm
  from unnest(v_ids, v_scores, v_sources) with ordinality as r (id, score, source, place)
    join public.posts p on p.id = r.id
  order by r.source = 'exploration', r.place;
end
$$;
comment on function two_tower.recommend_for(uuid, integer, bigint[]) is
  'What recommend() returns, for any user: for backends and jobs with the service role. p_limit null is 20 and is clamped to 1..500. If k eligible posts exist, k come back. What fails is logged as a warning, and simpler rules fill the page: text alone, popular posts, recent posts.';
