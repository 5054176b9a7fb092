-- What is known of a user before engagements: the user tower's vector where it helps, else the
-- profile's. It is added, with a weight, to the sum of what the user engaged with.

create function two_tower.classify_user(p_engagements integer) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when p_engagements < s.cold_until then 'cold' else 'warm' end
  from two_tower.settings s;
$$;
comment on function two_tower.classify_user(integer) is 'The class of a user, for which the gate chooses a weight of b: cold, until settings.cold_until engagements, or warm.';

create function two_tower.choose_prior(p_user_id uuid, p_tower extensions.vector, p_weight real,
  out embedding extensions.vector, out weight real, out source two_tower.prior_source)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if p_weight > 0 and extensions.vector_norm(p_tower) > 0 then
    embedding := p_tower;
    weight := p_weight;
    source := 'user_tower';
    return;
  end if;
  select two_tower.run_candidate_tower(p.base_embedding) into embedding
  from two_tower.profile_embeddings p where p.user_id = p_user_id;
  weight := case when embedding is null then 0
    else (select profile_weight from two_tower.settings) end;
  source := case when embedding is not null then 'profile' end;
end
$$;
comment on function two_tower.choose_prior(uuid, extensions.vector, real) is
  'A user''s base vector b and its weight: the user tower''s, where it has one and helps; else the profile''s; else none.';

create function two_tower.store_priors(p_user_ids uuid[], p_embeddings extensions.vector[],
  p_weights real[], p_sources two_tower.prior_source[]) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
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
    prior = l.embedding, prior_weight = l.weight, prior_source = l.source,
    embedding = case when c.learning_rule = 'literal' and u.engagement_count > 0 then u.embedding
      else two_tower.combine_user(u.engaged_sum, l.weight, l.embedding) end
  from locked l cross join two_tower.settings c where u.user_id = l.user_id;
  get diagnostics v_stored = row_count;
  return v_stored;
end
$$;
comment on function two_tower.store_priors(uuid[], extensions.vector[], real[], two_tower.prior_source[]) is
  'Gives users a base vector b with its weight: u = norm(weight * b + engaged_sum). Null for none. Returns how many.';

create function two_tower.store_user_encodings(
  p_version bigint, p_user_ids uuid[], p_embeddings extensions.vector[]
) returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_weights jsonb := (select config -> 'prior_weights' from two_tower.model_weights
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
      cross join lateral two_tower.choose_prior(n.user_id, n.embedding,
        (v_weights ->> two_tower.classify_user(u.engagement_count))::real) b
  )
  select two_tower.store_priors(array_agg(user_id), array_agg(embedding), array_agg(weight),
    array_agg(source)) into v_stored from given;
  return coalesce(v_stored, 0);
end
$$;
comment on function two_tower.store_user_encodings(bigint, uuid[], extensions.vector[]) is
  'Stores the active user tower''s vectors as the users'' base vectors, with the weight that the gate chose for their class; users of a class that they do not help keep what their profile says. Returns how many users there were.';

create function two_tower.project_profiles(p_after uuid, p_limit integer default 500)
returns uuid language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_last uuid;
  v_stored integer;
begin
  with given as (
    select u.user_id, b.*
    from (
      select e.user_id from two_tower.user_embeddings e
      where e.user_id > p_after and e.prior_source = 'profile' order by e.user_id limit p_limit
    ) u cross join lateral two_tower.choose_prior(u.user_id, null, 0) b
  )
  select two_tower.store_priors(array_agg(g.user_id), array_agg(g.embedding), array_agg(g.weight),
    array_agg(g.source)), (array_agg(g.user_id order by g.user_id desc))[1]
  into v_stored, v_last from given g;
  return v_last;
end
$$;
comment on function two_tower.project_profiles(uuid, integer) is
  'Projects profiles with the active candidate tower again, for the next so many users after the given id whose base vector is their profile''s. Returns the last one, null when there was none.';

create function two_tower.store_profile_embeddings(
  p_user_ids uuid[], p_embeddings extensions.vector[], p_requests integer[]
) returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
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
    select s.user_id, two_tower.run_candidate_tower(s.embedding) as base, c.profile_weight,
      'profile'::two_tower.prior_source as source
    from stored s cross join two_tower.settings c
      left join two_tower.user_embeddings u using (user_id)
    where u.prior_source is distinct from 'user_tower'
  )
  select (select count(*) from stored), two_tower.store_priors(array_agg(b.user_id),
    array_agg(b.base), array_agg(b.profile_weight), array_agg(b.source))
  into v_stored, v_based from based b;
  return v_stored;
end
$$;
comment on function two_tower.store_profile_embeddings(uuid[], extensions.vector[], integer[]) is
  'Stores encoded profiles and, through the candidate tower, gives their users a first base vector. Returns how many.';
