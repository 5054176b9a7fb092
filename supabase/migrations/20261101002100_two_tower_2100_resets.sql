-- A reader begins anew. What was learned of a reader is taken from the reader alone: posts keep
-- what they learned, and what the reader saw, likes, hides and blocks stays as it is.
--
-- What was learned before stands in training_examples with the reader's reset_count of then, and a
-- checkpoint has it too. So a later withdrawal takes it from the post and not from the new reader,
-- the user tower reads no history from before, and a rollback does not bring it back.

-- Two sessions: events are locked before the user, as by who learns deferred ones. Those that wait
-- for a minute are locked after the user, as by learn_waiting().
create function two_tower.forget_waiting(p_user_id uuid, p_are_of_minute boolean) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  with due as materialized (
    select d.event_id from two_tower.deferred_events d
      join two_tower.signals g on g.event_type = d.event_type
    where d.user_id = p_user_id and (d.reason = 'minute_full') = p_are_of_minute
      and g.withdraws is null
    order by d.event_id for update of d
  ), ended as (
    delete from two_tower.deferred_events d using due where d.event_id = due.event_id
    returning d.event_id, d.user_id, d.post_id, d.event_type, d.created_at
  )
  insert into two_tower.unlearned_events
    (event_id, user_id, post_id, event_type, reason, created_at)
  select e.event_id, e.user_id, e.post_id, e.event_type, 'reset', e.created_at from ended e;
$$;
comment on function two_tower.forget_waiting(uuid, boolean) is
  'Takes the events of a user that wait out of the queue, but for withdrawals. They stay recorded. p_are_of_minute: those that wait for a minute; false: all others.';

create function two_tower.reset_feed() returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_user_id uuid := two_tower.require_user();
  v_user two_tower.user_embeddings;
  v_prior two_tower.user_prior;
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  perform two_tower.forget_waiting(v_user_id, false);
  select * into v_user from two_tower.user_embeddings u where u.user_id = v_user_id
  for no key update;
  if not found then
    return;
  end if;
  perform two_tower.forget_waiting(v_user_id, true);
  v_prior := row(v_user_id, v_user.prior, v_user.prior_weight, v_user.prior_source);
  if v_user.prior_source = 'user_tower' then
    v_prior := two_tower.choose_prior(v_user_id, null, 0);
  end if;
  update two_tower.user_embeddings u set
    embedding = two_tower.combine_user(two_tower.zero_vector(), v_prior.weight, v_prior.embedding),
    engaged_sum = default, prior = v_prior.embedding, prior_weight = v_prior.weight,
    prior_source = v_prior.source, recent_post_ids = default, recent_strengths = default,
    positive_ids = default, positive_interests = default, interest_sums = default,
    engagement_count = default, waits_until = default, reset_count = u.reset_count + 1,
    history_from = coalesce(pg_sequence_last_value('two_tower.engagement_event_ids'), 0)
  where u.user_id = v_user_id;
end
$$;
comment on function two_tower.reset_feed() is
  'The core of reset_my_feed(). Waits for a statement of the user that learns, and takes what it taught, too. The prior of the profile stays: the user told it. That of the user tower, which was made of engagements, goes. The minute and the active days stay: they bound influence. Definer: clients have no grant on embeddings.';

create function public.reset_my_feed() returns void
language sql set search_path = pg_catalog, pg_temp as $$
  select two_tower.reset_feed();
$$;
comment on function public.reset_my_feed() is
  'Forgets what the engine learned of the signed-in user: pages are those of a new user again. What the user told stays: profile, interests, blocks, muted words. What was seen or hidden does not come back, and likes stay likes. What posts learned stays with them. Raises 42501 when nobody is signed in.';
