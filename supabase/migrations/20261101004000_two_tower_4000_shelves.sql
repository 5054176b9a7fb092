-- Pages about one thing that the reader names: an author, a tag. Not what is seen is left out of
-- them, but what was hidden: who asks for an author's posts wants all of them.

create function two_tower.list_of_author(p_user_id uuid, p_author_key text, p_limit integer,
  p_excluded bigint[], p_among bigint[], p_filter two_tower.page_filter)
returns table (post_id bigint, score double precision, author_id uuid)
language sql stable set search_path = pg_catalog, pg_temp set enable_bitmapscan = off as $$
  select p.id, extract(epoch from p.created_at)::double precision, p.author_id
  from (select two_tower.author_id_of(p_author_key) as id) a
    cross join lateral (
      (select q.id, q.created_at, q.author_id from two_tower.posts q
       where p_among is null and q.author_id = a.id and q.is_listed
         and q.encoded_hash is not null and q.created_at <= two_tower.now()
       order by q.created_at desc limit 1000)
      union all
      (select q.id, q.created_at, q.author_id
       from (values (false), (true)) as e (is_edited) -- as in list_followed()
         cross join lateral (
           select d.id from two_tower.due_posts d
           where d.turn = uuid_hash_extended(a.id, 0) and d.is_edited = e.is_edited
           order by d.requested_at desc, d.id desc limit 1000) w
         cross join lateral (select p.* from two_tower.posts p where p.id = w.id offset 0) q
       where p_among is null and not e.is_edited and q.author_id = a.id
         and q.created_at <= two_tower.now())
      union all
      (select q.id, q.created_at, q.author_id from two_tower.posts q
       where q.id = any (p_among) and q.author_id = a.id)
    ) p
  where p.id <> all (p_excluded)
    and not (select exists (select from two_tower.user_posts u
      where u.user_id = p_user_id and u.post_id = p.id and u.is_hidden))
    and (p_filter is null or (select exists (
      select from two_tower.matching_posts(p_filter) m where m.id = p.id)))
  order by p.created_at desc limit p_limit;
$$;
comment on function two_tower.list_of_author(uuid, text, integer, bigint[], bigint[],
  two_tower.page_filter) is
  'Returns the newest p_limit posts of an author, whom the app''s key names, of the newest 1,000 and as many that wait for the encoder, with their time as score. Leaves out what the user hid.';

-- A tag that few use would not be among the most popular posts of all. So the newest posts are
-- looked at, as far back as settings.trending_window says, and no more than 20,000 of them.
create function two_tower.list_trending(p_user_id uuid, p_tag text, p_excluded bigint[],
  p_among bigint[], p_filter two_tower.page_filter)
returns table (post_id bigint, score double precision, author_id uuid)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select v.post_id, two_tower.popularity_in_likes(v.popularity,
    two_tower.read_popularity_clock(two_tower.now(), t)), v.author_id
  from two_tower.settings s cross join two_tower.state t
    cross join lateral (
      (select q.id, q.tags from two_tower.posts q
       where p_among is null and q.is_listed and q.encoded_hash is not null
         and q.created_at between two_tower.now() - s.trending_window and two_tower.now()
       order by q.created_at desc limit 20000)
      union all
      (select q.id, q.tags from two_tower.posts q
       where q.id = any (p_among) and q.created_at > two_tower.now() - s.trending_window)
    ) p
    join two_tower.live_embeddings v
      on v.slot = t.active_slot and v.post_id = p.id
  where (p_tag is null or p_tag = any (p.tags)) and v.popularity > '-infinity'
    and p.id <> all (p_excluded)
    and not (select exists (select from two_tower.user_posts u
      where u.user_id = p_user_id and u.post_id = v.post_id and u.is_hidden))
    and (p_filter is null or (select exists (
      select from two_tower.matching_posts(p_filter) m where m.id = p.id)));
$$;
comment on function two_tower.list_trending(uuid, text, bigint[], bigint[],
  two_tower.page_filter) is
  'Returns posts of the last settings.trending_window with this tag (null: with any or none) that somebody engaged with, with their popularity in likes of now. Leaves out what the user hid.';
