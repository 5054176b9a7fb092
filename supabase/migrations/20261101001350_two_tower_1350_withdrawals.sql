-- What was given is taken back: unlike, unrepost, unhide and undo_not_interested. Steps of the
-- event that were applied are reversed. Steps that still wait are taken out of the queue. What a
-- rollback or an operator has undone is not touched again.

-- Two sessions: whoever folds a row holds it, and may wait for the post that is held here. So a row
-- that is held is not waited for.
create function two_tower.cancel_steps(p_event_id bigint) returns two_tower.deferred_steps
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_steps two_tower.deferred_steps;
begin
  delete from two_tower.deferred_steps d
  where d.event_id = (select q.event_id from two_tower.deferred_steps q
    where q.event_id = p_event_id for update skip locked)
  returning d.* into v_steps;
  return v_steps;
end
$$;
comment on function two_tower.cancel_steps(bigint) is
  'Takes the steps of an event out of the queue, and returns them. Returns null where they are folded, or being folded.';

-- p_example is what was recorded when the event was learned. If its partition was dropped there is
-- none: the vectors of today have to do for the user, and the posts stay.
create function two_tower.withdraw_lesson(
  p_lesson two_tower.lesson, p_settings two_tower.settings, p_state two_tower.state,
  p_example two_tower.training_examples, p_post extensions.vector,
  inout p_user two_tower.user_embeddings, out steps two_tower.deferred_steps
) language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_strength real := two_tower.weigh_strength(p_lesson.withdrawn_strength,
    p_settings.negative_strength_factor);
  v_taught extensions.vector := coalesce(p_example.post_emb::extensions.vector, p_post);
  v_length integer := cardinality(p_user.recent_post_ids);
  v_queued two_tower.deferred_steps := two_tower.cancel_steps(p_example.event_id);
  v_is_undone boolean := two_tower.is_rolled_back(p_example.event_id)
    or coalesce(p_example.is_undone, false);
  v_place integer;
begin
  steps := row(p_lesson.event_id, p_lesson.user_id, p_state.epoch,
    coalesce(p_example.user_emb::extensions.vector, p_user.embedding), '{}', '{}',
    p_lesson.post_id, -coalesce(p_example.step, 0), -1, coalesce(p_example.popularity, 0),
    coalesce(p_example.popularity_clock, 0),
    coalesce(p_example.created_at, p_lesson.created_at));
  if v_is_undone or v_queued.post_id is not null then
    steps.post_id := null;
    steps.step := 0;
    steps.engagements := 0;
    steps.popularity := 0;
  end if;
  if v_is_undone then
    return;
  end if;
  if v_queued.event_id is null then
    steps.pushed_ids := coalesce(p_example.pushed_ids, '{}');
    steps.push_factors := coalesce(array(
      select -f from unnest(p_example.push_factors) with ordinality as p (f, place)
      order by place), '{}');
  end if;
  -- What was learned before the user began anew is not in the user any more.
  if coalesce(p_example.reset_count, 0) < p_user.reset_count then
    return;
  end if;
  p_user.engagement_count := p_user.engagement_count - 1;

  select max(k) into v_place from generate_subscripts(p_user.recent_post_ids, 1) as k
  where p_user.recent_post_ids[k] = p_lesson.post_id and p_user.recent_strengths[k] = v_strength;
  if v_place is not null then
    p_user.engaged_sum := p_user.engaged_sum operator(extensions.-)
      two_tower.scale(two_tower.decay_strength(v_strength, p_settings.history_decay,
        v_length - v_place), v_taught);
    p_user.recent_post_ids :=
      p_user.recent_post_ids[:v_place - 1] || p_user.recent_post_ids[v_place + 1:];
    p_user.recent_strengths :=
      p_user.recent_strengths[:v_place - 1] || p_user.recent_strengths[v_place + 1:];
  end if;
  if v_strength > 0 then
    p_user := two_tower.withdraw_positive(p_lesson.post_id, v_taught, p_settings, p_user);
  end if;
  if p_user.recent_post_ids = '{}' then
    p_user.engaged_sum := two_tower.zero_vector();
  end if;
  p_user.embedding := case
    when p_settings.learning_rule = 'contrastive'
      then two_tower.combine_user(p_user.engaged_sum, p_user.prior_weight, p_user.prior)
    when p_user.recent_post_ids = '{}' then p_user.engaged_sum
    else two_tower.move_vector(p_user.embedding,
      (-p_lesson.withdrawn_strength * least(p_settings.literal_maximum_alpha,
        1.0 / (p_user.engagement_count + 1)))::real, v_taught) end;
end
$$;
comment on function two_tower.withdraw_lesson(two_tower.lesson, two_tower.settings, two_tower.state, two_tower.training_examples, extensions.vector, two_tower.user_embeddings) is
  'Takes back what a signal taught, and nothing else: the recorded steps on the post and on those that it pushed away, what it added to the popularity, and the post''s part in the engaged sum and its interest. Approximate in one way: steps on a sphere do not add up, so a vector that has moved since does not come back to the same place.';

create function two_tower.withdraw_example(p_lesson two_tower.lesson)
returns two_tower.training_examples language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_example two_tower.training_examples;
begin
  update two_tower.training_examples x set is_withdrawn = true
  where x.user_id = p_lesson.user_id and x.post_id = p_lesson.post_id
    and x.event_type = p_lesson.withdrawn and not x.is_withdrawn
  returning x.* into v_example;
  if not found then
    update two_tower.training_examples x set is_undone = false
    where x.user_id = p_lesson.user_id and x.post_id = p_lesson.post_id
      and x.event_type = p_lesson.withdrawn and x.is_undone
    returning x.* into v_example;
    v_example.is_undone := v_example.event_id is not null;
  end if;
  return v_example;
end
$$;
comment on function two_tower.withdraw_example(two_tower.lesson) is
  'Marks the training example of a withdrawn signal, and returns it: with is_undone, where an operator took it back before. Returns null when its partition was dropped.';
