-- Which posts a user may get at all: one rule for pages, samples and explanations.

create view two_tower.withheld_authors with (security_invoker = true) as
select b.user_id, b.author_id from two_tower.blocks as b
union all
select b.author_id as user_id, b.user_id as author_id from two_tower.blocks as b
where b.kind = 'block_author';
comment on view two_tower.withheld_authors is
  'Authors whose posts a user does not get: those whom the user blocked or muted, and those who blocked the user. Who is muted does not notice.';

-- live_embeddings follows the registry with the next tick. So what is gone between two ticks is
-- left out where a page is made: there, few posts are asked about.
create view two_tower.listed_posts with (security_invoker = true) as
select p.id, p.source_id, p.key, p.author_id, p.created_at
from two_tower.posts as p
where p.is_listed and p.created_at <= (select two_tower.now())
  and not (select exists (
    select from auth.users as a
    where a.id = p.author_id and a.banned_until > (select two_tower.now())));
comment on view two_tower.listed_posts is
  'Posts that may be recommended now: listed, published, and not of an author whom Auth has banned.';

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
  'Returns whether a user may get a post. Not eligible are the user''s own posts and those of withheld authors. Nor are posts with a row in user_posts: seen, engaged with or hidden. (What was only viewed comes back by a rule of its own: find_posts_by_rule().) Does not ask whether the post is listed: the caller does. Serves few posts at a time; what serves many has the same three conditions inline.';
