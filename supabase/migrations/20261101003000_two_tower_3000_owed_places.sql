-- A page by one vector is full of one interest. So each interest of a reader is owed places by its
-- weight.

-- What a page cannot give, the next one of a scroll does: an interest of a tenth is owed less than
-- a place of a page of ten, and is on every second one.
create function two_tower.owe_places(p_reader two_tower.reader, p_limit integer, p_shown bigint[])
returns integer[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_shown bigint[] := p_shown[1:100];
begin
  if p_reader.interest_shares is null or v_shown = '{}' then
    return p_reader.interest_places;
  end if;
  return (
    with shown as materialized (
      select n.interest
      from two_tower.live_embeddings v
        cross join lateral (
          select i.interest from unnest(p_reader.interest_vectors)
            with ordinality as i (vector, interest)
          order by v.embedding operator(extensions.<#>) i.vector limit 1) n
      where v.slot = (select active_slot from two_tower.state) and v.post_id = any (v_shown)
    ), owed as (
      select s.interest, s.share, greatest(0, s.share * (p_limit + (select count(*) from shown))
        - (select count(*) from shown h where h.interest = s.interest)) as places
      from unnest(p_reader.interest_shares) with ordinality as s (share, interest)
    )
    select array_agg(floor(1e-9 + o.places * least(1, t.share * p_limit / t.places))::integer
      order by o.interest)
    from owed o cross join (
      select sum(w.share) as share, greatest(1e-9, sum(w.places)) as places from owed w) t);
end
$$;
comment on function two_tower.owe_places(two_tower.reader, integer, bigint[]) is
  'Returns how many places of the next page each interest of the reader is owed, so that it has its share of what was shown on this scroll and will be: of the first 100 of p_shown and the page. All of them together are owed no more than on a first page. A post is of the interest that it is nearest to.';

create function two_tower.find_near(p_reader two_tower.reader, p_vectors extensions.vector[],
  p_limit integer, p_excluded bigint[], p_among bigint[], p_is_wide boolean)
returns table (interest bigint, post_id bigint, nearness bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp rows 200 as $$
declare
  v_state two_tower.state := (select s from two_tower.state s);
begin
  if p_among is not null then
    return query
    select g.interest, n.post_id, row_number() over (partition by g.interest order by n.distance)
    from unnest(p_vectors) with ordinality as g (vector, interest)
      cross join lateral (
        select v.post_id, v.embedding operator(extensions.<#>) g.vector as distance
        from two_tower.live_embeddings v
        where v.slot = v_state.active_slot and v.post_id = any (p_among)
        order by 2 limit p_limit) n;
  elsif v_state.serving_side is null then
    return query
    select n.* from two_tower.scan_near(p_reader, p_vectors, p_limit, p_excluded) n;
  else
    return query
    select g.interest, n.post_id, n.nearness
    from unnest(p_vectors) with ordinality as g (vector, interest)
      cross join lateral unnest(two_tower.find_nearest_posts(g.vector, p_limit, p_reader.user_id,
        p_excluded, p_is_wide or p_reader.filter is not null, p_reader.source_id, p_reader.filter,
        p_limit * 3 / 2)) with ordinality as n (post_id, nearness);
  end if;
end
$$;
comment on function two_tower.find_near(two_tower.reader, extensions.vector[], integer, bigint[], bigint[], boolean) is
  'Returns for each vector the p_limit nearest posts that the reader has not seen, and how near they are: 1 is the nearest. Without a serving index one scan finds all. p_among: of these alone, none of which the reader has seen. p_is_wide: searches on while posts are missing.';

-- The one vector of a reader of several interests is nearest to the heaviest.
create function two_tower.find_interest_posts(p_reader two_tower.reader, p_excluded bigint[],
  p_among bigint[] default null)
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_most integer := (select max(s.places) from unnest(p_reader.interest_places) as s (places));
begin
  if coalesce(v_most, 0) = 0 then
    return '{}';
  end if;
  return array(
    select n.post_id
    from two_tower.find_near(p_reader, array(
        select g.vector
        from unnest(p_reader.interest_vectors, p_reader.interest_places) with ordinality
          as g (vector, places, place)
        where g.places > 0 order by g.place),
      greatest(40, 2 * v_most), p_excluded, p_among, false) n
    order by n.interest, n.nearness);
end
$$;
comment on function two_tower.find_interest_posts(two_tower.reader, bigint[], bigint[]) is
  'Returns for each interest that is owed places the nearest 40 posts, or twice the most places, that the reader has not seen. p_among: of these, none of which is seen. Nothing for a reader of one interest.';

-- A post is of the interest that it is nearest to. What an interest lacks comes from the candidates
-- nearest to it, within the caps on authors. It takes the places of the last posts whose interests
-- have more than they are owed. So the best of a page, and what is explored, stay.
create function two_tower.settle_interests(p_reader two_tower.reader, p_limit integer,
  p_candidates bigint[], p_page bigint[], p_explored bigint[],
  out added_ids bigint[], out removed_ids bigint[])
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  with vector as materialized (
    select i.vector, i.interest
    from unnest(p_reader.interest_vectors) with ordinality as i (vector, interest)
  ), post as materialized (
    select v.post_id, v.author_id, n.interest, n.cosine, array_position(p_page, v.post_id) as place,
      case when v.author_id is null then p_limit when f.is_followed
        then p_reader.followed_author_cap else p_reader.author_cap end as cap
    from two_tower.live_embeddings v
      cross join lateral (select exists (select from two_tower.follows f
        where f.follower_id = p_reader.user_id and f.followed_id = v.author_id) offset 0)
        as f (is_followed)
      cross join lateral (
        select i.interest, -(v.embedding operator(extensions.<#>) i.vector) as cosine
        from vector i order by v.embedding operator(extensions.<#>) i.vector limit 1) n
    where v.slot = (select active_slot from two_tower.state)
      and v.post_id = any (p_page || p_candidates) and v.is_listed
      and (p_reader.source_id is null or v.source_id = p_reader.source_id)
      and v.author_id is distinct from p_reader.user_id
  ), interest as materialized (
    select o.interest, o.places - count(p.post_id) as missing
    from unnest(p_reader.interest_places) with ordinality as o (places, interest)
      left join post p on p.interest = o.interest and p.place is not null
        and p.post_id <> all (p_explored)
    group by o.interest, o.places
  ), shared as (
    select c.*, row_number() over (partition by c.interest order by c.cosine desc) as nearness
    from (
      select p.*, i.missing, count(p.place) over (partition by p.author_id)
          + row_number() over (partition by p.author_id, p.place is null and i.missing > 0
            order by p.cosine desc) as of_author
      from post p join interest i using (interest)
    ) c
    where c.place is null and c.missing > 0 and (c.author_id is null or c.of_author <= c.cap)
  ), allowed as (
    select s.*, row_number() over (partition by s.interest order by s.nearness) as turn
    from shared s
    where s.nearness <= 3 * s.missing
      and not (select exists (select from two_tower.withheld_authors a
        where a.user_id = p_reader.user_id and a.author_id = s.author_id))
      and (select exists (select from two_tower.listed_posts l where l.id = s.post_id))
  ), spare as materialized (
    select s.post_id, s.place
    from (
      select p.*, row_number() over (partition by p.interest order by p.place desc) as from_bottom
      from post p where p.place is not null and p.post_id <> all (p_explored)
    ) s
      join interest i using (interest)
    where s.from_bottom <= -i.missing
  ), added as materialized (
    select a.post_id from allowed a where a.turn <= a.missing
    order by a.turn, a.cosine desc
    limit p_limit - cardinality(p_page) + (select count(*) from spare)
  )
  select array(select post_id from added),
    array(select s.post_id from spare s order by s.place desc
      limit greatest(0, cardinality(p_page) + (select count(*) from added) - p_limit))
  into added_ids, removed_ids;
end
$$;
comment on function two_tower.settle_interests(two_tower.reader, integer, bigint[], bigint[], bigint[]) is
  'Returns which candidates a page lacks so that each interest of the reader has the places that it is owed, and which posts they replace. p_page: best first. p_explored: those of the page that stay. The reader has seen no candidate.';

create function two_tower.settle_page(p_reader two_tower.reader, p_limit integer, p_owed bigint[],
  p_page two_tower.ranked_post[])
returns two_tower.ranked_post[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_ids bigint[] := array(select p.post_id from unnest(p_page) p);
  v_staying bigint[] := array(select p.post_id from unnest(p_page) p
    where p.source in ('exploration', 'told'));
  v_copies two_tower.copies;
  v_alike bigint[];
  v_change record := two_tower.settle_interests(p_reader, p_limit, p_owed, v_ids, v_staying);
begin
  -- Copies are rare: what was chosen is compared first, and all of what could be only then.
  v_copies := two_tower.find_copies(p_reader, v_change.added_ids, 1000, v_ids);
  if v_change.added_ids && (v_copies.copy_ids || v_copies.original_ids) then
    v_copies := two_tower.find_copies(p_reader,
      array(select o from unnest(p_owed) o where o <> all (v_ids)), 1000, v_ids);
    v_alike := v_copies.copy_ids || v_copies.original_ids;
    v_change := two_tower.settle_interests(p_reader, p_limit,
      array(select o from unnest(p_owed) o where o <> all (array_remove(v_alike, null))), v_ids,
      v_staying);
  end if;
  if v_change.added_ids = '{}' then
    return p_page;
  end if;
  return array(
    select row(k.post_id, k.author_id, k.score, k.source, k.turn)::two_tower.ranked_post
    from unnest(p_page) with ordinality as k (post_id, author_id, score, source, turn, place)
    where k.post_id <> all (v_change.removed_ids) order by k.place)
  || array(
    select row(s.post_id, s.author_id, x.score, 'personal', 0)::two_tower.ranked_post
    from two_tower.score_posts(p_reader, v_change.added_ids) s
      cross join lateral (select s.personal + s.popular + s.fresh + s.followed as score) x
    order by x.score desc, s.post_id desc);
end
$$;
comment on function two_tower.settle_page(two_tower.reader, integer, bigint[], two_tower.ranked_post[]) is
  'Returns a page on which each interest of the reader has the places that it is owed. What it lacks comes from p_owed, but for posts that say what another one does, and stands last.';
