-- Types of vectors, and the formulas of which all rules are made.
--
-- zero_vector, scale and decay_strength are inlined. Names in their bodies are bound when they are
-- made, so they need no search_path of their own. A search_path would keep them calls.

-- Domains, not check constraints of the tables: each statement parses those anew, which costs a
-- like 20 microseconds.
create domain two_tower.unit_vector as extensions.vector(128)
  constraint norm_is_one check (abs(extensions.vector_norm(value) - 1) < 0.001);
comment on domain two_tower.unit_vector is 'A vector of 128 dimensions and norm 1.';

create domain two_tower.unit_or_zero_vector as extensions.vector(128)
  constraint norm_is_one_or_zero check (
    abs(extensions.vector_norm(value) - 1) < 0.001 or extensions.vector_norm(value) = 0);
comment on domain two_tower.unit_or_zero_vector is
  'A vector of 128 dimensions and norm 1, or zero where nothing is known.';

create function two_tower.zero_vector(p_width integer default 128) returns extensions.vector
language sql immutable parallel safe
return array_fill(0::real, array[p_width])::extensions.vector;
comment on function two_tower.zero_vector(integer) is 'Returns the vector of p_width zeros.';

create function two_tower.scale(p_factor real, p_vector extensions.vector)
returns extensions.vector language sql immutable parallel safe
return case when p_vector is not null
  then array_fill(p_factor, array[extensions.vector_dims(p_vector)])::extensions.vector
    operator(extensions.*) p_vector end;
comment on function two_tower.scale(real, extensions.vector) is
  'Returns factor * vector, of any width. pgvector itself multiplies only element by element. Returns null for null.';

create function two_tower.decay_strength(p_strength real, p_decay real, p_age double precision)
returns real language sql immutable parallel safe
return (p_strength * greatest(1e-12, p_decay ^ p_age))::real;
comment on function two_tower.decay_strength(real, real, double precision) is
  'Returns strength * decay^age: what an engagement weighs after "age" later ones. decay^age is bounded from below, since an underflow is an error.';

create function two_tower.move_vector(p_start extensions.vector, p_step real,
  p_direction extensions.vector)
returns extensions.vector language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_moved extensions.vector := p_start operator(extensions.+)
    two_tower.scale(p_step, p_direction);
begin
  return case when extensions.vector_norm(v_moved) > 1e-6 then extensions.l2_normalize(v_moved)
    else p_start end;
end
$$;
comment on function two_tower.move_vector(extensions.vector, real, extensions.vector) is
  'Returns norm(start + step * direction). Returns the start where the sum has next to no length, and so no direction.';
