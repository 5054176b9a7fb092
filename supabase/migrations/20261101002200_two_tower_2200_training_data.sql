-- What the trainings read. A worker asks for it here, computes, and hands weights back. SQL decides
-- which events are trained on, which are held out, and what a post's vector was.
--
-- All of it is as of t0, an event id. Ids are the order in which events are learned, so a training
-- reads nothing that was learned later. Vectors are those that training_examples recorded, never
-- the live ones, which know the future.

create function two_tower.newest_examples(p_before bigint, p_label boolean, p_limit integer)
returns table (event_id bigint, user_id uuid, post_id bigint, event_type text,
  created_at timestamptz, user_emb extensions.halfvec, post_emb extensions.halfvec)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select e.id, e.user_id, e.post_id, x.event_type, e.created_at, x.user_emb, x.post_emb
  from public.engagement_events e
    cross join lateral (
      select t.event_type, t.user_emb, t.post_emb from two_tower.training_examples t
      where t.user_id = e.user_id and t.post_id = e.post_id and t.event_id = e.id
        and t.created_at = e.created_at and not t.is_withdrawn
        and (p_label is null or t.label = p_label)
      limit 1
    ) x
  where e.id < coalesce(p_before, 9223372036854775807)
    and e.event_type in (select g.event_type from two_tower.signals g
      where g.strength <> 0 and (p_label is null or g.label = p_label or g.event_type = 'dwell'))
  order by e.id desc
  limit p_limit;
$$;
comment on function two_tower.newest_examples(bigint, boolean, integer) is
  'Returns the newest p_limit learned events before the event p_before (null: all), newest first. p_label: only events with this label; null: with any. Both vectors are as they stood before the event. Walks the events by id, and looks each example up by its key, so that training_examples needs no other index.';

create function two_tower.cap_account(p_user_ids uuid[], p_share double precision)
returns integer language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(max(c.place) filter (where c.place <= p_share * c.total), 1)::integer
  from (
    select u.place, sum(count(*)) over (order by u.place) as total
    from (select row_number() over (partition by i.id) as place
          from unnest(p_user_ids) as i (id)) u
    group by u.place
  ) c;
$$;
comment on function two_tower.cap_account(uuid[], double precision) is
  'Returns how many rows one account may have, so that no account has more than p_share of what is left. p_user_ids: the account of each row. Returns at least 1.';

create function two_tower.share_of_account(p_user_ids uuid[]) returns double precision
language sql stable set search_path = pg_catalog, pg_temp as $$
  select greatest(s.account_share, 2.0 / nullif(count(distinct i.id), 0))
  from two_tower.settings s left join unnest(p_user_ids) as i (id) on true
  group by s.account_share;
$$;
comment on function two_tower.share_of_account(uuid[]) is 'Returns the largest share of examples that one account may have: settings.account_share or, where few are there, 2 / accounts. p_user_ids: the account of each example.';

-- A user who likes 60 posts a minute would be all of the newest examples.
create function two_tower.shared_examples(p_before bigint, p_label boolean, p_limit integer)
returns table (event_id bigint, user_id uuid, post_id bigint, event_type text,
  created_at timestamptz, user_emb extensions.halfvec, post_emb extensions.halfvec)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with read as materialized (
    select n.*, row_number() over (partition by n.user_id order by n.event_id desc) as place
    from two_tower.settings s
      cross join two_tower.newest_examples(p_before, p_label, greatest(s.examples_read, p_limit)) n
    where extensions.vector_norm(n.user_emb::extensions.vector) > 0
  ), cap as materialized (
    select greatest(1, least(two_tower.cap_account(r.user_ids, h.share),
      floor(h.share * p_limit))) as places
    from (select coalesce(array_agg(user_id), '{}') as user_ids from read) r
      cross join two_tower.share_of_account(r.user_ids) as h (share)
  )
  select r.event_id, r.user_id, r.post_id, r.event_type, r.created_at, r.user_emb, r.post_emb
  from read r cross join cap c
  where r.place <= c.places
  order by r.event_id desc limit p_limit;
$$;
comment on function two_tower.shared_examples(bigint, boolean, integer) is
  'Returns the newest p_limit examples as newest_examples() does, but of one account at most share_of_account(), its newest. Leaves out those of users of whom nothing was known. Reads back at most settings.examples_read.';

create function two_tower.held_out_from() returns bigint
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select min(x.event_id) from (
    select n.event_id, row_number() over (order by n.event_id desc) as place, count(*) over () as n
    from two_tower.settings s
      cross join two_tower.shared_examples(null, true, 2 * s.gate_events) n
  ) x where x.place <= greatest(1, x.n / 2);
$$;
comment on function two_tower.held_out_from() is
  'Returns t0: from this event id on are the newest settings.gate_events positives (shared_examples). Where there are fewer than twice as many, half of them are. They are for the gate; earlier events are for training. Returns null when there are none. Definer: workers have no grant on tables.';

create function two_tower.posts_as_of(p_before bigint)
returns table (post_id bigint, embedding extensions.vector, engagements integer)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select distinct on (r.post_id) r.post_id, r.post_emb::extensions.vector,
    (count(*) over (partition by r.post_id))::integer
  from two_tower.settings s
    cross join two_tower.newest_examples(p_before, null, s.examples_read) r
  order by r.post_id, r.event_id desc;
$$;
comment on function two_tower.posts_as_of(bigint) is
  'Returns where posts stood before the event p_before. embedding: the vector at the last learned event about the post, of the newest settings.examples_read events. engagements: how many of those were about it.';

create function two_tower.candidate_tower_pairs(p_before bigint)
returns table (event_id bigint, label boolean, user_emb extensions.vector, post_id bigint,
  negative_ids bigint[])
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  with positive as (
    select n.* from two_tower.settings s
      cross join two_tower.shared_examples(p_before, true, s.candidate_tower_pairs) n
  ), explicit as (
    select n.*, row_number() over (partition by n.user_id order by n.event_id desc) as place
    from two_tower.settings s
      cross join two_tower.newest_examples(p_before, false, s.candidate_tower_pairs) n
    where n.event_id >= (select min(event_id) from positive)
  ), cap as materialized (
    select greatest(1, two_tower.share_of_account(array_agg(user_id)) * count(*)) as places
    from positive
  )
  select p.event_id, true, p.user_emb::extensions.vector, p.post_id, array(
    select i.id from unnest(x.negative_ids) with ordinality as i (id, place)
    where not exists (
      select from two_tower.user_posts u
      where u.user_id = p.user_id and u.post_id = i.id and u.is_engaged
        and u.last_event_at < (select max(created_at) from positive))
    order by i.place)
  from positive p
    join two_tower.training_examples x using (user_id, post_id, event_id, created_at)
  union all
  select e.event_id, false, e.user_emb::extensions.vector, e.post_id, '{}'
  from explicit e cross join cap c
  where e.place <= c.places and extensions.vector_norm(e.user_emb::extensions.vector) > 0;
$$;
comment on function two_tower.candidate_tower_pairs(bigint) is
  'Returns what the candidate tower is trained on. label true: the newest settings.candidate_tower_pairs positives before t0, with their negatives. label false: the explicit negatives of the same time. One account gives at most share_of_account() of the positives, and no more negatives than that. Leaves out withdrawn signals, and negatives that the user had engaged with by then. Definer: workers have no grant on tables.';

create function two_tower.read_base_embeddings(p_post_ids bigint[])
returns table (post_id bigint, base_embedding extensions.vector)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select b.post_id, b.base_embedding from two_tower.base_embeddings b
  where b.post_id = any (p_post_ids) and b.encoder = two_tower.active_encoder() order by b.post_id;
$$;
comment on function two_tower.read_base_embeddings(bigint[]) is 'Returns the base embeddings of those of the posts that have one of the encoder at work. Definer: workers have no grant on tables.';

create function two_tower.live_anchors(p_before bigint, p_limit integer default 5000)
returns table (post_id bigint, embedding extensions.vector, engagements integer)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select p.post_id, p.embedding, p.engagements from two_tower.posts_as_of(p_before) p
  order by p.engagements desc, p.post_id limit p_limit;
$$;
comment on function two_tower.live_anchors(bigint, integer) is
  'Returns the anchors: the p_limit most engaged posts with their vectors before t0. A new tower is fitted to them, so that it projects into the space in which the live embeddings are. Definer: workers have no grant on tables.';

create function two_tower.users_to_train(p_before bigint) returns setof uuid
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select n.user_id from two_tower.settings s
    cross join two_tower.newest_examples(p_before, true, s.examples_read) n
  group by n.user_id, s.user_tower_users order by max(n.event_id) desc
  limit (select user_tower_users from two_tower.settings);
$$;
comment on function two_tower.users_to_train(bigint) is 'Returns at most settings.user_tower_users users: those with the newest positives before t0. Definer: workers have no grant on tables.';

create function two_tower.users_to_judge(p_from bigint) returns setof uuid
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select distinct n.user_id from two_tower.settings s
    cross join two_tower.shared_examples(null, true, 2 * s.gate_events) n
  where n.event_id >= p_from order by n.user_id;
$$;
comment on function two_tower.users_to_judge(bigint) is 'Returns the users with positives from t0 on. The gate asks for their vectors as of t0. Definer: workers have no grant on tables.';

create function two_tower.users_to_encode(p_after uuid, p_limit integer default 500)
returns setof uuid language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select u.user_id from two_tower.user_embeddings u cross join two_tower.settings s
  where u.user_id > p_after and u.engagement_count > 0
    and u.updated_at > two_tower.now() - s.active_user_window
  order by u.user_id limit p_limit;
$$;
comment on function two_tower.users_to_encode(uuid, integer) is
  'Returns at most p_limit users after p_after, in order of id, who engaged within settings.active_user_window. Read in batches, so that no job holds all users. Definer: workers have no grant on tables.';

create function two_tower.user_histories(p_before bigint, p_user_ids uuid[])
returns table (user_id uuid, author_ids uuid[], event_types text[], is_positive boolean[],
  hours double precision[], embeddings extensions.vector[], post_ids bigint[], oldest_event bigint)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  with post as materialized (
    select p.post_id, p.embedding from two_tower.posts_as_of(p_before) p where p_before is not null
  )
  select a.user_id, array_agg(h.author_id order by h.happened_at, h.id),
    array_agg(h.event_type order by h.happened_at, h.id),
    array_agg(h.label order by h.happened_at, h.id),
    array_agg(h.hours order by h.happened_at, h.id),
    array_agg(h.embedding order by h.happened_at, h.id),
    array_agg(h.post_id order by h.happened_at, h.id), min(h.id)
  from unnest(p_user_ids) as a (user_id)
    cross join two_tower.settings s
    cross join two_tower.state st
    cross join lateral (
      select e.id, e.happened_at, e.post_id, g.event_type, coalesce(g.label, false) as label,
        v.author_id, extract(epoch from e.happened_at)::double precision / 3600 as hours,
        case when p_before is null then v.embedding
          else coalesce(p.embedding, x.post_emb::extensions.vector) end as embedding
      from (
        select y.id, y.user_id, y.post_id, y.created_at,
          coalesce(y.happened_at, y.created_at) as happened_at
        from public.engagement_events y
        where y.user_id = a.user_id and y.id < coalesce(p_before, 9223372036854775807)
          and y.event_type in (select g.event_type from two_tower.signals g where g.strength <> 0)
        order by y.created_at desc, y.id desc limit s.history_length + 20
      ) e
        join two_tower.training_examples x on x.user_id = e.user_id and x.post_id = e.post_id
          and x.event_id = e.id and x.created_at = e.created_at and not x.is_withdrawn
          and (p_before is not null or x.reset_count = (
            select n.reset_count from two_tower.user_embeddings n where n.user_id = a.user_id))
        join two_tower.signals g on g.event_type = x.event_type
        join two_tower.live_embeddings v on v.slot = st.active_slot and v.post_id = e.post_id
        left join post p on p.post_id = e.post_id
    ) h
  group by a.user_id;
$$;
comment on function two_tower.user_histories(bigint, uuid[]) is
  'Returns learned engagements of users before t0, by when they happened, oldest first, with the posts'' vectors as they stood then. The user tower is trained on them, and judged by them. For t0 null, returns those of now with live embeddings, which the user tower encodes: of a user who began anew, those since. Definer: workers have no grant on tables.';

-- Numbers of the range, drawn by a hash of t0: uniform, without sorting all posts, and the same
-- again for the same data.
create function two_tower.random_posts_as_of(p_before bigint, p_count integer default 2000)
returns table (post_id bigint, hours double precision, embedding extensions.vector)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  with bounds as (
    select min(v.number) as low, max(v.number) - min(v.number) + 1 as span
    from two_tower.live_embeddings v where v.slot = (select active_slot from two_tower.state)
  ), drawn as (
    select b.low + (hashint8extended(n, p_before) & 9223372036854775807) % b.span as number,
      min(n) as turn
    from bounds b cross join generate_series(1, 4 * p_count) as n group by 1
  )
  select v.post_id, extract(epoch from v.created_at)::double precision / 3600,
    coalesce(p.embedding, v.embedding)
  from drawn d
    join two_tower.live_embeddings v on v.slot = (select active_slot from two_tower.state)
      and v.number = d.number
    left join two_tower.posts_as_of(p_before) p on p.post_id = v.post_id
  where v.is_pretrained or p.post_id is not null
  order by d.turn limit p_count;
$$;
comment on function two_tower.random_posts_as_of(bigint, integer) is
  'Returns negatives for the user tower: a uniform sample of at most p_count posts. embedding: the vector before t0. hours: the post''s time. Leaves out posts that were untouched then and are touched now. Definer: workers have no grant on tables.';

create function two_tower.event_types_to_train()
returns table (event_type text, is_positive boolean)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select s.event_type, coalesce(s.label, false) from two_tower.signals s order by s.bit;
$$;
comment on function two_tower.event_types_to_train() is
  'Returns all event types in the order of the rows of action.weight, and whether each is a positive to predict. Definer: workers have no grant on tables.';

create function two_tower.read_author_embeddings(p_author_ids uuid[])
returns table (author_id uuid, embedding extensions.vector)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select a.author_id, a.embedding from two_tower.author_embeddings a
  where a.author_id = any (p_author_ids) order by a.author_id;
$$;
comment on function two_tower.read_author_embeddings(uuid[]) is 'Returns the embeddings of those of the authors that have one. Definer: workers have no grant on tables.';
