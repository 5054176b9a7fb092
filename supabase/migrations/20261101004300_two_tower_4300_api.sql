-- What clients call. Each function of public is a thin SECURITY INVOKER wrapper. The cores are
-- SECURITY DEFINER and live in two_tower, which is not exposed. They act for auth.uid() alone, so
-- that calling one directly gains nothing.

create function two_tower.require_user() returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_user_id uuid := auth.uid();
begin
  if v_user_id is null then
    raise exception 'the caller is not signed in' using errcode = '42501',
      hint = 'Call with the access token of a user. Backends call recommend_for() with the service role.';
  end if;
  return v_user_id;
end
$$;
comment on function two_tower.require_user() is 'Returns auth.uid(). Raises 42501 when the caller is not signed in.';

create function two_tower.recommend_to_caller(p_limit integer, p_exclude bigint[])
returns table (
  post_id bigint, author_id uuid, content text, created_at timestamptz, score double precision,
    source text, arm text
) language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.recommend_for(two_tower.require_user(), p_limit, p_exclude);
$$;
comment on function two_tower.recommend_to_caller(integer, bigint[]) is
  'The core of recommend(). Definer: reads embeddings, on which clients have no grant, for the caller only.';

create function public.recommend(p_limit integer default 20, p_exclude bigint[] default '{}')
returns table (
  post_id bigint, author_id uuid, content text, created_at timestamptz, score double precision,
    source text, arm text
) language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.recommend_to_caller(p_limit, p_exclude);
$$;
comment on function public.recommend(integer, bigint[]) is
  'Returns posts for the signed-in user, best first, with score and source. p_limit: 1 to 500, default 20. p_exclude: post ids to leave out, such as those already on the page. Writes nothing, so it works by GET. Raises 42501 when nobody is signed in.';

create function public.recommend_for(p_user_id uuid, p_limit integer default 20,
  p_exclude bigint[] default '{}')
returns table (
  post_id bigint, author_id uuid, content text, created_at timestamptz, score double precision,
    source text, arm text
) language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.recommend_for(p_user_id, p_limit, p_exclude);
$$;
comment on function public.recommend_for(uuid, integer, bigint[]) is
  'For back ends with the service role: returns what recommend() returns to a user, as for a page that a server renders, or a digest by e-mail. Raises 22023 without a user.';

create function two_tower.similar_posts_for_caller(p_post_id bigint, p_limit integer)
returns table (post_id bigint, author_id uuid, content text, created_at timestamptz,
  score double precision)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_user_id uuid := two_tower.require_user();
  v_slot smallint := (select active_slot from two_tower.state);
  v_vector extensions.vector := (select embedding from two_tower.live_embeddings v
    where v.slot = v_slot and v.post_id = p_post_id);
begin
  return query
  select p.id, p.author_id, p.content, p.created_at,
    -(v.embedding operator(extensions.<#>) v_vector) as similarity
  from unnest(coalesce(two_tower.find_nearest_posts(v_vector, 200), array(
      select n.post_id from two_tower.live_embeddings n where n.slot = v_slot and not n.is_deleted
      order by n.embedding operator(extensions.<#>) v_vector limit 200))) as near (post_id)
    join two_tower.live_embeddings v on v.slot = v_slot and v.post_id = near.post_id
    join public.posts p on p.id = v.post_id
  where v.post_id <> p_post_id and not v.is_deleted
    and not exists (select from two_tower.withheld_authors a
                    where a.user_id = v_user_id and a.author_id = v.author_id)
  order by similarity desc, p.id
  limit case when v_vector is null then 0 else least(100, greatest(1, coalesce(p_limit, 20))) end;
end
$$;
comment on function two_tower.similar_posts_for_caller(bigint, integer) is 'The core of similar_posts(). Definer: reads embeddings, on which clients have no grant.';

create function public.similar_posts(p_post_id bigint, p_limit integer default 20)
returns table (post_id bigint, author_id uuid, content text, created_at timestamptz,
  score double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.similar_posts_for_caller(p_post_id, p_limit);
$$;
comment on function public.similar_posts(bigint, integer) is 'Returns the posts whose live embeddings are nearest to that of a post, best first. p_limit: 1 to 100, default 20. Returns nothing for a post that is not encoded. Raises 42501 when nobody is signed in.';

create function two_tower.popular_posts_for_caller(p_limit integer)
returns table (post_id bigint, author_id uuid, content text, created_at timestamptz,
  score double precision)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select p.id, p.author_id, p.content, p.created_at,
    c.popularity / two_tower.compute_popularity(1, two_tower.now())
  from two_tower.popular_candidates c
    join public.posts p on p.id = c.post_id
  where p.deleted_at is null and not exists (
    select from two_tower.withheld_authors a
      where a.user_id = two_tower.require_user() and a.author_id = p.author_id)
  order by c.popularity desc, p.id desc
  limit least(100, greatest(1, coalesce(p_limit, 20)));
$$;
comment on function two_tower.popular_posts_for_caller(integer) is 'The core of popular_posts(). Definer: reads popularity, on which clients have no grant.';

create function public.popular_posts(p_limit integer default 20)
returns table (post_id bigint, author_id uuid, content text, created_at timestamptz,
  score double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.popular_posts_for_caller(p_limit);
$$;
comment on function public.popular_posts(integer) is 'Returns the posts with the highest decayed popularity, from a list that is a few minutes old. p_limit: 1 to 100, default 20. Raises 42501 when nobody is signed in.';

create function public.recent_from_followed(p_limit integer default 20)
returns table (post_id bigint, author_id uuid, content text, created_at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select p.id, p.author_id, p.content, p.created_at
  from public.posts p
  where p.deleted_at is null
    and p.author_id in (select f.followed_id from public.follows f
      where f.follower_id = two_tower.require_user())
    and not exists (select from public.author_blocks b
                    where b.user_id = two_tower.require_user() and b.author_id = p.author_id)
  order by p.created_at desc, p.id desc
  limit least(100, greatest(1, coalesce(p_limit, 20)));
$$;
comment on function public.recent_from_followed(integer) is 'Returns the newest posts of authors whom the signed-in user follows. p_limit: 1 to 100, default 20. Raises 42501 when nobody is signed in.';

create function two_tower.explain_for(p_user_id uuid, p_post_id bigint)
returns table (
  post_id bigint, is_eligible boolean, reason text, place bigint, personal double precision,
  popular double precision, fresh double precision, followed double precision
) language sql stable set search_path = pg_catalog, pg_temp as $$
  with reader as materialized (
    select p_user_id as user_id, two_tower.load_reader(p_user_id) as reader
  ), page as (
    select l.post_id, l.place
    from reader r
      cross join lateral two_tower.recommend_for(r.user_id, 500) with ordinality
        as l (post_id, author_id, content, created_at, score, source, arm, place)
  )
  select p_post_id, e.is_eligible,
         case
           when p.id is null then 'there is no such post'
           when p.deleted_at is not null then 'the post is deleted'
           when p.author_id = r.user_id then 'it is your own post'
           when u.is_hidden then 'you hid it'
           when u.is_engaged then 'you engaged with it'
           when u.user_id is not null then 'you have seen it'
           when exists (select from public.author_blocks b
             where b.user_id = r.user_id and b.author_id = p.author_id)
             then 'you blocked or muted its author'
           when not e.is_eligible then 'it is not available to you'
           when k.post_id is null then 'eligible, but its text is not encoded yet'
           else 'eligible' end,
         page.place, k.personal, k.popular, k.fresh, k.followed
  from reader r
    left join public.posts p on p.id = p_post_id
    left join two_tower.user_posts u on u.user_id = r.user_id and u.post_id = p_post_id
    cross join lateral (select p.id is not null and p.deleted_at is null
      and two_tower.is_eligible(r.user_id, p.id, p.author_id) as is_eligible) e
    left join lateral two_tower.score_posts(r.reader, array[p_post_id]) k on e.is_eligible
    left join page on page.post_id = p_post_id;
$$;
comment on function two_tower.explain_for(uuid, bigint) is
  'Explains why a post is where it is for a user, or why it is not recommended. The reason speaks to the user, and does not tell who blocked the user.';

create function two_tower.explain_to_caller(p_post_id bigint)
returns table (
  post_id bigint, is_eligible boolean, reason text, place bigint, personal double precision,
  popular double precision, fresh double precision, followed double precision
) language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.explain_for(two_tower.require_user(), p_post_id);
$$;
comment on function two_tower.explain_to_caller(bigint) is
  'The core of explain_recommendation(). Definer: reads embeddings for the caller only.';

create function public.explain_recommendation(p_post_id bigint)
returns table (
  post_id bigint, is_eligible boolean, reason text, place bigint, personal double precision,
  popular double precision, fresh double precision, followed double precision
) language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.explain_to_caller(p_post_id);
$$;
comment on function public.explain_recommendation(bigint) is
  'Explains why a post is where it is for the signed-in user, or why it is not recommended. place: on a page of 500 (null: further down). The parts of the score are those of score_posts(). Raises 42501 when nobody is signed in.';

create function public.explain_for(p_user_id uuid, p_post_id bigint)
returns table (
  post_id bigint, is_eligible boolean, reason text, place bigint, personal double precision,
  popular double precision, fresh double precision, followed double precision
) language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.explain_for(p_user_id, p_post_id);
$$;
comment on function public.explain_for(uuid, bigint) is
  'For back ends with the service role: returns what explain_recommendation() returns to a user.';

create function two_tower.begin_batch() returns timestamptz
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform two_tower.lock_users(array[two_tower.require_user()]);
  return (select two_tower.now() - s.client_event_retry_window from two_tower.settings s);
end
$$;
comment on function two_tower.begin_batch() is
  'Returns since when a client_event_id is remembered. Definer: locks the caller''s own row, so that a batch and its retry do not run at once.';

create function public.record_engagements(p_events jsonb)
returns table (client_event_id uuid, event_id bigint, created_at timestamptz)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_since timestamptz;
  v_events two_tower.event[];
begin
  if jsonb_typeof(p_events) is distinct from 'array' then
    raise exception 'p_events is not an array of events' using errcode = '22023',
      hint = 'Pass [{"post_id": 1, "event_type": "like", "client_event_id": "a uuid"}, ...]';
  elsif jsonb_array_length(p_events) > 500 then
    raise exception 'a call takes at most 500 events, not %', jsonb_array_length(p_events)
      using errcode = 'TT002', hint = 'Send them in several calls.';
  end if;
  v_since := two_tower.begin_batch();
  select array_agg(row(null, null, r.post_id, r.event_type, r.dwell_ms,
                       coalesce(r.client_event_id, gen_random_uuid()),
                         null)::two_tower.event order by e.place)
  into v_events
  from jsonb_array_elements(p_events) with ordinality as e (event, place)
    cross join lateral jsonb_to_record(e.event)
      as r (post_id bigint, event_type text, dwell_ms integer, client_event_id uuid);

  insert into public.engagement_events (post_id, event_type, dwell_ms, client_event_id)
  select e.post_id, e.event_type, e.dwell_ms, e.client_event_id
  from unnest(v_events) with ordinality as e (id, user_id, post_id, event_type, dwell_ms,
    client_event_id, created_at, place)
  where not exists (select from public.engagement_events s
                    where s.client_event_id = e.client_event_id and s.user_id = (select auth.uid())
                      and s.created_at > v_since)
    and not exists (select from unnest(v_events) with ordinality
                      as f (id, user_id, post_id, event_type, dwell_ms, client_event_id, created_at,
                        place)
                    where f.client_event_id = e.client_event_id and f.place < e.place)
  order by e.place;

  return query
  select s.client_event_id, s.id, s.created_at
  from unnest(v_events) with ordinality as e (id, user_id, post_id, event_type, dwell_ms,
    client_event_id, created_at, place)
    join public.engagement_events s
      on s.client_event_id = e.client_event_id and s.user_id = (select auth.uid())
        and s.created_at > v_since
  order by e.place;
end
$$;
comment on function public.record_engagements(jsonb) is
  'Stores a batch of the signed-in user''s events, all or nothing: [{"post_id", "event_type", "dwell_ms"?, "client_event_id"?}], at most 500. Returns a row per event, in order. Does not store an event again whose client_event_id is stored already: a retry gets the same answer. Raises 22023 for what is no array, TT002 for more than 500 events, and what an insert raises.';
