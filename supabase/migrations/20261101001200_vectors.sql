-- Types of vectors, and the two formulas that all rules are made of.

-- Domains, not check constraints of the tables: those are parsed anew by each statement, and
-- cost a like 20 microseconds.
create domain two_tower.unit_vector as extensions.vector(128)
  constraint norm_is_one check (abs(extensions.vector_norm(value) - 1) < 0.001);
comment on domain two_tower.unit_vector is 'A vector of 128 dimensions and norm 1.';

create domain two_tower.unit_or_zero_vector as extensions.vector(128)
  constraint norm_is_one_or_zero check (
    abs(extensions.vector_norm(value) - 1) < 0.001 or extensions.vector_norm(value) = 0);
comment on domain two_tower.unit_or_zero_vector is
  'A vector of 128 dimensions and norm 1; zero where nothing is known.';

create function two_tower.scaled(p_vector extensions.vector, p_factor real)
returns extensions.vector language plpgsql immutable set search_path = '' as $$
begin
  return case when p_vector is null then array_fill(0::real, array[128])::extensions.vector
    else array_fill(p_factor, array[128])::extensions.vector operator(extensions.*) p_vector end;
end
$$;
comment on function two_tower.scaled(extensions.vector, real) is 'factor * vector(128); zero for null.';

create function two_tower.move(p_start extensions.vector, p_step real,
  p_direction extensions.vector)
returns extensions.vector language plpgsql immutable set search_path = '' as $$
declare
  v_moved extensions.vector := p_start operator(extensions.+)
    (array_fill(p_step, array[128])::extensions.vector operator(extensions.*) p_direction);
begin
  return case when extensions.vector_norm(v_moved) > 1e-6 then extensions.l2_normalize(v_moved)
    else p_start end;
end
$$;
comment on function two_tower.move(extensions.vector, real, extensions.vector) is
  'norm(start + step * direction). A step that would leave no direction changes nothing.';
