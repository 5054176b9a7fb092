-- What a reader told is owed places. As engagements come, they tell more, and the places go.

-- Each search takes a millisecond. So of many interests eight are asked for on a page, by a hash
-- that another hour changes. Three times as many posts as are needed leave authors to choose from.
create function two_tower.choose_told_posts(p_reader two_tower.reader, p_excluded bigint[],
  p_among bigint[] default null)
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_told extensions.vector[];
begin
  if p_reader.told_places = 0 then
    return '{}';
  end if;
  v_told := array(
    select t.vector
    from (select l.place, l.vector from two_tower.list_told(p_reader.user_id) l
          order by hashint8extended(l.place, p_reader.place) limit 8) t
    order by t.place);
  if v_told = '{}' then
    return '{}';
  end if;
  return array(
    with near as materialized (
      select n.interest, n.post_id, v.author_id,
        row_number() over (partition by n.interest order by n.nearness) as turn
      from two_tower.find_near(p_reader, v_told,
          3 * p_reader.told_places / cardinality(v_told) + 3, p_excluded, p_among, true) n
        join two_tower.live_embeddings v
          on v.slot = (select active_slot from two_tower.state) and v.post_id = n.post_id
      where v.is_listed and v.author_id is distinct from p_reader.user_id
        and -(v.embedding operator(extensions.<#>) v_told[n.interest]) >= p_reader.about_similarity
        and not (select exists (select from two_tower.withheld_authors a
          where a.user_id = p_reader.user_id and a.author_id = v.author_id))
        and (select exists (select from two_tower.listed_posts p where p.id = n.post_id))
    ), once as (
      select distinct on (n.post_id) n.* from near n order by n.post_id, n.turn
    )
    select c.post_id
    from (
      select o.*, row_number() over (partition by o.author_id order by o.turn, o.interest) as number
      from once o
    ) c
    where c.author_id is null or c.number <= p_reader.author_cap
    order by c.turn, c.interest limit p_reader.told_places);
end
$$;
comment on function two_tower.choose_told_posts(two_tower.reader, bigint[], bigint[]) is
  'Returns posts for the places that the reader''s told interests are owed. The interests take turns, each with its nearest post first. Leaves out what is not as near as settings.about_similarity: of a subject without posts nothing comes. p_among: of these alone, none of which the reader has seen.';
