-- What a reader likes is more than one thing. Each positive of a user gets the number of an
-- interest when it is learned. The user row keeps the last positives with their numbers. A page
-- reads vectors and weights of the interests from there, as the posts stand at that moment.

-- Numbers are given by vectors of the past. They go by what a sum of each interest's own positives
-- points to, so that a like looks at no other post.
create function two_tower.choose_interest(p_user two_tower.user_embeddings,
  p_post extensions.vector, p_settings two_tower.settings)
returns smallint language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_free smallint;
  v_nearest smallint;
  v_cosine double precision;
  v_highest double precision := p_settings.interest_threshold;
begin
  for v_number in 1..4 loop
    if p_user.interest_sums[v_number] is null then
      v_free := coalesce(v_free, v_number);
      continue;
    end if;
    v_cosine := 1 - (p_user.interest_sums[v_number]::extensions.vector
      operator(extensions.<=>) p_post);
    -- A sum of no length has no cosine: NaN, which is above every number.
    if v_cosine >= v_highest and v_cosine < 1.1 then
      v_nearest := v_number;
      v_highest := v_cosine;
    end if;
  end loop;
  return coalesce(v_nearest, v_free);
end
$$;
comment on function two_tower.choose_interest(two_tower.user_embeddings, extensions.vector, two_tower.settings) is
  'Returns the number of the interest, 1 to 4, to which a post belongs: the nearest one if the cosine is at least settings.interest_threshold, else a free number. Returns null where none is free.';

create function two_tower.find_lightest_interest(p_numbers smallint[], p_decay real)
returns smallint language sql immutable set search_path = pg_catalog, pg_temp as $$
  select n.interest from unnest(p_numbers) with ordinality as n (interest, place)
  group by n.interest
  order by sum(p_decay ^ (cardinality(p_numbers) - n.place)), n.interest limit 1;
$$;
comment on function two_tower.find_lightest_interest(smallint[], real) is 'Returns the number of the interest that weighs least: that of the fewest and the oldest positives.';

create function two_tower.drop_interest(p_number smallint, inout p_user two_tower.user_embeddings)
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  select coalesce(array_agg(n.post_id order by n.place), '{}'),
    coalesce(array_agg(n.interest order by n.place), '{}')
  into p_user.positive_ids, p_user.positive_interests
  from unnest(p_user.positive_ids, p_user.positive_interests)
    with ordinality as n (post_id, interest, place)
  where n.interest <> p_number;
  p_user.interest_sums[p_number] := null;
end
$$;
comment on function two_tower.drop_interest(smallint, two_tower.user_embeddings) is 'Returns the user without an interest and its posts.';

create function two_tower.free_numbers(inout p_user two_tower.user_embeddings)
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  for v_number in 1..cardinality(p_user.interest_sums) loop
    if v_number <> all (p_user.positive_interests) then
      p_user.interest_sums[v_number] := null;
    end if;
  end loop;
end
$$;
comment on function two_tower.free_numbers(two_tower.user_embeddings) is 'Returns the user without sums of interests of which no positive is left: their numbers are free.';

create function two_tower.add_positive(p_post_id bigint, p_post extensions.vector,
  p_settings two_tower.settings, inout p_user two_tower.user_embeddings)
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_number smallint;
  v_first integer;
begin
  if p_post_id = any (p_user.positive_ids) then
    return;
  end if;
  v_number := two_tower.choose_interest(p_user, p_post, p_settings);
  if v_number is null then
    v_number := two_tower.find_lightest_interest(p_user.positive_interests,
      p_settings.interest_decay);
    p_user := two_tower.drop_interest(v_number, p_user);
  end if;
  p_user.interest_sums[v_number] := coalesce(
    two_tower.scale(p_settings.interest_decay, p_user.interest_sums[v_number]::extensions.vector)
      operator(extensions.+) p_post, p_post)::extensions.halfvec;
  v_first := cardinality(p_user.positive_ids) + 2 - p_settings.interest_length;
  p_user.positive_ids := (p_user.positive_ids || p_post_id)[greatest(1, v_first):];
  p_user.positive_interests := (p_user.positive_interests || v_number)[greatest(1, v_first):];
  if v_first > 1 then
    p_user := two_tower.free_numbers(p_user);
  end if;
end
$$;
comment on function two_tower.add_positive(bigint, extensions.vector, two_tower.settings, two_tower.user_embeddings) is
  'Returns the user after a positive. A post that is in the list stays where it is. A new interest for which no number is free takes the place of the lightest, whose posts are forgotten.';

create function two_tower.withdraw_positive(p_post_id bigint, p_taught extensions.vector,
  p_settings two_tower.settings, inout p_user two_tower.user_embeddings)
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_place integer := array_position(p_user.positive_ids, p_post_id);
  v_number smallint := p_user.positive_interests[v_place];
begin
  if v_place is null then
    return;
  end if;
  p_user.interest_sums[v_number] := (p_user.interest_sums[v_number]::extensions.vector
    operator(extensions.-) two_tower.scale(two_tower.decay_strength(1, p_settings.interest_decay,
      cardinality(array_positions(p_user.positive_interests[v_place + 1:], v_number))),
      p_taught))::extensions.halfvec;
  p_user.positive_ids := p_user.positive_ids[:v_place - 1] || p_user.positive_ids[v_place + 1:];
  p_user.positive_interests :=
    p_user.positive_interests[:v_place - 1] || p_user.positive_interests[v_place + 1:];
  p_user := two_tower.free_numbers(p_user);
end
$$;
comment on function two_tower.withdraw_positive(bigint, extensions.vector, two_tower.settings, two_tower.user_embeddings) is
  'Returns the user without a post among the positives. p_taught: the vector that the post had when it was learned.';

create function two_tower.count_interests(p_numbers smallint[]) returns integer
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return (select greatest(1, count(distinct n)) from unnest(p_numbers) n);
end
$$;
comment on function two_tower.count_interests(smallint[]) is 'Returns how many interests a list of positives has (user_embeddings.positive_interests): 1 to 4.';

-- Weights are told from the list alone, so that vectors are read of what counts.
create function two_tower.list_interests(p_user_id uuid)
returns table (interest smallint, vector extensions.vector, weight real)
language sql stable set search_path = pg_catalog, pg_temp rows 4 as $$
  with positive as materialized (
    select n.post_id, n.interest, two_tower.decay_strength(1, s.interest_decay,
      cardinality(u.positive_ids) - n.place) as weight
    from two_tower.user_embeddings u
      cross join two_tower.settings s
      cross join lateral unnest(u.positive_ids, u.positive_interests)
        with ordinality as n (post_id, interest, place)
    where u.user_id = p_user_id
  ), heavy as materialized (
    select p.interest, sum(p.weight) as weight from positive p group by p.interest
    having sum(p.weight) >= 0.1 * (select sum(o.weight) from positive o)
  ), living as (
    select p.interest, h.weight, extensions.l2_normalize(extensions.sum(
      two_tower.scale(p.weight, v.embedding))) as vector
    from heavy h
      join positive p using (interest)
      join two_tower.live_embeddings v
        on v.slot = (select active_slot from two_tower.state) and v.post_id = p.post_id
    group by p.interest, h.weight
  )
  select l.interest, l.vector, (l.weight / sum(l.weight) over ())::real
  from living l where extensions.vector_norm(l.vector) > 0 order by l.interest;
$$;
comment on function two_tower.list_interests(uuid) is
  'Returns the interests of a user, at most four: number, vector of norm 1 by the live embeddings of today, and weight, which sum to 1. A positive weighs settings.interest_decay ^ (positives since). Leaves out interests of less than a tenth. Returns no row for a user without positives.';
