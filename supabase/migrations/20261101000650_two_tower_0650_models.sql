-- The weights of both towers. A version is never overwritten. It is stored as a candidate and
-- judged. Then it becomes active, or stays rejected with its metrics. A tensor is stored as one row
-- per row of its matrix. So SQL can run the candidate tower where the posts are, and a DBA can read
-- what was learned.

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
  trained_from bigint,
  held_out_from bigint,
  encoder text,
  created_at timestamptz not null default two_tower.now(),
  decided_at timestamptz,
  constraint a_rejected_version_says_why check (state <> 'rejected' or verdict is not null)
);
comment on table two_tower.model_weights is 'Versions of the towers'' weights: what they were trained on, how they were judged, what became of them.';
comment on column two_tower.model_weights.state is 'candidate, active, rejected or archived. At most one version of a tower is active.';
comment on column two_tower.model_weights.parent_version is 'The version that training started from.';
comment on column two_tower.model_weights.config is 'Shape and hyperparameters. Of a user tower also prior_weights: the prior''s weight for each class of users.';
comment on column two_tower.model_weights.metrics is 'Measurements of the training and, under gate, of the gate.';
comment on column two_tower.model_weights.trained_from is 'The first event (engagement_events.id) that the version was trained on.';
comment on column two_tower.model_weights.held_out_from is 't0: the first event that the version was not trained on. The gate judges it by the events from here on.';
comment on column two_tower.model_weights.encoder is 'The encoder whose base embeddings the version reads. Those of another one mean nothing to it.';
comment on column two_tower.model_weights.decided_at is 'When the verdict was given.';
comment on column two_tower.model_weights.verdict is 'Why the version was accepted, rejected or forced.';
create unique index one_active_version_per_tower on two_tower.model_weights (tower)
  where state = 'active';
create index model_weights_parent_version_idx on two_tower.model_weights (parent_version);

create function two_tower.active_encoder() returns text
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select coalesce(
    (select w.encoder from two_tower.model_weights w
     where w.tower = 'candidate_tower' and w.state = 'active'),
    (select s.encoder from two_tower.settings s));
$$;
comment on function two_tower.active_encoder() is 'Returns the encoder with which texts are encoded now: the one that the active candidate tower reads. Definer: workers have no grant on tables.';
alter table two_tower.model_weights
  alter encoder set default two_tower.active_encoder(), alter encoder set not null;

create table two_tower.model_tensors (
  version bigint not null references two_tower.model_weights (version) on delete cascade,
  name text not null,
  row_index integer not null constraint row_index_starts_at_zero check (row_index >= 0),
  row extensions.vector not null,
  primary key (version, name, row_index)
);
comment on table two_tower.model_tensors is 'The tensors of a version. A matrix [r, c] is r rows of c values; a bias is one row.';
comment on column two_tower.model_tensors.name is 'The name of the tensor, as PyTorch has it: see expected_tensors().';
comment on column two_tower.model_tensors.row_index is 'The row of the matrix, from 0.';

create table two_tower.model_authors (
  version bigint not null references two_tower.model_weights (version) on delete cascade,
  author_id uuid not null references two_tower.users (id) on delete cascade,
  embedding extensions.vector(64) not null,
  primary key (version, author_id)
);
comment on table two_tower.model_authors is 'What a version of the user tower learned of the authors in its training data. author_embeddings takes it over when the version becomes active.';
create index model_authors_author_id_idx on two_tower.model_authors (author_id);

-- Shapes follow from the config, so that another number of layers is another shape and not an
-- error. Embeddings of authors and actions have 64 values.
create function two_tower.expected_tensors(p_tower text, p_config jsonb)
returns table (name text, rows integer, width integer)
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select t.name, t.rows, t.width
  from (values ('hidden.weight', 256, 384), ('hidden.bias', 1, 256), ('output.weight', 128, 256),
    ('output.bias', 1, 128)) as t (name, rows, width)
  where p_tower = 'candidate_tower'
  union all
  select t.name, t.rows, t.width
  from (select coalesce(jsonb_array_length(p_config -> 'event_types'), 0) as n) s
    cross join lateral (values ('action.weight', s.n, 64), ('post.weight', 64, 128),
      ('post.bias', 1, 64), ('recency.weight', 64, 1), ('recency.bias', 1, 64),
      ('projection.weight', 128, 64), ('projection.bias', 1, 128)) as t (name, rows, width)
  where p_tower = 'user_tower'
  union all
  select format('blocks.%s.%s', b.b, t.name), t.rows, t.width
  from generate_series(0, least(coalesce((p_config ->> 'layers')::integer, 1), 16) - 1) as b (b)
    cross join (values ('attention.in_proj_weight', 192, 64), ('attention.in_proj_bias', 1, 192),
      ('attention.out_proj.weight', 64, 64), ('attention.out_proj.bias', 1, 64),
      ('before.weight', 1, 64), ('before.bias', 1, 64), ('between.weight', 1, 64),
      ('between.bias', 1, 64), ('wide.weight', 128, 64), ('wide.bias', 1, 128),
      ('narrow.weight', 64, 128), ('narrow.bias', 1, 64)) as t (name, rows, width)
  where p_tower = 'user_tower';
$$;
comment on function two_tower.expected_tensors(text, jsonb) is 'Returns the tensors of which a version of a tower consists, with their shapes.';

create function two_tower.missing_tensors(p_version bigint) returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  with expected as (
    select e.* from two_tower.model_weights w
      cross join lateral two_tower.expected_tensors(w.tower, w.config) e
    where w.version = p_version
  ), stored as (
    select t.name, count(*) as rows, max(t.row_index) as last,
      min(extensions.vector_dims(t.row)) as narrowest,
      max(extensions.vector_dims(t.row)) as widest,
      max(extensions.vector_norm(t.row)) as longest
    from two_tower.model_tensors t where t.version = p_version group by t.name
  )
  select left(string_agg(f.fault, '; ' order by f.fault like 'layers %' desc, f.fault), 1000)
  from (
    select 'layers must be from 1 to 16' as fault
    from two_tower.model_weights w
    where w.version = p_version and (w.config ->> 'layers')::integer not between 1 and 16
    union all
    select case when e.name is null then left(s.name, 100) || ' is no tensor of this tower'
      when s.longest > 10000 then e.name || ' has a row longer than 10,000'
      else format('%s must be %s rows of %s values', e.name, e.rows, e.width) end
    from expected e full join stored s using (name)
    where e.name is null or s.name is null or s.longest > 10000
      or (s.rows, s.last, s.narrowest, s.widest)
        is distinct from (e.rows, e.rows - 1, e.width, e.width)
  ) f;
$$;
comment on function two_tower.missing_tensors(bigint) is
  'Returns what keeps a version from being run: tensors that are missing, misshapen, unknown, or so large that what is computed from them is not finite. Returns null if nothing does, and at most 1,000 characters.';

-- Two-layer perceptron 384 -> 256 -> 128 with ReLU and an output of norm 1. A row of weights times
-- the input is one inner product of pgvector (<#> is its negative): the fastest way within SQL.
-- Each step is an array that is computed once, whatever the planner knows about the tables.
create function two_tower.apply_layer(p_version bigint, p_name text, p_input extensions.vector)
returns extensions.vector language sql stable strict set search_path = pg_catalog, pg_temp as $$
  select array(
      select -(t.row operator(extensions.<#>) p_input) from two_tower.model_tensors t
      where t.version = p_version and t.name = p_name || '.weight' order by t.row_index
    )::extensions.vector operator(extensions.+) b.row
  from two_tower.model_tensors b
    where b.version = p_version and b.name = p_name || '.bias' and b.row_index = 0;
$$;
comment on function two_tower.apply_layer(bigint, text, extensions.vector) is 'Returns weight * input + bias of one layer of a version.';

create function two_tower.run_candidate_tower(p_base extensions.vector, p_version bigint)
returns extensions.vector language plpgsql stable strict set search_path = pg_catalog, pg_temp as $$
declare
  v_hidden extensions.vector := two_tower.apply_layer(p_version, 'hidden', p_base);
begin
  v_hidden := array(select greatest(0, x)
    from unnest(v_hidden::real[]) with ordinality as h (x, place) order by place);
  return extensions.l2_normalize(two_tower.apply_layer(p_version, 'output', v_hidden));
end
$$;
comment on function two_tower.run_candidate_tower(extensions.vector, bigint) is
  'Runs a version of the candidate tower: vector(384) to vector(128) of norm 1. Returns null for null. An output of zeros stays zero.';

create function two_tower.project_text(p_base extensions.vector, p_encoder text, p_version bigint)
returns extensions.vector language sql stable set search_path = pg_catalog, pg_temp as $$
  select two_tower.run_candidate_tower(p_base, w.version) from two_tower.model_weights w
  where w.version = p_version and w.encoder = p_encoder;
$$;
comment on function two_tower.project_text(extensions.vector, text, bigint) is 'Runs a version of the candidate tower on what p_encoder made of a text. Returns null when the version reads another encoder.';

create function two_tower.active_version(p_tower text) returns bigint
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select version from two_tower.model_weights where tower = p_tower and state = 'active';
$$;
comment on function two_tower.active_version(text) is 'Returns the version of a tower that serves, or null. Definer: workers have no grant on tables.';

create function two_tower.run_candidate_tower(p_base extensions.vector)
returns extensions.vector language sql stable strict set search_path = pg_catalog, pg_temp as $$
  select two_tower.run_candidate_tower(p_base, two_tower.active_version('candidate_tower'));
$$;
comment on function two_tower.run_candidate_tower(extensions.vector) is 'Runs the active candidate tower.';

create function two_tower.read_version(p_version bigint) returns two_tower.model_weights
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.model_weights where version = p_version;
$$;
comment on function two_tower.read_version(bigint) is
  'Returns the row of a version; nulls where there is none. Definer: workers have no grant on tables.';

create function two_tower.read_tensors(p_version bigint) returns setof two_tower.model_tensors
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.model_tensors t
  where t.version = p_version order by t.name, t.row_index;
$$;
comment on function two_tower.read_tensors(bigint) is
  'Returns the tensors of a version, row by row. Definer: workers have no grant on tables.';

create function two_tower.read_model_authors(p_version bigint)
returns setof two_tower.model_authors
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.model_authors m where m.version = p_version order by m.author_id;
$$;
comment on function two_tower.read_model_authors(bigint) is
  'Returns what a version of the user tower learned of authors. Definer: workers have no grant on tables.';

create function two_tower.store_weights(
  p_tower text, p_names text[], p_row_indexes integer[], p_rows extensions.vector[],
  p_config jsonb, p_metrics jsonb, p_parent_version bigint default null,
  p_trained_from bigint default null, p_held_out_from bigint default null,
  p_author_ids uuid[] default '{}', p_author_embeddings extensions.vector[] default '{}'
) returns bigint language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_version bigint;
  v_missing text;
begin
  insert into two_tower.model_weights (tower, parent_version, config, metrics, trained_from,
    held_out_from, encoder)
  values (p_tower, p_parent_version, p_config, p_metrics, p_trained_from, p_held_out_from,
    coalesce((select w.encoder from two_tower.model_weights w where w.version = p_parent_version),
      two_tower.active_encoder()))
  returning version into v_version;
  insert into two_tower.model_tensors (version, name, row_index, row)
  select v_version, t.name, t.row_index, t.row
  from unnest(p_names, p_row_indexes, p_rows) as t (name, row_index, row);
  insert into two_tower.model_authors (version, author_id, embedding)
  select v_version, a.author_id, a.embedding
  from unnest(p_author_ids, p_author_embeddings) as a (author_id, embedding)
  where exists (select from two_tower.users u where u.id = a.author_id);
  v_missing := two_tower.missing_tensors(v_version);
  if v_missing is not null then
    raise exception 'these weights can not be run: %', v_missing
      using errcode = 'TT004', hint = 'Pass all rows of all tensors of the version in one call.';
  end if;
  return v_version;
end
$$;
comment on function two_tower.store_weights(text, text[], integer[], extensions.vector[], jsonb, jsonb, bigint, bigint, bigint, uuid[], extensions.vector[]) is
  'Stores a new version as a candidate. Returns its number. The version serves nobody until the gate accepts it. Leaves out authors of whom nothing is stored here. Raises TT004, with the names of the tensors, for weights that can not be run. Definer: workers have no grant on tables.';

create function two_tower.reject_training(p_tower text, p_reason text, p_config jsonb,
  p_metrics jsonb, p_parent_version bigint, p_trained_from bigint, p_held_out_from bigint)
returns bigint language sql security definer set search_path = pg_catalog, pg_temp as $$
  insert into two_tower.model_weights (tower, state, verdict, config, metrics, parent_version,
    trained_from, held_out_from, decided_at)
  values (p_tower, 'rejected', 'rejected: ' || p_reason, p_config, p_metrics, p_parent_version,
    p_trained_from, p_held_out_from, two_tower.now())
  returning version;
$$;
comment on function two_tower.reject_training(text, text, jsonb, jsonb, bigint, bigint, bigint) is
  'Records a training that gave nothing to judge, such as weights that are not finite, which no table takes. Returns the number of the version, which is rejected. Definer: workers have no grant on tables.';
