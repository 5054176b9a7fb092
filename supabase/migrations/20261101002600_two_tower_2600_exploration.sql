-- New posts are shown to a few readers whatever their score. That ends when they had
-- settings.exploration_impressions, or somebody else than the author liked them: what one reader
-- dislikes goes on being shown to others. A pool of their own saves a look at all posts.
--
-- Half of them are those nearest to a reader, and half are met by chance, so that what is near to
-- nobody is shown too. Authors take turns in both halves, however much each of them wrote.
--
-- Nearest are looked for among a few hundred: the newest first posts of all authors, then their
-- second ones. By chance, authors stand in the order of a keyed hash, and so do the posts of each.
-- A reader starts at a random author, and takes the next ones. An author is met as often as the gap
-- before the author's hash is wide: 1 / authors on average.

create table two_tower.exploration_pool (
  post_id bigint primary key references two_tower.posts (id) on delete cascade,
  author_shuffled bigint not null,
  shuffled bigint not null,
  turn integer not null default 0,
  created_at timestamptz not null,
  impressions integer not null default 0
);
comment on table two_tower.exploration_pool is 'New posts that have not had settings.exploration_impressions yet, and that nobody has engaged with positively.';
comment on column two_tower.exploration_pool.author_shuffled is 'A hash of the author, keyed with state.hash_seed. Of the post where it has none. Readers start at random places in this order.';
comment on column two_tower.exploration_pool.shuffled is 'A hash of the post, keyed with state.hash_seed. Among the posts of an author, readers start at random places in this order.';
comment on column two_tower.exploration_pool.turn is 'How many posts of the author were here when this one came, at most 1,000: authors take turns.';
comment on column two_tower.exploration_pool.created_at is 'live_embeddings.created_at.';
comment on column two_tower.exploration_pool.impressions is 'Readers who saw it since, as far as follow_events() has come. Its author is none.';
create index exploration_pool_shuffled_idx
  on two_tower.exploration_pool (author_shuffled, shuffled);
create index exploration_pool_turn_idx on two_tower.exploration_pool (turn, created_at desc);

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
  insert into two_tower.exploration_pool (post_id, author_shuffled, shuffled, turn, created_at)
  select n.post_id, n.author_shuffled, n.shuffled,
    least(1000, row_number() over (partition by n.author_shuffled order by n.shuffled) - 1
      + (select count(*) from (
           select from two_tower.exploration_pool e
           where e.author_shuffled = n.author_shuffled limit 1000) e)),
    n.created_at
  from (
    select r.post_id, coalesce(uuid_hash_extended(r.author_id, s.hash_seed), h.hash)
        as author_shuffled, h.hash as shuffled, r.created_at
    from new_rows r join two_tower.state s on s.active_slot = r.slot
      cross join two_tower.settings c
      cross join lateral (select hashint8extended(r.post_id, s.hash_seed) as hash) h
    where r.is_pretrained and r.is_listed and r.created_at > two_tower.now() - c.exploration_age
  ) n
  order by n.post_id
  on conflict do nothing;
  return null;
end
$$;
comment on function two_tower.add_to_exploration_pool() is 'Adds every new post to the exploration pool, if it is younger than settings.exploration_age.';
create trigger add_to_exploration_pool after insert on two_tower.live_embeddings
  referencing new table as new_rows
  for each statement execute function two_tower.add_to_exploration_pool();
