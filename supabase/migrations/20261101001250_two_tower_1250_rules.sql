-- The two rules. Each takes one lesson, and the vectors as they stand before it. l2_normalize
-- leaves a zero vector zero. norm(x) = norm(c x), so an average of two vectors needs one
-- multiplication.

create function two_tower.combine_user(p_engaged_sum extensions.vector, p_prior_weight real,
  p_prior extensions.vector)
returns extensions.vector language sql immutable parallel safe
return extensions.l2_normalize(coalesce(
  p_engaged_sum operator(extensions.+) two_tower.scale(p_prior_weight, p_prior), p_engaged_sum));
comment on function two_tower.combine_user(extensions.vector, real, extensions.vector) is
  'Returns norm(prior_weight * prior + engaged_sum) or, without a prior, norm(engaged_sum).';

-- Inlined where it is called: one formula for what is learned and for what is taken back.
create function two_tower.weigh_strength(p_strength real, p_negative_factor real)
returns real language sql immutable parallel safe
return case when p_strength < 0 then p_strength * p_negative_factor else p_strength end;
comment on function two_tower.weigh_strength(real, real) is
  'Returns the strength with which an event acts by the contrastive rule, and in a user''s sum by either: a negative one by settings.negative_strength_factor of it.';

create function two_tower.apply_literal_rule(
  p_strength real, p_alpha_limit real, p_engagements integer, p_user extensions.vector,
  p_post extensions.vector
) returns extensions.vector language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_alpha double precision := least(p_alpha_limit, 1.0 / (p_engagements + 1));
begin
  return extensions.l2_normalize(
    p_user operator(extensions.+)
      two_tower.scale((v_alpha / (1 - v_alpha) * p_strength)::real, p_post));
end
$$;
comment on function two_tower.apply_literal_rule(real, real, integer, extensions.vector, extensions.vector) is
  'Returns the user after an event by the literal rule: u'' = norm((1 - a) u + a s p), a = least(limit, 1 / (n + 1)). The post''s own step is rate * s: p'' = norm(p + rate * s * u).';

create function two_tower.apply_contrastive_rule(
  p_full_step real, p_own double precision, p_weights double precision[],
  p_are_untouched boolean[], out step real, out push_factors real[]
) language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_total double precision := p_own;
  v_weight double precision;
begin
  foreach v_weight in array p_weights loop
    v_total := v_total + v_weight;
  end loop;
  for v_place in 1..cardinality(p_weights) loop
    push_factors[v_place] := case when p_are_untouched[v_place] then 0
      else greatest(1e-12, p_full_step * p_weights[v_place] / v_total) end;
  end loop;
  step := p_full_step * (1 - p_own / v_total);
end
$$;
comment on function two_tower.apply_contrastive_rule(real, double precision, double precision[], boolean[]) is
  'Computes the steps of an event by the contrastive rule. q = the weights of the post (p_own) and of those drawn (p_weights), which weigh_post() gave them before the event, over their sum. step: full_step (1 - q_p), for p'' = norm(p + step u). push_factors: full_step q of each drawn post, to be subtracted later, and 0 of an untouched one.';
