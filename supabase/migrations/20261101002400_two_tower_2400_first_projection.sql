-- The projection that a project starts with, before anything was learned. hidden = [W; -W] and
-- output = [I, -I] make relu(Wx) - relu(-Wx) = Wx, with W [128, 384] orthonormal. Three versions of
-- it follow each other. Each has its agreement among its metrics: the rank correlation of cosines
-- in 128 dimensions with those in 384. On the films of MovieLens:
--
--   data-free  W of a cosine transform with random signs, from the migration on      .88
--   fitted     W of the directions in which the project's own posts differ, at 100,
--              1,000 and 10,000 posts, until anything is learned                     .99
--   centred    relu(W(x - m)) - relu(-W(x - m)) = W(x - m), m the mean of the posts,
--              from the first engagement on, be it a view                            .68,
--              and .98 with the cosines of centred texts
--
-- Until somebody engages, likeness of texts is all that is known, so ranks stay those of the texts.
-- Centring changes them on purpose. Texts of one project are alike, and their mean tells nothing of
-- a post. But all vectors lean to it, and so does each engaged sum, which leaves learning little
-- room. On those films the same learning ranks a fifth better when centred, and twice as many posts
-- get their turn. What is learned before that keeps its lean, so a long history should wait for it
-- (two_tower.overview says when it is due). No more of these versions is made once a trained one
-- serves.

create function two_tower.create_first_candidate_tower() returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_version bigint;
begin
  insert into two_tower.model_weights (tower, state, config, verdict, decided_at)
  values ('candidate_tower', 'active', '{"start": "randomised cosine transform"}', 'first version',
    two_tower.now())
  returning version into v_version;

  insert into two_tower.model_tensors (version, name, row_index, row)
  select v_version, 'hidden.weight', k.k + s.offset,
         array_agg((s.sign * case when hashint4(j.j) & 1 = 0 then 1 else -1 end
                    * sqrt(2.0 / 384) * cos(pi() * (2 * j.j + 1) * (3 * k.k + 1) / 768))::real
                   order by j.j)::extensions.vector
  from generate_series(0, 127) as k (k)
    cross join (values (1, 0), (-1, 128)) as s (sign, "offset")
    cross join generate_series(0, 383) as j (j)
  group by k.k, s.offset;

  insert into two_tower.model_tensors (version, name, row_index, row)
  select v_version, 'output.weight', k.k,
         array_agg(case h.h when k.k then 1 when k.k + 128 then -1 else 0 end::real
           order by h.h)::extensions.vector
  from generate_series(0, 127) as k (k) cross join generate_series(0, 255) as h (h)
  group by k.k;

  insert into two_tower.model_tensors (version, name, row_index, row) values
    (v_version, 'hidden.bias', 0, two_tower.zero_vector(256)),
    (v_version, 'output.bias', 0, two_tower.zero_vector());
  return v_version;
end
$$;
comment on function two_tower.create_first_candidate_tower() is 'Stores and activates the projection that a project starts with. Returns its version.';
select two_tower.create_first_candidate_tower();

create function two_tower.orthonormalise(p_rows extensions.vector[], p_spare extensions.vector[])
returns extensions.vector[] language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_done extensions.vector[] := '{}';
  v_row extensions.vector;
  v_other extensions.vector;
  v_part double precision;
begin
  for v_place in 1..cardinality(p_rows) loop
    foreach v_row in array array[p_rows[v_place], p_spare[v_place]] loop
      v_row := extensions.l2_normalize(v_row);
      -- Twice: what rounding leaves of the others after one round can be as large as the rest.
      for v_round in 1..2 loop
        foreach v_other in array v_done loop
          v_part := v_row operator(extensions.<#>) v_other;
          -- An underflow is an error here, so what is next to nothing is taken for nothing.
          continue when abs(v_part) < 1e-12;
          v_row := v_row operator(extensions.+)
            two_tower.scale(v_part::real, v_other);
        end loop;
      end loop;
      exit when extensions.vector_norm(v_row) > 1e-3;
    end loop;
    v_done := v_done || extensions.l2_normalize(v_row);
  end loop;
  return v_done;
end
$$;
comment on function two_tower.orthonormalise(extensions.vector[], extensions.vector[]) is
  'Returns rows of vector(384) made orthonormal, one after the other (Gram and Schmidt). Where a row adds no direction, the row of p_spare at its place does.';

create function two_tower.newest_base_embeddings(p_limit integer)
returns table (post_id bigint, base_embedding extensions.vector)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select b.post_id, b.base_embedding
  from two_tower.live_embeddings v join two_tower.base_embeddings b using (post_id)
  where v.slot = (select active_slot from two_tower.state) and v.number is not null
    and b.encoder = two_tower.active_encoder()
  order by v.number desc limit p_limit;
$$;
comment on function two_tower.newest_base_embeddings(integer) is
  'Returns the base embeddings of the p_limit newest posts, newest first. Leaves out deleted posts, and those that another encoder read.';

create function two_tower.measure_agreement(p_version bigint) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
  with recent as (
    select n.post_id, n.base_embedding as base from two_tower.newest_base_embeddings(10000) n
  ), sample as materialized (
    select row_number() over () as place, extensions.l2_normalize(r.base) as base,
      extensions.l2_normalize(r.base operator(extensions.-) m.mean) as centred,
      two_tower.run_candidate_tower(r.base, p_version) as live
    from (select * from recent order by hashint8(post_id) limit 200) r
      cross join (select extensions.avg(base) as mean from recent) m
  ), ranked as (
    select rank() over (order by a.live operator(extensions.<#>) b.live) as live,
      rank() over (order by a.base operator(extensions.<#>) b.base) as base,
      rank() over (order by a.centred operator(extensions.<#>) b.centred) as centred
    from sample a join sample b on b.place > a.place
  )
  select jsonb_build_object('with_texts', round(corr(live, base)::numeric, 3),
    'with_centred_texts', round(corr(live, centred)::numeric, 3))
  from ranked;
$$;
comment on function two_tower.measure_agreement(bigint) is
  'Returns the agreement of a version: rank correlations (Spearman) of the cosines of 200 posts, as it projects them. with_texts: with the cosines of their base embeddings. with_centred_texts: with those of the base embeddings less their mean.';

create function two_tower.store_first_tower(p_parent bigint, p_config jsonb, p_verdict text,
  p_projection extensions.vector[], p_mean extensions.vector) returns bigint
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_version bigint;
  v_bias real[] := array(select (row operator(extensions.<#>) p_mean)::real
    from unnest(p_projection) with ordinality as w (row, place) order by place);
begin
  insert into two_tower.model_weights (tower, parent_version, config, verdict, decided_at)
  values ('candidate_tower', p_parent, p_config, p_verdict, two_tower.now())
  returning version into v_version;
  insert into two_tower.model_tensors (version, name, row_index, row)
  select v_version, 'hidden.weight', w.place - 1 + s.offset, two_tower.scale(s.sign, w.row)
  from unnest(p_projection) with ordinality as w (row, place)
    cross join (values (1::real, 0), (-1::real, 128)) as s (sign, "offset");
  insert into two_tower.model_tensors (version, name, row_index, row)
  values (v_version, 'hidden.bias', 0,
    (v_bias || array(select -x from unnest(v_bias) with ordinality as b (x, place)
      order by place))::extensions.vector);
  insert into two_tower.model_tensors (version, name, row_index, row)
  select v_version, t.name, t.row_index, t.row from two_tower.model_tensors t
  where t.version = p_parent and t.name in ('output.weight', 'output.bias');
  update two_tower.model_weights
    set metrics = jsonb_build_object('agreement', two_tower.measure_agreement(v_version))
  where version = v_version;
  return v_version;
end
$$;
comment on function two_tower.store_first_tower(bigint, jsonb, text, extensions.vector[], extensions.vector) is
  'Stores the projection W(x - mean) as a version of the candidate tower, with its agreement. Returns its number.';

create function two_tower.first_tower_due(out step text, out posts integer)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case
      when n.posts >= 10 * coalesce((m.config ->> 'fitted_on')::integer, 10)
        and not exists (select from two_tower.training_examples) then 'fitted'
      when n.posts >= 10 * coalesce((m.config ->> 'centred_on')::integer, 10)
        and exists (select from public.engagement_events) then 'centred' end,
    n.posts
  from two_tower.model_weights m
    cross join (select count(*)::integer as posts
      from (select from two_tower.live_embeddings v
            where v.slot = (select active_slot from two_tower.state) and v.number is not null
            limit 10000) v) n
  where m.tower = 'candidate_tower' and m.state = 'active' and m.config ? 'start';
$$;
comment on function two_tower.first_tower_due() is
  'Returns what the first projection is to be next: fitted to the posts or, once there is an engagement, centred on them. Either is due with at least 100 posts, and again with ten times as many. step is null when nothing is due, or a trained version serves. posts: counted up to 10,000.';

create function two_tower.improve_first_tower() returns text
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_active two_tower.model_weights;
  v_due record;
  v_rows extensions.vector[];
  v_sample extensions.vector[];
  v_mean extensions.vector;
begin
  if (select filling_version is not null or frozen_at is not null from two_tower.state) then
    return null;
  end if;
  select * into v_due from two_tower.first_tower_due();
  -- Fewer: most texts have changed, and wait for the encoder.
  if v_due.step is null
    or (select count(*) from two_tower.newest_base_embeddings(100)) < 100 then
    return null;
  end if;
  select * into v_active from two_tower.model_weights
  where tower = 'candidate_tower' and state = 'active';
  v_rows := array(select row from two_tower.model_tensors where version = v_active.version
    and name = 'hidden.weight' and row_index < 128 order by row_index);
  v_mean := two_tower.zero_vector(384);
  if v_due.step = 'fitted' then
    -- Half precision makes zeros of dimensions that the encoder leaves at 1e-36. Products with them
    -- would underflow, which is an error here.
    v_sample := array(select n.base_embedding::extensions.halfvec::extensions.vector
      from two_tower.newest_base_embeddings(1000) n);
    -- A step of subspace iteration, W <- orthonormal(W X'X). It keeps nearly all that 128
    -- dimensions can keep of the posts X, because what tells texts apart lies in few directions.
    v_rows := two_tower.orthonormalise(array(
      select coalesce(extensions.sum(two_tower.scale(p.part::real, x))
        filter (where abs(p.part) > 1e-12), w.row)
      from unnest(v_rows) with ordinality as w (row, place)
        cross join unnest(v_sample) as x
        cross join lateral (select x operator(extensions.<#>) w.row as part) p
      group by w.place, w.row order by w.place), v_rows);
    v_active.config := v_active.config - 'centred_on';
  else
    v_mean := (select extensions.avg(n.base_embedding)
      from two_tower.newest_base_embeddings(10000) n);
  end if;
  perform two_tower.begin_switch(two_tower.store_first_tower(v_active.version,
    v_active.config || jsonb_build_object(v_due.step || '_on', 10 ^ floor(log(v_due.posts))),
    format('accepted: %s on %s posts', v_due.step, v_due.posts), v_rows, v_mean));
  return v_due.step;
end
$$;
comment on function two_tower.improve_first_tower() is
  'Begins the switch to the first projection that is due, unless learning is frozen or another switch is on. Returns fitted, centred, or null for neither.';
