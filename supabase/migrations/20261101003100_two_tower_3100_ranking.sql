-- From candidates to a page. A page is also short while posts of an author beyond the cap, or
-- copies, stand on it. One that is short is made again by a wider search, then from a scan of all
-- posts. One that is short after that, or fails, is filled by simpler rules. Nothing here writes.

-- All candidates, in the order in which they are wanted. Authors take turns: nobody's third cap of
-- posts comes before another's second. Explored and promised posts come first, so that they have
-- their places.
create function two_tower.order_candidates(p_reader two_tower.reader, p_candidates bigint[],
  p_explored bigint[])
returns two_tower.ranked_post[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return array(
    select row(o.post_id, o.author_id, o.score, o.source, o.turn, o.cap, o.interest,
      o.distance)::two_tower.ranked_post
    from (
      select t.*, t.is_promising and count(*) filter (where t.is_promising) over (
        order by t.turn, t.score desc, t.post_id desc rows unbounded preceding)
          <= p_reader.followed_places as is_promised
      from (
        select s.post_id, s.author_id, s.interest, s.distance, x.score, x.is_explored, x.cap,
          s.is_followed and s.is_new as is_promising,
          case when s.author_id is null then 0 else (row_number() over (partition by s.author_id
            order by x.is_explored desc, x.score desc, s.post_id desc) - 1) / x.cap end as turn,
          case when x.is_explored then 'exploration'
            when s.post_id = any (p_reader.told_ids) then 'told'
            when s.personal >= greatest(s.popular, s.fresh, s.followed) then 'personal'
            when s.is_followed and s.followed >= greatest(s.popular, s.fresh) then 'followed'
            when s.popular >= s.fresh then 'popular' else 'fresh' end as source
        from two_tower.score_posts(p_reader, p_candidates || p_explored) s
          cross join lateral (
            select s.personal + s.popular + s.fresh + s.followed as score,
              s.post_id = any (p_explored) as is_explored,
              case when s.is_followed then p_reader.followed_author_cap
                else p_reader.author_cap end as cap) x
      ) t
    ) o
    order by not (o.is_explored and o.turn = 0), not o.is_promised,
      o.post_id <> all (p_reader.told_ids), o.turn, o.score desc, o.post_id desc);
end
$$;
comment on function two_tower.order_candidates(two_tower.reader, bigint[], bigint[]) is
  'Returns the candidates in the order in which they are wanted: first those to explore (within the cap on their authors), then new posts of followed authors (as many as the reader is promised), then those for what the reader told, then by score. Posts of an author beyond the cap of the reader come behind those of all others.';

-- The first of the list that may stand on the page. Copies come behind all others. An original has
-- the place of its best copy, but not one that a copy has as new, or for what the reader told.
create function two_tower.fill_page(p_reader two_tower.reader, p_limit integer,
  p_ranked two_tower.ranked_post[], p_copies two_tower.copies)
returns two_tower.ranked_post[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return array(
    select p_ranked[l.place]
    from (
      select u.post_id, u.author_id, u.ordinality as place
      from unnest(p_ranked) with ordinality as u
        left join (
          select g.original_id, min(r.ordinality) as place
          from unnest(p_copies.copy_ids, p_copies.original_ids) as g (copy_id, original_id)
            join unnest(p_ranked) with ordinality as r on r.post_id = g.copy_id
          where r.source not in ('exploration', 'told')
          group by g.original_id) c on c.original_id = u.post_id
      order by u.post_id = any (p_copies.copy_ids), least(u.ordinality, c.place), u.ordinality
      offset 0
    ) l
    where not (select exists (select from two_tower.withheld_authors a
      where a.user_id = p_reader.user_id and a.author_id = l.author_id))
      and (select exists (select from two_tower.listed_posts p where p.id = l.post_id))
    limit p_limit);
end
$$;
comment on function two_tower.fill_page(two_tower.reader, integer, two_tower.ranked_post[], two_tower.copies) is
  'Returns the first p_limit of a ranked list that the reader may see, copies behind all others. Looks authors and the registry up from the best post down, until the page is full.';

create function two_tower.leave_out_seen(p_user_id uuid, p_post_ids bigint[], p_excluded bigint[])
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return array(
    select i.id from unnest(p_post_ids) as i (id)
    where i.id <> all (p_excluded) and not (select exists (
      select from two_tower.user_posts u where u.user_id = p_user_id and u.post_id = i.id)));
end
$$;
comment on function two_tower.leave_out_seen(uuid, bigint[], bigint[]) is 'Returns those of the posts that the user has not seen and that are not excluded.';

create function two_tower.rank_posts(p_reader two_tower.reader, p_limit integer,
  p_candidates bigint[], p_explored bigint[], p_owed bigint[], p_excluded bigint[],
  out ids bigint[], out scores double precision[], out sources text[], out shared integer)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_candidates bigint[] := p_candidates || p_owed;
  v_originals bigint[];
  v_ranked two_tower.ranked_post[];
  v_copies two_tower.copies;
  v_page two_tower.ranked_post[];
begin
  loop
    v_ranked := two_tower.order_candidates(p_reader, v_candidates, p_explored);
    -- A few of the best may be of withheld authors.
    v_copies := two_tower.find_copies(p_reader,
      array(select r.post_id from unnest(v_ranked) r), p_limit + 5);
    exit when v_copies.missing_ids = '{}' or p_excluded is null or v_originals is not null;
    v_originals := array(
      select o.id
      from unnest(two_tower.leave_out_seen(p_reader.user_id, v_copies.missing_ids, p_excluded))
        as o (id)
      where p_reader.filter is null or (select exists (
        select from two_tower.matching_posts(p_reader.filter) m where m.id = o.id)));
    exit when v_originals = '{}';
    v_candidates := v_candidates || v_originals;
  end loop;
  v_page := two_tower.fill_page(p_reader, p_limit, v_ranked, v_copies);
  if p_owed <> '{}' then
    v_page := two_tower.settle_page(p_reader, p_limit, v_ranked, p_owed, v_page);
  end if;
  select array_agg(c.post_id order by c.at), array_agg(c.score order by c.at),
    array_agg(c.source order by c.at), count(*) filter (where c.turn = 0 and not c.is_copy)
  into ids, scores, sources, shared
  from (
    select r.*, case when r.is_explored
        -- Somewhere in the lower half: what stands last is seen last.
        then p_limit * (1 + (hashint8extended(r.post_id, p_reader.place) & 1023) / 1024.0) / 2
        else row_number() over (partition by r.is_explored order by r.place) end as at
    from (
      select u.*, u.ordinality as place, u.post_id = any (v_copies.copy_ids) as is_copy,
        u.source = 'exploration' and u.post_id <> all (v_copies.copy_ids) as is_explored
      from unnest(v_page) with ordinality as u
    ) r
  ) c;
end
$$;
comment on function two_tower.rank_posts(two_tower.reader, integer, bigint[], bigint[], bigint[], bigint[]) is
  'Returns a page of p_limit of the candidates, none of which the reader has seen, as order_candidates() has them. Copies come behind all others. Where a candidate has the very text of an older post, that one is a candidate too, unless the reader has seen it, it is in p_excluded, or that is null. p_owed: candidates of interests that are owed places (settle_page()). Explored posts stand in the lower half of the page. shared: how many are within the cap on their authors, and no copies.';

-- The page by the live embeddings. Nearly always the first search fills it.
create function two_tower.make_page(p_reader two_tower.reader, p_limit integer,
  p_excluded bigint[], p_among bigint[],
  out ids bigint[], out scores double precision[], out sources text[], out is_all boolean)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_reader two_tower.reader := p_reader;
  v_count integer := least(1000, greatest(v_reader.over_fetch, 3 * p_limit));
  v_explored bigint[];
  v_listed bigint[];
  v_near bigint[];
  v_owed bigint[];
  v_shared integer;
  v_others bigint[];
  v_has_met_all boolean := false;
  v_search text;
begin
  v_reader.interest_places := two_tower.owe_places(v_reader, p_limit, p_excluded);
  if p_among is not null then
    v_near := two_tower.leave_out_seen(v_reader.user_id, p_among, p_excluded);
    v_reader.told_ids := two_tower.choose_told_posts(v_reader, p_excluded, v_near);
    select r.ids, r.scores, r.sources into ids, scores, sources
    from two_tower.rank_posts(v_reader, p_limit, v_near, '{}',
      two_tower.find_interest_posts(v_reader, p_excluded, v_near), null) r;
    return;
  end if;
  v_reader.told_ids := two_tower.choose_told_posts(v_reader, p_excluded);
  v_explored := two_tower.choose_explored_posts(v_reader, p_limit,
    p_excluded || v_reader.told_ids);
  v_listed := two_tower.list_candidates(v_reader,
    case when v_reader.warmth < 1 then v_count else p_limit end, p_excluded);
  v_owed := two_tower.find_interest_posts(v_reader, p_excluded);
  foreach v_search in array '{index, wide, scan}'::text[] loop
    -- A wide search finds some fifty times as many. Where that is little, it is left out.
    continue when v_search = 'wide'
      and least(cardinality(v_near), coalesce(cardinality(ids), 0)) < p_limit / 8;
    if v_search = 'wide' and cardinality(ids) >= p_limit then
      select o.post_ids, o.is_all or v_reader.source_id is not null into v_others, v_has_met_all
      from two_tower.list_others(v_reader, p_limit / v_reader.author_cap + 1, ids, p_excluded) o;
      exit when v_has_met_all and v_others = '{}';
      v_listed := v_listed || v_others;
    end if;
    if v_search = 'scan' then
      v_near := two_tower.scan_posts(v_reader, v_count, p_excluded);
      is_all := cardinality(v_near) < v_count;
    elsif v_reader.vector is not null then
      v_near := two_tower.find_nearest_posts(v_reader.vector,
        case v_search when 'wide' then 3 * v_count else v_count end, v_reader.user_id,
        p_excluded, v_search = 'wide' or v_reader.filter is not null, v_reader.source_id,
        v_reader.filter, v_reader.breadth);
      continue when v_near is null;
    end if;
    select r.ids, r.scores, r.sources, r.shared into ids, scores, sources, v_shared
    from two_tower.rank_posts(v_reader, p_limit, v_listed || v_near || v_reader.told_ids,
      v_explored, v_owed, p_excluded) r;
    exit when v_shared >= p_limit or v_has_met_all and cardinality(ids) >= p_limit;
  end loop;
end
$$;
comment on function two_tower.make_page(two_tower.reader, integer, bigint[], bigint[]) is
  'Returns a page by the live embeddings, best first. The candidates come from the serving index. Where that leaves the page short, they come from a wider search, then from a scan of all posts. Without an index they come from the scan. A page that is full, but has posts beyond the cap on authors, or copies, is made again by a wider search and new posts of other authors, unless there are none. p_among: these are the candidates, all of which match, and nothing is searched. is_all: no other post with a vector is left.';
