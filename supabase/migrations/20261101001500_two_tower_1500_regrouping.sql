-- Posts move after they got the number of an interest, and two interests can come to be one. So the
-- positives of everybody who engaged within a week are grouped anew each week, by the vectors of
-- today. It is a walk over all users in order of id, in bounded steps of tick().

create function two_tower.request_regrouping() returns void
language sql set search_path = pg_catalog, pg_temp as $$
  update two_tower.state set regrouped_up_to = '00000000-0000-0000-0000-000000000000' where id;
$$;
comment on function two_tower.request_regrouping() is 'Asks for a walk of regroup_interests() over all users, from the first one.';

create function two_tower.measure_centres(p_numbers smallint[], p_vectors extensions.vector[])
returns table (number smallint, centre extensions.vector, posts bigint, spread double precision)
language sql immutable set search_path = pg_catalog, pg_temp as $$
  with post as materialized (
    select n.number, n.vector from unnest(p_numbers, p_vectors) as n (number, vector)
  ), centre as materialized (
    select p.number, extensions.l2_normalize(extensions.sum(p.vector)) as centre
    from post p group by p.number
  )
  select c.number, c.centre, count(*), avg(-(p.vector operator(extensions.<#>) c.centre))
  from centre c join post p using (number) group by c.number, c.centre;
$$;
comment on function two_tower.measure_centres(smallint[], extensions.vector[]) is
  'Returns of each group of vectors its centre, of norm 1, how many there are, and their mean cosine with it.';

-- k-means, from the numbers that there are. The number of groups needs no constant: it falls where
-- two lie as near to each other as to their own posts.
create function two_tower.regroup_vectors(p_vectors extensions.vector[],
  inout p_numbers smallint[])
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_before smallint[];
  v_merged record;
begin
  for v_pass in 1..10 loop
    v_before := p_numbers;
    select a.number as kept, b.number as gone into v_merged
    from two_tower.measure_centres(p_numbers, p_vectors) a
      join two_tower.measure_centres(p_numbers, p_vectors) b on a.number < b.number
    where -(a.centre operator(extensions.<#>) b.centre)
      >= (a.posts * a.spread + b.posts * b.spread) / (a.posts + b.posts)
    order by a.centre operator(extensions.<#>) b.centre limit 1;
    if found then
      p_numbers := array_replace(p_numbers, v_merged.gone, v_merged.kept);
      continue;
    end if;
    with centre as materialized (
      select m.number, m.centre from two_tower.measure_centres(p_numbers, p_vectors) m
    )
    select array_agg(near.number order by n.place) into p_numbers
    from unnest(p_vectors) with ordinality as n (vector, place)
      cross join lateral (
        select c.number from centre c
        order by c.centre operator(extensions.<#>) n.vector, c.number limit 1) near;
    exit when p_numbers = v_before;
  end loop;
end
$$;
comment on function two_tower.regroup_vectors(extensions.vector[], smallint[]) is
  'Returns the numbers of vectors of norm 1, each that of the nearest centre, in at most ten passes of k-means. Two groups become one when their centres are nearer to each other than their vectors are to them on average.';

create function two_tower.regroup_positives(p_slot smallint, p_decay real,
  inout p_user two_tower.user_embeddings)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_vectors extensions.vector[];
begin
  select coalesce(array_agg(v.post_id order by n.place), '{}'),
    coalesce(array_agg(n.interest order by n.place), '{}'), array_agg(v.embedding order by n.place)
  into p_user.positive_ids, p_user.positive_interests, v_vectors
  from unnest(p_user.positive_ids, p_user.positive_interests)
      with ordinality as n (post_id, interest, place)
    join two_tower.live_embeddings v on v.slot = p_slot and v.post_id = n.post_id;
  p_user.positive_interests :=
    two_tower.regroup_vectors(v_vectors, p_user.positive_interests);
  p_user.interest_sums := array(
    select (
      select extensions.sum(two_tower.scale(two_tower.decay_strength(1, p_decay, p.age), p.vector))
      from (
        select n.vector, row_number() over (order by n.place desc) - 1 as age
        from unnest(p_user.positive_interests, v_vectors)
          with ordinality as n (number, vector, place)
        where n.number = k.number
      ) p)::extensions.halfvec
    from generate_series(1, 4) as k (number) order by k.number);
end
$$;
comment on function two_tower.regroup_positives(smallint, real, two_tower.user_embeddings) is
  'Returns the user with the positives grouped anew, by their live embeddings. Those whose post is gone for good are forgotten.';

-- Two sessions: who learns holds the user, and is not waited for. Such a user keeps the numbers.
create function two_tower.regroup_interests(p_limit integer default 200) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_state two_tower.state;
  v_settings two_tower.settings;
  v_ids uuid[];
  v_user two_tower.user_embeddings;
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  select * into v_state from two_tower.state for no key update;
  if v_state.regrouped_up_to is null or v_state.filling_checkpoint is not null then
    return 0;
  end if;
  select * into v_settings from two_tower.settings;
  v_ids := array(select u.user_id from two_tower.user_embeddings u
    where u.user_id > v_state.regrouped_up_to order by u.user_id limit p_limit);
  for v_user in
    select * from two_tower.user_embeddings u
    where u.user_id = any (v_ids) and u.positive_ids <> '{}'
      and u.updated_at > two_tower.now() - interval '7 days'
    order by u.user_id for no key update skip locked
  loop
    v_user := two_tower.regroup_positives(v_state.active_slot, v_settings.interest_decay, v_user);
    update two_tower.user_embeddings u set positive_ids = v_user.positive_ids,
      positive_interests = v_user.positive_interests, interest_sums = v_user.interest_sums
    where u.user_id = v_user.user_id;
  end loop;
  update two_tower.state set regrouped_up_to = v_ids[cardinality(v_ids)] where id;
  return cardinality(v_ids);
end
$$;
comment on function two_tower.regroup_interests(integer) is
  'Goes on with a walk that request_regrouping() began: looks at the next p_limit users, and groups the positives anew of those who engaged within a week. Returns how many it looked at. Waits for the end of a rollback.';
