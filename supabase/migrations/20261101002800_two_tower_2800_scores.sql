-- What a post is worth to a reader. Nothing here writes.

-- The score is a sum of named parts, so that explain_recommendation can show it.
create function two_tower.score_posts(p_reader two_tower.reader, p_post_ids bigint[])
returns table (
  post_id bigint, author_id uuid, personal double precision, popular double precision,
  fresh double precision, followed double precision, is_followed boolean, is_new boolean,
  interest bigint, distance double precision
) language plpgsql stable set search_path = pg_catalog, pg_temp rows 300 as $$
declare
  v_slot smallint := (select active_slot from two_tower.state);
  v_coldness double precision := 1 - p_reader.warmth;
  v_interests extensions.vector[] := p_reader.interest_vectors;
begin
  return query
  select v.post_id, v.author_id,
    case when p_reader.warmth = 0 then 0
      else p_reader.warmth * -(v.embedding operator(extensions.<#>) p_reader.vector) end,
    (v_coldness + p_reader.popularity_weight)
      * ln(1 + two_tower.popularity_in_likes(v.popularity, p_reader.popularity_unit))
        / p_reader.popularity_scale,
    p_reader.recency_weight
      * 2 ^ -least(1000, greatest(0, date_part('epoch', p_reader.time - v.created_at))
                         / p_reader.recency_half_life),
    case when f.is_followed then p_reader.followed_weight else 0 end,
    f.is_followed, v.created_at > p_reader.followed_since,
    v.interest, v.embedding operator(extensions.<#>) v_interests[v.interest]
  from (
    select l.post_id, l.author_id, l.embedding, l.popularity, l.created_at,
      case when v_interests is not null then (
        select i.interest
        from unnest(v_interests) with ordinality as i (vector, interest)
        order by l.embedding operator(extensions.<#>) i.vector limit 1) end as interest
    from two_tower.live_embeddings l
    where l.slot = v_slot and l.post_id = any (p_post_ids) and l.is_listed
      and (p_reader.source_id is null or l.source_id = p_reader.source_id)
      and l.author_id is distinct from p_reader.user_id offset 0
  ) v
    cross join lateral (select exists (select from two_tower.follows f
      where f.follower_id = p_reader.user_id and f.followed_id = v.author_id) offset 0)
      as f (is_followed);
end
$$;
comment on function two_tower.score_posts(two_tower.reader, bigint[]) is
  'Scores posts for a reader. The score is the sum of four parts. Leaves out deleted posts and the reader''s own. personal: warmth * cosine of user and post. popular: log of the decayed popularity, over the largest. fresh: halves with age. followed: for a followed author. is_new: the post is younger than settings.followed_new_for. interest: which of the reader''s the post is nearest to, and distance is from there; null for readers of one.';
