-- Which of the new posts in the exploration pool a reader explores. Half of them are those nearest
-- to the reader, and half are met by chance.

create function two_tower.explore_nearest(p_reader two_tower.reader, p_limit integer,
  p_excluded bigint[])
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_slot smallint := (select active_slot from two_tower.state);
begin
  if p_limit = 0 or p_reader.vector is null then
    return '{}';
  end if;
  return array(
    select n.post_id
    from (
      select f.post_id, f.author_id
      from (
        select v.post_id, v.author_id, v.embedding operator(extensions.<#>) p_reader.vector as away
        from (
          select e.post_id from two_tower.exploration_pool e
          where e.created_at > p_reader.explored_since
          order by e.turn, e.created_at desc limit 300
        ) e
          join two_tower.live_embeddings v on v.slot = v_slot and v.post_id = e.post_id
        where v.is_pretrained and v.is_listed
          and (p_reader.source_id is null or v.source_id = p_reader.source_id)
          and (p_reader.filter is null or exists (
            select from two_tower.matching_posts(p_reader.filter) m where m.id = v.post_id))
      ) f
      order by case when f.author_id is null then 0 else row_number() over (
        partition by f.author_id order by f.away) end > p_reader.author_cap, f.away offset 0
    ) n
    where n.post_id <> all (p_excluded)
      and (p_reader.filter is null or (select exists (
        select from two_tower.matching_posts(p_reader.filter) m where m.id = n.post_id)))
      and (select two_tower.is_eligible(p_reader.user_id, n.post_id, n.author_id))
    limit p_limit);
end
$$;
comment on function two_tower.explore_nearest(two_tower.reader, integer, bigint[]) is
  'Returns the p_limit posts nearest to the reader among 300 of the exploration pool: the newest first posts of all authors, then their second ones. Posts of an author beyond the cap of the reader come behind.';

-- Authors are met one by one, in the order of the pool. Then they are met again.
create function two_tower.choose_explored_posts(p_reader two_tower.reader, p_limit integer,
  p_excluded bigint[])
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_place bigint := p_reader.place;
  -- A share of less than a post is a post on that share of the pages.
  v_count integer := floor(p_limit * p_reader.exploration_share + (v_place & 1023) / 1024.0);
  v_place_of_post bigint := hashint8extended(v_place, (select hash_seed from two_tower.state));
  v_slot smallint := (select active_slot from two_tower.state);
  v_round integer := 0;
  v_first bigint;
  v_author bigint := v_place;
  v_post_id bigint;
  v_chosen bigint[] := two_tower.explore_nearest(p_reader,
    ((v_count + (v_place >> 10 & 1)) / 2)::integer, p_excluded);
begin
  for v_try in 1 .. case when v_count > cardinality(v_chosen) then 20 + 5 * v_count else 0 end loop
    v_author := coalesce(
      (select e.author_shuffled from two_tower.exploration_pool e
       where e.author_shuffled > v_author order by e.author_shuffled limit 1),
      (select min(e.author_shuffled) from two_tower.exploration_pool e));
    v_first := coalesce(v_first, v_author);
    v_round := v_round + (v_author = v_first)::integer;
    exit when v_author is null or v_round > p_reader.author_cap;
    v_post_id := (
      select c.post_id
      from (
        (select e.post_id from two_tower.exploration_pool e
         where e.author_shuffled = v_author and e.shuffled >= v_place_of_post
           and e.created_at > p_reader.explored_since
         order by e.shuffled limit 5)
        union all
        (select e.post_id from two_tower.exploration_pool e
         where e.author_shuffled = v_author and e.shuffled < v_place_of_post
           and e.created_at > p_reader.explored_since
         order by e.shuffled limit 5)
      ) c
      where c.post_id <> all (p_excluded || v_chosen)
        and (select exists (
          select from two_tower.live_embeddings v
          where v.slot = v_slot and v.post_id = c.post_id and v.is_pretrained and v.is_listed
            and (p_reader.source_id is null or v.source_id = p_reader.source_id)
            and (p_reader.filter is null or exists (
              select from two_tower.matching_posts(p_reader.filter) m where m.id = v.post_id))
            and two_tower.is_eligible(p_reader.user_id, v.post_id, v.author_id)))
      limit 1);
    if v_post_id is not null then
      v_chosen := v_chosen || v_post_id;
      exit when cardinality(v_chosen) = v_count;
    end if;
  end loop;
  return v_chosen;
end
$$;
comment on function two_tower.choose_explored_posts(two_tower.reader, integer, bigint[]) is
  'Returns new posts that few have seen, to fill settings.exploration_share of a page: half of them by explore_nearest(), the rest by chance. By chance, each is of another author, while there are others. Authors and their posts stand in a shuffled order, and are taken from a place that depends on reader and hour. Gives up after 20 + 5 tries a post.';
