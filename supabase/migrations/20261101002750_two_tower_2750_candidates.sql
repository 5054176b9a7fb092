-- From a user to candidates for a page: the nearest posts, popular ones, recent ones of followed
-- authors, and new ones to explore. Each filter stands where it costs least. What was seen is left
-- out while candidates are gathered. Deleted and own posts are left out where a post's row is read
-- anyway. "not (select exists ...)" is asked row by row, however much a user has seen. Nothing here
-- writes.

create table two_tower.popular_candidates (
  post_id bigint primary key references two_tower.posts (id) on delete cascade,
  author_id uuid,
  popularity double precision not null,
  number bigint not null
);
comment on table two_tower.popular_candidates is 'The most popular posts, at most 1,000, listed every few minutes: candidates beside the personal ones.';
comment on column two_tower.popular_candidates.author_id is 'live_embeddings.author_id when the list was made.';
comment on column two_tower.popular_candidates.number is 'live_embeddings.number: of equally popular posts, the newest come first.';
comment on column two_tower.popular_candidates.popularity is 'live_embeddings.popularity when the list was made.';
create index popular_candidates_popularity_idx
  on two_tower.popular_candidates (popularity desc, number desc);

-- The one formula of the bound on an author, of a page or of a list.
create function two_tower.cap_posts(p_share real, p_limit integer) returns integer
language sql immutable parallel safe
return greatest(1, floor(p_share::numeric * p_limit)::integer);
comment on function two_tower.cap_posts(real, integer) is 'Returns the most posts of one author on a page of p_limit: p_share of it, but one.';

create function two_tower.refresh_popular_candidates() returns void
language sql set search_path = pg_catalog, pg_temp as $$
  with popular as materialized (
    select v.post_id, v.author_id, v.popularity, v.number from two_tower.live_embeddings v
    where v.slot = (select active_slot from two_tower.state) and v.number is not null
    order by v.popularity desc, v.number desc limit 20000
  ), top as materialized (
    select p.post_id, p.author_id, p.popularity, p.number
    from (
      select o.*, row_number() over (
        partition by o.author_id order by o.popularity desc, o.number desc) as place
      from (
        select p.*, row_number() over (
          partition by q.content_hash order by p.popularity desc, p.number desc) as copy
        from popular p join two_tower.posts q on q.id = p.post_id
      ) o
      where o.copy = 1
    ) p
      cross join (select two_tower.cap_posts(author_share, 1000) as cap
                  from two_tower.settings) s
    order by p.author_id is not null and p.place > s.cap, p.popularity desc, p.number desc
    limit 1000
  ), gone as (
    delete from two_tower.popular_candidates p
      where not exists (select from top t where t.post_id = p.post_id)
  )
  insert into two_tower.popular_candidates as p (post_id, author_id, popularity, number)
  select post_id, author_id, popularity, number from top order by post_id
  on conflict (post_id) do update set author_id = excluded.author_id,
    popularity = excluded.popularity, number = excluded.number;
$$;
comment on function two_tower.refresh_popular_candidates() is 'Lists the 1,000 most popular posts, one of each text. At most settings.author_share of them is of one author, while others are among the 20,000 most popular.';

create type two_tower.reader as (
  user_id uuid,
  source_id smallint,
  filter two_tower.page_filter,
  vector extensions.vector,
  warmth double precision,
  "time" timestamptz,
  popularity_unit double precision,
  popularity_scale double precision,
  popularity_weight double precision,
  recency_weight double precision,
  recency_half_life double precision,
  followed_weight double precision,
  followed_places integer,
  followed_since timestamptz,
  exploration_share double precision,
  explored_since timestamptz,
  copy_similarity double precision,
  author_cap integer,
  followed_author_cap integer,
  over_fetch integer,
  breadth integer,
  interest_vectors extensions.vector[],
  interest_shares double precision[],
  interest_places integer[],
  told_places integer,
  about_similarity double precision,
  told_ids bigint[],
  place bigint,
  ranks_by text
);
comment on type two_tower.reader is 'A user at the moment of a request, with the settings that serve this user.';
comment on column two_tower.reader.source_id is 'The source that is asked for. Null for all.';
comment on column two_tower.reader.filter is 'What the page is asked to keep to, and what the user has muted. Null for nothing.';
comment on column two_tower.reader.vector is 'The user vector. Null for a user of whom nothing is known.';
comment on column two_tower.reader.warmth is '0 for a reader of whom nothing is known, 1 for a warm one: read_warmth().';
comment on column two_tower.reader."time" is 'The moment of the request.';
comment on column two_tower.reader.popularity_unit is 'The popularity of one like of now: read_popularity_clock().';
comment on column two_tower.reader.popularity_scale is 'The log of 1 + the highest popularity in likes of now.';
comment on column two_tower.reader.recency_half_life is 'In seconds.';
comment on column two_tower.reader.followed_places is 'How many new posts of followed authors stand first on the page.';
comment on column two_tower.reader.followed_since is 'Posts of followed authors are new if they are younger.';
comment on column two_tower.reader.explored_since is 'New posts are explored if they are younger.';
comment on column two_tower.reader.author_cap is 'The most posts of one author on the page, while others are left: settings.author_share of it.';
comment on column two_tower.reader.breadth is 'Of the search in the serving index: settings.ef_search for each of the reader''s interests.';
comment on column two_tower.reader.interest_vectors is 'The interests of a reader who has several. Null for others, and while warmth is below 1.';
comment on column two_tower.reader.interest_shares is 'The share of what is shown that each of them is owed: settings.interest_share times its weight.';
comment on column two_tower.reader.interest_places is 'How many places of the page each of them is owed.';
comment on column two_tower.reader.told_places is 'How many places of the page go to what the reader told.';
comment on column two_tower.reader.told_ids is 'The posts for these places.';
comment on column two_tower.reader.place is 'Where the reader stands among authors, for an hour: choose_place().';
comment on column two_tower.reader.followed_author_cap is 'The same, of an author whom the reader follows.';

create type two_tower.ranked_post as (
  post_id bigint, author_id uuid, score double precision, source text, turn bigint,
  cap integer, interest bigint, distance double precision
);
comment on type two_tower.ranked_post is 'A candidate in its place.';
comment on column two_tower.ranked_post.turn is 'In which turn its author has it: 0 within the cap.';
comment on column two_tower.ranked_post.cap is 'The most posts of its author on the page, while others are left.';
comment on column two_tower.ranked_post.interest is 'Which of the reader''s interests it is nearest to. Null for readers of one.';
comment on column two_tower.ranked_post.distance is 'From that interest: the cosine, negated.';

-- Where a reader stands among authors, for an hour.
create function two_tower.choose_place(p_user_id uuid, p_time timestamptz) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return hashtextextended(p_user_id::text || floor(extract(epoch from p_time) / 3600),
    (select hash_seed from two_tower.state));
end
$$;
comment on function two_tower.choose_place(uuid, timestamptz) is 'Returns a hash of user and hour, keyed with state.hash_seed.';

create function two_tower.load_reader(p_user_id uuid, p_source_id smallint default null,
  p_limit integer default 20, p_filter two_tower.page_filter default null)
returns two_tower.reader
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_settings two_tower.settings := two_tower.choose_settings(p_user_id);
  v_vector extensions.vector := two_tower.encode_user(p_user_id);
  v_now timestamptz := two_tower.now();
  v_state two_tower.state := (select s from two_tower.state s);
  v_unit double precision := two_tower.read_popularity_clock(v_now, v_state);
  v_warmth double precision := 0;
  v_engagements integer;
  v_interests integer := 1;
  v_interest_vectors extensions.vector[];
  v_interest_shares double precision[];
begin
  select u.engagement_count, two_tower.count_interests(u.positive_interests)
  into v_engagements, v_interests
  from two_tower.user_embeddings u where u.user_id = p_user_id;
  if extensions.vector_norm(v_vector) > 0 then
    v_warmth := two_tower.read_warmth(v_engagements, v_settings, v_state);
  end if;
  if v_warmth >= 1 and v_interests > 1 and v_settings.interest_share > 0 then
    select array_agg(i.vector),
      array_agg(v_settings.interest_share::numeric * i.weight::numeric)
    into v_interest_vectors, v_interest_shares
    from two_tower.list_interests(p_user_id) i having count(*) > 1;
  end if;
  return row(
    p_user_id, p_source_id, p_filter, v_vector, v_warmth, v_now, v_unit,
    ln(1 + greatest(1, (select two_tower.popularity_in_likes(p.popularity, v_unit)
                        from two_tower.popular_candidates p
                        order by p.popularity desc, p.number desc limit 1))),
    v_settings.popularity_weight, v_settings.recency_weight,
    extract(epoch from v_settings.recency_half_life), v_settings.followed_weight,
    floor(v_settings.followed_share::numeric * p_limit), v_now - v_settings.followed_new_for,
    v_settings.exploration_share, v_now - v_settings.exploration_age, v_settings.copy_similarity,
    two_tower.cap_posts(v_settings.author_share, p_limit),
    two_tower.cap_posts(v_settings.followed_author_share, p_limit),
    v_settings.over_fetch, v_settings.ef_search * coalesce(v_interests, 1),
    v_interest_vectors, v_interest_shares,
    (select array_agg(floor(1e-9 + s.share * p_limit)::integer order by s.place)
     from unnest(v_interest_shares) with ordinality as s (share, place)),
    round(p_limit * v_settings.told_share * greatest(0,
      1 - coalesce(v_engagements, 0) / v_settings.told_until::double precision)),
    v_settings.about_similarity,
    '{}'::bigint[], two_tower.choose_place(p_user_id, v_now), v_settings.ranks_by
  )::two_tower.reader;
end
$$;
comment on function two_tower.load_reader(uuid, smallint, integer, two_tower.page_filter) is
  'Returns the user as recommend() serves them now, on a page of p_limit. vector is null and warmth 0 for a user of whom nothing is known.';

-- All posts are met, so what leaves them out is hashed once. Withheld authors are few: "not in"
-- does it on the scan. What a user has seen can outgrow that, and is joined, beside narrow rows.
-- An author gives three times what may be on the page before others are asked for more: the page
-- is chosen by more than nearness.
create function two_tower.scan_near(p_reader two_tower.reader, p_vectors extensions.vector[],
  p_limit integer, p_excluded bigint[])
returns table (interest bigint, post_id bigint, nearness bigint) language plpgsql stable
set search_path = pg_catalog, pg_temp set enable_seqscan = on rows 200 as $$
declare
  v_slot smallint := (select active_slot from two_tower.state);
begin
  return query
  with seen as materialized (
    select u.post_id from two_tower.user_posts u where u.user_id = p_reader.user_id
  ), met as materialized (
    select c.post_id, c.author_id, c.interest, c.distance
    from (
      select v.post_id, v.author_id, i.interest,
        coalesce(v.embedding operator(extensions.<#>) i.vector,
          -extract(epoch from v.created_at)::double precision) as distance
      from two_tower.live_embeddings v
        cross join unnest(p_vectors) with ordinality as i (vector, interest)
      where v.slot = v_slot and v.is_listed and v.author_id is distinct from p_reader.user_id
        and (p_reader.source_id is null or v.source_id = p_reader.source_id)
        and v.post_id not in (select e.id from unnest(p_excluded) as e (id))
        and (p_reader.filter is null
          or v.post_id in (select m.id from two_tower.matching_posts(p_reader.filter) m))
        and (v.author_id is null or v.author_id not in (select a.author_id
          from two_tower.withheld_authors a where a.user_id = p_reader.user_id)) offset 0
    ) c
    where not exists (select from seen u where u.post_id = c.post_id)
  )
  select g.interest::bigint, n.post_id, n.nearness
  from generate_subscripts(p_vectors, 1) as g (interest)
    cross join lateral (
      select t.post_id,
        row_number() over (order by t.turn, t.distance, t.post_id desc) as nearness
      from (
        select m.post_id, m.distance, case when m.author_id is null then 0 else
          (row_number() over (partition by m.author_id order by m.distance, m.post_id desc) - 1)
            / (3 * p_reader.author_cap) end as turn
        from met m where m.interest = g.interest
        order by turn, m.distance, m.post_id desc limit p_limit) t) n;
end
$$;
comment on function two_tower.scan_near(two_tower.reader, extensions.vector[], integer, bigint[]) is
  'Returns for each vector the nearest p_limit eligible posts, exactly, from one scan of all; the newest for a vector that is null. Authors take turns, of three times what a page may hold of one.';

create function two_tower.scan_posts(p_reader two_tower.reader, p_limit integer,
  p_excluded bigint[])
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return array(
    select n.post_id
    from two_tower.scan_near(p_reader, array[p_reader.vector], p_limit, p_excluded) n
    order by n.nearness);
end
$$;
comment on function two_tower.scan_posts(two_tower.reader, integer, bigint[]) is
  'Returns the nearest p_limit eligible posts, exactly, from a scan of all; the newest for a reader without a vector.';

-- A bitmap has no order: with one, the newest posts of an author would be all of them. So it is off
-- here, and in what else reads the newest of an author or of a reader.
create function two_tower.list_newest_of(p_reader two_tower.reader, p_author_id uuid,
  p_limit integer, p_excluded bigint[])
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp
  set enable_bitmapscan = off as $$
begin
  return array(
    select n.id
    from (
      (select p.id, p.source_id from two_tower.posts p
       where p.author_id = p_author_id and p.is_listed and p.encoded_hash is not null
         and p.created_at <= p_reader.time
       order by p.created_at desc limit 1000)
      union all
      (select p.id, p.source_id from two_tower.posts p
       where p_author_id is null and p.author_id is null and p.is_listed
         and p.encoded_hash is not null and p.created_at <= p_reader.time
       order by p.created_at desc limit 1000)
    ) n
    where n.id <> all (p_excluded)
      and (p_reader.source_id is null or n.source_id = p_reader.source_id)
      and (p_reader.filter is null or (select exists (
        select from two_tower.matching_posts(p_reader.filter) m where m.id = n.id)))
      and not (select exists (select from two_tower.user_posts u
        where u.user_id = p_reader.user_id and u.post_id = n.id))
    limit p_limit);
end
$$;
comment on function two_tower.list_newest_of(two_tower.reader, uuid, integer, bigint[]) is
  'Returns the newest p_limit posts of an author that the reader has not seen, among the newest 1,000. Null: of posts without an author.';

-- Of many followed authors, at most 100 are asked each hour, from a place that moves. Of each the
-- newest 100 posts are looked at: a reader may have seen all that one wrote.
create function two_tower.list_candidates(p_reader two_tower.reader, p_limit integer,
  p_excluded bigint[])
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp
  set enable_bitmapscan = off as $$
declare
  v_place uuid := md5(p_reader.place::text)::uuid;
  v_newest integer := case when p_reader.warmth < 1 then p_limit else 0 end;
begin
  return array(
    select c.post_id
    from (
      (select p.post_id
       from (select post_id from two_tower.popular_candidates
             order by popularity desc, number desc limit 1000) p
       where p_reader.filter is null or (select exists (
         select from two_tower.matching_posts(p_reader.filter) m where m.id = p.post_id))
       limit p_limit)
      union all
      (select p.id
       from (select id from two_tower.posts where is_listed and encoded_hash is not null
               and created_at <= p_reader.time
             order by created_at desc limit 1000) p
       where p_reader.filter is null or (select exists (
         select from two_tower.matching_posts(p_reader.filter) m where m.id = p.id))
       limit v_newest)
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
         select n.id, n.created_at
         from (
           select p.id, p.created_at from two_tower.posts p
           where p.author_id = f.followed_id and p.is_listed and p.encoded_hash is not null
             and p.created_at <= p_reader.time
           order by p.created_at desc limit 100) n
         where n.id <> all (p_excluded) and not (select exists (select from two_tower.user_posts u
           where u.user_id = p_reader.user_id and u.post_id = n.id))
         limit 5) p
     where p_reader.filter is null or (select exists (
       select from two_tower.matching_posts(p_reader.filter) m where m.id = p.id))
     order by p.created_at desc limit p_limit));
end
$$;
comment on function two_tower.list_candidates(two_tower.reader, integer, bigint[]) is
  'Returns candidates beside the nearest: popular ones, recent ones of followed authors and, while warmth is below 1, the newest. The reader has seen none of them.';

-- One lookup in an index, however much each author wrote. What a filter names is soon met: without
-- that, a page of one author's posts would go on to others, and then to a scan of all posts.
create function two_tower.next_author(p_filter two_tower.page_filter, p_after uuid) returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp set enable_bitmapscan = off as $$
begin
  if p_filter.author_ids is not null then
    return (select a from unnest(p_filter.author_ids) a where a > p_after order by a limit 1);
  elsif p_filter.follower_id is not null then
    return (select f.followed_id from two_tower.follows f
      where f.follower_id = p_filter.follower_id and f.followed_id > p_after
      order by f.followed_id limit 1);
  end if;
  return (select p.author_id from two_tower.posts p
    where p.is_listed and p.encoded_hash is not null and p.author_id > p_after
    order by p.author_id limit 1);
end
$$;
comment on function two_tower.next_author(two_tower.page_filter, uuid) is
  'Returns the next author, in order of ids, of whom a filter may let posts through. Null: there is none.';

-- Where the nearest posts are of few authors. Others are found by a walk over an index: an app with
-- one author for everything pays three look-ups.
create function two_tower.list_others(p_reader two_tower.reader, p_authors integer,
  p_page bigint[], p_excluded bigint[], out post_ids bigint[], out is_all boolean)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_place uuid := md5(p_reader.place::text)::uuid;
  v_known uuid[] := array(
    select p.author_id from two_tower.posts p where p.id = any (p_page)
    union
    select p_reader.user_id);
  v_author uuid := v_place;
  v_is_round boolean := false;
  v_found integer := 0;
  v_posts bigint[];
begin
  is_all := false;
  post_ids := two_tower.list_newest_of(p_reader, null, p_authors, p_excluded || p_page);
  for v_try in 1 .. 5 * p_authors loop
    v_author := two_tower.next_author(p_reader.filter, v_author);
    if v_author is null and not v_is_round then
      v_is_round := true;
      v_author := two_tower.next_author(p_reader.filter, '00000000-0000-0000-0000-000000000000');
    end if;
    if v_author is null or v_is_round and v_author > v_place then
      is_all := true;
      return;
    end if;
    continue when v_author = any (v_known) or exists (
      select from two_tower.withheld_authors a
      where a.user_id = p_reader.user_id and a.author_id = v_author);
    v_posts := two_tower.list_newest_of(p_reader, v_author, p_reader.author_cap, p_excluded);
    continue when v_posts = '{}';
    post_ids := post_ids || v_posts;
    v_found := v_found + 1;
    exit when v_found = p_authors;
  end loop;
end
$$;
comment on function two_tower.list_others(two_tower.reader, integer, bigint[], bigint[]) is
  'Returns new posts of p_authors authors who have none on the page, from a place that depends on reader and hour, and whether it has met all authors. Looks at five times as many authors at most. The reader has seen none of the posts.';
