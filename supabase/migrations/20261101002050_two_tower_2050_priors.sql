-- What is known of a user before engagements: the vector of the user tower where that helps, else
-- of the profile. This prior is added, with a weight, to the engaged sum.

create type two_tower.user_prior as (
  user_id uuid, embedding extensions.vector, weight real, source two_tower.prior_source
);
comment on type two_tower.user_prior is 'A user''s prior with its weight and source. Where nothing is known, embedding and source are null and the weight is 0.';

create function two_tower.classify_user(p_engagements integer) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when two_tower.read_warmth(p_engagements, s, t) < 1 then 'cold' else 'warm' end
  from two_tower.settings s cross join two_tower.state t;
$$;
comment on function two_tower.classify_user(integer) is 'Returns the class of a user: cold while warmth is below 1, then warm. The gate chooses a weight of the user tower for each class.';

create function two_tower.choose_prior(p_user_id uuid, p_tower extensions.vector, p_weight real)
returns two_tower.user_prior
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_none two_tower.user_prior := row(p_user_id, null, 0, null);
  v_prior two_tower.user_prior;
begin
  if p_weight > 0 and extensions.vector_norm(p_tower) > 0 then
    v_prior := row(p_user_id, p_tower, p_weight, 'user_tower');
    return v_prior;
  end if;
  select p_user_id, two_tower.run_candidate_tower(p.base_embedding), s.profile_weight, 'profile'
  into v_prior
  from two_tower.profile_embeddings p cross join two_tower.settings s
  where p.user_id = p_user_id and p.base_embedding is not null
    and p.encoder = two_tower.active_encoder();
  return case when found then v_prior else v_none end;
end
$$;
comment on function two_tower.choose_prior(uuid, extensions.vector, real) is
  'Returns a user''s prior. It is p_tower, the vector of the user tower, where there is one and p_weight is above 0. Else it is the vector of the profile, or none.';

create function two_tower.store_priors(p_priors two_tower.user_prior[]) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_stored integer;
begin
  insert into two_tower.user_embeddings (user_id)
  select p.user_id from unnest(p_priors) p order by p.user_id on conflict do nothing;
  with locked as (
    select p.* from two_tower.user_embeddings u join unnest(p_priors) p using (user_id)
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
comment on function two_tower.store_priors(two_tower.user_prior[]) is
  'Gives users their priors: u = norm(weight * prior + engaged_sum). Returns how many users there were.';

create function two_tower.store_user_encodings(
  p_version bigint, p_user_ids uuid[], p_embeddings extensions.vector[]
) returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_weights jsonb := (select config -> 'prior_weights' from two_tower.model_weights
    where version = p_version and version = two_tower.active_version('user_tower'));
begin
  if v_weights is null then
    raise exception 'version % of the user tower does not serve', p_version using errcode = '22023',
      hint = 'Encode users with the active version: active_version(''user_tower'').';
  end if;
  return two_tower.store_priors(array(
    select b
    from unnest(p_user_ids, p_embeddings) as n (user_id, embedding)
      join two_tower.user_embeddings u using (user_id)
      cross join lateral two_tower.choose_prior(n.user_id, n.embedding,
        (v_weights ->> two_tower.classify_user(u.engagement_count))::real) b));
end
$$;
comment on function two_tower.store_user_encodings(bigint, uuid[], extensions.vector[]) is
  'Stores vectors of the active user tower as priors, with the weight that the gate chose for each user''s class. Where that is 0, the profile gives the prior. Returns how many users there were. Raises 22023 for a version that does not serve. Definer: workers have no grant on tables.';

create function two_tower.project_profiles(p_after uuid, p_limit integer default 500)
returns uuid language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_priors two_tower.user_prior[] := array(
    select b
    from (
      select e.user_id from two_tower.user_embeddings e
      where e.user_id > p_after and e.prior_source = 'profile'
        and exists (select from two_tower.profile_embeddings p
          where p.user_id = e.user_id and p.encoder = two_tower.active_encoder())
      order by e.user_id limit p_limit
    ) u cross join lateral two_tower.choose_prior(u.user_id, null, 0) b
    order by u.user_id);
begin
  perform two_tower.store_priors(v_priors);
  return (v_priors[cardinality(v_priors)]).user_id;
end
$$;
comment on function two_tower.project_profiles(uuid, integer) is
  'Projects profiles with the active candidate tower again. Takes at most p_limit users after p_after, by id, whose prior comes from the profile. Returns the last user, or null when there was none. Definer: workers have no grant on tables.';

create function two_tower.store_profile_embeddings(
  p_user_ids uuid[], p_embeddings extensions.vector[], p_hashes bigint[],
  p_encoder text default null
) returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_priors two_tower.user_prior[];
  v_stored integer;
  v_encoder text := two_tower.active_encoder();
begin
  if p_encoder <> v_encoder then
    return 0;
  end if;
  with given as (
    select n.user_id, n.embedding, n.hash
    from unnest(p_user_ids, p_embeddings, p_hashes) as n (user_id, embedding, hash)
  ), locked as (
    select e.user_id, g.embedding from two_tower.profile_embeddings e join given g using (user_id)
    where e.content_hash = g.hash order by e.user_id for no key update of e
  ), forgotten as (
    delete from two_tower.profile_embeddings e
    using locked l where e.user_id = l.user_id and l.embedding is null
    returning e.user_id
  ), stored as (
    update two_tower.profile_embeddings e set
      base_embedding = l.embedding, encoder = v_encoder
    from locked l where e.user_id = l.user_id and l.embedding is not null
    returning e.user_id, l.embedding
  )
  select count(*) + (select count(*) from forgotten),
    array_agg(row(s.user_id, two_tower.run_candidate_tower(s.embedding),
      c.profile_weight, 'profile')::two_tower.user_prior)
    filter (where u.prior_source is distinct from 'user_tower')
  into v_stored, v_priors
  from stored s cross join two_tower.settings c
    left join two_tower.user_embeddings u using (user_id);
  perform two_tower.store_priors(v_priors);
  return v_stored;
end
$$;
comment on function two_tower.store_profile_embeddings(uuid[], extensions.vector[], bigint[], text) is
  'Stores encoded profiles. Forgets those that the encoder cannot read, whose embedding is null. p_encoder: the model that read them; stores nothing of another one than that at work. Projects them with the candidate tower, and gives their users that prior, unless they have one of the user tower. Passes over an encoding of a text that has changed since (another hash). Returns how many it stored. Definer: workers have no grant on tables.';
