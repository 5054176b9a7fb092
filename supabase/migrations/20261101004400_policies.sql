-- Who may do what, in one place. Everything is revoked first. Projects differ in what they grant by
-- default on new objects. A grant on a table would let a client write columns that are the
-- server's, such as created_at.

revoke all on public.profiles, public.posts, public.follows, public.author_blocks,
  public.engagement_events
  from public, anon, authenticated, service_role;
revoke all on sequence public.posts_id_seq from public, anon, authenticated, service_role;
revoke all on all tables in schema two_tower from public, anon, authenticated, service_role;
revoke all on all sequences in schema two_tower from public, anon, authenticated, service_role;
revoke execute on all functions in schema two_tower from public, anon, authenticated, service_role;
revoke execute on function
  public.recommend(integer, bigint[]), public.similar_posts(bigint, integer),
  public.popular_posts(integer), public.recent_from_followed(integer),
  public.explain_recommendation(bigint), public.record_engagements(jsonb),
  public.recommend_for(uuid, integer, bigint[]), public.explain_for(uuid, bigint)
  from public, anon, authenticated, service_role;

-- The service role is the backend and the workers. It bypasses row level security everywhere in
-- Supabase.
grant all on public.profiles, public.posts, public.follows, public.author_blocks,
  public.engagement_events to service_role;
grant all on all tables in schema two_tower to service_role;
grant all on all sequences in schema two_tower to service_role;
grant execute on all functions in schema two_tower to service_role;
grant execute on function
  public.recommend(integer, bigint[]), public.similar_posts(bigint, integer),
  public.popular_posts(integer), public.recent_from_followed(integer),
  public.explain_recommendation(bigint), public.record_engagements(jsonb)
  to authenticated, service_role;
grant execute on function
  public.recommend_for(uuid, integer, bigint[]), public.explain_for(uuid, bigint) to service_role;

-- What signed-in users may write, column by column. created_at is never among them.
grant select, insert (user_id, handle, bio, interests), update (handle, bio, interests)
  on public.profiles to authenticated;
grant select, insert (author_id, content), update (content, deleted_at)
  on public.posts to authenticated;
grant select, insert (follower_id, followed_id), delete on public.follows to authenticated;
grant select, delete on public.author_blocks to authenticated;
grant select, insert (user_id, post_id, event_type, dwell_ms, client_event_id)
  on public.engagement_events to authenticated;

-- Defaults of columns and bodies of the public wrappers run with the caller's rights.
grant usage on sequence two_tower.engagement_event_ids to authenticated;
grant execute on function
  two_tower.now(), two_tower.is_operator(), two_tower.session_role(), two_tower.require_user(),
  two_tower.recommend_to_caller(integer, bigint[]),
  two_tower.similar_posts_for_caller(bigint, integer),
  two_tower.popular_posts_for_caller(integer), two_tower.explain_to_caller(bigint),
  two_tower.begin_batch()
  to authenticated;

alter table public.profiles enable row level security;
alter table public.posts enable row level security;
alter table public.follows enable row level security;
alter table public.author_blocks enable row level security;
alter table public.engagement_events enable row level security;

create policy "profiles are read by signed-in users" on public.profiles
  for select to authenticated using (true);
create policy "users create their own profile" on public.profiles
  for insert to authenticated with check (user_id = (select auth.uid()));
create policy "users change their own profile" on public.profiles
  for update to authenticated using (user_id = (select auth.uid()))
  with check (user_id = (select auth.uid()));

create policy "posts that are not deleted are read by signed-in users" on public.posts
  for select to authenticated using (deleted_at is null or author_id = (select auth.uid()));
create policy "authors write their own posts" on public.posts
  for insert to authenticated with check (author_id = (select auth.uid()));
create policy "authors change their own posts" on public.posts
  for update to authenticated using (author_id = (select auth.uid()))
  with check (author_id = (select auth.uid()));

create policy "users read their own follows" on public.follows
  for select to authenticated using (follower_id = (select auth.uid()));
create policy "users follow for themselves" on public.follows
  for insert to authenticated with check (follower_id = (select auth.uid()));
create policy "users unfollow for themselves" on public.follows
  for delete to authenticated using (follower_id = (select auth.uid()));

create policy "users read their own blocks" on public.author_blocks
  for select to authenticated using (user_id = (select auth.uid()));
create policy "users lift their own blocks" on public.author_blocks
  for delete to authenticated using (user_id = (select auth.uid()));

create policy "users read their own engagements" on public.engagement_events
  for select to authenticated using (user_id = (select auth.uid()));
create policy "users record their own engagements" on public.engagement_events
  for insert to authenticated with check (user_id = (select auth.uid()));
