-- Serving. The serving index is a halfvec copy of the live vectors under HNSW, one per slot; live
-- vectors themselves carry no index, because updates would ruin it. recommend_for() takes
-- candidates from it, filters, and scores by the live vectors. With few posts, all are scored.

create table two_tower.serving_embeddings (
  slot smallint not null,
  post_id bigint not null,
  embedding extensions.halfvec(128) not null,
  primary key (slot, post_id)
) partition by list (slot);
comment on table two_tower.serving_embeddings is
  'Copies of live vectors for approximate search, one partition and HNSW index per slot. Refreshed when a vector has moved by settings.serving_drift_tolerance.';
create table two_tower.serving_embeddings_0 partition of two_tower.serving_embeddings
  for values in (0);
create table two_tower.serving_embeddings_1 partition of two_tower.serving_embeddings
  for values in (1);
create index serving_embeddings_hnsw on two_tower.serving_embeddings
  using hnsw (embedding extensions.halfvec_ip_ops);

create table two_tower.cursors (
  name text primary key,
  position bigint not null default 0
);
comment on table two_tower.cursors is 'How far the continuous small steps are on their way round the posts.';
insert into two_tower.cursors (name) values ('serving_embeddings_0'), ('serving_embeddings_1');

create function two_tower.refresh_serving_embeddings(p_limit integer default 500) returns integer
language plpgsql set search_path = '' as $$
declare
  v_slot record;
  v_last bigint;
  v_changed integer := 0;
  v_count integer;
begin
  for v_slot in select slot from two_tower.slots_to_write() loop
    select position into v_last from two_tower.cursors
    where name = 'serving_embeddings_' || v_slot.slot for update skip locked;
    continue when not found;
    with next as materialized (
      select v.post_id, v.embedding, v.is_deleted from two_tower.live_embeddings v
      where v.slot = v_slot.slot and v.post_id > v_last order by v.post_id limit p_limit
    ), gone as (
      delete from two_tower.serving_embeddings s using next n
      where s.slot = v_slot.slot and s.post_id = n.post_id and n.is_deleted
    ), written as (
      insert into two_tower.serving_embeddings as s (slot, post_id, embedding)
      select v_slot.slot, n.post_id, n.embedding from next n
        left join two_tower.serving_embeddings o on o.slot = v_slot.slot and o.post_id = n.post_id
        cross join two_tower.settings c
      where not n.is_deleted and (o.post_id is null
        or (o.embedding::extensions.vector operator(extensions.<=>) n.embedding)
          > c.serving_drift_tolerance)
      on conflict (slot, post_id) do update set embedding = excluded.embedding
      returning s.post_id
    )
    select (select max(post_id) from next), (select count(*) from written) into v_last, v_count;
    update two_tower.cursors set position = coalesce(v_last, 0)
      where name = 'serving_embeddings_' || v_slot.slot;
    v_changed := v_changed + v_count;
  end loop;
  return v_changed;
end
$$;
comment on function two_tower.refresh_serving_embeddings(integer) is
  'Looks at the next so many posts of each slot in use and refreshes the served copies that have drifted. Goes round and round. Returns how many changed.';

create function two_tower.add_to_serving_embeddings() returns trigger
language plpgsql set search_path = '' as $$
begin
  insert into two_tower.serving_embeddings (slot, post_id, embedding)
  select n.slot, n.post_id, n.embedding from new_rows n where not n.is_deleted
  on conflict do nothing;
  return null;
end
$$;
comment on function two_tower.add_to_serving_embeddings() is 'A new post is searchable at once, not when the refresh comes round to it.';
create trigger add_to_serving_embeddings after insert on two_tower.live_embeddings
  referencing new table as new_rows
    for each statement execute function two_tower.add_to_serving_embeddings();

-- Dynamic, so that each slot has a plan of its own with its own HNSW index. ef_search is set for
-- this call alone.
create function two_tower.nearest_posts(p_vector extensions.vector, p_slot smallint,
  p_limit integer)
returns setof bigint language plpgsql stable set search_path = '' as $$
begin
  perform set_config('hnsw.ef_search', greatest(40, least(p_limit, 1000))::text, true);
  return query execute format(
    'select post_id from two_tower.serving_embeddings where slot = %s
     order by embedding operator(extensions.<#>) $1 limit $2', p_slot)
    using p_vector::extensions.halfvec(128), p_limit;
end
$$;
comment on function two_tower.nearest_posts(extensions.vector, smallint, integer) is
  'About the nearest so many posts by their served copies.';

create function two_tower.eligible_posts(p_user_id uuid, p_exclude bigint[], p_candidates bigint[])
returns setof two_tower.live_embeddings language sql stable set search_path = '' as $$
  select v.* from two_tower.live_embeddings v
  where v.slot = (select active_slot from two_tower.state)
    and (p_candidates is null or v.post_id = any (p_candidates))
    and not v.is_deleted
    and v.author_id is distinct from p_user_id
    and v.post_id <> all (coalesce(p_exclude, '{}'))
    and not exists (select from two_tower.user_posts u
      where u.user_id = p_user_id and u.post_id = v.post_id)
    and not exists (select from public.author_blocks b
      where b.user_id = p_user_id and b.author_id = v.author_id)
    and not exists (select from public.author_blocks b
      where b.user_id = v.author_id and b.author_id = p_user_id);
$$;
comment on function two_tower.eligible_posts(uuid, bigint[], bigint[]) is
  'The one filter: live posts, of the candidates or of all (null), that are not the user''s own, not seen, engaged with or hidden, not deleted, not excluded, and not by an author that the user blocked or muted, or who blocked the user.';

create table two_tower.popular_candidates (
  post_id bigint primary key references public.posts (id) on delete cascade,
  popularity double precision not null
);
comment on table two_tower.popular_candidates is 'The most popular posts, listed every few minutes: candidates beside the personal ones.';

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

create function two_tower.gather_candidates(p_user_id uuid, p_vector extensions.vector,
  p_slot smallint, p_limit integer)
returns bigint[] language sql stable set search_path = '' as $$
  select array_agg(post_id) from (
    select post_id from two_tower.nearest_posts(p_vector, p_slot, p_limit) as post_id
    where p_vector is not null
    union
    (select post_id from two_tower.popular_candidates order by popularity desc limit p_limit)
    union
    (select id from public.posts where deleted_at is null order by created_at desc limit p_limit)
    union
    (select p.id from public.follows f
       cross join lateral (select id from public.posts
         where author_id = f.followed_id and deleted_at is null
                           order by created_at desc limit 20) p
     where f.follower_id = p_user_id limit p_limit)
  ) c;
$$;
comment on function two_tower.gather_candidates(uuid, extensions.vector, smallint, integer) is
  'Candidates for a user when there are too many posts to score all: the nearest, the popular, the newest, and recent ones of followed authors.';

-- The score is a sum of named parts, so that explain_recommendation can show it. A user's ranking
-- goes from popular and fresh to personal over the first settings.cold_until engagements, with the
-- root of their share: the first ones say most, and there is no cliff.
create function two_tower.score_posts(p_user_id uuid, p_exclude bigint[], p_candidates bigint[])
returns table (
  post_id bigint, author_id uuid, engagement_count integer, is_pretrained boolean,
  personal double precision, popular double precision, fresh double precision,
  followed double precision
) language sql stable set search_path = '' as $$
  with own as materialized (
    select two_tower.encode_user(p_user_id) as vector, two_tower.now() as now
  ), reader as materialized (
    select o.vector, o.now, two_tower.popularity_of(1, o.now) as unit,
           s.popularity_weight, s.recency_weight, s.followed_weight,
           extract(epoch from s.recency_half_life)::double precision as half_life,
           case
             when coalesce(extensions.vector_norm(o.vector), 0) = 0 then 0
             when s.cold_until = 0 then 1
             else sqrt(least(1, greatest(case when u.base_embedding is null then 0 else 0.1 end,
               u.engagement_count / s.cold_until::float8)))
           end as warmth
    from own o
      cross join two_tower.settings_for(p_user_id) s
      left join two_tower.user_embeddings u on u.user_id = p_user_id
  ), eligible as (
    select v.*, ln(1 + v.popularity / r.unit) as log_popularity,
           greatest(0, extract(epoch from r.now - v.created_at)::float8) / r.half_life as half_lives
    from two_tower.eligible_posts(p_user_id, p_exclude, p_candidates) v cross join reader r
  )
  select v.post_id, v.author_id, v.engagement_count, v.is_pretrained,
         case when r.warmth = 0 then 0
              else r.warmth * -(v.embedding operator(extensions.<#>) r.vector) end,
         (1 - r.warmth + r.popularity_weight)
           * v.log_popularity / greatest(max(v.log_popularity) over (), 1e-9),
         (1 - r.warmth) * r.recency_weight * 2 ^ -least(1000, v.half_lives),
         case when f.follower_id is null then 0 else r.followed_weight end
  from eligible v
    cross join reader r
    left join public.follows f on f.follower_id = p_user_id and f.followed_id = v.author_id;
$$;
comment on function two_tower.score_posts(uuid, bigint[], bigint[]) is
  'Scores the eligible posts (of the candidates, or all) for a user. personal: warmth * cosine of the re-encoded user with the live vector. popular: log of the decayed popularity over the largest. fresh: halves with age. followed: by a followed author. The score is their sum.';

create function two_tower.rank_posts(
  p_user_id uuid, p_limit integer, p_exclude bigint[], p_candidates bigint[]
) returns table (post_id bigint, score double precision, source text)
language sql stable set search_path = '' as $$
  with page as materialized (
    select floor(p_limit * s.exploration_share) as explored, s.posts_per_author,
           hashtextextended(p_user_id::text || date_trunc('hour', two_tower.now()), 0) as seed
    from two_tower.settings_for(p_user_id) s
  ), scored as materialized (
    select x.*, x.personal + x.popular + x.fresh + x.followed as score
    from two_tower.score_posts(p_user_id, p_exclude, p_candidates) x
  ), explored as (
    select x.post_id from scored x cross join page p where x.is_pretrained and p.explored > 0
    order by x.engagement_count, hashint8extended(x.post_id, p.seed)
    limit (select explored from page)
  ), spread as (
    select x.*, row_number() over (partition by x.author_id order by x.score desc, x.post_id desc)
             as place_of_author
    from scored x
  )
  select x.post_id, x.score,
         case when e.post_id is not null then 'exploration'
              when x.personal >= greatest(x.popular, x.fresh, x.followed) then 'personal'
              when x.followed >= greatest(x.popular, x.fresh) then 'followed'
              when x.popular >= x.fresh then 'popular' else 'fresh' end
  from spread x
    cross join page p
    left join explored e on e.post_id = x.post_id
  order by e.post_id is null, x.author_id is not null and x.place_of_author > p.posts_per_author,
           x.score desc, x.post_id desc
  limit p_limit;
$$;
comment on function two_tower.rank_posts(uuid, integer, bigint[], bigint[]) is
  'The page: a share for posts that few have engaged with, chosen by a hash of post, user and hour; then by score, at most settings.posts_per_author of an author while others are left.';

create function two_tower.recommend_for(p_user_id uuid, p_limit integer default 20,
  p_exclude bigint[] default '{}')
returns table (
  post_id bigint, author_id uuid, content text, created_at timestamptz, score double precision,
    source text, arm text
) language plpgsql stable set search_path = '' set jit = off as $$
declare
  v_limit integer := least(500, greatest(1, coalesce(p_limit, 20)));
  v_settings two_tower.settings;
  v_slot smallint := (select active_slot from two_tower.state);
  v_arm text;
  v_candidates bigint[];
  v_ids bigint[];
  v_scores double precision[];
  v_sources text[];
begin
  if p_user_id is null then
    raise exception 'a user is needed' using errcode = '22023',
      hint = 'recommend() takes the signed-in user.';
  end if;
  v_settings := two_tower.settings_for(p_user_id);
  v_arm := two_tower.served_arm(p_user_id);
  if (select count(*) from (select from two_tower.live_embeddings where slot = v_slot
                            limit v_settings.exact_scan_limit + 1) few)
                              > v_settings.exact_scan_limit then
    v_candidates := two_tower.gather_candidates(
      p_user_id, two_tower.encode_user(p_user_id), v_slot,
        greatest(v_settings.over_fetch, 2 * v_limit));
  end if;
  loop
    select array_agg(r.post_id order by r.n), array_agg(r.score order by r.n), array_agg(r.source
      order by r.n)
    into v_ids, v_scores, v_sources
    from (select x.*, row_number() over () as n
          from two_tower.rank_posts(p_user_id, v_limit, p_exclude, v_candidates) x) r;
    exit when v_candidates is null or cardinality(v_ids) >= v_limit;
    v_candidates := null;
  end loop;
  if v_ids is null then
    return query
    select p.id, p.author_id, p.content, p.created_at, 0::double precision, 'recent', v_arm
    from public.posts p
    where p.deleted_at is null and p.author_id is distinct
      from p_user_id and p.id <> all (coalesce(p_exclude, '{}'))
      and not exists (select from two_tower.live_embeddings v
        where v.slot = v_slot and v.post_id = p.id)
      and not exists (select from two_tower.user_posts u
        where u.user_id = p_user_id and u.post_id = p.id)
      and not exists (select from public.author_blocks b
        where b.user_id = p_user_id and b.author_id = p.author_id)
      and not exists (select from public.author_blocks b
        where b.user_id = p.author_id and b.author_id = p_user_id)
    order by p.created_at desc, p.id desc limit v_limit;
    return;
  end if;
  return query
  select p.id, p.author_id, p.content, p.created_at, r.score, r.source, v_arm
  from unnest(v_ids, v_scores, v_sources) with ordinality as r (id, score, source, place)
    join public.posts p on p.id = r.id
  order by r.source = 'exploration', r.place;
end
$$;
comment on function two_tower.recommend_for(uuid, integer, bigint[]) is
  'What recommend() returns, for any user: for backends and jobs with the service role. p_limit null is 20 and is clamped to 1..500. If k eligible posts exist, k come back: when candidates of the serving index do not suffice, all posts are scored. Recent posts if nothing is encoded yet.';
