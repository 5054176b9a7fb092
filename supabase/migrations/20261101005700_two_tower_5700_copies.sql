-- Posts that say the same. A crowd of accounts with one text, or an author who repeats a post,
-- would fill pages: what is near to a reader comes with all that is near to it. Of a ranked list
-- the best one of each text counts. The others are copies, and so are posts that say what the
-- reader knows.

-- Part by part of the list, and no further than the page needs. What was found good so far is
-- compared with, so that a long list costs little more than a long page.
create function two_tower.find_copies(p_reader two_tower.reader, p_ranked bigint[],
  p_wanted integer, p_page bigint[] default '{}')
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_kept bigint[] := p_page || (select u.recent_post_ids from two_tower.user_embeddings u
    where u.user_id = p_reader.user_id);
  v_known integer := coalesce(cardinality(v_kept), 0);
  v_copies bigint[] := '{}';
  v_found bigint[];
  v_part bigint[];
  v_from integer := 1;
begin
  while p_reader.copy_similarity is not null and v_from <= cardinality(p_ranked)
    and coalesce(cardinality(v_kept), 0) - v_known < p_wanted loop
    v_part := p_ranked[v_from:v_from + case v_from when 1 then p_wanted else 20 end - 1];
    v_from := v_from + cardinality(v_part);
    v_found := array(
      with listed as materialized (
        select g.id, g.place,
          (select p.content_hash from two_tower.posts p where p.id = g.id) as content_hash,
          (select extensions.l2_normalize(b.base_embedding)
           from two_tower.base_embeddings b where b.post_id = g.id) as vector
        from unnest(v_kept || v_part) with ordinality as g (id, place)
      )
      select c.id from listed c
      where c.place > coalesce(cardinality(v_kept), 0) and (
        exists (
          select from listed l
          where l.place < c.place and (l.content_hash = c.content_hash
            or l.vector operator(extensions.<#>) c.vector < -p_reader.copy_similarity))
        or exists (
          select from (select p.id from two_tower.posts p
            where p.content_hash = c.content_hash and p.encoded_hash is not null and p.id <> c.id
            limit 100) e
          where exists (select from two_tower.user_posts u
            where u.user_id = p_reader.user_id and u.post_id = e.id))));
    v_copies := v_copies || v_found;
    v_kept := v_kept || array(select g.id from unnest(v_part) with ordinality as g (id, place)
      where g.id <> all (v_found) order by g.place);
  end loop;
  return v_copies;
end
$$;
comment on function two_tower.find_copies(two_tower.reader, bigint[], integer, bigint[]) is
  'Returns those posts of a list, best first and none of them seen, that are copies: of a better one, of one of p_page, of one that the reader engaged with lately, or with the very text of one that the reader has seen. A copy has the same text, or one whose base embedding has a cosine above settings.copy_similarity. Looks no further down than p_wanted posts that are none.';
