-- Retrieval: from a user to a page of posts. Candidates come from several sources, are scored by
-- the live vectors, and filtered from the best one down, so that only about as many are looked up
-- as the page needs. What is short is widened, then scanned; and a page that is short after that,
-- or fails, is filled by simpler rules. Nothing here writes.

-- The one filter. A user's own row in user_posts means seen, engaged with or hidden.
create function two_tower.if_eligible(p_user_id uuid, p_post_id bigint, p_author_id uuid)
returns table (is_eligible boolean) language sql stable set search_path = '' as $$
  select true
  where p_author_id is distinct from p_user_id
    and not exists (select from two_tower.user_posts u
      where u.user_id = p_user_id and u.post_id = p_post_id)
    and not exists (select from public.author_blocks b
      where b.user_id = p_user_id and b.author_id = p_author_id)
    and not exists (select from public.author_blocks b
      where b.user_id = p_author_id and b.author_id = p_user_id);
$$;
comment on function two_tower.if_eligible(uuid, bigint, uuid) is
  'One row if the post may be recommended to the user, none if it is the user''s own, seen, engaged with, hidden, or by an author whom the user blocked or muted, or who blocked the user. Deleted posts are left to the caller.';

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
  over_fetch integer,
  excluded bigint[]
);
comment on type two_tower.reader is 'A user at the moment of a request, with the settings that serve this user.';

-- A user's ranking goes from popular and fresh to personal over the first settings.cold_until
-- engagements, with the root of their share: the first ones say most, and there is no cliff.
create function two_tower.reader_of(p_user_id uuid, p_exclude bigint[]) returns two_tower.reader
language plpgsql stable set search_path = '' as $$
declare
  v_settings two_tower.settings := two_tower.settings_for(p_user_id);
  v_reader two_tower.reader;
  v_share double precision;
begin
  v_reader.user_id := p_user_id;
  v_reader.vector := two_tower.encode_user(p_user_id);
  v_reader.warmth := 0;
  if extensions.vector_norm(v_reader.vector) > 0 then
    select greatest(case when u.base_embedding is null then 0 else 0.1 end,
      u.engagement_count / greatest(1, v_settings.cold_until)::double precision)
    into v_share from two_tower.user_embeddings u where u.user_id = p_user_id;
    v_reader.warmth := case when v_settings.cold_until = 0 then 1 else sqrt(least(1, v_share)) end;
  end if;
  v_reader.time := two_tower.now();
  v_reader.popularity_unit := two_tower.popularity_of(1, v_reader.time);
  v_reader.popularity_scale := ln(1 + greatest(1, (
    select popularity from two_tower.popular_candidates order by popularity desc limit 1
  ) / v_reader.popularity_unit));
  v_reader.popularity_weight := v_settings.popularity_weight;
  v_reader.recency_weight := v_settings.recency_weight;
  v_reader.recency_half_life := extract(epoch from v_settings.recency_half_life);
  v_reader.followed_weight := v_settings.followed_weight;
  v_reader.exploration_share := v_settings.exploration_share;
  v_reader.posts_per_author := v_settings.posts_per_author;
  v_reader.over_fetch := v_settings.over_fetch;
  v_reader.excluded := coalesce(p_exclude, '{}');
  return v_reader;
end
$$;
comment on function two_tower.reader_of(uuid, bigint[]) is
  'The user as recommend() serves them now. vector is null, and warmth 0, for a user of whom nothing is known; popularity_scale is the log of the highest popularity in likes of now.';

create function two_tower.listed_candidates(p_reader two_tower.reader, p_limit integer)
returns bigint[] language sql stable set search_path = '' as $$
  select array(
    (select post_id from two_tower.popular_candidates
     order by popularity desc, post_id desc limit p_limit)
    union all
    (select id from public.posts where deleted_at is null
     order by created_at desc limit case when (p_reader).warmth < 1 then p_limit else 0 end)
    union all
    (select p.id
     from public.follows f
       cross join lateral (
         select id from public.posts
         where author_id = f.followed_id and deleted_at is null
         order by created_at desc limit 10) p
     where f.follower_id = (p_reader).user_id limit p_limit)
  );
$$;
comment on function two_tower.listed_candidates(two_tower.reader, integer) is
  'Candidates beside the nearest: popular ones, recent ones of followed authors, and the newest while the reader is cold.';

create function two_tower.scanned_candidates(p_reader two_tower.reader, p_limit integer)
returns bigint[] language sql stable set search_path = '' as $$
  select array(
    select near.post_id
    from (
      select v.post_id, v.author_id from two_tower.live_embeddings v
      where v.slot = (select active_slot from two_tower.state) and not v.is_deleted
        and (p_reader).vector is not null
      order by v.embedding operator(extensions.<#>) (p_reader).vector, v.post_id desc
      offset 0
    ) near
      cross join lateral two_tower.if_eligible((p_reader).user_id, near.post_id, near.author_id)
    where near.post_id <> all ((p_reader).excluded)
    limit p_limit);
$$;
comment on function two_tower.scanned_candidates(two_tower.reader, integer) is
  'The nearest eligible posts, exactly, from a scan of all.';

create function two_tower.explored_candidates(p_reader two_tower.reader, p_limit integer)
returns bigint[] language sql stable set search_path = '' as $$
  select array(
    select v.post_id
    from two_tower.posts_to_explore(hashtextextended(
        (p_reader).user_id::text || date_trunc('hour', (p_reader).time), 0), 20 + 5 * p_limit)
        as pool (post_id)
      join two_tower.live_embeddings v on v.post_id = pool.post_id
        and v.slot = (select active_slot from two_tower.state)
        and v.is_pretrained and not v.is_deleted
      cross join lateral two_tower.if_eligible((p_reader).user_id, v.post_id, v.author_id)
    where p_limit > 0 and v.post_id <> all ((p_reader).excluded)
    limit p_limit);
$$;
comment on function two_tower.explored_candidates(two_tower.reader, integer) is
  'New posts that few have seen, for this reader and hour.';

-- The score is a sum of named parts, so that explain_recommendation can show it.
create function two_tower.score_posts(p_reader two_tower.reader, p_candidates bigint[])
returns table (
  post_id bigint, author_id uuid, personal double precision, popular double precision,
  fresh double precision, followed double precision
) language sql stable set search_path = '' as $$
  select v.post_id, v.author_id,
    case when (p_reader).warmth = 0 then 0
      else (p_reader).warmth * -(v.embedding operator(extensions.<#>) (p_reader).vector) end,
    (1 - (p_reader).warmth + (p_reader).popularity_weight)
      * ln(1 + v.popularity / (p_reader).popularity_unit) / (p_reader).popularity_scale,
    case when (p_reader).warmth = 1 then 0
      else (1 - (p_reader).warmth) * (p_reader).recency_weight
        * 2 ^ -least(1000, greatest(0, extract(epoch from (p_reader).time - v.created_at)::float8)
                           / (p_reader).recency_half_life) end,
    case when f.follower_id is null then 0 else (p_reader).followed_weight end
  from (select distinct id from unnest(p_candidates) as id) c
    join two_tower.live_embeddings v on v.post_id = c.id
      and v.slot = (select active_slot from two_tower.state) and not v.is_deleted
    left join public.follows f
      on f.follower_id = (p_reader).user_id and f.followed_id = v.author_id;
$$;
comment on function two_tower.score_posts(two_tower.reader, bigint[]) is
  'Scores candidates for a reader. personal: warmth * cosine of the re-encoded user with the live vector. popular: log of the decayed popularity over the largest. fresh: halves with age. followed: by a followed author. The score is their sum.';

create function two_tower.rank_posts(p_reader two_tower.reader, p_limit integer,
  p_candidates bigint[], p_explored bigint[])
returns table (post_id bigint, score double precision, source text, is_crowding boolean)
language sql stable set search_path = '' as $$
  select r.post_id, r.score,
    case when r.is_explored then 'exploration'
      when r.personal >= greatest(r.popular, r.fresh, r.followed) then 'personal'
      when r.followed >= greatest(r.popular, r.fresh) then 'followed'
      when r.popular >= r.fresh then 'popular' else 'fresh' end,
    r.place_of_author > (p_reader).posts_per_author and r.author_id is not null as is_crowding
  from (
    select x.*, row_number() over (partition by x.author_id order by x.score desc, x.post_id desc)
      as place_of_author
    from (
      select s.*
      from (
        select s.*, s.personal + s.popular + s.fresh + s.followed as score,
          s.post_id = any (p_explored) as is_explored
        from two_tower.score_posts(p_reader, p_candidates || p_explored) s
        order by is_explored desc, score desc, post_id desc
        offset 0
      ) s
        cross join lateral two_tower.if_eligible((p_reader).user_id, s.post_id, s.author_id)
      where s.post_id <> all ((p_reader).excluded)
      limit 2 * p_limit
    ) x
  ) r
  order by not r.is_explored, is_crowding, r.score desc, r.post_id desc
  limit p_limit;
$$;
comment on function two_tower.rank_posts(two_tower.reader, integer, bigint[], bigint[]) is
  'The best eligible candidates: those to explore, then by score, with posts of an author who already has settings.posts_per_author on the page behind all others (is_crowding).';

-- Simpler rules, for what is left of a page. They look at posts alone, encoded or not.
create function two_tower.fallback_posts(p_rule text, p_user_id uuid, p_except bigint[],
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
      from two_tower.base_embeddings b join public.posts p on p.id = b.post_id
      where b.base_embedding is not null and p.deleted_at is null
        and extensions.vector_norm(v_content) > 0 and b.post_id <> all (p_except)
      order by b.base_embedding operator(extensions.<=>) v_content, b.post_id desc offset 0
    ) c cross join lateral two_tower.if_eligible(p_user_id, c.post_id, c.author_id)
    limit p_limit;
  elsif p_rule = 'popular' then
    return query
    select c.post_id, 0::double precision
    from (select * from two_tower.popular_candidates
          order by popularity desc, post_id desc offset 0) c
      join public.posts p on p.id = c.post_id and p.deleted_at is null
      cross join lateral two_tower.if_eligible(p_user_id, c.post_id, p.author_id)
    where c.post_id <> all (p_except)
    limit p_limit;
  else
    return query
    select p.id, 0::double precision
    from (select id, author_id from public.posts where deleted_at is null
          order by created_at desc, id desc offset 0) p
      cross join lateral two_tower.if_eligible(p_user_id, p.id, p.author_id)
    where p.id <> all (p_except)
    limit p_limit;
  end if;
end
$$;
comment on function two_tower.fallback_posts(text, uuid, bigint[], integer) is
  'Eligible posts by a simple rule: content (frozen text vectors near those of what the user engaged with), popular, or recent.';

-- The page by the live vectors: candidates of the serving index, more of them, then a scan of all.
create function two_tower.learned_page(p_user_id uuid, p_limit integer, p_exclude bigint[],
  out ids bigint[], out scores double precision[], out sources text[])
language plpgsql stable set search_path = '' as $$
declare
  v_reader two_tower.reader := two_tower.reader_of(p_user_id, p_exclude);
  v_explored bigint[] := two_tower.explored_candidates(v_reader,
    floor(p_limit * v_reader.exploration_share)::integer);
  v_listed integer := p_limit;
  v_nearest integer := greatest(v_reader.over_fetch, 2 * p_limit);
  v_is_scan boolean := (select serving_side is null from two_tower.state);
  v_candidates bigint[];
  v_crowding bigint;
begin
  if v_reader.warmth < 1 then
    v_listed := v_nearest;
  end if;
  loop
    v_candidates := two_tower.listed_candidates(v_reader, v_listed);
    if v_is_scan then
      v_candidates := v_candidates || two_tower.scanned_candidates(v_reader, v_nearest);
    elsif v_reader.vector is not null then
      v_candidates := v_candidates
        || array(select n from two_tower.nearest_posts(v_reader.vector, v_nearest) n);
    end if;
    select array_agg(r.post_id), array_agg(r.score), array_agg(r.source),
      count(*) filter (where r.is_crowding)
    into ids, scores, sources, v_crowding
    from two_tower.rank_posts(v_reader, p_limit, v_candidates, v_explored) r;
    exit when cardinality(ids) - v_crowding >= p_limit or v_is_scan;
    v_is_scan := v_nearest >= 1000;
    v_listed := 1000;
    v_nearest := 1000;
  end loop;
end
$$;
comment on function two_tower.learned_page(uuid, integer, bigint[]) is
  'A page by the live vectors, best first, explored posts before all: from the index, widened while it is short of posts or of authors, in the end from a scan.';

create function two_tower.recommend_for(p_user_id uuid, p_limit integer default 20,
  p_exclude bigint[] default '{}')
returns table (
  post_id bigint, author_id uuid, content text, created_at timestamptz, score double precision,
    source text, arm text
) language plpgsql stable set search_path = '' set jit = off as $$
declare
  v_limit integer := least(500, greatest(1, coalesce(p_limit, 20)));
  v_ids bigint[];
  v_scores double precision[];
  v_sources text[];
  v_rule text;
begin
  if p_user_id is null then
    raise exception 'a user is needed' using errcode = '22023',
      hint = 'recommend() takes the signed-in user.';
  end if;
  begin
    select l.ids, l.scores, l.sources into v_ids, v_scores, v_sources
    from two_tower.learned_page(p_user_id, v_limit, p_exclude) l;
  exception when others then
    raise warning 'recommend() falls back to simpler rules: % (%)', sqlerrm, sqlstate;
  end;
  foreach v_rule in array case when v_ids is null then '{content,popular,recent}'
    else '{recent}'::text[] end
  loop
    exit when cardinality(v_ids) >= v_limit;
    begin
      select v_ids || array_agg(f.post_id), v_scores || array_agg(f.score),
        v_sources || array_agg(v_rule)
      into v_ids, v_scores, v_sources
      from two_tower.fallback_posts(v_rule, p_user_id, v_ids || coalesce(p_exclude, '{}'),
        v_limit - coalesce(cardinality(v_ids), 0)) f;
    exception when others then
      raise warning 'recommend() skips the rule %: % (%)', v_rule, sqlerrm, sqlstate;
    end;
  end loop;
  return query
  select p.id, p.author_id, p.content, p.created_at, r.score, r.source,
    two_tower.served_arm(p_user_id)
  from unnest(v_ids, v_scores, v_sources) with ordinality as r (id, score, source, place)
    join public.posts p on p.id = r.id
  order by r.source = 'exploration', r.place;
end
$$;
comment on function two_tower.recommend_for(uuid, integer, bigint[]) is
  'What recommend() returns, for any user: for backends and jobs with the service role. p_limit null is 20 and is clamped to 1..500. If k eligible posts exist, k come back. What fails is logged as a warning, and simpler rules fill the page: text alone, popular posts, recent posts.';
