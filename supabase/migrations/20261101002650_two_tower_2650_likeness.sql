-- By what posts are compared for everybody, in similar_posts() and search_posts(). Who could watch
-- the live embedding of a post of their own would see what the next like did to it, and so what
-- kind of reader it came from. So a touched post is shown by a copy of its embedding, which changes
-- once for many engagements. Until the first copy it is shown by its text alone.

create table two_tower.likeness_embeddings (
  post_id bigint primary key references two_tower.posts (id) on delete cascade,
  embedding extensions.halfvec(128) not null,
  engagement_count integer not null,
  epoch integer not null
);
comment on table two_tower.likeness_embeddings is 'Copies of live embeddings by which touched posts are compared for everybody.';
comment on column two_tower.likeness_embeddings.engagement_count is 'live_embeddings.engagement_count when the copy was made.';
comment on column two_tower.likeness_embeddings.epoch is 'state.epoch when the copy was made. A copy from before a rollback does not count.';

create function two_tower.refresh_likeness(p_post_ids bigint[]) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_written integer;
begin
  insert into two_tower.likeness_embeddings as l (post_id, embedding, engagement_count, epoch)
  select v.post_id, v.embedding, v.engagement_count, s.epoch
  from two_tower.state s
    cross join two_tower.settings c
    join two_tower.live_embeddings v on v.slot = s.active_slot and v.post_id = any (p_post_ids)
    left join two_tower.likeness_embeddings k on k.post_id = v.post_id and k.epoch = s.epoch
  where v.engagement_count >= coalesce(k.engagement_count, 0) + c.likeness_batch
  order by v.post_id
  on conflict (post_id) do update set embedding = excluded.embedding,
    engagement_count = excluded.engagement_count, epoch = excluded.epoch;
  get diagnostics v_written = row_count;
  return v_written;
end
$$;
comment on function two_tower.refresh_likeness(bigint[]) is
  'Copies those of the posts that had settings.likeness_batch engagements since their last copy. Returns how many.';

create function two_tower.read_likeness(p_post_ids bigint[])
returns table (post_id bigint, embedding extensions.vector)
language sql stable set search_path = pg_catalog, pg_temp rows 60 as $$
  select v.post_id, case when v.is_pretrained then v.embedding
    else coalesce(l.embedding::extensions.vector,
      two_tower.run_candidate_tower(b.base_embedding), v.embedding) end
  from two_tower.state s
    join two_tower.live_embeddings v on v.slot = s.active_slot and v.post_id = any (p_post_ids)
    left join two_tower.likeness_embeddings l on l.post_id = v.post_id and l.epoch = s.epoch
    left join two_tower.base_embeddings b on b.post_id = v.post_id;
$$;
comment on function two_tower.read_likeness(bigint[]) is
  'Returns the vectors by which posts are compared for everybody: of a touched post the copy or, before the first one, the projection of its text; of an untouched post its live embedding.';
