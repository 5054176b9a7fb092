-- The weights of both towers. A version is never overwritten: it is stored as a candidate, judged,
-- and becomes active or stays rejected with its metrics. A tensor is a set of rows, one per row of
-- the matrix, so that SQL can run the candidate tower where the posts are and a DBA can read what
-- was learned.

create table two_tower.model_weights (
  version bigint generated always as identity primary key,
  tower text not null constraint tower_is_known check (tower in ('candidate_tower', 'user_tower')),
  state text not null default 'candidate'
    constraint state_of_weights_is_known
      check (state in ('candidate', 'active', 'rejected', 'archived')),
  parent_version bigint references two_tower.model_weights (version),
  config jsonb not null default '{}',
  metrics jsonb not null default '{}',
  verdict text,
  trained_from timestamptz,
  trained_until timestamptz,
  created_at timestamptz not null default two_tower.now(),
  decided_at timestamptz,
  constraint a_rejected_version_says_why check (state <> 'rejected' or verdict is not null)
);
comment on table two_tower.model_weights is 'Versions of the towers'' weights: what they were trained on, how they were judged, what became of them.';
comment on column two_tower.model_weights.parent_version is 'The version that training started from.';
comment on column two_tower.model_weights.verdict is 'Why the gate accepted or rejected it.';
create unique index one_active_version_per_tower on two_tower.model_weights (tower)
  where state = 'active';
create index model_weights_parent_version_idx on two_tower.model_weights (parent_version);

create table two_tower.model_tensors (
  version bigint not null references two_tower.model_weights (version) on delete cascade,
  name text not null,
  row_index integer not null constraint row_index_starts_at_zero check (row_index >= 0),
  row extensions.vector not null,
  primary key (version, name, row_index)
);
comment on table two_tower.model_tensors is 'The tensors of a version: a matrix [r, c] is r rows of c values, a bias is one row.';

create function two_tower.missing_tensors(p_version bigint) returns text
language sql stable set search_path = '' as $$
  with expected (name, rows, width) as (
    values ('hidden.weight', 256, 384), ('hidden.bias', 1, 256), ('output.weight', 128, 256),
      ('output.bias', 1, 128)
  )
  select string_agg(format('%s must be %s rows of %s values', e.name, e.rows, e.width), '; '
    order by e.name)
  from expected e
  where (select count(*) from two_tower.model_tensors t
         where t.version = p_version and t.name = e.name and t.row_index < e.rows
           and extensions.vector_dims(t.row) = e.width) <> e.rows
     or exists (select from two_tower.model_tensors t
                where t.version = p_version and t.name = e.name and t.row_index >= e.rows);
$$;
comment on function two_tower.missing_tensors(bigint) is
  'What a version of the candidate tower lacks to be run, or null. Values are finite by the type: pgvector takes no NaN and no infinity.';

-- Two-layer perceptron 384 -> 256 -> 128 with ReLU, output of norm 1. A row of weights times the
-- input is one inner product of pgvector (<#> is its negative), which is as fast as this gets
-- without leaving SQL. Each step is an array that is computed once, whatever the planner knows
-- about the tables.
create function two_tower.layer(p_version bigint, p_name text, p_input extensions.vector)
returns extensions.vector language sql stable strict set search_path = '' as $$
  select (array(
    select -(t.row operator(extensions.<#>) p_input) from two_tower.model_tensors t
    where t.version = p_version and t.name = p_name || '.weight' order by t.row_index
  )::extensions.vector) operator(extensions.+) b.row
  from two_tower.model_tensors b
    where b.version = p_version and b.name = p_name || '.bias' and b.row_index = 0;
$$;
comment on function two_tower.layer(bigint, text, extensions.vector) is 'weight * input + bias, of one layer of a version.';

create function two_tower.candidate_tower(p_base extensions.vector, p_version bigint)
returns extensions.vector language plpgsql stable strict set search_path = '' as $$
declare
  v_hidden extensions.vector := two_tower.layer(p_version, 'hidden', p_base);
begin
  v_hidden := array(select greatest(0, x)
    from unnest(v_hidden::real[]) with ordinality as h (x, place) order by place);
  return extensions.l2_normalize(two_tower.layer(p_version, 'output', v_hidden));
end
$$;
comment on function two_tower.candidate_tower(extensions.vector, bigint) is
  'Runs a version of the candidate tower: vector(384) to vector(128) of norm 1. Null for null; the zero vector stays zero.';

create function two_tower.active_version(p_tower text) returns bigint
language sql stable set search_path = '' as $$
  select version from two_tower.model_weights where tower = p_tower and state = 'active';
$$;
comment on function two_tower.active_version(text) is 'The version that serves, or null.';

create function two_tower.candidate_tower(p_base extensions.vector)
returns extensions.vector language sql stable strict set search_path = '' as $$
  select two_tower.candidate_tower(p_base, two_tower.active_version('candidate_tower'));
$$;
comment on function two_tower.candidate_tower(extensions.vector) is 'Runs the active candidate tower.';

-- The first version is a projection, not noise: 128 orthonormal rows W of a cosine transform with
-- random signs, which keep distances as a random projection does. hidden = [W; -W] and output = [I,
-- -I] make relu(Wx) - relu(-Wx) = Wx.
create function two_tower.create_first_candidate_tower() returns bigint
language plpgsql set search_path = '' as $$
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
    (v_version, 'hidden.bias', 0, array_fill(0::real, array[256])::extensions.vector),
    (v_version, 'output.bias', 0, array_fill(0::real, array[128])::extensions.vector);
  return v_version;
end
$$;
comment on function two_tower.create_first_candidate_tower() is 'Stores and activates the projection that a project starts with.';
select two_tower.create_first_candidate_tower();

create function two_tower.store_weights(
  p_tower text, p_names text[], p_row_indexes integer[], p_rows extensions.vector[],
  p_config jsonb, p_metrics jsonb, p_parent_version bigint default null,
  p_trained_from timestamptz default null, p_trained_until timestamptz default null
) returns bigint language plpgsql set search_path = '' as $$
declare
  v_version bigint;
  v_missing text;
begin
  insert into two_tower.model_weights (tower, parent_version, config, metrics, trained_from,
    trained_until)
  values (p_tower, p_parent_version, p_config, p_metrics, p_trained_from, p_trained_until)
  returning version into v_version;
  insert into two_tower.model_tensors (version, name, row_index, row)
  select v_version, t.name, t.row_index, t.row
  from unnest(p_names, p_row_indexes, p_rows) as t (name, row_index, row);
  if p_tower = 'candidate_tower' then
    v_missing := two_tower.missing_tensors(v_version);
    if v_missing is not null then
      raise exception 'these weights can not be run: %', v_missing
        using errcode = 'TT004', hint = 'Store all rows of all tensors of one version in one call.';
    end if;
  end if;
  return v_version;
end
$$;
comment on function two_tower.store_weights(text, text[], integer[], extensions.vector[], jsonb, jsonb, bigint, timestamptz, timestamptz) is
  'Stores a new version as a candidate and returns its number. It serves nobody until the gate accepts it.';
