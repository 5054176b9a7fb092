-- From training data to a version that serves. A worker reads its data from here, trains, stores a
-- candidate with store_weights(), and asks for the judgement. What follows is SQL: the gate, the
-- filling of the other slot in bounded steps while events go on, and the flip of the pointer.

-- Training stops at t0; the examples after it are kept for the gate, which is thus about events
-- that neither version has learned from.
create function two_tower.held_out_from() returns timestamptz
language sql stable set search_path = '' as $$
  select min(newest.created_at) from (
    select x.created_at from two_tower.training_examples x
    where x.label and not x.is_withdrawn order by x.created_at desc, x.event_id desc
      limit (select 2 * gate_minimum_events from two_tower.settings)
  ) newest;
$$;
comment on function two_tower.held_out_from() is 't0: the newest positives from here on are for the gate, earlier ones for training.';

create function two_tower.candidate_tower_examples(p_before timestamptz,
  p_limit integer default 1000)
returns table (
  event_id bigint, user_emb extensions.vector, base_embedding extensions.vector,
    negative_base_embeddings extensions.vector[]
) language sql stable set search_path = '' as $$
  select x.event_id, x.user_emb::extensions.vector, b.base_embedding,
         array(select nb.base_embedding
               from unnest(x.negative_ids) with ordinality as n (post_id, place)
               join two_tower.base_embeddings nb on nb.post_id = n.post_id
               where nb.base_embedding is not null and not exists (
                 select from two_tower.user_posts u
                 where u.user_id = x.user_id and u.post_id = n.post_id and u.is_engaged)
               order by n.place)
  from two_tower.training_examples x
    join two_tower.signals s on s.event_type = x.event_type
    join two_tower.user_posts u on u.user_id = x.user_id and u.post_id = x.post_id
      and u.signals & s.bit <> 0
    join two_tower.base_embeddings b on b.post_id = x.post_id and b.base_embedding is not null
  where x.label and x.created_at < p_before
    and extensions.vector_norm(x.user_emb::extensions.vector) > 0
  order by x.created_at desc, x.event_id desc
  limit p_limit;
$$;
comment on function two_tower.candidate_tower_examples(timestamptz, integer) is
  'What the candidate tower is trained on: the newest positives before t0 with the base embeddings of the post and of its negatives. Withdrawn pairs are left out.';

create function two_tower.live_anchors(p_before timestamptz, p_limit integer default 5000)
returns table (post_id bigint, base_embedding extensions.vector, embedding extensions.vector,
  engagement_count integer)
language sql stable set search_path = '' as $$
  with recent as (
    select x.post_id, x.post_emb, x.created_at, x.event_id
    from two_tower.training_examples x
    where x.created_at < p_before and not x.is_withdrawn
    order by x.created_at desc, x.event_id desc limit 20000
  ), newest as (
    select distinct on (r.post_id) r.post_id, r.post_emb, r.engagements::integer
    from (select *, count(*) over (partition by post_id) as engagements from recent) r
    order by r.post_id, r.created_at desc, r.event_id desc
  )
  select n.post_id, b.base_embedding, n.post_emb::extensions.vector, n.engagements
  from newest n join two_tower.base_embeddings b using (post_id)
  where b.base_embedding is not null
  order by n.engagements desc, n.post_id limit p_limit;
$$;
comment on function two_tower.live_anchors(timestamptz, integer) is
  'Engaged posts with base and live vectors as they stood at their last event before a moment: a new tower is fitted to them, so that it projects into the space in which the live vectors are. Nothing of what happened later is in it.';

create function two_tower.user_histories(p_before timestamptz, p_users integer default 128,
  p_user_ids uuid[] default null)
returns table (
  user_id uuid, post_ids bigint[], author_ids uuid[], event_types text[], times timestamptz[],
  embeddings extensions.vector[]
) language sql stable set search_path = '' as $$
  with active as (
    select u.user_id from two_tower.user_embeddings u
    where u.engagement_count > 0 and (p_user_ids is null or u.user_id = any (p_user_ids))
    order by u.updated_at desc nulls last, u.user_id limit p_users
  )
  select a.user_id, array_agg(e.post_id order by e.created_at, e.id), array_agg(v.author_id
    order by e.created_at, e.id),
         array_agg(e.event_type order by e.created_at, e.id), array_agg(e.created_at
           order by e.created_at, e.id),
         array_agg(v.embedding order by e.created_at, e.id)
  from active a
    cross join two_tower.settings s
    cross join lateral (
      select x.id, x.post_id, x.event_type, x.created_at from public.engagement_events x
      join two_tower.signals g on g.event_type = x.event_type and g.strength <> 0
      where x.user_id = a.user_id and x.created_at < p_before
      order by x.created_at desc, x.id desc limit s.history_length + 20
    ) e
    join two_tower.live_embeddings v
      on v.slot = (select active_slot from two_tower.state) and v.post_id = e.post_id
  group by a.user_id;
$$;
comment on function two_tower.user_histories(timestamptz, integer, uuid[]) is
  'Engagements of the most recently active users before a moment, oldest first: what the user tower is trained on and encodes.';

create function two_tower.random_live_posts(p_count integer)
returns table (post_id bigint, author_id uuid, embedding extensions.vector)
language sql volatile set search_path = '' as $$
  select v.post_id, v.author_id, v.embedding from two_tower.live_embeddings v
  where v.slot = (select active_slot from two_tower.state) and not v.is_deleted
  order by random() limit p_count;
$$;
comment on function two_tower.random_live_posts(integer) is 'Negatives for the user tower.';

create function two_tower.author_embeddings_to_train(p_limit integer default 20000)
returns table (author_id uuid, embedding extensions.vector) language sql stable
  set search_path = '' as $$
  select v.author_id, a.embedding
  from (select v.author_id, sum(v.engagement_count) as engagements from two_tower.live_embeddings v
        where v.slot = (select active_slot from two_tower.state) and v.author_id is not null
        group by v.author_id order by engagements desc, v.author_id limit p_limit) v
    left join two_tower.author_embeddings a using (author_id)
  order by v.author_id;
$$;
comment on function two_tower.author_embeddings_to_train(integer) is
  'The authors that were engaged with most, with what was learned of them; null for a new one, which starts at random.';

create function two_tower.action_embeddings_to_train()
returns table (event_type text, is_positive boolean, embedding extensions.vector) language sql
  stable set search_path = '' as $$
  select s.event_type, coalesce(s.label, false), a.embedding
  from two_tower.signals s left join two_tower.action_embeddings a using (event_type)
    order by s.bit;
$$;
comment on function two_tower.action_embeddings_to_train() is
  'All event types in a fixed order, whether one is a positive to predict, and what was learned of it.';

create function two_tower.verdict_on(p_differences double precision[], out is_better boolean,
  out metrics jsonb)
language sql stable set search_path = '' as $$
  select n >= s.gate_minimum_events and mean - 1.645 * error > -s.gate_tolerance and mean > 0,
         jsonb_build_object('events', n, 'mean_difference', mean, 'lower_bound',
           mean - 1.645 * error)
  from (select count(*) as n, coalesce(avg(d), 0) as mean,
               coalesce(stddev_samp(d), 0) / sqrt(greatest(count(*), 1)) as error
        from unnest(p_differences) as d) x
    cross join two_tower.settings s;
$$;
comment on function two_tower.verdict_on(double precision[]) is
  'The gate: paired differences (candidate minus active) of a measure in which more is better. Better is: enough events, and the lower end of the one-sided 95 % interval of the mean above minus the tolerance.';

create function two_tower.reciprocal_rank(p_user extensions.vector, p_post extensions.vector,
  p_negatives extensions.vector[])
returns double precision language sql immutable set search_path = '' as $$
  select 1.0 / (1 + count(*) filter (where n operator(extensions.<#>) p_user < p_post
    operator(extensions.<#>) p_user)
                  + 0.5 * count(*) filter (where n operator(extensions.<#>) p_user = p_post
                    operator(extensions.<#>) p_user))
  from unnest(p_negatives) as n;
$$;
comment on function two_tower.reciprocal_rank(extensions.vector, extensions.vector, extensions.vector[]) is
  '1 / rank of the post among the negatives by inner product with the user; ties count half.';

create function two_tower.judge_candidate_tower(p_version bigint) returns boolean
language plpgsql set search_path = '' as $$
declare
  v_from timestamptz := (select trained_until from two_tower.model_weights
    where version = p_version);
  v_active bigint := two_tower.active_version('candidate_tower');
  v_differences double precision[];
begin
  with held_out as materialized (
    select x.event_id, x.user_emb::extensions.vector as user_emb, x.post_id, x.negative_ids
    from two_tower.training_examples x
    where x.label and not x.is_withdrawn and x.created_at >= v_from
      and cardinality(x.negative_ids) > 0
    order by x.created_at, x.event_id limit 1000
  ), posts as (
    select post_id from held_out union select unnest(negative_ids) from held_out
  ), projected as materialized (
    select b.post_id, two_tower.candidate_tower(b.base_embedding, p_version) as candidate,
           two_tower.candidate_tower(b.base_embedding, v_active) as active
    from two_tower.base_embeddings b join posts using (post_id) where b.base_embedding is not null
  )
  select array_agg(two_tower.reciprocal_rank(h.user_emb, p.candidate, n.candidates)
                   - two_tower.reciprocal_rank(h.user_emb, p.active, n.actives))
  into v_differences
  from held_out h join projected p using (post_id)
    cross join lateral (
      select array_agg(q.candidate) as candidates, array_agg(q.active) as actives
      from projected q where q.post_id = any (h.negative_ids)) n
  where n.candidates is not null and extensions.vector_norm(h.user_emb) > 0;
  return two_tower.decide_on(p_version, v_differences);
end
$$;
comment on function two_tower.judge_candidate_tower(bigint) is
  'Judges a candidate against the active version on the positives after its training: reciprocal rank of the post among its negatives, each projected from its text alone, which is how a tower serves posts that nobody has engaged with. Returns whether it was accepted.';

create function two_tower.decide_on(p_version bigint, p_differences double precision[])
  returns boolean
language plpgsql set search_path = '' as $$
declare
  v_gate record;
  v_weights two_tower.model_weights;
begin
  select * into v_weights from two_tower.model_weights
    where version = p_version and state = 'candidate' for no key update;
  if not found then
    raise exception 'version % is no candidate', p_version using errcode = '22023',
      hint = 'Only a version in state candidate can be judged, and only once.';
  end if;
  v_gate := two_tower.verdict_on(p_differences);
  update two_tower.model_weights set
    metrics = metrics || jsonb_build_object('gate', v_gate.metrics), decided_at = two_tower.now(),
    state = case when v_gate.is_better then 'candidate' else 'rejected' end,
    verdict = case
      when v_gate.is_better then 'accepted: better than the active version on held-out events'
      when (v_gate.metrics ->> 'events')::integer < (select gate_minimum_events
        from two_tower.settings)
        then 'rejected: not enough held-out events'
      else 'rejected: not better than the active version on held-out events' end
  where version = p_version;
  if v_gate.is_better then
    perform two_tower.begin_switch(p_version);
  end if;
  return v_gate.is_better;
end
$$;
comment on function two_tower.decide_on(bigint, double precision[]) is 'Stores the verdict of the gate and, if it is positive, begins the switch.';

-- Texts of one project are alike: the mean of their embeddings is a direction that tells nothing,
-- and vectors that all lean to it leave learning little room. So the projection that a project
-- starts with is centred on the project's own posts, at 100, 1,000 and 10,000 of them, until a
-- trained version takes over: relu(W(x - m)) - relu(-W(x - m)) = W(x - m).
create function two_tower.centre_first_tower() returns boolean
language plpgsql set search_path = '' as $$
declare
  v_active two_tower.model_weights;
  v_posts integer;
  v_mean extensions.vector;
  v_version bigint;
begin
  select * into v_active from two_tower.model_weights
  where tower = 'candidate_tower' and state = 'active' and config ? 'start';
  if not found or (select filling_version is not null or frozen_at is not null
                   from two_tower.state) then
    return false;
  end if;
  select count(*) into v_posts from (select from two_tower.base_embeddings
    where base_embedding is not null limit 10000) b;
  if v_posts < 10 * coalesce((v_active.config ->> 'centred_on')::integer, 10) then
    return false;
  end if;
  select extensions.avg(b.base_embedding) into v_mean from (
    select base_embedding from two_tower.base_embeddings
    where base_embedding is not null order by post_id desc limit 10000) b;
  insert into two_tower.model_weights (tower, parent_version, config, verdict, decided_at)
  values ('candidate_tower', v_active.version,
    v_active.config || jsonb_build_object('centred_on', 10 ^ floor(log(v_posts))),
    format('accepted: centred on %s posts', v_posts), two_tower.now())
  returning version into v_version;
  insert into two_tower.model_tensors (version, name, row_index, row)
  select v_version, t.name, t.row_index,
    case when t.name = 'hidden.bias'
      then t.row operator(extensions.-) two_tower.layer(v_active.version, 'hidden', v_mean)
      else t.row end
  from two_tower.model_tensors t where t.version = v_active.version;
  perform two_tower.begin_switch(v_version);
  return true;
end
$$;
comment on function two_tower.centre_first_tower() is
  'Begins the switch to the first projection centred on the posts that there are, when there are ten times as many as at the last time. Nothing after a trained version serves.';

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
language sql set search_path = '' as $$
  update two_tower.model_weights set state = 'archived'
  where state = 'active' and tower = (select tower from two_tower.model_weights
    where version = p_version);
  update two_tower.model_weights set state = 'active' where version = p_version;
$$;
comment on function two_tower.activate_version(bigint) is 'Makes a version the one that serves; the one before it is kept as archived.';

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
  ), projected as (
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

create function two_tower.store_user_encodings(
  p_version bigint, p_user_ids uuid[], p_embeddings extensions.vector[]
) returns integer language plpgsql set search_path = '' as $$
declare
  v_weight real := (select user_tower_weight from two_tower.settings);
  v_stored integer;
begin
  if p_version is distinct from two_tower.active_version('user_tower') then
    raise exception 'version % of the user tower does not serve', p_version using errcode = '22023',
      hint = 'Encode users with the active version only.';
  end if;
  with locked as (
    select u.user_id, n.embedding from two_tower.user_embeddings u
    join unnest(p_user_ids, p_embeddings) as n (user_id, embedding) on n.user_id = u.user_id
    order by u.user_id for no key update of u
  )
  update two_tower.user_embeddings u set
    base_embedding = l.embedding, base_weight = v_weight, base_source = 'user_tower'
  from locked l where u.user_id = l.user_id;
  get diagnostics v_stored = row_count;
  return v_stored;
end
$$;
comment on function two_tower.store_user_encodings(bigint, uuid[], extensions.vector[]) is
  'Stores the active user tower''s vectors as the users'' base vectors. Returns how many users there were.';

-- The user tower is judged as it serves: added to the user's sum. Its encodings are of the
-- histories before t0.
create function two_tower.judge_user_tower(p_version bigint, p_user_ids uuid[],
  p_embeddings extensions.vector[])
returns boolean language plpgsql set search_path = '' as $$
declare
  v_from timestamptz := (select trained_until from two_tower.model_weights
    where version = p_version);
  v_differences double precision[];
begin
  select array_agg(two_tower.reciprocal_rank(h.blended, h.post_emb, h.negative_embs)
                   - two_tower.reciprocal_rank(h.user_emb, h.post_emb, h.negative_embs))
  into v_differences
  from (
    select x.user_emb::extensions.vector as user_emb, x.post_emb::extensions.vector as post_emb,
           x.negative_embs::extensions.vector[] as negative_embs,
           (array_fill(greatest(extensions.vector_norm(u.engaged_sum), 0.001)::real,
             array[128])::extensions.vector
            operator(extensions.*) x.user_emb::extensions.vector)
           operator(extensions.+)
           (array_fill(s.user_tower_weight, array[128])::extensions.vector
             operator(extensions.*) n.embedding) as blended
    from two_tower.training_examples x
      join unnest(p_user_ids, p_embeddings) as n (user_id, embedding) on n.user_id = x.user_id
      join two_tower.user_embeddings u on u.user_id = x.user_id
      cross join two_tower.settings s
    where x.label and not x.is_withdrawn and x.created_at >= v_from
      and cardinality(x.negative_ids) > 0
    order by x.created_at, x.event_id limit 2000
  ) h;
  return two_tower.decide_on(p_version, v_differences);
end
$$;
comment on function two_tower.judge_user_tower(bigint, uuid[], extensions.vector[]) is
  'Judges a user tower on the positives after its training, with the given encodings of histories before it: the user''s vector with and without them. Returns whether it was accepted.';

create function two_tower.store_entity_embeddings(
  p_author_ids uuid[], p_author_embeddings extensions.vector[], p_event_types text[],
    p_action_embeddings extensions.vector[]
) returns void language sql set search_path = '' as $$
  insert into two_tower.author_embeddings as a (author_id, embedding)
  select n.author_id, n.embedding
    from unnest(p_author_ids, p_author_embeddings) as n (author_id, embedding)
  where exists (select from public.posts p where p.author_id = n.author_id) order by n.author_id
  on conflict (author_id) do update
    set embedding = excluded.embedding, updated_at = excluded.updated_at;
  delete from two_tower.author_steps s where s.author_id = any (p_author_ids);
  insert into two_tower.action_embeddings (event_type, embedding)
  select n.event_type, n.embedding
    from unnest(p_event_types, p_action_embeddings) as n (event_type, embedding)
  order by n.event_type
  on conflict (event_type) do update
    set embedding = excluded.embedding, updated_at = excluded.updated_at;
$$;
comment on function two_tower.store_entity_embeddings(uuid[], extensions.vector[], text[], extensions.vector[]) is
  'Stores the author and action embeddings of the user tower that serves.';

create function two_tower.store_profile_embeddings(
  p_user_ids uuid[], p_embeddings extensions.vector[], p_requests integer[]
) returns integer language plpgsql set search_path = '' as $$
declare
  v_stored integer;
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
    insert into two_tower.user_embeddings as u (user_id, base_embedding, base_weight, base_source,
      embedding)
    select s.user_id, two_tower.candidate_tower(s.embedding), c.profile_weight, 'profile',
      two_tower.candidate_tower(s.embedding)
    from stored s cross join two_tower.settings c order by s.user_id
    on conflict (user_id) do update set
      base_embedding = excluded.base_embedding, base_weight = excluded.base_weight,
        base_source = 'profile'
    where u.base_source is distinct from 'user_tower'
  )
  select count(*) into v_stored from stored;
  return v_stored;
end
$$;
comment on function two_tower.store_profile_embeddings(uuid[], extensions.vector[], integer[]) is
  'Stores encoded profiles and, through the candidate tower, gives their users a first base vector. Returns how many.';
