-- A page as it is served: by live embeddings or, for what these leave open, by simpler rules.
-- Nothing here writes.

-- For pages that are not ranked by rank_posts().
create function two_tower.take_turns(p_user_id uuid, p_limit integer, p_author_ids uuid[])
returns integer[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_settings two_tower.settings := two_tower.choose_settings(p_user_id);
  v_cap integer := two_tower.cap_posts(v_settings.author_share, p_limit);
  v_followed_cap integer := two_tower.cap_posts(v_settings.followed_author_share, p_limit);
begin
  return array(
    select case when a.author_id is null then 0 else
      (row_number() over (partition by a.author_id order by a.place) - 1)
        / case when (select exists (select from two_tower.follows f
            where f.follower_id = p_user_id and f.followed_id = a.author_id))
          then v_followed_cap else v_cap end end
    from unnest(p_author_ids) with ordinality as a (author_id, place)
    order by a.place);
end
$$;
comment on function two_tower.take_turns(uuid, integer, uuid[]) is
  'Returns for each post of a list, given its authors, best first, in which turn its author has it on a page of p_limit: 0 within the cap. A post without an author is always within.';

-- Simpler rules, for what is left of a page. They look at posts alone. recent meets those that wait
-- for the encoder first: they are the newest. It looks for them among the newest ids, which count
-- down below zero.
create function two_tower.find_posts_by_rule(p_rule text, p_user_id uuid, p_excluded bigint[],
  p_limit integer, p_source_id smallint default null, p_among bigint[] default null,
  p_page bigint[] default '{}', p_filter two_tower.page_filter default null,
  p_few bigint[] default null)
returns table (post_id bigint, score double precision)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_content extensions.vector;
  v_ids bigint[];
  v_scores double precision[];
  v_authors uuid[];
  v_page uuid[] := array(select p.author_id from unnest(p_page) as g (id)
    join two_tower.posts p on p.id = g.id);
  v_texts bigint[] := array(select p.content_hash from unnest(p_page) as g (id)
    join two_tower.posts p on p.id = g.id);
  v_seen_again_after interval := case when p_rule = 'again'
    then (two_tower.choose_settings(p_user_id)).seen_again_after end;
begin
  if p_rule = 'content' then
    select extensions.sum(two_tower.scale(r.strength, b.base_embedding))
    into v_content
    from two_tower.user_embeddings u
      cross join unnest(u.recent_post_ids, u.recent_strengths) as r (post_id, strength)
      join two_tower.base_embeddings b on b.post_id = r.post_id
    where u.user_id = p_user_id;
  end if;
  select array_agg(e.post_id order by e.place), array_agg(e.score order by e.place),
    array_agg(e.author_id order by e.place)
  into v_ids, v_scores, v_authors
  from (
    select c.post_id, c.score, p.author_id, c.place
    from (
      select u.post_id, u.score, row_number() over () as place from (
      (select b.post_id, p.author_id,
         -(b.base_embedding operator(extensions.<=>) v_content) as score
       from (select q.id, q.author_id from two_tower.posts q
             where q.is_listed and q.encoded_hash is not null
             order by q.created_at desc limit 20000) p
         join two_tower.base_embeddings b on b.post_id = p.id
       where p_rule = 'content' and p_among is null and p_few is null
         and extensions.vector_norm(v_content) > 0
       order by b.base_embedding operator(extensions.<=>) v_content, b.post_id desc)
      union all
      (select l.post_id, null, 0 from two_tower.popular_candidates l
       where p_rule = 'popular' and p_among is null
       order by l.popularity desc, l.number desc)
      union all
      (select n.id, null, 0
       from (
         (select q.* from two_tower.posts q where q.id < 0 order by q.id limit 1000)
         union all
         (select q.* from two_tower.posts q where q.id > 0 order by q.id desc limit 1000)
       ) n
       where p_rule = 'recent' and p_among is null and n.is_listed and n.encoded_hash is null
       order by n.requested_at desc, greatest(n.id, ~n.id) desc)
      union all
      (select q.id, null, 0 from two_tower.posts q
       where p_rule = 'waiting' and p_among is null
         and q.is_listed and q.encoded_hash is distinct from q.content_hash
         and q.encoded_hash is null
       limit 5000)
      union all
      (select q.id, q.author_id, 0 from two_tower.posts q
       where p_rule = 'recent' and p_among is null and p_few is null
         and q.is_listed and q.encoded_hash is not null
       order by q.created_at desc, q.id)
      union all
      (select q.id, q.author_id, 0 from two_tower.posts q
       where p_rule = 'recent' and q.id = any (coalesce(p_among, p_few))
       order by q.created_at desc, q.id)
      union all
      (select a.post_id, null, 0
       from (
         (select u.* from two_tower.user_posts u
          where p_rule = 'again' and u.user_id = p_user_id and u.post_id > 0
          order by u.post_id limit 10000)
         union all
         (select u.* from two_tower.user_posts u
          where p_rule = 'again' and u.user_id = p_user_id and u.post_id < 0
          order by u.post_id desc limit 10000)
       ) a
       where (p_among is null or a.post_id = any (p_among))
         and a.last_event_at <= two_tower.now() - v_seen_again_after
         and not (a.is_engaged or a.is_hidden)
         and (not a.was_withdrawn or not exists (
           select from two_tower.training_examples x
             join two_tower.signals g on g.event_type = x.event_type
           where x.user_id = a.user_id and x.post_id = a.post_id and x.is_withdrawn
             and g.strength > 0))
         and a.signals & ~(select bit_or(s.bit) from two_tower.signals s
           where s.event_type in ('view', 'skip')) = 0
       order by a.last_event_at, a.post_id)
      ) u (post_id, author_id, score)
      offset 0
    ) c
      join two_tower.listed_posts p on p.id = c.post_id
    where c.post_id <> all (p_excluded || p_page)
      and (p_source_id is null or p.source_id = p_source_id)
      and (p_filter is null or (select exists (
        select from two_tower.matching_posts(p_filter) m where m.id = p.id)))
      and p.author_id is distinct from p_user_id
      and not (select exists (select from two_tower.withheld_authors a
        where a.user_id = p_user_id and a.author_id = p.author_id))
      and (p_rule = 'again' or not (select exists (select from two_tower.user_posts u
        where u.user_id = p_user_id and u.post_id = c.post_id)))
    limit case when p_rule = 'waiting' then p_limit else greatest(1000, p_limit) end
  ) e;
  return query
  select t.post_id, t.score
  from unnest(v_ids, v_scores, (two_tower.take_turns(p_user_id, cardinality(p_page) + p_limit,
      v_page || v_authors))[cardinality(v_page) + 1:])
    with ordinality as t (post_id, score, turn, place)
    join two_tower.posts p on p.id = t.post_id
  order by not p.is_unreadable and (p.content_hash = any (v_texts)
      or row_number() over (partition by p.content_hash order by t.turn, t.place) > 1),
    t.turn, t.place
  limit p_limit;
end
$$;
comment on function two_tower.find_posts_by_rule(text, uuid, bigint[], integer, smallint, bigint[], bigint[],
  two_tower.page_filter, bigint[]) is
  'Returns at most p_limit eligible posts by a simple rule. content: newest posts whose base embeddings are near to those of what the user engaged with. popular: the most popular. recent: the newest, encoded or not. waiting: any 5,000 that wait for the encoder. again: what the user did no more than view or skip, settings.seen_again_after ago or longer, and those that were not seen for longest first; looks at the 10,000 with the lowest positive ids, and the 10,000 with the highest negative ones. p_source_id: posts of this source alone. p_filter: those that match alone. p_among: only these, and only by recent and again. p_few: all encoded posts that match, where they are few: recent and content look for no others. p_page: what is on the page already, and counts for its authors, who take turns among the best 1,000. Of posts of one text the first counts: the others come behind.';

-- What has no vector is met by no search and no scan.
create function two_tower.list_unreadable() returns bigint[]
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return array(select p.id from two_tower.posts p where p.is_listed and p.is_unreadable
    order by p.created_at desc, p.id limit 1000);
end
$$;
comment on function two_tower.list_unreadable() is 'Returns the newest 1,000 posts that the encoder cannot read.';

-- Sessions keep their plans, also those made while tables were empty. Nothing but scan_posts() may
-- read a table whole.
create type two_tower.page_row as (
  post_id bigint, post_key text, post_source text, author_id uuid, created_at timestamptz,
  score double precision, source text, arm text, cursor text
);
comment on type two_tower.page_row is 'A post on a page.';
comment on column two_tower.page_row.post_key is 'The key of its row in the app''s table.';
comment on column two_tower.page_row.post_source is 'The table: sources.name.';
comment on column two_tower.page_row.source is 'What brought it here: personal, told (by the reader: set_interests()), popular, fresh, followed, exploration, content or recent; again: it was seen before.';
comment on column two_tower.page_row.arm is 'The arm of the experiment that served it.';
comment on column two_tower.page_row.cursor is 'On the last row of a page: what the next page is asked for with.';

create function two_tower.recommend_for(p_user_id uuid, p_limit integer default 20,
  p_exclude bigint[] default '{}', p_source_id smallint default null,
  p_among bigint[] default null, p_filter two_tower.page_filter default null)
returns setof two_tower.page_row
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set jit = off
  set plan_cache_mode = force_generic_plan set enable_seqscan = off as $$
declare
  v_limit integer := least(500, greatest(1, coalesce(p_limit, 20)));
  v_excluded bigint[] := coalesce(p_exclude, '{}');
  v_arm text := two_tower.find_served_arm(p_user_id);
  v_reader two_tower.reader;
  v_ids bigint[];
  v_scores double precision[];
  v_sources text[];
  v_rules text[] := '{recent, waiting, again}';
  v_rule text;
  v_few bigint[];
begin
  if p_user_id is null then
    raise exception 'p_user_id is null' using errcode = '22023',
      hint = 'Pass a user, or call recommend() for the signed-in one.';
  end if;
  begin
    v_few := two_tower.narrow_posts(p_filter, p_source_id, p_among);
    v_reader := two_tower.load_reader(p_user_id, p_source_id, v_limit, p_filter);
    if v_reader.ranks_by = 'text' then
      v_rules := '{content, popular, recent, waiting, again}';
    else
      select l.ids, l.scores, l.sources,
        case when l.is_all then two_tower.list_unreadable() else v_few end
      into v_ids, v_scores, v_sources, v_few
      from two_tower.make_page(v_reader, v_limit, v_excluded, v_few) l;
    end if;
  exception when others then
    raise warning 'recommend() falls back to simpler rules: % (%)', sqlerrm, sqlstate;
    v_rules := '{content, popular, recent, waiting, again}';
  end;
  foreach v_rule in array v_rules loop
    exit when cardinality(v_ids) >= v_limit;
    begin
      select v_ids || array_agg(f.post_id), v_scores || array_agg(f.score),
        v_sources || array_agg(case v_rule when 'waiting' then 'recent' else v_rule end)
      into v_ids, v_scores, v_sources
      from two_tower.find_posts_by_rule(v_rule, p_user_id, v_excluded,
        v_limit - coalesce(cardinality(v_ids), 0), p_source_id, p_among,
        coalesce(v_ids, '{}'), p_filter, v_few) f;
    exception when others then
      raise warning 'recommend() skips the rule %: % (%)', v_rule, sqlerrm, sqlstate;
    end;
  end loop;
  return query
  select p.id, p.key, s.name, p.author_id, p.created_at, r.score, r.source, v_arm, null::text
  from unnest(v_ids, v_scores, v_sources) with ordinality as r (id, score, source, place)
    join two_tower.posts p on p.id = r.id
    join two_tower.sources s on s.id = p.source_id
  order by r.place;
end
$$;
comment on function two_tower.recommend_for(uuid, integer, bigint[], smallint, bigint[], two_tower.page_filter) is
  'Returns a page for a user, best first. p_limit is clamped to 1..500; null is 20. The page is full if there are enough eligible posts. A failure is logged as a warning, and simpler rules fill the page: text alone, popular posts, recent posts. Where nothing else is left, posts come that were viewed settings.seen_again_after ago. p_source_id: posts of this source alone. p_among: only of these. p_filter: those that match alone. Does not ask who may read a post in the app''s table: find_readable() does. Raises 22023 without a user. Definer: the service role may not read auth.users, where bans are.';
