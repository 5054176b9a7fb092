-- From a user to candidates for a page: the nearest posts, popular ones, recent ones of followed
-- authors, and new ones to explore. Each filter stands where it costs least. What was seen is left
-- out while candidates are gathered. Deleted and own posts are left out where a post's row is read
-- anyway. "not (select exists ...)" is asked row by row, however much a user has seen. Nothing here
-- writes.

create table two_tower.popular_candidates (
  post_id bigint primary key references two_tower.posts (id) on delete cascade,
  popularity double precision not null,
  number bigint not null
);
comment on table two_tower.popular_candidates is 'The most popular posts, at most 1,000, listed every few minutes: candidates beside the personal ones.';
comment on column two_tower.popular_candidates.number is 'live_embeddings.number: of equally popular posts, the newest come first.';
comment on column two_tower.popular_candidates.popularity is 'live_embeddings.popularity when the list was made.';
create index popular_candidates_popularity_idx
  on two_tower.popular_candidates (popularity desc, number desc);

create function two_tower.refresh_popular_candidates() returns void
language sql set search_path = pg_catalog, pg_temp as $$
  with top as materialized (
    select v.post_id, v.popularity, v.number from two_tower.live_embeddings v
    where v.slot = (select active_slot from two_tower.state) and v.number is not null
    order by v.popularity desc, v.number desc limit 1000
  ), gone as (
    delete from two_tower.popular_candidates p
      where not exists (select from top t where t.post_id = p.post_id)
  )
  insert into two_tower.popular_candidates as p (post_id, popularity, number)
  select post_id, popularity, number from top order by post_id
  on conflict (post_id) do update set
    popularity = excluded.popularity, number = excluded.number;
$$;
comment on function two_tower.refresh_popular_candidates() is 'Lists the 1,000 most popular posts.';

create type two_tower.reader as (
  user_id uuid,
  source_id smallint,
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
comment on column two_tower.reader.source_id is 'The source that is asked for. Null for all.';
comment on column two_tower.reader.vector is 'The user vector. Null for a user of whom nothing is known.';
comment on column two_tower.reader.warmth is '0 for a new reader, 1 after settings.cold_until engagements.';
comment on column two_tower.reader."time" is 'The moment of the request.';
comment on column two_tower.reader.popularity_unit is 'compute_popularity() of one like of now.';
comment on column two_tower.reader.popularity_scale is 'The log of 1 + the highest popularity in likes of now.';
comment on column two_tower.reader.recency_half_life is 'In seconds.';

-- A user's ranking goes from popular and fresh to personal over the first settings.cold_until
-- engagements. Warmth is the root of their share: the first ones say most, and there is no cliff.
create function two_tower.load_reader(p_user_id uuid, p_source_id smallint default null)
returns two_tower.reader
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_settings two_tower.settings := two_tower.choose_settings(p_user_id);
  v_vector extensions.vector := two_tower.encode_user(p_user_id);
  v_now timestamptz := two_tower.now();
  v_unit double precision :=
    two_tower.compute_popularity(1, v_now, v_settings.popularity_half_life);
  v_share double precision := 0;
begin
  if extensions.vector_norm(v_vector) > 0 then
    select greatest(case when u.prior is null then 0 else 0.1 end,
      u.engagement_count / greatest(1, v_settings.cold_until)::double precision)
    into v_share from two_tower.user_embeddings u where u.user_id = p_user_id;
    if v_settings.cold_until = 0 then
      v_share := 1;
    end if;
  end if;
  return row(
    p_user_id, p_source_id, v_vector, sqrt(least(1, v_share)), v_now, v_unit,
    ln(1 + greatest(1, (select two_tower.popularity_in_likes(p.popularity, v_unit)
                        from two_tower.popular_candidates p
                        order by p.popularity desc, p.number desc limit 1))),
    v_settings.popularity_weight, v_settings.recency_weight,
    extract(epoch from v_settings.recency_half_life), v_settings.followed_weight,
    v_settings.exploration_share, v_settings.posts_per_author,
    v_settings.over_fetch)::two_tower.reader;
end
$$;
comment on function two_tower.load_reader(uuid, smallint) is
  'Returns the user as recommend() serves them now. vector is null and warmth 0 for a user of whom nothing is known.';

-- All posts are met, so what leaves them out is hashed once. Withheld authors are few: "not in"
-- does it on the scan. What a user has seen can outgrow that, and is joined, beside narrow rows.
create function two_tower.scan_posts(p_reader two_tower.reader, p_limit integer,
  p_excluded bigint[])
returns bigint[] language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = on as $$
declare
  v_slot smallint := (select active_slot from two_tower.state);
begin
  return array(
    with seen as materialized (
      select u.post_id from two_tower.user_posts u where u.user_id = p_reader.user_id
    )
    select c.post_id
    from (
      select v.post_id, v.embedding operator(extensions.<#>) p_reader.vector as distance
      from two_tower.live_embeddings v
      where v.slot = v_slot and v.is_listed and v.author_id is distinct from p_reader.user_id
        and (p_reader.source_id is null or v.source_id = p_reader.source_id)
        and v.post_id <> all (p_excluded)
        and (v.author_id is null or v.author_id not in (select a.author_id
          from two_tower.withheld_authors a where a.user_id = p_reader.user_id)) offset 0
    ) c
    where not exists (select from seen u where u.post_id = c.post_id)
    order by c.distance, c.post_id desc limit p_limit);
end
$$;
comment on function two_tower.scan_posts(two_tower.reader, integer, bigint[]) is
  'Returns the nearest p_limit eligible posts, exactly, from a scan of all.';

create function two_tower.choose_explored_posts(p_reader two_tower.reader, p_limit integer,
  p_excluded bigint[])
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
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
    where v.is_pretrained and v.is_listed and v.post_id <> all (p_excluded)
      and (p_reader.source_id is null or v.source_id = p_reader.source_id)
      and two_tower.is_eligible(p_reader.user_id, v.post_id, v.author_id)
    limit v_count);
end
$$;
comment on function two_tower.choose_explored_posts(two_tower.reader, integer, bigint[]) is
  'Returns new posts that few have seen, to fill settings.exploration_share of a page. Takes them in a shuffled order, from a place that depends on reader and hour.';

-- Of many followed authors, at most 100 are asked each hour, from a place that moves.
create function two_tower.list_candidates(p_reader two_tower.reader, p_limit integer,
  p_excluded bigint[])
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_place uuid := md5(p_reader.user_id::text || date_trunc('hour', p_reader.time))::uuid;
  v_newest integer := case when p_reader.warmth < 1 then p_limit else 0 end;
begin
  return array(
    select c.post_id
    from (
      (select post_id from two_tower.popular_candidates
       order by popularity desc, number desc limit p_limit)
      union all
      (select id from two_tower.posts where is_listed and encoded_hash is not null
         and created_at <= p_reader.time
       order by created_at desc limit v_newest)
    ) c
    where c.post_id <> all (p_excluded)
      and not (select exists (select from two_tower.user_posts u
        where u.user_id = p_reader.user_id and u.post_id = c.post_id))
    union all
    (select p.id
     from (
       (select f.followed_id from two_tower.follows f
        where f.follower_id = p_reader.user_id and f.followed_id >= v_place
        order by f.followed_id limit 100)
       union all
       (select f.followed_id from two_tower.follows f
        where f.follower_id = p_reader.user_id and f.followed_id < v_place
        order by f.followed_id limit 100)
       limit 100
     ) f
       cross join lateral (
         select p.id, p.created_at from two_tower.posts p
         where p.author_id = f.followed_id and p.is_listed and p.encoded_hash is not null
           and p.created_at <= p_reader.time and p.id <> all (p_excluded)
           and not (select exists (select from two_tower.user_posts u
             where u.user_id = p_reader.user_id and u.post_id = p.id))
         order by p.created_at desc limit 5) p
     order by p.created_at desc limit p_limit));
end
$$;
comment on function two_tower.list_candidates(two_tower.reader, integer, bigint[]) is
  'Returns candidates beside the nearest: popular ones, recent ones of followed authors and, while warmth is below 1, the newest. The reader has seen none of them.';
