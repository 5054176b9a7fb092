-- From an accepted version to one that serves. The other slot is filled in bounded steps while
-- events go on, then the pointer flips. A user tower has no slot: it serves at once.

create function two_tower.take_over_embeddings(p_version bigint) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  insert into two_tower.action_embeddings (event_type, embedding)
  select g.event_type, t.row
  from two_tower.model_tensors t
    join (select s.event_type, row_number() over (order by s.bit) - 1 as place
          from two_tower.signals s) g on g.place = t.row_index
  where t.version = p_version and t.name = 'action.weight'
  order by g.event_type
  on conflict (event_type) do update set
    embedding = excluded.embedding, updated_at = excluded.updated_at;
  insert into two_tower.author_embeddings (author_id, embedding)
  select m.author_id, m.embedding from two_tower.model_authors m
  where m.version = p_version order by m.author_id
  on conflict (author_id) do update set
    embedding = excluded.embedding, updated_at = excluded.updated_at;
  delete from two_tower.author_steps s using two_tower.model_authors m
  where m.version = p_version and s.author_id = m.author_id;
$$;
comment on function two_tower.take_over_embeddings(bigint) is 'Copies what a version of the user tower learned of actions and authors into the tables that serve. Forgets what blocks taught of those authors since: the version has learned from them.';

create function two_tower.activate_version(p_version bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_tower text := (select tower from two_tower.model_weights where version = p_version);
  v_encoder text := two_tower.active_encoder();
begin
  update two_tower.model_weights set state = 'archived'
  where state = 'active' and tower = v_tower and version <> p_version;
  update two_tower.model_weights set state = 'active' where version = p_version;
  if v_tower = 'user_tower' then
    perform two_tower.take_over_embeddings(p_version);
  elsif two_tower.active_encoder() <> v_encoder then
    insert into two_tower.cursors (name, position)
    values ('encoding_round', two_tower.first_bigint())
    on conflict (name) do update set position = excluded.position;
  end if;
  perform two_tower.enqueue_job('encode_users');
end
$$;
comment on function two_tower.activate_version(bigint) is 'Makes a version the one that serves, and archives the one before it. By a candidate tower of another encoder, has all texts encoded anew. Asks workers to make the priors anew: by a new user tower, or from profiles by a new candidate tower.';

create function two_tower.begin_switch(p_version bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_tower text := (select tower from two_tower.model_weights where version = p_version);
begin
  if v_tower = 'user_tower' then
    perform two_tower.activate_version(p_version);
    return;
  end if;
  perform two_tower.lock_switch(10);
  update two_tower.model_weights
    set state = 'rejected', verdict = 'rejected: overtaken by a newer version'
  where version = (select filling_version from two_tower.state);
  update two_tower.state set filling_version = p_version,
    filled_up_to = two_tower.first_bigint() where id;
end
$$;
comment on function two_tower.begin_switch(bigint) is
  'Begins the switch to a version. From now on learning writes both slots, and fill_slot() fills the other one. A user tower has no slot and serves at once. Rejects the version for which a slot was being filled. Raises 55P03 when a statement goes on learning for too long.';

create function two_tower.fill_slot(p_limit integer default 2000) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_state two_tower.state;
  v_last bigint;
  v_filled integer;
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  select * into v_state from two_tower.state for no key update;
  if v_state.filling_version is null then
    return 0;
  end if;
  with source as materialized (
    select v.* from two_tower.live_embeddings v
    where v.slot = v_state.active_slot and v.post_id > v_state.filled_up_to
    order by v.post_id limit p_limit for no key update
  ), kept as (
    select s.post_id, s.embedding, s.engagement_count, s.popularity
    from source s where v_state.filling_checkpoint is null and not s.is_pretrained
    union all
    select c.post_id, c.embedding, c.engagement_count, c.popularity
    from two_tower.checkpoint_posts c join source s using (post_id)
    where c.checkpoint_id = v_state.filling_checkpoint
  ), projected as materialized (
    select s.post_id, k.post_id is null as is_pretrained, k.engagement_count, k.popularity,
           coalesce(k.embedding, two_tower.project_text(b.base_embedding, b.encoder,
             v_state.filling_version), s.embedding) as embedding
    from source s join two_tower.base_embeddings b using (post_id)
      left join kept k using (post_id)
  ), written as (
    insert into two_tower.live_embeddings as f (
      slot, post_id, number, embedding, author_id, created_at, is_listed, source_id, is_pretrained,
      engagement_count, popularity, model_version)
    select 1 - s.slot, s.post_id, s.number,
           case when extensions.vector_norm(p.embedding) > 0 then p.embedding else s.embedding end,
           s.author_id, s.created_at, s.is_listed, s.source_id, p.is_pretrained,
           coalesce(p.engagement_count, 0), coalesce(p.popularity, '-infinity'),
           v_state.filling_version
    from source s join projected p using (post_id) order by s.post_id
    on conflict (post_id, slot) do update set
      number = excluded.number, embedding = excluded.embedding, author_id = excluded.author_id,
      created_at = excluded.created_at,
      is_listed = excluded.is_listed, is_pretrained = excluded.is_pretrained,
      engagement_count = excluded.engagement_count, popularity = excluded.popularity,
      model_version = excluded.model_version
    returning f.post_id
  )
  select max(post_id), count(*) into v_last, v_filled from written;
  update two_tower.state set filled_up_to = coalesce(v_last, filled_up_to) where id;
  return v_filled;
end
$$;
comment on function two_tower.fill_slot(integer) is
  'Fills the other slot for the next p_limit posts. The new tower projects untouched posts; the others keep their live embedding. In a rollback, posts of the checkpoint get its vectors, and all others are projected. Returns how many posts it filled: 0 when all are. A crash here loses one step, which is done again.';

create function two_tower.is_slot_full() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select s.filling_version is not null
    and coalesce(s.restored_up_to >= two_tower.last_uuid(), true)
    and not exists (select from two_tower.live_embeddings v
                    where v.slot = s.active_slot and v.post_id > s.filled_up_to)
  from two_tower.state s;
$$;
comment on function two_tower.is_slot_full() is 'Returns whether a slot is being filled and nothing is missing in it.';

create function two_tower.restore_user_tower(p_checkpoint bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_version bigint := (select user_tower from two_tower.checkpoints where id = p_checkpoint);
begin
  if v_version is not null then
    perform two_tower.activate_version(v_version);
  else
    update two_tower.model_weights set state = 'archived'
    where tower = 'user_tower' and state = 'active';
  end if;
end
$$;
comment on function two_tower.restore_user_tower(bigint) is 'Makes the user tower of a checkpoint serve again, or none.';

create function two_tower.needs_serving_index() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select s.exact_scan_limit < (
    select count(*) from (
      select from two_tower.live_embeddings v
      where v.slot = (select active_slot from two_tower.state)
      limit s.exact_scan_limit + 1) v)
  from two_tower.settings s;
$$;
comment on function two_tower.needs_serving_index() is 'Returns whether there are more posts than settings.exact_scan_limit.';

-- An operator rolls back because what serves is bad, and an index takes minutes to build. The
-- copies of the one that serves only choose candidates: their order is that of the live vectors.
create function two_tower.may_keep_index() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select s.serving_side is not null and s.filling_checkpoint is not null
    and s.filling_version = two_tower.active_version('candidate_tower')
    and two_tower.needs_serving_index()
  from two_tower.state s;
$$;
comment on function two_tower.may_keep_index() is
  'Returns whether a switch is under way that keeps the serving index: a rollback to a checkpoint of the candidate tower that serves, where there are enough posts for an index. Untouched posts have the same vectors there, so the copies of the others alone are old.';

create function two_tower.flip_slots(p_has_index boolean default false) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_state two_tower.state;
  v_keeps_index boolean;
begin
  perform two_tower.lock_switch(1);
  select * into v_state from two_tower.state for update;
  if not two_tower.is_slot_full() then
    return false;
  end if;
  v_keeps_index := not p_has_index and two_tower.may_keep_index();
  if v_keeps_index then
    perform two_tower.enqueue_job('build_serving_index');
  end if;
  perform two_tower.activate_version(v_state.filling_version);
  if v_state.filling_checkpoint is not null then
    perform two_tower.restore_user_tower(v_state.filling_checkpoint);
  else
    update two_tower.schedules set last_run_at = null where kind = 'checkpoint';
  end if;
  update two_tower.state set active_slot = 1 - active_slot, filling_version = null,
    filling_checkpoint = null, restored_up_to = null,
    regrouped_up_to = case when v_state.filling_checkpoint is null
      then '00000000-0000-0000-0000-000000000000'::uuid end,
    serving_side = case when p_has_index or v_keeps_index then serving_side end
  where id;
  return true;
exception when lock_not_available then
  return false;
end
$$;
comment on function two_tower.flip_slots(boolean) is
  'Makes the filled slot the one that serves, if it is complete, with the serving index just built for it, with the one that serves (may_keep_index(), and a worker builds it anew), or with none. Waits for at most 2 s for statements that are learning. Returns whether it flipped; the next tick tries again. The old slot stays as what served before. After a promotion, asks for a regrouping: posts have new vectors.';

create function two_tower.prune_weights() returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_pruned integer;
begin
  with old as (
    select w.version
    from (select version, state, row_number() over (partition by tower order by version desc)
            as place from two_tower.model_weights) w
    where w.place > (select weight_versions_kept from two_tower.settings)
      and w.state in ('rejected', 'archived')
      and not exists (select from two_tower.checkpoints c
        where w.version in (c.candidate_tower, c.user_tower))
      and not exists (select from two_tower.live_embeddings v
        where v.model_version = w.version and v.slot = (select active_slot from two_tower.state))
  ), gone as (
    delete from two_tower.model_tensors t using old where t.version = old.version
    returning t.version
  )
  select count(distinct version) into v_pruned from gone;
  return v_pruned;
end
$$;
comment on function two_tower.prune_weights() is
  'Deletes the tensors of old versions (settings.weight_versions_kept per tower), and keeps their metrics. Spares a version that serves, is a candidate, is needed by a checkpoint, or projected a post of the slot that serves. Returns how many versions lost their tensors.';
