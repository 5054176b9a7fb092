-- The events of a statement applied, one after the other, and the trigger that begins it all.

create function two_tower.learn_lesson(
  p_lesson two_tower.lesson, p_settings two_tower.settings, p_state two_tower.state,
  p_drawn two_tower.drawn_posts, p_post two_tower.live_embeddings,
  inout p_user two_tower.user_embeddings,
  out steps two_tower.deferred_steps, out example two_tower.training_examples
) language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_before extensions.vector := p_user.embedding;
  v_strength real := two_tower.weigh_strength(p_lesson.strength,
    p_settings.negative_strength_factor);
  v_popularity real;
  v_clock double precision := two_tower.read_popularity_clock(p_lesson.created_at, p_state);
  v_step real;
  v_pushed record;
  v_factors real[] := '{}';
  v_first integer;
begin
  if p_user.updated_at is null or date_trunc('day', p_lesson.created_at, 'UTC')
      > date_trunc('day', p_user.updated_at, 'UTC') then
    p_user.active_days := p_user.active_days + 1;
  end if;
  v_popularity := case when p_lesson.strength > 0 then p_lesson.strength
    * two_tower.weigh_account(p_user.active_days, p_settings.account_weight_days) else 0 end;
  p_user.engaged_sum :=
    two_tower.scale(p_settings.history_decay, p_user.engaged_sum) operator(extensions.+)
    two_tower.scale(v_strength, p_post.embedding);
  if p_settings.learning_rule = 'contrastive' then
    v_step := v_strength * p_settings.contrastive_learning_rate * p_state.learning_rate_factor;
    if p_drawn.pushed_ids <> '{}' then
      v_pushed := two_tower.apply_contrastive_rule(v_step, two_tower.weigh_post(
          -(p_post.embedding operator(extensions.<#>) v_before), p_post.popularity,
          p_state.popularity_total, p_settings.temperature, p_settings.popularity_in_logits),
        p_drawn.pushed_weights, p_drawn.are_untouched);
      v_step := v_pushed.step;
      v_factors := v_pushed.push_factors;
    end if;
    p_user.embedding := two_tower.combine_user(p_user.engaged_sum, p_user.prior_weight,
      p_user.prior);
  else
    v_step := p_lesson.strength * p_settings.literal_learning_rate * p_state.learning_rate_factor;
    p_user.embedding := two_tower.apply_literal_rule(p_lesson.strength,
      p_settings.literal_maximum_alpha, p_user.engagement_count, v_before,
      p_post.embedding);
  end if;
  steps := row(p_lesson.event_id, p_lesson.user_id, p_state.epoch, v_before,
    coalesce(p_drawn.pushed_ids, '{}'), v_factors, p_lesson.post_id, v_step, 1, v_popularity,
    v_clock, p_lesson.created_at);
  example := row(
    p_lesson.event_id, p_lesson.user_id, p_lesson.post_id, p_lesson.signal, p_lesson.label,
    v_before, p_post.embedding, v_step, v_popularity, v_clock, coalesce(p_drawn.negative_ids, '{}'),
    coalesce(p_drawn.negative_embs, '{}'), coalesce(p_drawn.viewed_count, 0), steps.pushed_ids,
    v_factors, p_lesson.created_at, false, p_user.reset_count, false);

  p_user.engagement_count := p_user.engagement_count + 1;
  v_first := greatest(1, cardinality(p_user.recent_post_ids) + 2 - p_settings.history_length);
  p_user.recent_post_ids := (p_user.recent_post_ids || p_lesson.post_id)[v_first:];
  p_user.recent_strengths := (p_user.recent_strengths || v_strength)[v_first:];
  if v_strength > 0 then
    p_user := two_tower.add_positive(p_lesson.post_id, p_post.embedding, p_settings, p_user);
  end if;
  p_user.updated_at := greatest(p_user.updated_at, p_lesson.created_at);
end
$$;
comment on function two_tower.learn_lesson(two_tower.lesson, two_tower.settings, two_tower.state, two_tower.drawn_posts, two_tower.live_embeddings, two_tower.user_embeddings) is
  'Learns one event. Returns the user after it, the steps of posts, and its training example.';

create function two_tower.write_learned(
  p_users two_tower.user_embeddings[], p_posts two_tower.live_embeddings[], p_held_ids bigint[],
  p_is_filling boolean
) returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_user two_tower.user_embeddings;
  v_post two_tower.live_embeddings;
begin
  foreach v_user in array p_users loop
    update two_tower.user_embeddings set
      embedding = v_user.embedding, engaged_sum = v_user.engaged_sum,
      recent_post_ids = v_user.recent_post_ids, recent_strengths = v_user.recent_strengths,
      positive_ids = v_user.positive_ids, positive_interests = v_user.positive_interests,
      interest_sums = v_user.interest_sums,
      engagement_count = v_user.engagement_count, active_days = v_user.active_days,
      minute = v_user.minute, minute_count = v_user.minute_count, updated_at = v_user.updated_at
    where user_id = v_user.user_id;
  end loop;
  foreach v_post in array p_posts loop
    continue when v_post.post_id <> all (p_held_ids);
    for v_other in 0..p_is_filling::integer loop
      update two_tower.live_embeddings set
        embedding = v_post.embedding, engagement_count = v_post.engagement_count,
        popularity = v_post.popularity, is_pretrained = v_post.is_pretrained,
        moved_hour = v_post.moved_hour, moved = v_post.moved, gained = v_post.gained
      where slot = abs(v_post.slot - v_other) and post_id = v_post.post_id;
    end loop;
  end loop;
end
$$;
comment on function two_tower.write_learned(two_tower.user_embeddings[], two_tower.live_embeddings[], bigint[], boolean) is
  'Writes each row once. While a slot is being filled, touched posts have the same vector in both.';

create function two_tower.apply_lessons(p_batch two_tower.batch) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_settings two_tower.settings := p_batch.settings;
  v_state two_tower.state := p_batch.state;
  v_users two_tower.user_embeddings[] := p_batch.users;
  v_posts two_tower.live_embeddings[] := p_batch.posts;
  v_range two_tower.post_range;
  v_lesson two_tower.lesson;
  v_withdrawn bigint[] := '{}';
  v_drawn two_tower.drawn_posts;
  v_user_index integer;
  v_post_index integer;
  v_user two_tower.user_embeddings;
  v_post two_tower.live_embeddings;
  v_learned record;
  v_example two_tower.training_examples;
  v_moved record;
  v_steps two_tower.deferred_steps;
  v_step two_tower.post_step;
begin
  select v_state.active_slot, min(v.number), max(v.number),
    (select max(r.place) from two_tower.recent_posts r), v_state.popularity_total
  into v_range
  from two_tower.live_embeddings v where v.slot = v_state.active_slot;
  foreach v_lesson in array p_batch.lessons loop
    if v_lesson.verdict = 'withdraw' then
      v_withdrawn := v_withdrawn || v_lesson.post_id;
    end if;
  end loop;

  foreach v_lesson in array p_batch.lessons loop
    continue when v_lesson.verdict not in ('learn', 'withdraw');
    v_user_index := width_bucket(v_lesson.user_id, p_batch.user_ids);
    v_post_index := width_bucket(v_lesson.post_id, p_batch.post_ids);
    v_user := v_users[v_user_index];
    v_post := v_posts[v_post_index];
    if v_lesson.verdict = 'withdraw' then
      v_learned := two_tower.withdraw_lesson(v_lesson, v_settings, v_state,
        two_tower.withdraw_example(v_lesson), v_post.embedding, v_user);
      v_example := null;
    else
      v_drawn := null;
      if v_lesson.strength > 0 then
        -- What this statement withdraws was engaged with when the event happened.
        v_drawn := two_tower.draw_posts(v_lesson, v_settings, v_range, v_user.embedding,
          v_lesson.post_id || v_withdrawn);
        if v_drawn.negative_ids && p_batch.post_ids or v_drawn.pushed_ids && p_batch.post_ids then
          v_drawn := two_tower.refresh_drawn_posts(v_drawn, v_settings,
            v_state.popularity_total, v_user.embedding, p_batch.post_ids, v_posts);
        end if;
      end if;
      v_learned := two_tower.learn_lesson(v_lesson, v_settings, v_state, v_drawn, v_post,
        v_user);
      v_example := v_learned.example;
    end if;
    v_users[v_user_index] := v_learned.p_user;
    v_steps := v_learned.steps;
    if v_lesson.post_id = any (p_batch.held_ids) then
      v_step := row(v_steps.user_vector, v_steps.step, v_steps.engagements, v_steps.popularity,
        v_steps.popularity_clock, v_steps.created_at, v_steps.event_id, v_steps.user_id);
      v_moved := two_tower.move_post(v_post, array[v_step], v_settings);
      v_posts[v_post_index] := v_moved.p_post;
      v_step := v_moved.p_steps[1];
      v_example.step := v_step.step;
      v_example.popularity := v_step.popularity;
      v_steps.post_id := null;
      v_steps.user_id := null;
      v_steps.engagements := 0;
    end if;
    if v_lesson.verdict = 'learn' then
      insert into two_tower.training_examples select v_example.*;
    end if;
    if v_steps.post_id is not null or v_steps.pushed_ids <> '{}' then
      insert into two_tower.deferred_steps select v_steps.*;
    end if;
  end loop;
  perform two_tower.write_learned(v_users, v_posts, p_batch.held_ids,
    v_state.filling_version is not null);
end
$$;
comment on function two_tower.apply_lessons(two_tower.batch) is
  'Applies the lessons in order, to users and posts in memory, and writes each row once at the end. Reads the vectors of drawn posts, and of posts that another session holds, without a lock: they may move meanwhile.';

create table two_tower.update_latencies (
  event_id bigint primary key,
  milliseconds real not null,
  measured_at timestamptz not null default two_tower.now()
);
comment on table two_tower.update_latencies is 'How long statements took to learn their events, of one transaction in 127, for an hour.';
comment on column two_tower.update_latencies.event_id is 'The first event of the statement.';
comment on column two_tower.update_latencies.milliseconds is 'From the start of learning to its end, waits for locks included, for each event of the statement.';
create index update_latencies_measured_at_idx on two_tower.update_latencies (measured_at);

create function two_tower.learn_events(p_events two_tower.event[],
  p_is_deferred boolean default false, p_began timestamptz default null)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_batch two_tower.batch;
  v_read record;
  v_locked record;
begin
  select s into v_batch.settings from two_tower.settings s;
  v_read := two_tower.interpret_events(p_events, v_batch.settings, p_is_deferred);
  if v_read.are_views and not v_read.have_client_ids then
    perform two_tower.record_views(v_read.lessons);
    return;
  end if;

  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  select s into v_batch.state from two_tower.state s;
  v_batch.lessons := v_read.lessons;
  v_batch.is_deferred := p_is_deferred;
  v_batch.user_ids := array[(p_events[1]).user_id];
  v_batch.post_ids := array[(p_events[1]).post_id];
  if cardinality(p_events) > 1 then
    select array_agg(distinct e.user_id order by e.user_id),
           array_agg(distinct e.post_id order by e.post_id)
    into v_batch.user_ids, v_batch.post_ids from unnest(p_events) e;
  end if;
  v_batch.users := two_tower.lock_users(v_batch.user_ids);
  if v_read.have_client_ids and not p_is_deferred then
    perform two_tower.refuse_repeated_client_events(v_read.lessons);
  end if;
  if v_read.are_views then
    perform two_tower.record_views(v_read.lessons);
    return;
  end if;

  v_locked := two_tower.lock_posts((v_batch.state).active_slot, v_batch.post_ids);
  v_batch.posts := v_locked.posts;
  v_batch.held_ids := v_locked.held_ids;
  v_batch.user_posts := two_tower.load_user_posts(v_batch.lessons);
  v_batch := two_tower.decide_verdicts(v_batch);
  perform two_tower.record_verdicts(v_batch);
  if v_batch.teaches then
    perform two_tower.apply_lessons(v_batch);
    if p_began is not null then
      insert into two_tower.update_latencies (event_id, milliseconds)
      values ((p_events[1]).id,
        1000 * extract(epoch from clock_timestamp() - p_began) / cardinality(p_events));
    end if;
  end if;
end
$$;
comment on function two_tower.learn_events(two_tower.event[], boolean, timestamptz) is
  'Learns events in the order of their ids: all of them or, when it raises, none. p_is_deferred: the events were deferred, and their time has come. p_began: when learning began, where it is timed.';

create function two_tower.learn_from_events() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
  set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_bitmapscan = off
  set jit = off as $$
declare
  v_events two_tower.event[];
begin
  select array_agg(row(e.id, e.user_id, e.post_id, e.event_type, e.dwell_ms, e.client_event_id,
    e.created_at, e.happened_at)::two_tower.event order by e.id)
  into v_events from new_events e;
  if v_events is not null then
    -- What is timed is decided here: in a statement that is there anyway, it costs the least.
    perform two_tower.learn_events(v_events, p_began =>
      case when txid_current_if_assigned() % 127 = 0 then clock_timestamp() end);
  end if;
  return null;
end
$$;
comment on function two_tower.learn_from_events() is
  'Learns the events of a statement. Fires at the origin only: replicated rows bring their embeddings with them. Definer: who inserts an event has no grant on embeddings, and learns only through this.';
create trigger learn_from_events after insert on public.engagement_events
  referencing new table as new_events
    for each statement execute function two_tower.learn_from_events();
