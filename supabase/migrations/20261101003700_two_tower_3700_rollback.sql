-- The way back. A rollback is a switch like a promotion's. The other slot is filled from a
-- checkpoint in bounded steps of tick() while readers go on, then the pointer flips.
--
-- Two sessions, a crash: a rollback begins with one short statement under the exclusive lock. It
-- freezes learning and makes deferred steps void. Each step after it commits by itself. Until the
-- flip all serve what served before. A crash in between leaves a state row that says how far it
-- got, and the next tick goes on.

create function two_tower.plan_rollback(p_checkpoint bigint default null)
returns table (checkpoint_id bigint, made_at timestamptz, age interval, is_good boolean,
  wrong_since timestamptz, users_then bigint, users_now bigint, engagements_then bigint,
  engagements_now bigint, engagements_lost bigint,
  candidate_tower_then bigint, candidate_tower_now bigint,
  user_tower_then bigint, user_tower_now bigint, refusal text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with learned as materialized (
    select count(*) as users, coalesce(sum(u.engagement_count), 0)::bigint as engagements
    from two_tower.user_embeddings u where u.engagement_count > 0
  ), plan as (
    select c.*, s.wrong_since, n.users as users_now, n.engagements as engagements_now,
      case
        when c.engagements = 0 and n.engagements > 0
          then 'it was made before anything was learned'
        when c.made_at >= s.wrong_since
          then 'it was made when what went wrong had begun' end as refusal
    from two_tower.checkpoints c cross join two_tower.state s cross join learned n
    where c.id = p_checkpoint or (p_checkpoint is null and c.is_good)
  )
  select p.id, p.made_at, two_tower.now() - p.made_at, p.is_good, p.wrong_since, p.users,
    p.users_now, p.engagements, p.engagements_now,
    greatest(0, p.engagements_now - p.engagements), p.candidate_tower,
    two_tower.active_version('candidate_tower'),
    p.user_tower, two_tower.active_version('user_tower'), p.refusal
  from plan p where p_checkpoint is not null or p.refusal is null
  order by p.id desc limit 1;
$$;
comment on function two_tower.plan_rollback(bigint) is
  'Says what a rollback to a checkpoint would do, and changes nothing: how many users had taught something and by how many engagements, which versions served, then and now. engagements_lost: what they taught would be gone. p_checkpoint: null for the newest that is good, not empty, and older than what went wrong (freeze(reason, since)). refusal: why rollback() refuses this checkpoint, or null. Returns no row where there is none.';

create function two_tower.rollback(p_checkpoint bigint default null) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_plan record;
  v_checkpoint two_tower.checkpoints;
begin
  select * into v_plan from two_tower.plan_rollback(p_checkpoint);
  if not found then
    raise exception '%', case when p_checkpoint is null
        then 'no checkpoint is good, not empty, and older than what went wrong'
        else format('there is no checkpoint %s', p_checkpoint) end using errcode = '22023',
      hint = 'select * from two_tower.checkpoints';
  elsif v_plan.refusal is not null then
    raise exception 'checkpoint % is not rolled back to: %', p_checkpoint, v_plan.refusal
      using errcode = '55000',
      hint = 'Roll back to an older one, or say since when it goes wrong: freeze(reason, since).';
  end if;
  perform two_tower.lock_switch(10);
  update two_tower.model_weights
    set state = 'rejected', verdict = 'rejected: overtaken by a rollback'
  where state = 'candidate' and version = (select filling_version from two_tower.state);
  update two_tower.state set
    frozen_at = coalesce(frozen_at, two_tower.now()),
    frozen_reason = coalesce(frozen_reason, format('rollback to checkpoint %s',
      v_plan.checkpoint_id)),
    epoch = epoch + 1, filling_version = v_plan.candidate_tower_then,
    filled_up_to = two_tower.first_bigint(), filling_checkpoint = v_plan.checkpoint_id,
    restored_up_to = '00000000-0000-0000-0000-000000000000'
  where id;
  select * into v_checkpoint from two_tower.checkpoints c where c.id = v_plan.checkpoint_id;
  insert into two_tower.rollbacks (checkpoint_id, after_event_id, last_event_id)
  select v_checkpoint.id, v_checkpoint.last_event_id, coalesce(max(e.id), 0)
  from public.engagement_events e;
  perform two_tower.reopen_undone(v_checkpoint);
  perform two_tower.release_posts();
  return v_plan.checkpoint_id;
end
$$;
comment on function two_tower.rollback(bigint) is
  'Begins the way back to a checkpoint (null: the one that plan_rollback() names), and returns its id. Learning freezes, and deferred steps are void. Ticks restore posts and users, then the slots flip. resume() goes on from there. Events stay recorded; what they taught since is gone. What the checkpoint holds and was undone since is in force again. Raises 22023 when there is no such checkpoint, 55000 for one that is empty or younger than what went wrong, and 55P03 when a statement goes on learning for too long.';

create function two_tower.restore_users(p_limit integer default 2000) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_state two_tower.state;
  v_ids uuid[];
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  select * into v_state from two_tower.state for no key update;
  if v_state.filling_checkpoint is null or v_state.restored_up_to = two_tower.last_uuid() then
    return 0;
  end if;
  v_ids := array(select u.user_id from two_tower.user_embeddings u
    where u.user_id > v_state.restored_up_to order by u.user_id limit p_limit for no key update);
  update two_tower.user_embeddings u set
    embedding = coalesce(c.embedding, two_tower.combine_user(n.zero, p.prior_weight, p.prior)),
    engaged_sum = coalesce(c.engaged_sum, n.zero),
    prior = p.prior, prior_weight = coalesce(p.prior_weight, 0), prior_source = p.prior_source,
    recent_post_ids = coalesce(c.recent_post_ids, '{}'),
    recent_strengths = coalesce(c.recent_strengths, '{}'),
    positive_ids = coalesce(c.positive_ids, '{}'),
    positive_interests = coalesce(c.positive_interests, '{}'),
    interest_sums = coalesce(c.interest_sums, '{}'),
    engagement_count = coalesce(c.engagement_count, 0)
  from two_tower.user_embeddings i
    cross join (select two_tower.zero_vector() as zero) n
    left join two_tower.checkpoint_users p
      on p.checkpoint_id = v_state.filling_checkpoint and p.user_id = i.user_id
    left join two_tower.checkpoint_users c
      on c.checkpoint_id = p.checkpoint_id and c.user_id = p.user_id
        and c.reset_count = i.reset_count
  where i.user_id = any (v_ids) and u.user_id = i.user_id;
  update two_tower.state
  set restored_up_to = coalesce(v_ids[cardinality(v_ids)], two_tower.last_uuid())
  where id;
  return cardinality(v_ids);
end
$$;
comment on function two_tower.restore_users(integer) is
  'In a rollback, gives the next p_limit users what the checkpoint has of them. Users whom it does not have start anew. Those who began anew since get their prior alone. Returns how many.';
