-- Types of vectors, and the formulas of which all rules are made.
--
-- zero_vector, scale, decay_strength and popularity_in_likes are inlined. Names in their bodies are
-- bound when they are made, so they need no search_path of their own. A search_path would keep them
-- calls.

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

-- Popularity is kept as a logarithm. The plain sum would leave the range of a double after some
-- hundred half-lives.
create function two_tower.compute_popularity(p_likes real, p_at timestamptz, p_half_life interval)
returns double precision language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return case when p_likes > 0 then ln(p_likes::double precision) / ln(2::double precision)
      + extract(epoch from p_at - timestamptz '2025-01-01 00:00:00+00')::double precision
        / extract(epoch from p_half_life)::double precision
    else '-infinity' end;
end
$$;
comment on function two_tower.compute_popularity(real, timestamptz, interval) is
  'Returns log2 of what likes add to a post''s popularity: log2(likes) + (time - 2025-01-01) / half-life. Forward decay: old likes do not shrink, new ones count for more.';

create function two_tower.add_popularity(p_popularity double precision, p_added double precision)
returns double precision language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return case when least(p_popularity, p_added) = '-infinity'
    then greatest(p_popularity, p_added)
    else greatest(p_popularity, p_added)
      + ln(1 + 2 ^ -least(1000, abs(p_popularity - p_added))) / ln(2::double precision) end;
end
$$;
comment on function two_tower.add_popularity(double precision, double precision) is
  'Returns log2(2^a + 2^b).';

create function two_tower.subtract_popularity(p_popularity double precision,
  p_taken double precision)
returns double precision language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return case when p_taken = '-infinity' then p_popularity
    -- What is left of a sum when all parts are taken back is rounding.
    when p_popularity - p_taken < 1e-9 then '-infinity'
    else p_popularity
      + ln(1 - 2 ^ -least(1000, p_popularity - p_taken)) / ln(2::double precision) end;
end
$$;
comment on function two_tower.subtract_popularity(double precision, double precision) is
  'Returns log2(2^a - 2^b), and -infinity where nothing is left.';

create function two_tower.popularity_in_likes(p_popularity double precision,
  p_of_one_like double precision)
returns double precision language sql immutable parallel safe
return 2 ^ greatest(-1000, least(1000, p_popularity - p_of_one_like));
comment on function two_tower.popularity_in_likes(double precision, double precision) is
  'Returns a popularity in likes. p_of_one_like: compute_popularity() of one like of now.';
