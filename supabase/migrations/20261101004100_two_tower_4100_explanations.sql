-- Why a post is where it is for a user, or why it is not there.

create type two_tower.explanation as (
  post_id bigint, is_eligible boolean, reason text, place bigint, personal double precision,
  popular double precision, fresh double precision, followed double precision, because jsonb
);
comment on type two_tower.explanation is 'Why a post is where it is for a user.';
comment on column two_tower.explanation.because is 'What of the user''s own speaks for it, nearest first: [{"post_key", "post_source", "event_type", "at"}] for engagements, at most 3, and {"told"} or {"told_post_key"} for an interest that the user told.';

-- What the reader did, and nobody else.
create function two_tower.list_evidence(p_reader two_tower.reader, p_post_id bigint)
returns jsonb language sql stable set search_path = pg_catalog, pg_temp as $$
  with slot as materialized (select active_slot from two_tower.state),
  post as materialized (
    select v.embedding from two_tower.live_embeddings v
    where v.slot = (select active_slot from slot) and v.post_id = p_post_id
  ), engaged as (
    select jsonb_build_object('post_key', q.key, 'post_source', s.name,
        'event_type', g.event_type, 'at', u.last_event_at) as said, c.cosine
    from (
      select distinct r.post_id
      from two_tower.user_embeddings e
        cross join lateral unnest(e.recent_post_ids, e.recent_strengths) as r (post_id, strength)
      where e.user_id = p_reader.user_id and r.strength > 0 and r.post_id <> p_post_id
    ) r
      join two_tower.live_embeddings v
        on v.slot = (select active_slot from slot) and v.post_id = r.post_id
      cross join post p
      cross join lateral (select -(v.embedding operator(extensions.<#>) p.embedding)) c (cosine)
      join two_tower.user_posts u on u.user_id = p_reader.user_id and u.post_id = r.post_id
      cross join lateral (
        select n.event_type from two_tower.signals n
        where n.strength > 0 and u.signals & n.bit <> 0 order by n.strength desc, n.bit limit 1) g
      join two_tower.listed_posts q on q.id = r.post_id
      join two_tower.sources s on s.id = q.source_id
    where c.cosine >= p_reader.about_similarity
    order by c.cosine desc limit 3
  ), told as (
    select case when i.post_id is null
      then jsonb_build_object('told', coalesce(i.content, 'profile'))
      else jsonb_build_object('told_post_key', q.key, 'post_source', s.name) end as said, c.cosine
    from two_tower.list_told(p_reader.user_id) l
      cross join post p
      cross join lateral (select -(l.vector operator(extensions.<#>) p.embedding)) c (cosine)
      left join two_tower.told_interests i
        on i.user_id = p_reader.user_id and i.place = l.place
      left join two_tower.posts q on q.id = i.post_id
      left join two_tower.sources s on s.id = q.source_id
    where p_reader.told_places > 0 and c.cosine >= p_reader.about_similarity
      and i.post_id is distinct from p_post_id
    order by c.cosine desc limit 1
  )
  select coalesce(jsonb_agg(n.said order by n.cosine desc), '[]')
  from (select * from engaged union all select * from told) n;
$$;
comment on function two_tower.list_evidence(two_tower.reader, bigint) is 'Returns the reader''s own engagements, of the last settings.history_length, that are nearest to a post, at most 3, and the nearest told interest while it has places. All of them with at least settings.about_similarity. See explanation.because.';

create function two_tower.say_evidence(p_because jsonb) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select case when b.said ? 'told' then 'you told: ' || (b.said ->> 'told')
    when b.said ? 'told_post_key' then 'you picked ' || (b.said ->> 'told_post_key')
    else case b.said ->> 'event_type' when 'like' then 'you liked ' when 'reply' then
      'you replied to ' when 'repost' then 'you reposted ' when 'click' then 'you opened '
      when 'dwell' then 'you read ' else 'you engaged with ' end || (b.said ->> 'post_key') end
  from jsonb_array_elements(p_because) with ordinality as b (said, place)
  order by b.place limit 1;
$$;
comment on function two_tower.say_evidence(jsonb) is 'Returns the first of explanation.because in words. Returns null for an empty list.';

create function two_tower.explain_post(p_user_id uuid, p_post_id bigint)
returns setof two_tower.explanation
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  with reader as materialized (
    select u.user_id, two_tower.load_reader(u.user_id) as reader
    from (select two_tower.require_reader(p_user_id) as user_id) u
  )
  select p.id, e.is_eligible,
         case
           when p.deleted_at is not null then 'the post is deleted'
           when not p.is_visible then 'the post is hidden or deleted'
           when p.removed_at is not null then 'the post was removed'
           when p.created_at > two_tower.now() then 'it is not published yet'
           when p.author_id = r.user_id then 'it is your own post'
           when u.is_hidden then 'you hid it'
           when u.is_engaged then 'you engaged with it'
           when u.user_id is not null then 'you have seen it'
           when exists (select from two_tower.blocks b
             where b.user_id = r.user_id and b.author_id = p.author_id)
             then 'you blocked or muted its author'
           when m.is_muted then 'it has a tag that you muted'
           when not e.is_eligible then 'it is not available to you'
           when p.is_unreadable then 'eligible, but the encoder cannot read its text'
           when k.post_id is null then 'eligible, but its text is not encoded yet'
           else concat_ws(': because ', 'eligible', two_tower.say_evidence(b.because)) end,
         null::bigint, round(k.personal::numeric, 2)::double precision,
         round(k.popular::numeric, 2)::double precision,
         round(k.fresh::numeric, 2)::double precision, k.followed, b.because
  from reader r
    join two_tower.posts p on p.id = p_post_id
    left join two_tower.user_posts u on u.user_id = r.user_id and u.post_id = p_post_id
    cross join lateral (
      select exists (select from public.muted_terms t where t.user_id = r.user_id
        and t.kind = 'tag' and t.term = any (p.tags)) as is_muted) m
    cross join lateral (
      select not m.is_muted and exists (select from two_tower.listed_posts l where l.id = p.id)
        and two_tower.is_eligible(r.user_id, p.id, p.author_id) as is_eligible) e
    cross join lateral two_tower.list_evidence(r.reader, p.id) b (because)
    -- Also of a seen post: readers ask why about what is on their screen.
    left join lateral two_tower.score_posts(r.reader, array[p_post_id]) k
      on e.is_eligible or u.user_id is not null;
$$;
comment on function two_tower.explain_post(uuid, bigint) is
  'The core of explain_recommendation(), without place. The reason speaks to the user, and does not tell who blocked the user. Returns nothing for an unknown post. Raises 42501 for another user than the caller. Definer: clients have no grant on embeddings.';

-- Asked about what is on a page that the caller may read: so no other post is named.
create function two_tower.explain_copy(p_user_id uuid, p_post_id bigint, p_page bigint[])
returns text language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_reader two_tower.reader := two_tower.load_reader(two_tower.require_reader(p_user_id));
  v_copies two_tower.copies := two_tower.find_copies(v_reader, array[p_post_id], 1);
begin
  if v_copies.copy_ids <> '{}' then
    return 'a copy: you know what it says';
  end if;
  return (
    select 'a copy: post ' || o.key || ' stands for it'
    from two_tower.posts p
      left join two_tower.base_embeddings b on b.post_id = p.id
      cross join unnest(p_page) as g (id)
      join two_tower.posts o on o.id = g.id
      left join two_tower.base_embeddings e on e.post_id = o.id
    where p.id = p_post_id and v_reader.copy_similarity is not null
      and (o.stands_since, greatest(o.id, ~o.id)) < (p.stands_since, greatest(p.id, ~p.id))
      and (o.content_hash = p.content_hash
        or 1 - (b.base_embedding operator(extensions.<=>) e.base_embedding)
          > v_reader.copy_similarity)
    order by o.stands_since, greatest(o.id, ~o.id) limit 1);
end
$$;
comment on function two_tower.explain_copy(uuid, bigint, bigint[]) is
  'Returns why a post is a copy: the user knows what it says, or an older one of p_page says the same and stands for it. Returns null for one that is none. Raises 42501 for another user than the caller. Definer: clients have no grant on embeddings.';

-- The answer about what is not there holds nothing of the post: an id would tell that its key is
-- known. The place is that on a page that the caller may read, or it would count what is not.
create function two_tower.explain_readable(p_user_id uuid, p_post_id bigint)
returns setof two_tower.explanation
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_post two_tower.explanation;
  v_muted tsquery;
  v_page bigint[];
  v_copy text;
begin
  if exists (select from two_tower.find_readable(array[p_post_id])) then
    select * into v_post from two_tower.explain_post(p_user_id, p_post_id);
    v_muted := two_tower.muted_for(p_user_id);
    if v_post.is_eligible and v_muted is not null
      and exists (select from two_tower.find_muted(array[p_post_id], v_muted)) then
      v_post.is_eligible := false;
      v_post.reason := 'it has a word that you muted';
    end if;
  end if;
  if v_post.post_id is null then
    v_post.is_eligible := false;
    v_post.reason := 'there is no such post';
  elsif v_post.is_eligible then
    v_page := array(select f.post_id from two_tower.page_for(p_user_id, 500) f);
    v_post.place := array_position(v_page, p_post_id);
    v_copy := two_tower.explain_copy(p_user_id, p_post_id, v_page);
    v_post.reason := coalesce('eligible, ' || v_copy, v_post.reason);
  end if;
  return next v_post;
end
$$;
comment on function two_tower.explain_readable(uuid, bigint) is 'Explains a post that the caller may read. An unknown post and one that the caller may not read get one answer, with post_id null.';

create function public.explain_recommendation(p_post_id bigint default null,
  p_post_key text default null, p_post_source text default null)
returns table (
  post_id bigint, is_eligible boolean, reason text, place bigint, personal double precision,
  popular double precision, fresh double precision, followed double precision,
  because jsonb
) language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.explain_readable(two_tower.require_user(),
    two_tower.identify_post(p_post_id, p_post_key, p_post_source));
$$;
comment on function public.explain_recommendation(bigint, text, text) is
  'Explains why a post is where it is for the signed-in user, or why it is not recommended. The post is named by p_post_id, or by p_post_key and, where several tables are attached, p_post_source. place: on a page of 500 (null: further down). A post that was seen has the parts of its score, too. because: what of the user''s own engagements and told interests is nearest to the post, with keys, event type and time. The reason names the first. An unknown post and one that the user may not read get one answer, without post_id. The parts of the score are those of score_posts(). Raises 42501 when nobody is signed in.';

create function public.explain_for(p_user_id uuid, p_post_id bigint default null,
  p_post_key text default null, p_post_source text default null)
returns table (
  post_id bigint, is_eligible boolean, reason text, place bigint, personal double precision,
  popular double precision, fresh double precision, followed double precision,
  because jsonb
) language sql stable set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.explain_readable(p_user_id,
    two_tower.identify_post(p_post_id, p_post_key, p_post_source));
$$;
comment on function public.explain_for(uuid, bigint, text, text) is
  'For back ends with the service role: returns what explain_recommendation() returns to a user.';
