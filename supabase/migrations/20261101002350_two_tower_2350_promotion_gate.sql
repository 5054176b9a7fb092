-- The promotion gate. A version is trained on what was learned before t0
-- (model_weights.held_out_from). It is judged against the active version on the positives from t0
-- on, of which neither has learned. Each positive is ranked among its negatives, as either version
-- would serve them.
--
--   candidate tower: posts that were untouched at t0 lie where the version projects them. A tower
--                    does not move the others: they lie where they stood at the event
--   user tower:      u = norm(weight * prior + sum of decay^age * strength * post). The sum is over
--                    engagements until the event. The prior is made of the history before t0. The
--                    weight goes by class of users
--
-- A version passes on enough events, with a mean difference above 0 and its lower bound above
-- -settings.gate_tolerance. An operator can force a version, which stays on record.

create function two_tower.compute_reciprocal_rank(p_user extensions.vector,
  p_post extensions.vector, p_negatives extensions.vector[])
returns double precision language sql immutable set search_path = pg_catalog, pg_temp as $$
  select 1.0 / (1 + count(*) filter (where n.distance < o.distance)
    + 0.5 * count(*) filter (where n.distance = o.distance))
  from (select p_post operator(extensions.<#>) p_user as distance) o
    left join (select p operator(extensions.<#>) p_user as distance
      from unnest(p_negatives) as p) n on true;
$$;
comment on function two_tower.compute_reciprocal_rank(extensions.vector, extensions.vector, extensions.vector[]) is
  'Returns 1 / rank of the post among the negatives, by inner product with the user. A tie counts half.';

create function two_tower.compare_versions(p_differences double precision[], p_user_ids uuid[],
  out is_better boolean, out metrics jsonb)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with by_user as (
    select d.user_id, count(*) as events, avg(d.difference) as difference
    from unnest(p_differences, p_user_ids) as d (difference, user_id) group by d.user_id
  ), users as (
    select count(*) as users, count(*) >= 5 as are_many,
      coalesce(sum(u.events), 0)::integer as events,
      (array_agg(u.difference order by u.difference))[2] as lowest,
      (array_agg(u.difference order by u.difference desc))[2] as highest,
      two_tower.cap_account(p_user_ids, greatest(0.01, 1.0 / nullif(count(*), 0))) as cap
    from by_user u
  ), weighed as (
    select least(u.events, n.cap) as weight,
      case when n.are_many then least(greatest(u.difference, n.lowest), n.highest)
        else u.difference end as difference
    from by_user u cross join users n
  ), averaged as (
    select w.*, sum(w.weight) over () as total,
      sum(w.weight * w.difference) over () / sum(w.weight) over () as mean
    from weighed w
  ), summed as (
    select n.events, n.users, coalesce(max(a.mean), 0) as mean,
      sqrt(sum((a.weight * (a.difference - a.mean)) ^ 2) * n.users / nullif(n.users - 1, 0))
        / max(a.total) * case when n.are_many then n.users / (n.users - 2.0) else 1 end as error
    from users n left join averaged a on true
    group by n.events, n.users, n.are_many
  )
  select events >= s.gate_minimum_events and mean > 0
      and coalesce(mean - s.gate_standard_errors * error > -s.gate_tolerance, false),
    jsonb_build_object('events', events, 'users', users, 'mean_difference', mean,
      'lower_bound', mean - s.gate_standard_errors * error)
  from summed cross join two_tower.settings s;
$$;
comment on function two_tower.compare_versions(double precision[], uuid[]) is
  'Compares paired differences (candidate less active) of a measure in which more is better. is_better: enough events, a mean above zero, and a lower bound above minus settings.gate_tolerance. The mean is of users, weighed by their events: one user weighs at most 1 %, or 1 / users where they are fewer than 100. From 5 users on, the lowest and the highest count as the next to them do, so that one account alone decides nothing (a winsorised mean). The lower bound is the mean less settings.gate_standard_errors standard errors, clustered by user. One user alone proves nothing.';

create function two_tower.decide_version(p_version bigint, p_differences double precision[],
  p_user_ids uuid[]) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_gate record;
  v_is_early boolean;
begin
  perform from two_tower.model_weights
    where version = p_version and state = 'candidate' and verdict is null for no key update;
  if not found then
    raise exception 'version % is no candidate', p_version using errcode = '22023',
      hint = 'Judge a version in state candidate that has no verdict yet.';
  end if;
  v_gate := two_tower.compare_versions(p_differences, p_user_ids);
  v_is_early := (v_gate.metrics ->> 'events')::integer
    < (select gate_minimum_events from two_tower.settings);
  update two_tower.model_weights set metrics = metrics || jsonb_build_object('gate', v_gate.metrics)
  where version = p_version;
  -- The next training follows soon. An import is one of a kind, and waits for events.
  if v_is_early and exists (select from two_tower.model_weights w
      where w.version = p_version and w.metrics ? 'imported') then
    return false;
  end if;
  update two_tower.model_weights set
    decided_at = two_tower.now(),
    state = case when v_gate.is_better then 'candidate' else 'rejected' end,
    verdict = case
      when v_gate.is_better then 'accepted: better than the active version on held-out events'
      when v_is_early then 'rejected: not enough held-out events'
      else 'rejected: not better than the active version on held-out events' end
  where version = p_version;
  if v_gate.is_better then
    perform two_tower.begin_switch(p_version);
  end if;
  return v_gate.is_better;
end
$$;
comment on function two_tower.decide_version(bigint, double precision[], uuid[]) is 'Stores the verdict of the gate and, if the version is accepted, begins the switch. Returns whether it was accepted. An imported version for which too few held-out events have come gets no verdict, and can be judged again. Raises 22023 for a version that is no candidate, or was judged already.';

create function two_tower.held_out_posts(p_from bigint)
returns table (event_id bigint, user_id uuid, user_emb extensions.vector, post_id bigint,
  embedding extensions.vector, is_positive boolean, is_untouched boolean)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with held_out as materialized (
    select n.* from two_tower.settings s
      cross join two_tower.shared_examples(null, true, 2 * s.gate_events) n
    where n.event_id >= p_from
  ), since as materialized (
    select n.post_id, count(*) as engagements from two_tower.settings s
      cross join two_tower.newest_examples(null, null, s.examples_read) n
    where n.event_id >= p_from group by n.post_id
  ), pair as (
    select h.event_id, h.user_id, h.user_emb, h.post_id, h.post_emb, true as is_positive
    from held_out h
    union all
    select h.event_id, h.user_id, h.user_emb, i.post_id, i.post_emb, false
    from held_out h
      join two_tower.training_examples x using (user_id, post_id, event_id, created_at)
      cross join lateral unnest(x.negative_ids, x.negative_embs) as i (post_id, post_emb)
    where not exists (select from two_tower.user_posts u
      where u.user_id = h.user_id and u.post_id = i.post_id and u.is_engaged)
  )
  select p.event_id, p.user_id, p.user_emb::extensions.vector, p.post_id,
    p.post_emb::extensions.vector, p.is_positive,
    v.is_pretrained or v.engagement_count <= coalesce(c.engagements, 0)
  from pair p
    join two_tower.live_embeddings v
      on v.slot = (select active_slot from two_tower.state) and v.post_id = p.post_id
    left join since c on c.post_id = p.post_id;
$$;
comment on function two_tower.held_out_posts(bigint) is
  'Returns the positives from t0 on and their negatives, with user and post as they stood at the event. is_untouched: the post was untouched at t0. Leaves out negatives that the user has engaged with since.';

create function two_tower.judge_candidate_tower(p_version bigint) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_from bigint := (select held_out_from from two_tower.model_weights where version = p_version);
  v_active bigint := two_tower.active_version('candidate_tower');
  v_differences double precision[];
  v_user_ids uuid[];
begin
  with post as materialized (
    select * from two_tower.held_out_posts(v_from)
  ), projected as materialized (
    select b.post_id, two_tower.run_candidate_tower(b.base_embedding, p_version) as candidate,
      two_tower.run_candidate_tower(b.base_embedding, v_active) as active
    from two_tower.base_embeddings b
    where b.post_id in (select post_id from post where is_untouched)
      and b.encoder = two_tower.active_encoder()
  ), placed as (
    select p.event_id, p.user_id, p.user_emb, p.is_positive, p.is_untouched,
      coalesce(j.candidate, p.embedding) as candidate, coalesce(j.active, p.embedding) as active
    from post p left join projected j on p.is_untouched and j.post_id = p.post_id
  ), ranked as (
    select h.user_id, two_tower.compute_reciprocal_rank(h.user_emb, h.candidate, n.candidates)
      - two_tower.compute_reciprocal_rank(h.user_emb, h.active, n.actives) as difference
    from placed h
      join (select event_id, array_agg(candidate) as candidates, array_agg(active) as actives,
              bool_or(is_untouched) as is_untouched
            from placed where not is_positive group by event_id) n using (event_id)
    where h.is_positive and (h.is_untouched or n.is_untouched)
  )
  select array_agg(difference), array_agg(user_id) into v_differences, v_user_ids from ranked;
  return two_tower.decide_version(p_version, v_differences, v_user_ids);
end
$$;
comment on function two_tower.judge_candidate_tower(bigint) is
  'Judges a candidate tower, on the held-out positives that it would change: the post or one of its negatives was untouched at t0. Returns whether it was accepted. Raises 22023 for a version that is no candidate, or was judged already. Definer: workers have no grant on tables.';

-- Each event with the part of the user vector that no version changes. That is the sum over the
-- engagements before it, as encode_user() forms it.
create function two_tower.held_out_users(p_from bigint)
returns table (event_id bigint, user_id uuid, class text, engaged extensions.vector,
  post_emb extensions.vector, negatives extensions.vector[])
language sql stable set search_path = pg_catalog, pg_temp as $$
  with pair as materialized (
    select * from two_tower.held_out_posts(p_from)
  ), event as (
    select event_id, user_id, (array_agg(embedding) filter (where is_positive))[1] as post_emb,
      array_agg(embedding) filter (where not is_positive) as negatives
    from pair group by event_id, user_id
  ), post as materialized (
    select p.post_id, p.embedding from two_tower.posts_as_of(p_from) p
  ), past as materialized (
    select u.user_id, e.id, e.id >= p_from as is_since,
      two_tower.weigh_strength(g.strength, s.negative_strength_factor) as strength,
      case when e.id >= p_from then x.post_emb::extensions.vector
        else coalesce(p.embedding, x.post_emb::extensions.vector) end as embedding,
      row_number() over (partition by u.user_id order by e.id) as place
    from (select distinct user_id from event) u
      cross join two_tower.settings s
      cross join lateral (
        select y.id, y.user_id, y.post_id, y.created_at from public.engagement_events y
        where y.user_id = u.user_id
          and y.event_type in (select t.event_type from two_tower.signals t where t.strength <> 0)
        order by y.created_at desc, y.id desc limit s.history_length + 2 * s.gate_events
      ) e
      join two_tower.training_examples x on x.user_id = e.user_id and x.post_id = e.post_id
        and x.event_id = e.id and x.created_at = e.created_at and not x.is_withdrawn
      join two_tower.signals g on g.event_type = x.event_type
      left join post p on p.post_id = e.post_id
  ), engaged as materialized (
    select h.id as event_id, extensions.sum(two_tower.scale(
      two_tower.decay_strength(p.strength, s.history_decay, h.place - 1 - p.place),
      p.embedding)) as total
    from past h
      cross join two_tower.settings s
      join past p on p.user_id = h.user_id
        and p.place between h.place - s.history_length and h.place - 1
    where h.is_since and h.id in (select event_id from event)
    group by h.id
  ), counted as materialized (
    select u.user_id,
      two_tower.classify_user((u.engagement_count - count(*) filter (where p.is_since))::integer)
        as class
    from two_tower.user_embeddings u join past p using (user_id)
    group by u.user_id
  )
  select e.event_id, e.user_id, c.class,
    coalesce(g.total, two_tower.zero_vector()), e.post_emb, e.negatives
  from event e join counted c using (user_id) left join engaged g using (event_id)
  where e.negatives is not null;
$$;
comment on function two_tower.held_out_users(bigint) is
  'Returns the positives from t0 on, with post and negatives as they stood. class: of the user at t0. engaged: the sum over the engagements until the event.';

create function two_tower.rank_held_out_posts(p_from bigint, p_user_ids uuid[],
  p_candidate extensions.vector[], p_active extensions.vector[])
returns table (event_id bigint, user_id uuid, class text, weight real,
  reciprocal_rank double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with held_out as materialized (
    select h.*, n.candidate, n.active
    from two_tower.held_out_users(p_from) h
      left join unnest(p_user_ids, p_candidate, p_active) as n (user_id, candidate, active)
        using (user_id)
  ), arm as (
    select w.weight, w.weight as factor
    from (select distinct unnest(user_tower_weights || 0::real) as weight
          from two_tower.settings) w
    union all select null, null
  ), prior as materialized (
    select h.event_id, a.weight, b.embedding, b.weight as factor
    from held_out h
      cross join arm a
      cross join lateral two_tower.choose_prior(h.user_id,
        case when a.weight is null then h.active else h.candidate end,
        coalesce(a.weight, (select (m.config -> 'prior_weights' ->> h.class)::real
          from two_tower.model_weights m
          where m.version = two_tower.active_version('user_tower')))) b
  )
  select h.event_id, h.user_id, h.class, b.weight, two_tower.compute_reciprocal_rank(
    two_tower.combine_user(h.engaged, b.factor, b.embedding), h.post_emb, h.negatives)
  from held_out h join prior b using (event_id);
$$;
comment on function two_tower.rank_held_out_posts(bigint, uuid[], extensions.vector[], extensions.vector[]) is
  'Returns the reciprocal rank of each positive from t0 on, for each weight that the gate may choose, and as it is served now. With a weight (of settings.user_tower_weights, or 0) the candidate gives the prior. With weight null the active version does, at its own weight.';

-- The weights are chosen on the same events that judge. So each half of the users is judged by the
-- weights that are best for the other half. Those that serve are the best for both. Best is the
-- largest gain over weight 0, less one standard error: a weight has to show that it helps.
create function two_tower.judge_user_tower(p_version bigint, p_user_ids uuid[],
  p_candidate extensions.vector[], p_active extensions.vector[]) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_from bigint := (select held_out_from from two_tower.model_weights where version = p_version);
  v_weights jsonb;
  v_differences double precision[];
  v_user_ids uuid[];
begin
  with ranked as materialized (
    select r.*, (hashtextextended(r.user_id::text, 0) & 1)::integer as half,
      r.reciprocal_rank - max(r.reciprocal_rank) filter (where r.weight = 0)
        over (partition by r.event_id) as gain
    from two_tower.rank_held_out_posts(v_from, p_user_ids, p_candidate, p_active) r
  ), choice as materialized (
    select distinct on (f.judged, r.class) f.judged, r.class, r.weight
    from (values (0, 1), (1, 0), (2, 0), (2, 1)) as f (judged, half)
      join ranked r on r.half = f.half and r.weight is not null
    group by f.judged, r.class, r.weight
    order by f.judged, r.class,
      avg(r.gain) - case when r.weight > 0 then stddev_samp(r.gain) / sqrt(count(*)) else 0 end
        desc nulls last, r.weight
  ), difference as (
    select s.user_id, c.reciprocal_rank - s.reciprocal_rank as difference
    from ranked s
      left join choice h on h.judged = s.half and h.class = s.class
      join ranked c on c.event_id = s.event_id and c.weight = coalesce(h.weight, 0)
    where s.weight is null
  )
  select (select '{"cold": 0, "warm": 0}' || coalesce(jsonb_object_agg(c.class, c.weight), '{}')
          from choice c where c.judged = 2),
    array_agg(d.difference), array_agg(d.user_id)
  into v_weights, v_differences, v_user_ids from difference d;
  update two_tower.model_weights
    set config = config || jsonb_build_object('prior_weights', v_weights)
  where version = p_version and state = 'candidate';
  return two_tower.decide_version(p_version, v_differences, v_user_ids);
end
$$;
comment on function two_tower.judge_user_tower(bigint, uuid[], extensions.vector[], extensions.vector[]) is
  'Chooses the weight of the prior for each class of users, and judges the version by it. p_candidate and p_active: what the version and the active one make of the histories before t0 (null if none is active). Returns whether the version was accepted. Raises 22023 for a version that is no candidate, or was judged already. Definer: workers have no grant on tables.';

create function two_tower.force_version(p_version bigint, p_reason text) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_weights two_tower.model_weights;
  v_missing text := two_tower.missing_tensors(p_version);
begin
  if coalesce(trim(p_reason), '') = '' then
    raise exception 'forcing a version needs a reason' using errcode = '22023',
      hint = 'Call force_version(version, ''why'').';
  end if;
  select * into v_weights from two_tower.model_weights where version = p_version
  for no key update;
  if not found or v_missing is not null then
    raise exception 'version % can not serve: %', p_version, coalesce(v_missing, 'there is none')
      using errcode = 'TT004', hint = 'See all versions: select * from two_tower.model_weights';
  elsif v_weights.state = 'active' then
    return false;
  elsif (select filling_checkpoint is not null from two_tower.state) then
    raise exception 'a rollback is in progress' using errcode = '55000',
      hint = 'Wait until ticks have finished it, then force the version.';
  end if;
  update two_tower.model_weights set
    state = 'candidate', decided_at = two_tower.now(),
    verdict = format('forced by %s: %s', two_tower.session_role(), p_reason),
    metrics = metrics || jsonb_build_object('verdict_before', v_weights.verdict),
    config = case when v_weights.tower = 'user_tower' then
      '{"prior_weights": {"cold": 1, "warm": 1}}' || config else config end
  where version = p_version;
  perform two_tower.open_alert('version_forced', p_version::text, format(
    '%s put version %s of the %s in place without the gate: %s', two_tower.session_role(),
    p_version, v_weights.tower, p_reason));
  perform two_tower.begin_switch(p_version);
  return true;
end
$$;
comment on function two_tower.force_version(bigint, text) is
  'Begins the switch to a version on an operator''s word, whatever the gate said. The verdict and an alert keep that on record. Returns false, and changes nothing, for the version that is active already. Raises 22023 without a reason, TT004 for a version that can not be run, and 55000 during a rollback.';
