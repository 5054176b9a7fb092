-- New posts are shown to a few readers whatever their score. That ends when they had
-- settings.exploration_impressions, or somebody else than the author liked them: what one reader
-- dislikes goes on being shown to others. A pool of their own saves a look at all posts.
--
-- Authors take turns, however much each of them wrote. They stand in the order of a keyed hash, and
-- so do the posts of each. A reader starts at a random author, and takes the next ones. An author
-- is met as often as the gap before the author's hash is wide: 1 / authors on average.

create table two_tower.exploration_pool (
  post_id bigint primary key references two_tower.posts (id) on delete cascade,
  author_shuffled bigint not null,
  shuffled bigint not null,
  impressions integer not null default 0
);
comment on table two_tower.exploration_pool is 'New posts that have not had settings.exploration_impressions yet, and that nobody has engaged with positively.';
comment on column two_tower.exploration_pool.author_shuffled is 'A hash of the author, keyed with state.hash_seed. Of the post where it has none. Readers start at random places in this order.';
comment on column two_tower.exploration_pool.shuffled is 'A hash of the post, keyed with state.hash_seed. Among the posts of an author, readers start at random places in this order.';
comment on column two_tower.exploration_pool.impressions is 'Views since the post was added, as far as follow_events() has come.';
create index exploration_pool_shuffled_idx
  on two_tower.exploration_pool (author_shuffled, shuffled);

create table two_tower.cold_start_counts (
  hour timestamptz primary key,
  impressions integer not null,
  engagements integer not null
);
comment on table two_tower.cold_start_counts is 'How posts in the exploration pool fared, by the hour, for two days.';
comment on column two_tower.cold_start_counts.impressions is 'Readers who viewed such a post.';
comment on column two_tower.cold_start_counts.engagements is 'Readers who engaged with such a post, positively.';

create function two_tower.add_to_exploration_pool() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  insert into two_tower.exploration_pool (post_id, author_shuffled, shuffled)
  select n.post_id, coalesce(uuid_hash_extended(n.author_id, s.hash_seed), h.hash), h.hash
  from new_rows n join two_tower.state s on s.active_slot = n.slot
    cross join lateral (select hashint8extended(n.post_id, s.hash_seed) as hash) h
  where n.is_pretrained and n.is_listed
  order by n.post_id
  on conflict do nothing;
  return null;
end
$$;
comment on function two_tower.add_to_exploration_pool() is 'Adds every new post to the exploration pool.';
create trigger add_to_exploration_pool after insert on two_tower.live_embeddings
  referencing new table as new_rows
  for each statement execute function two_tower.add_to_exploration_pool();
