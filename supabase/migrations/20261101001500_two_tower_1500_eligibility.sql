-- Which posts a user may get at all: one rule for pages, samples and explanations.

create view two_tower.withheld_authors with (security_invoker = true) as
select b.user_id, b.author_id from public.author_blocks as b
union all
select b.author_id as user_id, b.user_id as author_id from public.author_blocks as b;
comment on view two_tower.withheld_authors is
  'Authors whose posts a user does not get: those whom the user blocked or muted, and those who blocked or muted the user.';

create function two_tower.is_eligible(p_user_id uuid, p_post_id bigint, p_author_id uuid)
returns boolean language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return p_author_id is distinct from p_user_id
    and not exists (select from two_tower.user_posts u
      where u.user_id = p_user_id and u.post_id = p_post_id)
    and not exists (select from two_tower.withheld_authors a
      where a.user_id = p_user_id and a.author_id = p_author_id);
end
$$;
comment on function two_tower.is_eligible(uuid, bigint, uuid) is
  'Returns whether a user may get a post. Not eligible are the user''s own posts and those of withheld authors. Nor are posts with a row in user_posts: seen, engaged with or hidden. Does not ask whether the post is deleted: the caller does. Serves few posts at a time; what serves many has the same three conditions inline.';
