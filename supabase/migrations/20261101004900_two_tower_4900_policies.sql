-- Who may do what, in one place. Everything is revoked first. Projects differ in what they grant by
-- default on new objects. A grant on a table would let a client write columns that are the
-- server's, such as created_at.

revoke all on public.author_blocks, public.muted_terms, public.engagement_events
  from public, anon, authenticated, service_role;
revoke all on all tables in schema two_tower from public, anon, authenticated, service_role;
revoke all on all sequences in schema two_tower from public, anon, authenticated, service_role;
revoke execute on all functions in schema two_tower from public, anon, authenticated, service_role;
revoke execute on function
  public.recommend(integer, text[], jsonb, text),
  public.similar_posts(bigint, integer, text, text, jsonb), public.popular_posts(integer, jsonb),
  public.recent_from_followed(integer),
  public.explain_recommendation(bigint, text, text), public.record_engagements(jsonb, boolean),
  public.recommend_for(uuid, integer, text[], jsonb, text),
  public.explain_for(uuid, bigint, text, text),
  public.remove_post(bigint, text, text, text), public.restore_post(bigint, text, text),
  public.embed_text(text), public.search_posts(text, integer, jsonb), public.read_metrics()
  from public, anon, authenticated, service_role;

-- The service role is the backend and the workers. It bypasses row level security everywhere in
-- Supabase.
grant all on public.author_blocks, public.muted_terms, public.engagement_events to service_role;
grant all on all tables in schema two_tower to service_role;
grant all on all sequences in schema two_tower to service_role;
grant execute on all functions in schema two_tower to service_role;
grant execute on function
  public.recommend(integer, text[], jsonb, text),
  public.similar_posts(bigint, integer, text, text, jsonb), public.popular_posts(integer, jsonb),
  public.recent_from_followed(integer),
  public.explain_recommendation(bigint, text, text), public.record_engagements(jsonb, boolean),
  public.embed_text(text), public.search_posts(text, integer, jsonb)
  to authenticated, service_role;
grant execute on function
  public.recommend_for(uuid, integer, text[], jsonb, text),
  public.explain_for(uuid, bigint, text, text),
  public.remove_post(bigint, text, text, text), public.restore_post(bigint, text, text),
  public.read_metrics()
  to service_role;

-- What signed-in users may write, column by column. created_at is never among them.
grant select, delete on public.author_blocks to authenticated;
grant select, insert (user_id, kind, term), delete on public.muted_terms to authenticated;
grant select, insert (user_id, post_id, post_key, post_source, event_type, dwell_ms,
    client_event_id, happened_at)
  on public.engagement_events to authenticated;

-- Defaults of columns and bodies of the public wrappers run with the caller's rights.
grant usage on sequence two_tower.engagement_event_ids to authenticated;
grant execute on function
  two_tower.now(), two_tower.is_operator(), two_tower.session_role(), two_tower.require_user(),
  two_tower.require_caller(), two_tower.request_text(text),
  two_tower.page_for(uuid, integer, text[], text, text, bigint, text, jsonb, text),
  two_tower.rank_for(uuid, integer, bigint[], text, bigint[], text, bigint, text,
    two_tower.page_filter),
  two_tower.filter_for(uuid, jsonb, text), two_tower.muted_for(uuid),
  two_tower.shown_before(uuid, text), two_tower.cursor_after(uuid, text, bigint[]),
  two_tower.fold_text(text), two_tower.find_muted(bigint[], tsquery),
  two_tower.explain_post(uuid, bigint), two_tower.explain_readable(uuid, bigint),
  two_tower.explain_copy(uuid, bigint, bigint[]),
  two_tower.find_excluded(text[], text), two_tower.identify_post(bigint, text, text),
  two_tower.turns_for(uuid, integer, uuid[]), two_tower.scan_limit(),
  two_tower.find_keys(smallint, bigint[]),
  two_tower.find_ids(smallint, text[]), two_tower.find_refused(bigint[]),
  two_tower.refuse_post(text), two_tower.begin_batch(), two_tower.read_dwell(jsonb),
  two_tower.read_event(jsonb, integer), two_tower.canonical_key(text, regtype),
  two_tower.store_events(jsonb[], integer[], timestamptz),
  two_tower.store_each(jsonb[], timestamptz, integer), two_tower.is_about_the_event(text),
  two_tower.refuse_event(jsonb, integer, text, text, text),
  two_tower.find_readable(bigint[], boolean), two_tower.find_newest_readable(integer, text)
  to authenticated;

-- What users ask and decide about their own feed.
revoke execute on function
  public.reset_my_feed(), public.more_from_author(text, integer),
  public.trending_posts(text, integer), public.set_interests(text[], text[], text),
  public.what_is_known_of_me(), public.export_my_data(integer, text),
  public.export_user_data(uuid, integer, text)
  from public, anon, authenticated, service_role;
grant execute on function
  public.reset_my_feed(), two_tower.reset_feed(), public.more_from_author(text, integer),
  public.trending_posts(text, integer), public.set_interests(text[], text[], text),
  two_tower.tell_interests(text[], bigint[]), public.what_is_known_of_me(), two_tower.list_known(),
  public.export_my_data(integer, text), two_tower.export_for(uuid, integer, text)
  to authenticated, service_role;
grant execute on function public.export_user_data(uuid, integer, text) to service_role;

-- A worker can do its work, and be watched, and nothing else: it calls these functions, and has no
-- grant on a table.
-- Its login is a member: create role worker login password '...' in role two_tower_worker.
do $$
begin
  if not exists (select from pg_catalog.pg_roles where rolname = 'two_tower_worker') then
    create role two_tower_worker nologin;
  end if;
exception when duplicate_object or unique_violation then
  null; -- another database of this server made it at the same moment
end
$$;
grant usage on schema two_tower, extensions to two_tower_worker;
grant execute on function
  two_tower.tick(), two_tower.claim_job(text, text[], interval, text),
  two_tower.heartbeat_job(bigint, text, interval), two_tower.complete_job(bigint, text, jsonb),
  two_tower.fail_job(bigint, text, text), two_tower.release_job(bigint, text),
  two_tower.posts_to_encode(integer), two_tower.profiles_to_encode(integer),
  two_tower.store_base_embeddings(bigint[], extensions.vector[], bigint[], text),
  two_tower.active_encoder(), two_tower.encoder_to_try(), two_tower.texts_to_fit(integer),
  two_tower.refuse_encoder(text, text), two_tower.switch_encoder(text, bigint),
  two_tower.store_profile_embeddings(uuid[], extensions.vector[], bigint[], text),
  two_tower.texts_to_encode(integer),
  two_tower.store_text_embeddings(bigint[], extensions.vector[], text),
  two_tower.read_settings(), two_tower.active_version(text), two_tower.read_version(bigint),
  two_tower.read_tensors(bigint), two_tower.read_model_authors(bigint),
  two_tower.held_out_from(), two_tower.candidate_tower_pairs(bigint),
  two_tower.read_base_embeddings(bigint[]), two_tower.live_anchors(bigint, integer),
  two_tower.users_to_train(bigint), two_tower.users_to_judge(bigint),
  two_tower.users_to_encode(uuid, integer), two_tower.user_histories(bigint, uuid[]),
  two_tower.random_posts_as_of(bigint, integer), two_tower.event_types_to_train(),
  two_tower.read_author_embeddings(uuid[]),
  two_tower.begin_study(), two_tower.study_window(bigint),
  two_tower.study_steps(bigint, bigint[], timestamptz[]), two_tower.study_posts(bigint, bigint[]),
  two_tower.apply_study(bigint, bigint[], extensions.vector[]), two_tower.end_study(bigint),
  two_tower.store_weights(text, text[], integer[], extensions.vector[], jsonb, jsonb, bigint,
    bigint, bigint, uuid[], extensions.vector[]),
  two_tower.reject_training(text, text, jsonb, jsonb, bigint, bigint, bigint),
  two_tower.judge_candidate_tower(bigint),
  two_tower.judge_user_tower(bigint, uuid[], extensions.vector[], extensions.vector[]),
  two_tower.store_user_encodings(bigint, uuid[], extensions.vector[]),
  two_tower.project_profiles(uuid, integer), two_tower.build_serving_index(text),
  two_tower.check_serving_index(integer), two_tower.checkpoint(text),
  two_tower.run_audit(bigint), two_tower.read_health()
  to two_tower_worker;

alter table public.author_blocks enable row level security;
alter table public.muted_terms enable row level security;
alter table public.engagement_events enable row level security;

create policy "users read their own blocks" on public.author_blocks
  for select to authenticated using (user_id = (select auth.uid()));
create policy "users lift their own blocks" on public.author_blocks
  for delete to authenticated using (user_id = (select auth.uid()));

create policy "users read their own muted terms" on public.muted_terms
  for select to authenticated using (user_id = (select auth.uid()));
create policy "users mute terms for themselves" on public.muted_terms
  for insert to authenticated with check (user_id = (select auth.uid()));
create policy "users lift their own muted terms" on public.muted_terms
  for delete to authenticated using (user_id = (select auth.uid()));

create policy "users read their own engagements" on public.engagement_events
  for select to authenticated using (user_id = (select auth.uid()));
create policy "users record their own engagements" on public.engagement_events
  for insert to authenticated with check (user_id = (select auth.uid()));
