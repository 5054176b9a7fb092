-- What is deleted for good. When a user is deleted, all that is personal goes. What is small goes
-- at once, by foreign keys. What may be long (events, training examples, blocks, follows,
-- user_posts) goes in bounded steps of tick(). So no deletion holds locks for minutes. Posts keep
-- their vectors: what they learned is not about one person.

create function two_tower.erase_users(p_limit integer default 1000) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_user_id uuid;
  v_left integer := p_limit;
  v_count integer;
  v_pair record;
begin
  -- Statements that ran when the user was deleted end within a minute.
  select e.user_id into v_user_id from two_tower.users_to_erase e
  where e.requested_at < two_tower.now() - interval '1 minute'
  order by e.requested_at, e.user_id limit 1 for update skip locked;
  if not found then
    return 0;
  end if;
  delete from public.engagement_events e using (
    select x.id, x.created_at from public.engagement_events x
    where x.user_id = v_user_id limit v_left) gone
  where e.id = gone.id and e.created_at = gone.created_at;
  get diagnostics v_count = row_count;
  v_left := v_left - v_count;
  delete from two_tower.training_examples e using (
    select x.post_id, x.event_id, x.created_at from two_tower.training_examples x
    where x.user_id = v_user_id limit v_left) gone
  where e.user_id = v_user_id and e.post_id = gone.post_id and e.event_id = gone.event_id
    and e.created_at = gone.created_at;
  get diagnostics v_count = row_count;
  v_left := v_left - v_count;
  delete from two_tower.unlearned_events e using (
    select x.event_id, x.created_at from two_tower.unlearned_events x
    where x.user_id = v_user_id limit v_left) gone
  where e.event_id = gone.event_id and e.created_at = gone.created_at;
  get diagnostics v_count = row_count;
  v_left := v_left - v_count;
  update two_tower.deferred_steps d set user_id = null where d.user_id = v_user_id;
  delete from two_tower.checkpoint_users c where c.user_id = v_user_id;
  delete from two_tower.author_embeddings a where a.author_id = v_user_id;
  delete from two_tower.author_steps a where a.author_id = v_user_id;
  delete from two_tower.alerts a where a.subject = v_user_id::text;
  for v_pair in
    select * from (values ('public.author_blocks', 'user_id', 'author_id'),
      ('two_tower.blocks', 'user_id', 'author_id'),
      ('two_tower.follows', 'follower_id', 'followed_id')) as p (pairs, one, other)
  loop
    execute format('
      delete from %1$s p where p.ctid = any (array(
        (select x.ctid from %1$s x where x.%2$s = $1 limit $2) union all
        (select x.ctid from %1$s x where x.%3$s = $1 limit $2) limit $2))',
      v_pair.pairs, v_pair.one, v_pair.other) using v_user_id, v_left;
    get diagnostics v_count = row_count;
    v_left := v_left - v_count;
  end loop;
  delete from two_tower.user_posts u using (
    select x.post_id from two_tower.user_posts x where x.user_id = v_user_id limit v_left) gone
  where u.user_id = v_user_id and u.post_id = gone.post_id;
  get diagnostics v_count = row_count;
  v_left := v_left - v_count;
  if v_left > 0 then
    delete from two_tower.users_to_erase e where e.user_id = v_user_id;
    v_left := v_left - 1;
  end if;
  return p_limit - v_left;
end
$$;
comment on function two_tower.erase_users(integer) is
  'Deletes at most p_limit rows of one deleted user, and all rows of checkpoints. Returns how many of the p_limit it used: 0 when no erasure is due. Sessions may run it at once: each takes another user.';

-- Two sessions: live rows are locked in the order in which learning locks them, before the registry
-- takes them along. A post that an app's transaction holds stays for now.
create function two_tower.purge_posts(p_limit integer default 1000) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_post_ids bigint[];
  v_count integer;
begin
  v_post_ids := array(
    select p.id from two_tower.posts p
    where p.deleted_at < two_tower.now() - (
        select s.deleted_posts_kept_for from two_tower.settings s)
      and exists (select from two_tower.sources s
                  where s.id = p.source_id and s.state <> 'detached')
    order by p.deleted_at limit p_limit);
  if v_post_ids = '{}' then
    return 0;
  end if;
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  perform from two_tower.live_embeddings v
  where v.post_id = any (v_post_ids)
  order by v.post_id, v.slot <> (select active_slot from two_tower.state) for update;
  delete from two_tower.posts p where p.id in (
    select n.id from two_tower.posts n
    where n.id = any (v_post_ids) and n.deleted_at is not null
    order by n.id for update skip locked);
  get diagnostics v_count = row_count;
  return v_count;
end
$$;
comment on function two_tower.purge_posts(integer) is
  'Deletes at most p_limit posts that are gone from the app''s tables for longer than settings.deleted_posts_kept_for, with all vectors. Keeps those of detached tables. Returns how many.';
