-- From an accepted version to one that serves: the other slot is filled in bounded steps while
-- events go on, and the pointer flips. A user tower has no slot: it serves at once.

create function two_tower.begin_switch(p_version bigint) returns void
language plpgsql set search_path = '' as $$
declare
  v_tower text := (select tower from two_tower.model_weights where version = p_version);
begin
  if v_tower = 'user_tower' then
    perform two_tower.activate_version(p_version);
    return;
  end if;
  perform pg_advisory_xact_lock(two_tower.switch_lock());
  update two_tower.model_weights
    set state = 'rejected', verdict = 'rejected: overtaken by a newer version'
  where version = (select filling_version from two_tower.state);
  update two_tower.state set filling_version = p_version, filled_up_to = 0;
end
$$;
comment on function two_tower.begin_switch(bigint) is
  'From now on learning writes both slots, and fill_slot() fills the other one. A user tower has no slot and serves at once.';

create function two_tower.activate_version(p_version bigint) returns void
language plpgsql set search_path = '' as $$
declare
  v_tower text := (select tower from two_tower.model_weights where version = p_version);
begin
  update two_tower.model_weights set state = 'archived'
  where state = 'active' and tower = v_tower and version <> p_version;
  update two_tower.model_weights set state = 'active' where version = p_version;
  if v_tower = 'user_tower' then
    perform two_tower.take_over_embeddings(p_version);
  end if;
  perform two_tower.enqueue_job('encode_users');
end
$$;
comment on function two_tower.activate_version(bigint) is 'Makes a version the one that serves; the one before it is kept as archived. Users get their base vectors anew: from a new user tower, or their profiles from a new candidate tower.';

create function two_tower.take_over_embeddings(p_version bigint) returns void
language sql set search_path = '' as $$
  insert into two_tower.action_embeddings (event_type, embedding)
  select g.event_type, t.row
  from two_tower.model_tensors t
    join (select s.event_type, row_number() over (order by s.bit) - 1 as place
          from two_tower.signals s) g on g.place = t.row_index
  where t.version = p_version and t.name = 'action.weight'
  order by g.event_type
  on conflict (event_type) do update
    set embedding = excluded.embedding, updated_at = excluded.updated_at;
  insert into two_tower.author_embeddings (author_id, embedding)
  select m.author_id, m.embedding from two_tower.model_authors m
  where m.version = p_version order by m.author_id
  on conflict (author_id) do update
    set embedding = excluded.embedding, updated_at = excluded.updated_at;
  delete from two_tower.author_steps s using two_tower.model_authors m
  where m.version = p_version and s.author_id = m.author_id;
$$;
comment on function two_tower.take_over_embeddings(bigint) is 'What a version of the user tower learned of actions and authors goes into the tables that serve. What blocks taught of those authors since is forgotten: the version has learned from them.';

create function two_tower.fill_slot(p_limit integer default 2000) returns integer
language plpgsql set search_path = '' as $$
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
           coalesce(k.embedding, two_tower.candidate_tower(b.base_embedding,
             v_state.filling_version)) as embedding
    from source s join two_tower.base_embeddings b using (post_id)
      left join kept k using (post_id)
  ), written as (
    insert into two_tower.live_embeddings as f (
      slot, post_id, embedding, author_id, created_at, is_deleted, is_pretrained, engagement_count,
        popularity,
      model_version)
    select 1 - s.slot, s.post_id,
           case when extensions.vector_norm(p.embedding) > 0 then p.embedding else s.embedding end,
           s.author_id, s.created_at, s.is_deleted, p.is_pretrained,
           coalesce(p.engagement_count, 0), coalesce(p.popularity, 0), v_state.filling_version
    from source s join projected p using (post_id) order by s.post_id
    on conflict (slot, post_id) do update set
      embedding = excluded.embedding, author_id = excluded.author_id,
        created_at = excluded.created_at,
      is_deleted = excluded.is_deleted, is_pretrained = excluded.is_pretrained,
      engagement_count = excluded.engagement_count, popularity = excluded.popularity,
      model_version = excluded.model_version
    returning f.post_id
  )
  select max(post_id), count(*) into v_last, v_filled from written;
  update two_tower.state set filled_up_to = coalesce(v_last, filled_up_to);
  return v_filled;
end
$$;
comment on function two_tower.fill_slot(integer) is
  'Fills the other slot for the next so many posts: those nobody engaged with are projected by the new tower, the others keep their live vector, which stays in the same space; in a rollback, those of the checkpoint have its vectors, and all others are projected. Returns how many; 0 when all are filled. A crash here loses one step, which is done again.';

create function two_tower.slot_is_full() returns boolean
language sql stable set search_path = '' as $$
  select s.filling_version is not null
    and coalesce(s.restored_up_to >= two_tower.last_uuid(), true)
    and not exists (select from two_tower.live_embeddings v
                    where v.slot = s.active_slot and v.post_id > s.filled_up_to)
  from two_tower.state s;
$$;
comment on function two_tower.slot_is_full() is 'Whether a slot is being filled, and nothing is missing in it.';

create function two_tower.lock_switch(p_attempts integer) returns void
language plpgsql set search_path = '' set lock_timeout = '2s' as $$
begin
  for v_attempt in 1..p_attempts loop
    begin
      perform pg_advisory_xact_lock(two_tower.switch_lock());
      return;
    exception when lock_not_available then
      if v_attempt = p_attempts then
        raise;
      end if;
    end;
    perform pg_sleep(0.5);
  end loop;
end
$$;
comment on function two_tower.lock_switch(integer) is
  'Takes the switch lock exclusively. While it is waited for, new statements that learn wait too: so 2 s at most, and they go on between attempts. Raises 55P03 after the last one.';

create function two_tower.flip_slots(p_has_index boolean default false) returns boolean
language plpgsql set search_path = '' as $$
declare
  v_state two_tower.state;
begin
  perform two_tower.lock_switch(1);
  select * into v_state from two_tower.state for update;
  if not two_tower.slot_is_full() then
    return false;
  end if;
  perform two_tower.activate_version(v_state.filling_version);
  if v_state.filling_checkpoint is not null then
    perform two_tower.restore_user_tower(v_state.filling_checkpoint);
  else
    update two_tower.schedules set last_run_at = null where kind = 'checkpoint';
  end if;
  update two_tower.state set active_slot = 1 - active_slot, filling_version = null,
    filling_checkpoint = null, restored_up_to = null,
    serving_side = case when p_has_index then serving_side end;
  return true;
exception when lock_not_available then
  return false;
end
$$;
comment on function two_tower.flip_slots(boolean) is
  'Makes the filled slot the one that serves, if it is complete, with the serving index just built for it or with none. Waits at most 2 s for statements that are learning, and otherwise leaves it to the next tick. The old slot stays as what served before.';

create function two_tower.store_bases(p_user_ids uuid[], p_embeddings extensions.vector[],
  p_weights real[], p_sources two_tower.base_source[]) returns integer
language plpgsql set search_path = '' as $$
declare
  v_stored integer;
begin
  insert into two_tower.user_embeddings (user_id)
  select n.user_id from unnest(p_user_ids) as n (user_id) order by n.user_id on conflict do nothing;
  with given as (
    select * from unnest(p_user_ids, p_embeddings, p_weights, p_sources)
      as n (user_id, embedding, weight, source)
  ), locked as (
    select u.user_id, g.embedding, g.weight, g.source
    from two_tower.user_embeddings u join given g using (user_id)
    order by u.user_id for no key update of u
  )
  update two_tower.user_embeddings u set
    base_embedding = l.embedding, base_weight = l.weight, base_source = l.source,
    embedding = case when c.learning_rule = 'literal' and u.engagement_count > 0 then u.embedding
      else extensions.l2_normalize(
        u.engaged_sum operator(extensions.+) two_tower.scaled(l.embedding, l.weight)) end
  from locked l cross join two_tower.settings c where u.user_id = l.user_id;
  get diagnostics v_stored = row_count;
  return v_stored;
end
$$;
comment on function two_tower.store_bases(uuid[], extensions.vector[], real[], two_tower.base_source[]) is
  'Gives users a base vector b with its weight: u = norm(weight * b + engaged_sum). Null for none. Returns how many.';

create function two_tower.store_user_encodings(
  p_version bigint, p_user_ids uuid[], p_embeddings extensions.vector[]
) returns integer language plpgsql set search_path = '' as $$
declare
  v_weights jsonb := (select config -> 'base_weights' from two_tower.model_weights
    where version = p_version and version = two_tower.active_version('user_tower'));
  v_stored integer;
begin
  if v_weights is null then
    raise exception 'version % of the user tower does not serve', p_version using errcode = '22023',
      hint = 'Encode users with the active version only.';
  end if;
  with given as (
    select n.user_id, b.*
    from unnest(p_user_ids, p_embeddings) as n (user_id, embedding)
      join two_tower.user_embeddings u using (user_id)
      cross join lateral two_tower.base_of(n.user_id, n.embedding,
        (v_weights ->> two_tower.class_of(u.engagement_count))::real) b
  )
  select two_tower.store_bases(array_agg(user_id), array_agg(embedding), array_agg(weight),
    array_agg(source)) into v_stored from given;
  return coalesce(v_stored, 0);
end
$$;
comment on function two_tower.store_user_encodings(bigint, uuid[], extensions.vector[]) is
  'Stores the active user tower''s vectors as the users'' base vectors, with the weight that the gate chose for their class; users of a class that they do not help keep what their profile says. Returns how many users there were.';

create function two_tower.project_profiles(p_after uuid, p_limit integer default 500)
returns uuid language plpgsql set search_path = '' as $$
declare
  v_last uuid;
  v_stored integer;
begin
  with given as (
    select u.user_id, b.*
    from (
      select e.user_id from two_tower.user_embeddings e
      where e.user_id > p_after and e.base_source = 'profile' order by e.user_id limit p_limit
    ) u cross join lateral two_tower.base_of(u.user_id, null, 0) b
  )
  select two_tower.store_bases(array_agg(g.user_id), array_agg(g.embedding), array_agg(g.weight),
    array_agg(g.source)), (array_agg(g.user_id order by g.user_id desc))[1]
  into v_stored, v_last from given g;
  return v_last;
end
$$;
comment on function two_tower.project_profiles(uuid, integer) is
  'Projects profiles with the active candidate tower again, for the next so many users after the given id whose base vector is their profile''s. Returns the last one, null when there was none.';

create function two_tower.store_profile_embeddings(
  p_user_ids uuid[], p_embeddings extensions.vector[], p_requests integer[]
) returns integer language plpgsql set search_path = '' as $$
declare
  v_stored integer;
  v_based integer;
begin
  with given as (
    select n.user_id, n.embedding, n.request
      from unnest(p_user_ids, p_embeddings, p_requests) as n (user_id, embedding, request)
  ), locked as (
    select e.user_id, g.embedding from two_tower.profile_embeddings e join given g using (user_id)
    where e.request = g.request order by e.user_id for no key update of e
  ), stored as (
    update two_tower.profile_embeddings e set base_embedding = l.embedding
    from locked l where e.user_id = l.user_id returning e.user_id, l.embedding
  ), based as (
    select s.user_id, two_tower.candidate_tower(s.embedding) as base, c.profile_weight,
      'profile'::two_tower.base_source as source
    from stored s cross join two_tower.settings c
      left join two_tower.user_embeddings u using (user_id)
    where u.base_source is distinct from 'user_tower'
  )
  select (select count(*) from stored), two_tower.store_bases(array_agg(b.user_id),
    array_agg(b.base), array_agg(b.profile_weight), array_agg(b.source))
  into v_stored, v_based from based b;
  return v_stored;
end
$$;
comment on function two_tower.store_profile_embeddings(uuid[], extensions.vector[], integer[]) is
  'Stores encoded profiles and, through the candidate tower, gives their users a first base vector. Returns how many.';
