-- Why a post is where it is for a user, or why it is not there.

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
           when not e.is_eligible then 'it is not available to you'
           when p.is_unreadable then 'eligible, but the encoder cannot read its text'
           when k.post_id is null then 'eligible, but its text is not encoded yet'
           else 'eligible' end,
         null::bigint, round(k.personal::numeric, 2)::double precision,
         round(k.popular::numeric, 2)::double precision,
         round(k.fresh::numeric, 2)::double precision, k.followed
  from reader r
    join two_tower.posts p on p.id = p_post_id
    left join two_tower.user_posts u on u.user_id = r.user_id and u.post_id = p_post_id
    cross join lateral (
      select exists (select from two_tower.listed_posts l where l.id = p.id)
        and two_tower.is_eligible(r.user_id, p.id, p.author_id) as is_eligible) e
    -- Also of a seen post: readers ask why about what is on their screen.
    left join lateral two_tower.score_posts(r.reader, array[p_post_id]) k
      on e.is_eligible or u.user_id is not null;
$$;
comment on function two_tower.explain_post(uuid, bigint) is
  'The core of explain_recommendation(), without place. The reason speaks to the user, and does not tell who blocked the user. Returns nothing for an unknown post. Raises 42501 for another user than the caller. Definer: clients have no grant on embeddings.';

-- The answer about what is not there holds nothing of the post: an id would tell that its key is
-- known. The place is that on a page that the caller may read, or it would count what is not.
create function two_tower.explain_readable(p_user_id uuid, p_post_id bigint)
returns setof two_tower.explanation
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_post two_tower.explanation;
begin
  if exists (select from two_tower.find_readable(array[p_post_id])) then
    select * into v_post from two_tower.explain_post(p_user_id, p_post_id);
  end if;
  if v_post.post_id is null then
    v_post.is_eligible := false;
    v_post.reason := 'there is no such post';
  elsif v_post.is_eligible then
    v_post.place := (
      select f.place
      from two_tower.page_for(p_user_id, 500) with ordinality as f (post_id, post_key, post_source,
        author_id, created_at, score, source, arm, cursor, place)
      where f.post_id = p_post_id);
  end if;
  return next v_post;
end
$$;
comment on function two_tower.explain_readable(uuid, bigint) is 'Explains a post that the caller may read. An unknown post and one that the caller may not read get one answer, with post_id null.';

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
  'Explains why a post is where it is for the signed-in user, or why it is not recommended. The post is named by p_post_id, or by p_post_key and, where several tables are attached, p_post_source. place: on a page of 500 (null: further down). A post that was seen has the parts of its score, too. An unknown post and one that the user may not read get one answer, without post_id. The parts of the score are those of score_posts(). Raises 42501 when nobody is signed in.';

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
