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
  p_ranked two_tower.ranked_post[], p_candidates bigint[], p_page two_tower.ranked_post[],
  out added two_tower.ranked_post[], out removed_ids bigint[])
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  with page as materialized (
    select k.*, k.source in ('exploration', 'told') as is_staying
    from unnest(p_page) with ordinality as k
  ), interest as materialized (
    select o.interest, o.places - count(k.post_id) as missing
    from unnest(p_reader.interest_places) with ordinality as o (places, interest)
      left join page k on k.interest = o.interest and not k.is_staying
    group by o.interest, o.places
  ), post as (
    select k.post_id, k.author_id, k.score, k.cap, k.interest, k.distance, k.ordinality as place
    from page k
    union all
    select r.post_id, r.author_id, r.score, r.cap, r.interest, r.distance, null
    from unnest(p_ranked) r
    where r.post_id in (select c.id from unnest(p_candidates) as c (id))
      and r.post_id not in (select k.post_id from page k)
  ), shared as materialized (
    select c.*
    from (
      select p.*, i.missing, count(p.place) over (partition by p.author_id)
          + row_number() over (partition by p.author_id, p.place is null and i.missing > 0
            order by p.distance) as of_author
      from post p join interest i using (interest)
    ) c
    where c.place is null and c.missing > 0 and (c.author_id is null or c.of_author <= c.cap)
  ), allowed as (
    select a.*
    from interest i
      cross join lateral (
        select n.*, row_number() over () as turn
        from (
          select s.* from shared s where s.interest = i.interest
          order by s.distance limit 3 * i.missing) n
        where not (select exists (select from two_tower.withheld_authors a
            where a.user_id = p_reader.user_id and a.author_id = n.author_id))
          and (select exists (select from two_tower.listed_posts l where l.id = n.post_id))
        limit i.missing) a
    where i.missing > 0
  ), spare as materialized (
    select s.post_id, s.place
    from (
      select k.post_id, k.interest, k.ordinality as place,
        row_number() over (partition by k.interest order by k.ordinality desc) as from_bottom
      from page k where not k.is_staying
    ) s
      join interest i using (interest)
    where s.from_bottom <= -i.missing
  ), chosen as materialized (
    select a.* from allowed a
    order by a.turn, a.distance
    limit p_limit - cardinality(p_page) + (select count(*) from spare)
  )
  select array(
      select row(c.post_id, c.author_id, c.score, 'personal', 0, c.cap, c.interest,
        c.distance)::two_tower.ranked_post
      from chosen c order by c.score desc, c.post_id desc),
    array(select s.post_id from spare s order by s.place desc
      limit greatest(0, cardinality(p_page) + (select count(*) from chosen) - p_limit))
  into added, removed_ids;
end
$$;
comment on function two_tower.settle_interests(two_tower.reader, integer, two_tower.ranked_post[], bigint[], two_tower.ranked_post[]) is
  'Returns which candidates a page lacks so that each interest of the reader has the places that it is owed, and which posts they replace. p_ranked: order_candidates(). p_page: best first. What is explored or told stays on it. The reader has seen no candidate.';

create function two_tower.settle_page(p_reader two_tower.reader, p_limit integer,
  p_ranked two_tower.ranked_post[], p_owed bigint[], p_page two_tower.ranked_post[])
returns two_tower.ranked_post[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_ids bigint[] := array(select k.post_id from unnest(p_page) k);
  v_change record := two_tower.settle_interests(p_reader, p_limit, p_ranked, p_owed, p_page);
  v_added bigint[] := array(select a.post_id from unnest(v_change.added) a);
  v_copies two_tower.copies := two_tower.find_copies(p_reader, v_added, 1000, v_ids);
  v_alike bigint[];
begin
  -- Copies are rare: what was chosen is compared first, and all of what could be only then.
  if v_added && (v_copies.copy_ids || v_copies.original_ids) then
    v_copies := two_tower.find_copies(p_reader,
      array(select o from unnest(p_owed) o where o <> all (v_ids)), 1000, v_ids);
    v_alike := array_remove(v_copies.copy_ids || v_copies.original_ids, null);
    v_change := two_tower.settle_interests(p_reader, p_limit, p_ranked,
      array(select o from unnest(p_owed) o where o <> all (v_alike)), p_page);
  end if;
  return array(
    select p_page[k.ordinality] from unnest(p_page) with ordinality as k
    where k.post_id <> all (v_change.removed_ids) order by k.ordinality)
  || v_change.added;
end
$$;
comment on function two_tower.settle_page(two_tower.reader, integer, two_tower.ranked_post[], bigint[], two_tower.ranked_post[]) is
  'Returns a page on which each interest of the reader has the places that it is owed. What it lacks comes from those of p_ranked that are in p_owed, but for posts that say what another one does, and stands last.';
