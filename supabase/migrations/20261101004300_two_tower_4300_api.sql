-- What clients call. Each function of public is a thin SECURITY INVOKER wrapper. The cores are
-- SECURITY DEFINER and live in two_tower, which is not exposed. They act for auth.uid() alone, so
-- that calling one directly gains nothing. A core knows ids and no text. Which of them the caller
-- may read, the app's row level security says: every page passes through find_readable(), which
-- runs as the caller.

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

create function two_tower.require_reader(p_user_id uuid) returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if p_user_id is distinct from auth.uid() and not two_tower.is_operator() then
    raise exception 'the caller is not user %', p_user_id using errcode = '42501',
      hint = 'Call recommend(), or call with the service role.';
  end if;
  return p_user_id;
end
$$;
comment on function two_tower.require_reader(uuid) is 'Returns the user, if the caller may ask for this user''s page: the user, or an operator. Raises 42501 to others.';

create function two_tower.find_excluded(p_keys text[], p_source text) returns bigint[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return array(
    select p.id
    from two_tower.sources s
      cross join unnest(p_keys) as k (key)
      join two_tower.posts p
        on p.source_id = s.id and p.key = two_tower.canonical_key(k.key, s.key_type)
    where s.role = 'posts' and (p_source is null or s.name = p_source));
end
$$;
comment on function two_tower.find_excluded(text[], text) is 'Returns the ids of posts by their keys, in one source or, for null, in all. Passes over unknown keys. Definer: clients have no grant on the registry.';

create function two_tower.identify_post(p_post_id bigint, p_key text, p_source text) returns bigint
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return coalesce(p_post_id, case when p_key is not null
    then two_tower.find_post(p_key, p_source) end);
end
$$;
comment on function two_tower.identify_post(bigint, text, text) is 'Returns the id of a post that a caller names by id or by key; null for an unknown key. Definer: clients have no grant on the registry.';

create function two_tower.rank_for(p_user_id uuid, p_limit integer, p_exclude bigint[],
  p_source text, p_among bigint[] default null)
returns setof two_tower.page_row
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.recommend_for(two_tower.require_reader(p_user_id), p_limit, p_exclude,
    case when p_source is not null then (two_tower.choose_source(p_source)).id end, p_among);
$$;
comment on function two_tower.rank_for(uuid, integer, bigint[], text, bigint[]) is
  'The core of every page: ids and scores, no text. Raises 42501 for another user than the caller, and 22023 for an unknown source. Definer: clients have no grant on embeddings.';

create function two_tower.scan_limit() returns integer
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select exact_scan_limit from two_tower.settings;
$$;
comment on function two_tower.scan_limit() is 'Returns settings.exact_scan_limit. Definer: clients have no grant on settings.';

-- Nearly always the first round fills the page. Where the caller may read few of the posts, the
-- direction turns: what the caller may read is found first, and ranked then.
create function two_tower.page_for(p_user_id uuid, p_limit integer, p_exclude text[],
  p_source text default null)
returns setof two_tower.page_row
language plpgsql stable set search_path = pg_catalog, pg_temp rows 20 as $$
declare
  v_limit integer := least(500, greatest(1, coalesce(p_limit, 20)));
  v_excluded bigint[] := two_tower.find_excluded(coalesce(p_exclude, '{}'), p_source);
  v_round text;
  v_asked integer;
  v_found two_tower.page_row[];
  v_readable bigint[];
  v_page two_tower.page_row[] := '{}';
begin
  foreach v_round in array '{first, wide, turned}'::text[] loop
    v_asked := case v_round when 'wide' then greatest(v_limit, least(500, 10 * v_limit))
      else v_limit - cardinality(v_page) end;
    v_found := array(
      select r from two_tower.rank_for(p_user_id, v_asked, v_excluded, p_source,
        case v_round when 'turned' then array(
          select n from two_tower.find_newest_readable(two_tower.scan_limit(), p_source) n)
        end) r);
    v_readable := array(
      select r from two_tower.find_readable(array(select f.post_id from unnest(v_found) f)) r);
    v_page := v_page || array(
      select f from unnest(v_found) f where f.post_id = any (v_readable));
    exit when cardinality(v_page) >= v_limit or cardinality(v_found) < v_asked;
    v_excluded := v_excluded || array(select f.post_id from unnest(v_found) f);
  end loop;
  return query
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at,
    round(f.score::numeric, 3)::double precision, f.source, f.arm
  from unnest(v_page) with ordinality as f (post_id, post_key, post_source, author_id, created_at,
    score, source, arm, place)
  order by f.place limit v_limit;
end
$$;
comment on function two_tower.page_for(uuid, integer, text[], text) is
  'Returns a page of posts that the caller may read in the app''s tables. Asks for a page, then for a ten times longer one, then for the best of the newest settings.exact_scan_limit posts that the caller may read. Fewer come back only if more than that are readable. Scores are rounded.';

create function public.recommend(p_limit integer default 20, p_exclude text[] default '{}')
returns table (
  post_id bigint, post_key text, post_source text, author_id uuid, created_at timestamptz,
  score double precision, source text, arm text
) language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.page_for(two_tower.require_user(), p_limit, p_exclude);
$$;
comment on function public.recommend(integer, text[]) is
  'Returns posts for the signed-in user, best first, with score and source, of all attached tables. Only posts that the user may read. p_limit: 1 to 500, default 20. p_exclude: keys of posts to leave out, such as those already on the page. Writes nothing, so it works by GET. recommended_<table>() returns the rows themselves. Raises 42501 when nobody is signed in.';

create function public.recommend_for(p_user_id uuid, p_limit integer default 20,
  p_exclude text[] default '{}')
returns table (
  post_id bigint, post_key text, post_source text, author_id uuid, created_at timestamptz,
  score double precision, source text, arm text
) language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.page_for(p_user_id, p_limit, p_exclude);
$$;
comment on function public.recommend_for(uuid, integer, text[]) is
  'For back ends with the service role: returns what recommend() returns to a user, as for a page that a server renders, or a digest by e-mail. The service role may read all rows, so policies on the app''s tables do not count. Raises 22023 without a user.';

create function two_tower.rank_similar(p_post_id bigint, p_limit integer)
returns setof two_tower.page_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_user_id uuid := two_tower.require_user();
  v_slot smallint := (select active_slot from two_tower.state);
  v_vector extensions.vector := (select embedding from two_tower.live_embeddings v
    where v.slot = v_slot and v.post_id = p_post_id);
begin
  return query
  select p.id, r.key, s.name, p.author_id, p.created_at,
    -(v.embedding operator(extensions.<#>) v_vector) as similarity, 'similar', null
  from unnest(coalesce(two_tower.find_nearest_posts(v_vector, p_limit), array(
      select n.post_id from two_tower.live_embeddings n where n.slot = v_slot and n.is_listed
      order by n.embedding operator(extensions.<#>) v_vector limit p_limit))) as near (post_id)
    join two_tower.live_embeddings v on v.slot = v_slot and v.post_id = near.post_id
    join two_tower.listed_posts p on p.id = v.post_id
    join two_tower.posts r on r.id = p.id
    join two_tower.sources s on s.id = p.source_id
  where v.post_id <> p_post_id
    and not exists (select from two_tower.withheld_authors a
                    where a.user_id = v_user_id and a.author_id = v.author_id)
  order by similarity desc, p.id
  limit case when v_vector is null then 0 else p_limit end;
end
$$;
comment on function two_tower.rank_similar(bigint, integer) is 'The core of similar_posts(). Definer: clients have no grant on embeddings.';

create function public.similar_posts(p_post_id bigint default null, p_limit integer default 20,
  p_post_key text default null, p_post_source text default null)
returns table (post_id bigint, post_key text, post_source text, author_id uuid,
  created_at timestamptz, score double precision)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_post_id bigint := two_tower.identify_post(p_post_id, p_post_key, p_post_source);
  v_found two_tower.page_row[];
  v_readable bigint[];
begin
  v_found := array(select r from two_tower.rank_similar(v_post_id, 200) r);
  v_readable := array(select r from two_tower.find_readable(
    v_post_id || array(select f.post_id from unnest(v_found) f)) r);
  return query
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at,
    round(f.score::numeric, 3)::double precision
  from unnest(v_found) f
  where f.post_id = any (v_readable) and v_post_id = any (v_readable)
  limit least(100, greatest(1, coalesce(p_limit, 20)));
end
$$;
comment on function public.similar_posts(bigint, integer, text, text) is 'Returns the posts whose live embeddings are nearest to that of a post, best first. The post is named by p_post_id, or by p_post_key and, where several tables are attached, p_post_source. Only posts that the caller may read. p_limit: 1 to 100, default 20. Returns nothing for a post that is not encoded, or not readable. Raises 42501 when nobody is signed in.';

create function two_tower.rank_popular(p_limit integer) returns setof two_tower.page_row
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select p.id, r.key, s.name, p.author_id, p.created_at,
    c.popularity / two_tower.compute_popularity(1, two_tower.now()), 'popular', null
  from two_tower.popular_candidates c
    join two_tower.listed_posts p on p.id = c.post_id
    join two_tower.posts r on r.id = p.id
    join two_tower.sources s on s.id = p.source_id
  where not exists (
    select from two_tower.withheld_authors a
      where a.user_id = two_tower.require_user() and a.author_id = p.author_id)
  order by c.popularity desc, p.id desc
  limit p_limit;
$$;
comment on function two_tower.rank_popular(integer) is 'The core of popular_posts(). Definer: clients have no grant on popularity.';

create function public.popular_posts(p_limit integer default 20)
returns table (post_id bigint, post_key text, post_source text, author_id uuid,
  created_at timestamptz, score double precision)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_found two_tower.page_row[] := array(select r from two_tower.rank_popular(500) r);
  v_readable bigint[] := array(
    select r from two_tower.find_readable(array(select f.post_id from unnest(v_found) f)) r);
begin
  return query
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at,
    round(f.score::numeric, 3)::double precision
  from unnest(v_found) f where f.post_id = any (v_readable)
  limit least(100, greatest(1, coalesce(p_limit, 20)));
end
$$;
comment on function public.popular_posts(integer) is 'Returns the posts with the highest decayed popularity, from a list that is a few minutes old. Only posts that the caller may read. p_limit: 1 to 100, default 20. Raises 42501 when nobody is signed in.';

create function two_tower.rank_followed(p_limit integer) returns setof two_tower.page_row
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select p.id, r.key, s.name, p.author_id, p.created_at, 0::double precision, 'followed', null
  from two_tower.listed_posts p
    join two_tower.posts r on r.id = p.id
    join two_tower.sources s on s.id = p.source_id
  where p.author_id in (select f.followed_id from two_tower.follows f
      where f.follower_id = two_tower.require_user())
    and not exists (select from two_tower.withheld_authors a
                    where a.user_id = two_tower.require_user() and a.author_id = p.author_id)
  order by p.created_at desc, p.id desc
  limit p_limit;
$$;
comment on function two_tower.rank_followed(integer) is 'The core of recent_from_followed(). Definer: clients have no grant on the registry.';

create function public.recent_from_followed(p_limit integer default 20)
returns table (post_id bigint, post_key text, post_source text, author_id uuid,
  created_at timestamptz)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_found two_tower.page_row[] := array(select r from two_tower.rank_followed(500) r);
  v_readable bigint[] := array(
    select r from two_tower.find_readable(array(select f.post_id from unnest(v_found) f)) r);
begin
  return query
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at
  from unnest(v_found) f where f.post_id = any (v_readable)
  limit least(100, greatest(1, coalesce(p_limit, 20)));
end
$$;
comment on function public.recent_from_followed(integer) is 'Returns the newest posts of authors whom the signed-in user follows. Only posts that the caller may read. p_limit: 1 to 100, default 20. Raises 42501 when nobody is signed in.';

create type two_tower.explanation as (
  post_id bigint, is_eligible boolean, reason text, place bigint, personal double precision,
  popular double precision, fresh double precision, followed double precision
);
comment on type two_tower.explanation is 'Why a post is where it is for a user.';

create function two_tower.explain_post(p_user_id uuid, p_post_id bigint)
returns setof two_tower.explanation
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  with reader as materialized (
    select u.user_id, two_tower.load_reader(u.user_id) as reader
    from (select two_tower.require_reader(p_user_id) as user_id) u
  ), page as (
    select l.post_id, l.place
    from reader r
      cross join lateral two_tower.recommend_for(r.user_id, 500) with ordinality
        as l (post_id, post_key, post_source, author_id, created_at, score, source, arm, place)
  )
  select p_post_id, e.is_eligible,
         case
           when p.deleted_at is not null or not p.is_visible then 'the post is deleted'
           when p.removed_at is not null then 'the post was removed'
           when p.created_at > two_tower.now() then 'it is not published yet'
           when p.author_id = r.user_id then 'it is your own post'
           when u.is_hidden then 'you hid it'
           when u.is_engaged then 'you engaged with it'
           when u.user_id is not null then 'you have seen it'
           when exists (select from two_tower.blocks b
             where b.user_id = r.user_id and b.author_id = p.author_id)
             then 'you blocked or muted its author'
           when not e.is_eligible then 'it is not available to you'
           when k.post_id is null then 'eligible, but its text is not encoded yet'
           else 'eligible' end,
         page.place, k.personal, k.popular, k.fresh, k.followed
  from reader r
    join two_tower.posts p on p.id = p_post_id
    left join two_tower.user_posts u on u.user_id = r.user_id and u.post_id = p_post_id
    cross join lateral (
      select exists (select from two_tower.listed_posts l where l.id = p.id)
        and two_tower.is_eligible(r.user_id, p.id, p.author_id) as is_eligible) e
    left join lateral two_tower.score_posts(r.reader, array[p_post_id]) k on e.is_eligible
    left join page on page.post_id = p_post_id;
$$;
comment on function two_tower.explain_post(uuid, bigint) is
  'The core of explain_recommendation(). The reason speaks to the user, and does not tell who blocked the user. Returns nothing for an unknown post. Raises 42501 for another user than the caller. Definer: clients have no grant on embeddings.';

create function two_tower.explain_readable(p_user_id uuid, p_post_id bigint)
returns setof two_tower.explanation
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if exists (select from two_tower.find_readable(array[p_post_id])) then
    return query select * from two_tower.explain_post(p_user_id, p_post_id);
  end if;
  if not found then
    return query select p_post_id, false, 'there is no such post', null::bigint,
      null::double precision, null::double precision, null::double precision,
      null::double precision;
  end if;
end
$$;
comment on function two_tower.explain_readable(uuid, bigint) is 'Explains a post that the caller may read. An unknown post and one that the caller may not read get one answer.';

create function public.explain_recommendation(p_post_id bigint default null,
  p_post_key text default null, p_post_source text default null)
returns table (
  post_id bigint, is_eligible boolean, reason text, place bigint, personal double precision,
  popular double precision, fresh double precision, followed double precision
) language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.explain_readable(two_tower.require_user(),
    two_tower.identify_post(p_post_id, p_post_key, p_post_source));
$$;
comment on function public.explain_recommendation(bigint, text, text) is
  'Explains why a post is where it is for the signed-in user, or why it is not recommended. The post is named by p_post_id, or by p_post_key and, where several tables are attached, p_post_source. place: on a page of 500 (null: further down). The parts of the score are those of score_posts(). Raises 42501 when nobody is signed in.';

create function public.explain_for(p_user_id uuid, p_post_id bigint default null,
  p_post_key text default null, p_post_source text default null)
returns table (
  post_id bigint, is_eligible boolean, reason text, place bigint, personal double precision,
  popular double precision, fresh double precision, followed double precision
) language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.explain_readable(p_user_id,
    two_tower.identify_post(p_post_id, p_post_key, p_post_source));
$$;
comment on function public.explain_for(uuid, bigint, text, text) is
  'For back ends with the service role: returns what explain_recommendation() returns to a user.';

-- What an operator removes stays removed, whatever the author does to the row.
create function two_tower.moderate_post(p_post_id bigint, p_is_removed boolean, p_reason text)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  update two_tower.posts p set
    removed_at = case when p_is_removed then coalesce(p.removed_at, two_tower.now()) end,
    removed_by = case when p_is_removed then two_tower.session_role() end,
    removal_reason = case when p_is_removed then p_reason end
  where p.id = p_post_id;
  if not found then
    raise exception 'there is no such post' using errcode = '22023',
      hint = 'Name it by p_post_id, or by p_post_key and p_post_source.';
  end if;
  insert into two_tower.post_changes (post_id) values (p_post_id);
end
$$;
comment on function two_tower.moderate_post(bigint, boolean, text) is 'Removes a post from the feed, or takes that back. Raises 22023 for an unknown post.';

create function public.remove_post(p_post_id bigint default null, p_reason text default null,
  p_post_key text default null, p_post_source text default null)
returns void language sql set search_path = pg_catalog, pg_temp as $$
  select two_tower.moderate_post(
    two_tower.identify_post(p_post_id, p_post_key, p_post_source), true, p_reason);
$$;
comment on function public.remove_post(bigint, text, text, text) is
  'For back ends with the service role: takes a post out of all feeds. Its author cannot bring it back. The row in the app''s table stays as it is. Raises 22023 for an unknown post.';

create function public.restore_post(p_post_id bigint default null,
  p_post_key text default null, p_post_source text default null)
returns void language sql set search_path = pg_catalog, pg_temp as $$
  select two_tower.moderate_post(
    two_tower.identify_post(p_post_id, p_post_key, p_post_source), false, null);
$$;
comment on function public.restore_post(bigint, text, text) is
  'For back ends with the service role: takes a removal back. Raises 22023 for an unknown post.';

-- Who may not read a post cannot teach with it either. A post that is gone from the feed is not
-- asked about: late events about it are stored, and teach nothing.
create function two_tower.find_listed(p_post_ids bigint[]) returns bigint
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select p.id from two_tower.posts p where p.id = any (p_post_ids) and p.is_listed
  order by p.id limit 1;
$$;
comment on function two_tower.find_listed(bigint[]) is 'Returns one of the posts that is listed, or null. Definer: clients have no grant on the registry.';

create function two_tower.refuse_unreadable_posts() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_post_ids bigint[];
  v_post_id bigint;
begin
  if two_tower.is_operator() then
    return null;
  end if;
  v_post_ids := array(select distinct e.post_id from new_events e);
  v_post_ids := array(
    select i from unnest(v_post_ids) i
    except select r from two_tower.find_readable(v_post_ids, true) r);
  v_post_id := case when v_post_ids <> '{}' then two_tower.find_listed(v_post_ids) end;
  if v_post_id is not null then
    perform two_tower.refuse_post((
      select coalesce(e.post_key, e.post_id::text) from new_events e
      where e.post_id = v_post_id limit 1));
  end if;
  return null;
end
$$;
comment on function two_tower.refuse_unreadable_posts() is 'Refuses events about posts that the sender may not read, with the error of an unknown post: 23503. Asks the policies of the app''s tables, so it runs as the sender.';
create trigger check_readable after insert on public.engagement_events
  referencing new table as new_events
  for each statement execute function two_tower.refuse_unreadable_posts();

create function two_tower.begin_batch() returns timestamptz
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform two_tower.lock_users(array[two_tower.require_user()]);
  return (select two_tower.now() - s.client_event_retry_window from two_tower.settings s);
end
$$;
comment on function two_tower.begin_batch() is
  'Returns since when a client_event_id is remembered. Definer: locks the caller''s own row, so that a batch and its retry do not run at once.';

create type two_tower.sent_event as (
  post_id bigint, post_key text, post_source text, event_type text, dwell_ms integer,
  client_event_id uuid
);
comment on type two_tower.sent_event is 'An event of a batch, as a client sends it.';

create function public.record_engagements(p_events jsonb)
returns table (client_event_id uuid, event_id bigint, created_at timestamptz)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_since timestamptz;
  v_events two_tower.sent_event[];
begin
  if jsonb_typeof(p_events) is distinct from 'array' then
    raise exception 'p_events is not an array of events' using errcode = '22023',
      hint = 'Pass [{"post_id": 1, "event_type": "like", "client_event_id": "a uuid"}, ...]';
  elsif jsonb_array_length(p_events) > 500 then
    raise exception 'a call takes at most 500 events, not %', jsonb_array_length(p_events)
      using errcode = 'TT002', hint = 'Send them in several calls.';
  end if;
  v_since := two_tower.begin_batch();
  select array_agg(row(r.post_id, r.post_key, r.post_source, r.event_type, r.dwell_ms,
    coalesce(r.client_event_id, gen_random_uuid()))::two_tower.sent_event order by e.place)
  into v_events
  from jsonb_array_elements(p_events) with ordinality as e (event, place)
    cross join lateral jsonb_to_record(e.event) as r (post_id bigint, post_key text,
      post_source text, event_type text, dwell_ms integer, client_event_id uuid);

  insert into public.engagement_events
    (post_id, post_key, post_source, event_type, dwell_ms, client_event_id)
  select e.post_id, e.post_key, e.post_source, e.event_type, e.dwell_ms, e.client_event_id
  from unnest(v_events) with ordinality as e (post_id, post_key, post_source, event_type,
    dwell_ms, client_event_id, place)
  where not exists (select from public.engagement_events s
                    where s.client_event_id = e.client_event_id and s.user_id = (select auth.uid())
                      and s.created_at > v_since)
    and not exists (select from unnest(v_events) with ordinality as f (post_id, post_key,
                      post_source, event_type, dwell_ms, client_event_id, place)
                    where f.client_event_id = e.client_event_id and f.place < e.place)
  order by e.place;

  return query
  select s.client_event_id, s.id, s.created_at
  from unnest(v_events) with ordinality as e (post_id, post_key, post_source, event_type,
    dwell_ms, client_event_id, place)
    join public.engagement_events s
      on s.client_event_id = e.client_event_id and s.user_id = (select auth.uid())
        and s.created_at > v_since
  order by e.place;
end
$$;
comment on function public.record_engagements(jsonb) is
  'Stores a batch of the signed-in user''s events, all or nothing: [{"post_id" or "post_key" (and "post_source"), "event_type", "dwell_ms"?, "client_event_id"?}], at most 500. Returns a row per event, in order. Does not store an event again whose client_event_id is stored already: a retry gets the same answer. Raises 22023 for what is no array, TT002 for more than 500 events, and what an insert raises.';
