-- Who moved what. These views read much, and are for people. They look back to the checkpoint that
-- a rollback would take: what they show is what would be lost.

create function two_tower.last_good_checkpoint() returns two_tower.checkpoints
language sql stable set search_path = pg_catalog, pg_temp as $$
  select c.* from two_tower.checkpoints c cross join two_tower.state s
  where c.is_good and c.made_at < coalesce(s.wrong_since, 'infinity')
  order by c.id desc limit 1;
$$;
comment on function two_tower.last_good_checkpoint() is 'Returns the newest good checkpoint from before what went wrong (state.wrong_since); nulls where there is none.';

create view two_tower.lessons with (security_invoker = true) as
select
  x.event_id, x.created_at, x.user_id, x.post_id, s.name as source, p.key, x.event_type,
  x.step, x.popularity, cardinality(x.pushed_ids) as pushed_posts, x.is_withdrawn,
  two_tower.is_rolled_back(x.event_id) as is_rolled_back
from two_tower.training_examples as x
left join two_tower.posts as p on p.id = x.post_id
left join two_tower.sources as s on s.id = p.source_id;
comment on view two_tower.lessons is 'What each learned event did: whose it was, about which post, and how far it moved the post. Ask by user_id, or for a range of created_at: there is no index by post.';
comment on column two_tower.lessons.key is 'The key of the post''s row in the app''s table.';
comment on column two_tower.lessons.step is 'How far it moved the post towards the user (above 0) or away.';
comment on column two_tower.lessons.popularity is 'What it added to the popularity of the post, in likes.';
comment on column two_tower.lessons.pushed_posts is 'How many other posts it pushed away.';
comment on column two_tower.lessons.is_rolled_back is 'A rollback took it back.';

create view two_tower.most_moved_posts with (security_invoker = true) as
with since as materialized (
  select c.id, c.candidate_tower, coalesce(c.made_at, '-infinity') as made_at,
    coalesce(c.last_event_id, 0) as last_event_id
  from two_tower.last_good_checkpoint() as c
), by_user as (
  select x.post_id, x.user_id, count(*) as lessons, sum(abs(x.step)) as movement
  from since as c
  join two_tower.training_examples as x
    on x.event_id > c.last_event_id and not x.is_withdrawn
  group by x.post_id, x.user_id
), by_post as (
  select b.post_id, sum(b.lessons)::bigint as lessons, count(*) as users,
    sum(b.movement) as movement, max(b.movement) as most_by_one,
    (array_agg(b.user_id order by b.movement desc, b.user_id))[1] as most_by
  from by_user as b group by b.post_id
)
select
  m.post_id, s.name as source, p.key,
  1 + (v.embedding operator(extensions.<#>) k.embedding) as distance, m.movement, m.lessons,
  m.users, m.most_by, m.most_by_one / nullif(m.movement, 0) as share_of_most_by
from by_post as m
cross join since as c
cross join two_tower.state as t
left join two_tower.posts as p on p.id = m.post_id
left join two_tower.sources as s on s.id = p.source_id
left join two_tower.live_embeddings as v on v.slot = t.active_slot and v.post_id = m.post_id
left join two_tower.checkpoint_posts as k on k.checkpoint_id = c.id and k.post_id = m.post_id
  and c.candidate_tower = two_tower.active_version('candidate_tower')
order by m.movement desc, m.post_id;
comment on view two_tower.most_moved_posts is 'Posts by how far events moved them since the last good checkpoint, and by whom. Take the first rows (limit).';
comment on column two_tower.most_moved_posts.distance is 'Cosine distance from the checkpoint. Null where nothing was learned of the post then, or another candidate tower served.';
comment on column two_tower.most_moved_posts.movement is 'The sum of the steps of its events, in either direction.';
comment on column two_tower.most_moved_posts.lessons is 'How many events moved it.';
comment on column two_tower.most_moved_posts.users is 'How many users moved it.';
comment on column two_tower.most_moved_posts.most_by is 'The user who moved it most.';
comment on column two_tower.most_moved_posts.share_of_most_by is 'That user''s share of movement.';

create view two_tower.most_moving_users with (security_invoker = true) as
with by_type as (
  select x.user_id, x.event_type, count(*) as lessons, sum(abs(x.step)) as movement,
    array_agg(distinct x.post_id) as post_ids, min(x.created_at) as first_at,
    max(x.created_at) as last_at
  from two_tower.last_good_checkpoint() as c
  join two_tower.training_examples as x
    on x.event_id > coalesce(c.last_event_id, 0) and not x.is_withdrawn
  group by x.user_id, x.event_type
)
select
  b.user_id, sum(b.movement) as movement, sum(b.lessons)::bigint as lessons,
  jsonb_object_agg(b.event_type, b.lessons) as event_types,
  (select count(distinct n.post_id) from by_type as y cross join unnest(y.post_ids) as n (post_id)
    where y.user_id = b.user_id) as posts,
  min(b.first_at) as first_at, max(b.last_at) as last_at, u.created_at as known_since,
  e.active_days
from by_type as b
left join two_tower.users as u on u.id = b.user_id
left join two_tower.user_embeddings as e on e.user_id = b.user_id
group by b.user_id, u.created_at, e.active_days
order by movement desc, b.user_id;
comment on view two_tower.most_moving_users is 'Users by how far their events moved posts since the last good checkpoint. Take the first rows (limit).';
comment on column two_tower.most_moving_users.movement is 'The sum of the steps of posts, in either direction.';
comment on column two_tower.most_moving_users.event_types is 'How many lessons of each event type.';
comment on column two_tower.most_moving_users.known_since is 'When the engine first met the user.';

create view two_tower.most_moved_users with (security_invoker = true) as
select
  u.user_id, 1 + (u.embedding operator(extensions.<#>) k.embedding) as distance,
  u.engagement_count - k.engagement_count as engagements, u.active_days
from two_tower.last_good_checkpoint() as c
join two_tower.checkpoint_users as k on k.checkpoint_id = c.id
join two_tower.user_embeddings as u
  on u.user_id = k.user_id and u.embedding operator(extensions.<>) k.embedding
order by distance desc, u.user_id;
comment on view two_tower.most_moved_users is 'Users by how far they moved since the last good checkpoint. Take the first rows (limit).';
comment on column two_tower.most_moved_users.distance is 'Cosine distance from the checkpoint.';
comment on column two_tower.most_moved_users.engagements is 'How many engagements moved the user since.';

create view two_tower.user_post_signals with (security_invoker = true) as
select
  u.user_id, u.post_id,
  array(select g.event_type from two_tower.signals as g where u.signals & g.bit <> 0
    order by g.bit) as signals,
  u.is_engaged, u.is_hidden, u.first_seen_at, u.last_event_at
from two_tower.user_posts as u;
comment on view two_tower.user_post_signals is 'user_posts, with the signals in force as words.';
comment on column two_tower.user_post_signals.signals is 'Event types in force, such as {view,like}.';

create function two_tower.measure_concentration(p_window interval default '7 days')
returns table (listed_posts bigint, shown_posts bigint, readers_reached bigint,
  gini double precision, share_of_top_percent double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with shown as (
    select u.post_id, count(*) as readers from two_tower.user_posts u
    where u.first_seen_at > two_tower.now() - p_window group by u.post_id
  ), listed as (
    select coalesce(s.readers, 0) as readers,
      row_number() over (order by coalesce(s.readers, 0), p.id) as place,
      count(*) over () as posts
    from two_tower.posts p left join shown s on s.post_id = p.id where p.is_listed
  )
  select count(*), count(*) filter (where readers > 0), coalesce(sum(readers), 0)::bigint,
    2 * sum(place * readers)::double precision / nullif(max(posts) * sum(readers), 0)
      - (max(posts) + 1) / nullif(max(posts), 0)::double precision,
    sum(readers) filter (where place > posts - ceil(posts / 100.0))
      / nullif(sum(readers), 0)::double precision
  from listed;
$$;
comment on function two_tower.measure_concentration(interval) is 'Says how impressions of the last p_window are spread over listed posts. A reader counts once a post. gini: 0 when all posts were shown to as many readers, near 1 when few took all; null without any. share_of_top_percent: the share of the hundredth of posts that was shown most. Reads all of user_posts.';

create view two_tower.posts_never_shown with (security_invoker = true) as
select p.id as post_id, s.name as source, p.key, p.author_id, p.created_at
from two_tower.posts as p
join two_tower.sources as s on s.id = p.source_id
where p.is_listed
  and not exists (select from two_tower.user_posts as u where u.post_id = p.id)
order by p.created_at desc, p.id;
comment on view two_tower.posts_never_shown is 'Listed posts that no reader has seen, the newest first. Reads all of user_posts.';
