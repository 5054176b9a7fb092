-- From candidates to a page. A page is also short while posts of an author beyond the cap, or
-- copies, stand on it. One that is short is made again by a wider search, then from a scan of all
-- posts. One that is short after that, or fails, is filled by simpler rules. Nothing here writes.

-- The score is a sum of named parts, so that explain_recommendation can show it.
create function two_tower.score_posts(p_reader two_tower.reader, p_post_ids bigint[])
returns table (
  post_id bigint, author_id uuid, personal double precision, popular double precision,
  fresh double precision, followed double precision, is_followed boolean, is_new boolean
) language plpgsql stable set search_path = pg_catalog, pg_temp rows 300 as $$
declare
  v_slot smallint := (select active_slot from two_tower.state);
  v_coldness double precision := 1 - p_reader.warmth;
begin
  return query
  select v.post_id, v.author_id,
    case when p_reader.warmth = 0 then 0
      else p_reader.warmth * -(v.embedding operator(extensions.<#>) p_reader.vector) end,
    (v_coldness + p_reader.popularity_weight)
      * ln(1 + two_tower.popularity_in_likes(v.popularity, p_reader.popularity_unit))
        / p_reader.popularity_scale,
    p_reader.recency_weight
      * 2 ^ -least(1000, greatest(0, extract(epoch from p_reader.time - v.created_at)::float8)
                         / p_reader.recency_half_life),
    case when f.follower_id is null then 0 else p_reader.followed_weight end,
    f.follower_id is not null, v.created_at > p_reader.followed_since
  from two_tower.live_embeddings v
    left join two_tower.follows f
      on f.follower_id = p_reader.user_id and f.followed_id = v.author_id
  where v.slot = v_slot and v.post_id = any (p_post_ids) and v.is_listed
    and (p_reader.source_id is null or v.source_id = p_reader.source_id)
    and v.author_id is distinct from p_reader.user_id;
end
$$;
comment on function two_tower.score_posts(two_tower.reader, bigint[]) is
  'Scores posts for a reader. The score is the sum of four parts. Leaves out deleted posts and the reader''s own. personal: warmth * cosine of user and post. popular: log of the decayed popularity, over the largest. fresh: halves with age. followed: for a followed author. is_new: the post is younger than settings.followed_new_for.';

-- All candidates, in the order in which they are wanted. Authors take turns: nobody's third cap of
-- posts comes before another's second. Explored and promised posts come first, so that they have
-- their places.
create function two_tower.order_candidates(p_reader two_tower.reader, p_candidates bigint[],
  p_explored bigint[])
returns two_tower.ranked_post[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return array(
    select row(o.post_id, o.author_id, o.score, o.source, o.turn)::two_tower.ranked_post
    from (
      select t.*, t.is_followed and t.is_new and row_number() over (
        partition by t.is_followed and t.is_new order by t.turn, t.score desc, t.post_id desc)
          <= p_reader.followed_places as is_promised
      from (
        select s.post_id, s.author_id, s.is_followed, s.is_new, x.score, x.is_explored,
          case when s.author_id is null then 0 else (row_number() over (partition by s.author_id
            order by x.is_explored desc, x.score desc, s.post_id desc) - 1)
            / case when s.is_followed then p_reader.followed_author_cap
                else p_reader.author_cap end end as turn,
          case when x.is_explored then 'exploration'
            when s.post_id = any (p_reader.told_ids) then 'told'
            when s.personal >= greatest(s.popular, s.fresh, s.followed) then 'personal'
            when s.is_followed and s.followed >= greatest(s.popular, s.fresh) then 'followed'
            when s.popular >= s.fresh then 'popular' else 'fresh' end as source
        from two_tower.score_posts(p_reader, p_candidates || p_explored) s
          cross join lateral (
            select s.personal + s.popular + s.fresh + s.followed as score,
              s.post_id = any (p_explored) as is_explored) x
      ) t
    ) o
    order by not (o.is_explored and o.turn = 0), not o.is_promised,
      o.post_id <> all (p_reader.told_ids), o.turn, o.score desc, o.post_id desc);
end
$$;
comment on function two_tower.order_candidates(two_tower.reader, bigint[], bigint[]) is
  'Returns the candidates in the order in which they are wanted: first those to explore (within the cap on their authors), then new posts of followed authors (as many as the reader is promised), then those for what the reader told, then by score. Posts of an author beyond the cap of the reader come behind those of all others.';

-- The first of the list that may stand on the page. Copies come behind all others.
create function two_tower.fill_page(p_reader two_tower.reader, p_limit integer,
  p_ranked two_tower.ranked_post[], p_copies bigint[])
returns two_tower.ranked_post[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return array(
    select row(l.post_id, l.author_id, l.score, l.source, l.turn)::two_tower.ranked_post
    from (
      select u.*
      from unnest(p_ranked) with ordinality as u (post_id, author_id, score, source, turn, place)
      order by u.post_id = any (p_copies), u.place offset 0
    ) l
    where not (select exists (select from two_tower.withheld_authors a
      where a.user_id = p_reader.user_id and a.author_id = l.author_id))
      and (select exists (select from two_tower.listed_posts p where p.id = l.post_id))
    limit p_limit);
end
$$;
comment on function two_tower.fill_page(two_tower.reader, integer, two_tower.ranked_post[], bigint[]) is
  'Returns the first p_limit of a ranked list that the reader may see, copies behind all others. Looks authors and the registry up from the best post down, until the page is full.';

create function two_tower.rank_posts(p_reader two_tower.reader, p_limit integer,
  p_candidates bigint[], p_explored bigint[], p_owed bigint[],
  out ids bigint[], out scores double precision[], out sources text[], out shared integer)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_ranked two_tower.ranked_post[] :=
    two_tower.order_candidates(p_reader, p_candidates || p_owed, p_explored);
  -- A few of the best may be of withheld authors.
  v_copies bigint[] := two_tower.find_copies(p_reader,
    array(select r.post_id from unnest(v_ranked) r), p_limit + 5);
  v_page two_tower.ranked_post[] := two_tower.fill_page(p_reader, p_limit, v_ranked, v_copies);
  v_hour bigint := two_tower.choose_place(p_reader.user_id, p_reader.time);
begin
  if p_owed <> '{}' then
    v_page := two_tower.settle_page(p_reader, p_limit, p_owed, v_page);
  end if;
  select array_agg(c.post_id order by c.at), array_agg(c.score order by c.at),
    array_agg(c.source order by c.at), count(*) filter (where c.turn = 0 and not c.is_copy)
  into ids, scores, sources, shared
  from (
    select r.*, case when r.is_explored
        -- Somewhere in the lower half: what stands last is seen last.
        then p_limit * (1 + (hashint8extended(r.post_id, v_hour) & 1023) / 1024.0) / 2
        else row_number() over (partition by r.is_explored order by r.place) end as at
    from (
      select u.*, u.post_id = any (v_copies) as is_copy,
        u.source = 'exploration' and u.post_id <> all (v_copies) as is_explored
      from unnest(v_page) with ordinality as u (post_id, author_id, score, source, turn, place)
    ) r
  ) c;
end
$$;
comment on function two_tower.rank_posts(two_tower.reader, integer, bigint[], bigint[], bigint[]) is
  'Returns a page of p_limit of the candidates, none of which the reader has seen, as order_candidates() has them. Copies come behind all others. p_owed: candidates of interests that are owed places (settle_page()). Explored posts stand in the lower half of the page. shared: how many are within the cap on their authors, and no copies.';

create function two_tower.leave_out_seen(p_user_id uuid, p_post_ids bigint[], p_excluded bigint[])
returns bigint[] language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return array(
    select i.id from unnest(p_post_ids) as i (id)
    where i.id <> all (p_excluded) and not (select exists (
      select from two_tower.user_posts u where u.user_id = p_user_id and u.post_id = i.id)));
end
$$;
comment on function two_tower.leave_out_seen(uuid, bigint[], bigint[]) is 'Returns those of the posts that the user has not seen and that are not excluded.';

-- The page by the live embeddings. Nearly always the first search fills it.
create function two_tower.make_page(p_user_id uuid, p_limit integer, p_excluded bigint[],
  p_source_id smallint default null, p_among bigint[] default null,
  p_filter two_tower.page_filter default null,
  out ids bigint[], out scores double precision[], out sources text[], out is_all boolean)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_reader two_tower.reader := two_tower.load_reader(p_user_id, p_source_id, p_limit, p_filter);
  v_count integer := least(1000, greatest(v_reader.over_fetch, 3 * p_limit));
  v_explored bigint[];
  v_listed bigint[];
  v_near bigint[];
  v_owed bigint[];
  v_shared integer;
  v_others bigint[];
  v_has_met_all boolean := false;
  v_search text;
begin
  if p_among is not null then
    v_near := two_tower.leave_out_seen(p_user_id, p_among, p_excluded);
    v_reader.told_ids := two_tower.choose_told_posts(v_reader, p_excluded, v_near);
    select r.ids, r.scores, r.sources into ids, scores, sources
    from two_tower.rank_posts(v_reader, p_limit, v_near, '{}',
      two_tower.find_interest_posts(v_reader, p_excluded, v_near)) r;
    return;
  end if;
  v_reader.told_ids := two_tower.choose_told_posts(v_reader, p_excluded);
  v_explored := two_tower.choose_explored_posts(v_reader, p_limit,
    p_excluded || v_reader.told_ids);
  v_listed := two_tower.list_candidates(v_reader,
    case when v_reader.warmth < 1 then v_count else p_limit end, p_excluded);
  v_owed := two_tower.find_interest_posts(v_reader, p_excluded);
  foreach v_search in array '{index, wide, scan}'::text[] loop
    -- A wide search finds some fifty times as many. Where that is little, it is left out.
    continue when v_search = 'wide'
      and least(cardinality(v_near), coalesce(cardinality(ids), 0)) < p_limit / 8;
    if v_search = 'wide' and cardinality(ids) >= p_limit then
      select o.post_ids, o.is_all or p_source_id is not null into v_others, v_has_met_all
      from two_tower.list_others(v_reader, p_limit / v_reader.author_cap + 1, ids, p_excluded) o;
      exit when v_has_met_all and v_others = '{}';
      v_listed := v_listed || v_others;
    end if;
    if v_search = 'scan' then
      v_near := two_tower.scan_posts(v_reader, v_count, p_excluded);
      is_all := cardinality(v_near) < v_count;
    elsif v_reader.vector is not null then
      v_near := two_tower.find_nearest_posts(v_reader.vector,
        case v_search when 'wide' then 3 * v_count else v_count end, p_user_id, p_excluded,
        v_search = 'wide' or p_filter is not null, p_source_id, p_filter);
      continue when v_near is null;
    end if;
    select r.ids, r.scores, r.sources, r.shared into ids, scores, sources, v_shared
    from two_tower.rank_posts(v_reader, p_limit, v_listed || v_near || v_reader.told_ids,
      v_explored, v_owed) r;
    exit when v_shared >= p_limit or v_has_met_all and cardinality(ids) >= p_limit;
  end loop;
end
$$;
comment on function two_tower.make_page(uuid, integer, bigint[], smallint, bigint[], two_tower.page_filter) is
  'Returns a page by the live embeddings, best first. The candidates come from the serving index. Where that leaves the page short, they come from a wider search, then from a scan of all posts. Without an index they come from the scan. A page that is full, but has posts beyond the cap on authors, or copies, is made again by a wider search and new posts of other authors, unless there are none. p_source_id: posts of this source alone. p_filter: those that match alone. p_among: these are the candidates, all of which match, and nothing is searched. is_all: no other encoded post is left.';

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
        / case when f.followed_id is null then v_cap else v_followed_cap end end
    from unnest(p_author_ids) with ordinality as a (author_id, place)
      left join two_tower.follows f
        on f.follower_id = p_user_id and f.followed_id = a.author_id
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
         and q.encoded_hash is null)
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
      (select a.post_id, null, 0 from two_tower.user_posts a
       where p_rule = 'again' and a.user_id = p_user_id
         and (p_among is null or a.post_id = any (p_among))
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
      and (p.author_id is null or p.author_id not in (
        select a.author_id from two_tower.withheld_authors a where a.user_id = p_user_id))
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
  'Returns at most p_limit eligible posts by a simple rule. content: newest posts whose base embeddings are near to those of what the user engaged with. popular: the most popular. recent: the newest, encoded or not. waiting: any that wait for the encoder. again: what the user did no more than view or skip, settings.seen_again_after ago or longer, and those that were not seen for longest first. p_source_id: posts of this source alone. p_filter: those that match alone. p_among: only these, and only by recent and again. p_few: all encoded posts that match, where they are few: recent and content look for no others. p_page: what is on the page already, and counts for its authors, who take turns among the best 1,000. Of posts of one text the first counts: the others come behind.';

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
    if (select s.ranks_by from two_tower.choose_settings(p_user_id) s) = 'text' then
      v_rules := '{content, popular, recent, waiting, again}';
    else
      select l.ids, l.scores, l.sources, case when l.is_all then '{}' else v_few end
      into v_ids, v_scores, v_sources, v_few
      from two_tower.make_page(p_user_id, v_limit, v_excluded, p_source_id, v_few, p_filter) l;
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
