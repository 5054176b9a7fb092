-- What users ask for and decide themselves.

create function public.more_from_author(p_author_key text, p_limit integer default 20)
returns table (post_id bigint, post_key text, post_source text, author_id uuid,
  created_at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at
  from two_tower.page_for(two_tower.require_user(), least(100, coalesce(p_limit, 20)),
    p_kind => 'author', p_text => p_author_key) f;
$$;
comment on function public.more_from_author(text, integer) is 'Returns the newest posts of an author, seen ones too, but none that the user hid. p_author_key: the author as the app names it; author_id of a page does too. Only posts that the user may read; none of an author with whom there is a block. p_limit: 1 to 100, default 20. Raises 42501 when nobody is signed in.';

create function public.trending_posts(p_tag text default null, p_limit integer default 20)
returns table (post_id bigint, post_key text, post_source text, author_id uuid,
  created_at timestamptz, score double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select f.post_id, f.post_key, f.post_source, f.author_id, f.created_at, f.score
  from two_tower.page_for(two_tower.require_user(), least(100, coalesce(p_limit, 20)),
    p_kind => 'trending', p_text => p_tag) f;
$$;
comment on function public.trending_posts(text, integer) is 'Returns the most popular posts of the last settings.trending_window, with the popularity as score. p_tag: those with this tag; null: all. Authors take turns. Seen ones stand there too, but none that the user hid. Only posts that the user may read. p_limit: 1 to 100, default 20. Raises 42501 when nobody is signed in.';

create function public.set_interests(p_texts text[] default '{}', p_post_keys text[] default '{}',
  p_post_source text default null)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_keys text[] := array(select k from unnest(p_post_keys) k where k is not null);
  v_ids bigint[] := array(
    select two_tower.identify_post(null, k.key, p_post_source)
    from unnest(v_keys) with ordinality as k (key, place) order by k.place);
  v_readable bigint[];
begin
  perform two_tower.require_user();
  v_readable := array(select r from two_tower.find_readable(array_remove(v_ids, null)) r);
  for v_place in 1..cardinality(v_ids) loop
    if (v_ids[v_place] = any (v_readable)) is not true then
      perform two_tower.refuse_post(v_keys[v_place]);
    end if;
  end loop;
  perform two_tower.tell_interests(coalesce(p_texts, '{}'), v_ids);
end
$$;
comment on function public.set_interests(text[], text[], text) is
  'Tells what the signed-in user is interested in, in the place of what was told before: p_texts, subjects of at most 200 characters each, and p_post_keys, posts that the user picked, of the table p_post_source where several are attached. At most 20 together. While the user has engaged with less than settings.told_until posts, settings.told_share of each page, falling, goes to posts about them (source told). A worker encodes the texts within seconds. Raises TT002 for more or longer ones, 22023 for a blank one, 23503 for a post that does not exist or that the user may not read, and 42501 when nobody is signed in.';

create function two_tower.list_known()
returns table (kind text, what text, post_key text, post_source text, amount double precision,
  at timestamptz)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  with me as materialized (select two_tower.require_user() as user_id),
  known as (
    select 1 as place, 'account' as kind, 'days on which you engaged' as what,
      null::bigint as post_id, e.active_days::double precision as amount, u.created_at as at
    from me join two_tower.users u on u.id = me.user_id
      left join two_tower.user_embeddings e on e.user_id = u.id
    union all
    select 2, 'events', e.event_type, null, count(*), max(e.created_at)
    from me join public.engagement_events e using (user_id) group by e.event_type
    union all
    (select 3, 'event', e.event_type, e.post_id, null, e.created_at
     from me join public.engagement_events e using (user_id)
     order by e.created_at desc, e.id desc limit 20)
    union all
    select 4, 'not learned', n.reason, null, count(*), max(n.created_at)
    from me join two_tower.unlearned_events n using (user_id) group by n.reason
    union all
    select 5, 'posts', case when p.is_hidden then 'hidden' when p.is_engaged then 'engaged with'
      else 'seen' end, null, count(*), max(p.last_event_at)
    from me join two_tower.user_posts p using (user_id) group by 3
    union all
    select 6, 'taste', 'last learned', r.post_id, r.strength, null
    from me join two_tower.user_embeddings e using (user_id)
      cross join lateral unnest(e.recent_post_ids, e.recent_strengths) as r (post_id, strength)
    union all
    select 6, 'interest', format('%s %% of your interests: posts like this', round(100 * i.weight)),
      n.post_id, i.weight, null
    from me cross join lateral two_tower.list_interests(me.user_id) i
      cross join lateral (
        select v.post_id
        from two_tower.user_embeddings e
          cross join lateral unnest(e.positive_ids, e.positive_interests)
            as p (post_id, interest)
          join two_tower.live_embeddings v
            on v.slot = (select active_slot from two_tower.state) and v.post_id = p.post_id
        where e.user_id = me.user_id and p.interest = i.interest
        order by v.embedding operator(extensions.<#>) i.vector limit 3) n
    union all
    select 7, 'told interest', t.content, t.post_id, null, t.told_at
    from me join two_tower.told_interests t using (user_id)
    union all
    select 8, 'profile', 'its text is used', null, null, p.requested_at
    from me join two_tower.profile_embeddings p using (user_id)
    union all
    select 9, 'text', 'searched for or told, kept for a while', null, count(*), max(t.requested_at)
    from me join two_tower.requested_texts t using (user_id) having count(*) > 0
    union all
    select 10, b.kind, coalesce((select p.author_key from two_tower.posts p
      where p.author_id = b.author_id and p.is_listed and p.encoded_hash is not null limit 1),
      b.author_id::text), null, null, a.created_at
    from me join two_tower.blocks b using (user_id)
      left join public.author_blocks a using (user_id, author_id)
    union all
    select 11, 'muted ' || m.kind, m.term, null, null, m.created_at
    from me join public.muted_terms m using (user_id)
    union all
    select 12, 'follows', 'authors', null, count(*), null
    from me join two_tower.follows f on f.follower_id = me.user_id having count(*) > 0
    union all
    select 13, 'experiment', a.arm, null, null, null
    from me cross join lateral two_tower.find_served_arm(me.user_id) as a (arm)
    where a.arm is not null
    union all
    select 14, 'forgotten', 'times that you began anew', null, e.reset_count, null
    from me join two_tower.user_embeddings e using (user_id) where e.reset_count > 0
  )
  select k.kind, k.what, p.key, s.name, k.amount, k.at
  from known k
    left join two_tower.posts p on p.id = k.post_id
    left join two_tower.sources s on s.id = p.source_id
  order by k.place, k.at desc, k.what, k.post_id;
$$;
comment on function two_tower.list_known() is 'The core of what_is_known_of_me(). Definer: clients have no grant on what is known.';

create function public.what_is_known_of_me()
returns table (kind text, what text, post_key text, post_source text, amount double precision,
  at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.list_known();
$$;
comment on function public.what_is_known_of_me() is
  'Returns what the engine keeps of the signed-in user, as rows to read: kind, what, the post if it is about one, an amount, and when. account; events by type, and the last 20; events that taught nothing, and why; posts seen, engaged with and hidden; the engagements that the taste is made of, with their strengths; interests, each by the three posts in its middle that the user liked, with its weight; told interests; profile; texts; blocked and muted authors, muted words and tags; follows; the arm of an experiment; how often the user began anew. Vectors are computed from these. Raises 42501 when nobody is signed in.';
