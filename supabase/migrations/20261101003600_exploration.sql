-- New posts are shown to a few readers whatever their score, until they were shown often enough or
-- somebody engages. A pool of its own keeps that from costing a look at all posts.

create table two_tower.exploration_pool (
  post_id bigint primary key references public.posts (id) on delete cascade,
  shuffled bigint not null,
  impressions integer not null default 0
);
comment on table two_tower.exploration_pool is 'Posts that have not had settings.exploration_impressions yet and that nobody has engaged with.';
comment on column two_tower.exploration_pool.shuffled is 'A hash of the post: readers start at random places in this order.';
create index exploration_pool_shuffled_idx on two_tower.exploration_pool (shuffled);

create function two_tower.add_to_exploration_pool() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  insert into two_tower.exploration_pool (post_id, shuffled)
  select n.post_id, hashint8extended(n.post_id, 0)
  from new_rows n join two_tower.state s on s.active_slot = n.slot
  where n.is_pretrained and not n.is_deleted
  order by n.post_id
  on conflict do nothing;
  return null;
end
$$;
comment on function two_tower.add_to_exploration_pool() is 'Every new post is explored.';
create trigger add_to_exploration_pool after insert on two_tower.live_embeddings
  referencing new table as new_rows
  for each statement execute function two_tower.add_to_exploration_pool();
