-- What happens inside the INSERT of engagements. One statement-level trigger takes all events of a
-- statement:
--
--   check      refuse an unknown post, a time to come, a repeated event: all of the statement
--   interpret  event types to signals: strengths, labels, dwell thresholds
--   lock       advisory (shared, against a switch of models), users sorted, posts sorted
--   decide     per event, in id order: learn, withdraw, defer, or record only, and why
--   record     user_posts, author_blocks, deferred_events, unlearned_events
--   apply      per event, in id order, in memory; each user and post row is then written once
--
-- Plans are generic (plan_cache_mode of the trigger): with partitioned tables, planning would cost
-- more than running.
--
-- Two sessions: users and posts are locked in one order before anything of them is read, so steps
-- are serial per user and per post and no two statements wait for each other in a circle. The row
-- of a post in the slot that serves stands for the post: its row in the other slot is only touched
-- while that one is held. A statement that only holds views takes neither lock: it writes rows of
-- user_posts, in order, after which it waits for nothing. A crash: all of it is one transaction.

create type two_tower.drawn_negatives as (post_ids bigint[], embeddings extensions.vector[],
  viewed integer);
comment on type two_tower.drawn_negatives is 'Drawn posts with their vectors; the first "viewed" of them were seen by the user.';

create type two_tower.lesson as (
  event_id bigint, user_id uuid, post_id bigint, event_type text, created_at timestamptz,
  signal text, strength real, label boolean, bit integer, withdrawn text, withdrawn_bit integer,
    blocks_author boolean,
  user_index integer, post_index integer, pair_index integer, verdict text
);
comment on type two_tower.lesson is
  'An event with what it means (signal to blocks_author), where its user, post and pair stand in the working arrays, and what was decided: learn, withdraw, defer, seen, or a reason of unlearned_events.';

create function two_tower.check_events(p_events public.engagement_events[]) returns void
language plpgsql set search_path = '' as $$
declare
  v_settings two_tower.settings;
  v_now timestamptz := two_tower.now();
  v_event public.engagement_events;
begin
  select * into v_settings from two_tower.settings;
  select e.* into v_event from unnest(p_events) e
  where e.created_at > v_now + v_settings.future_event_tolerance
    or e.created_at < v_now - v_settings.oldest_event_age
     or not isfinite(e.created_at)
  limit 1;
  if found then
    raise exception 'event time % is out of range', v_event.created_at using errcode = 'TT001',
      hint = 'created_at is set by the server; a replay of history sets two_tower.now, or settings.oldest_event_age.';
  end if;

  select e.* into v_event from unnest(p_events) e
  where not exists (select from public.posts p where p.id = e.post_id) limit 1;
  if found then
    raise exception 'post % does not exist',
      v_event.post_id using errcode = 'foreign_key_violation',
      hint = 'Insert the post before its engagements. Nothing of this statement was stored.';
  end if;

  select e.* into v_event from unnest(p_events) e
  where not exists (select from auth.users a where a.id = e.user_id) limit 1;
  if found then
    raise exception 'user % does not exist',
      v_event.user_id using errcode = 'foreign_key_violation',
      hint = 'Users are rows of auth.users. Nothing of this statement was stored.';
  end if;
end
$$;
comment on function two_tower.check_events(public.engagement_events[]) is
  'Raises TT001 for a time out of range and 23503 for an unknown post.';

create function two_tower.refuse_repeated_client_events(p_events public.engagement_events[])
  returns void
language plpgsql set search_path = '' as $$
declare
  v_repeated uuid;
begin
  select e.client_event_id into v_repeated
  from unnest(p_events) e cross join two_tower.settings s
  where e.client_event_id is not null and exists (
    select from public.engagement_events x
    where x.client_event_id = e.client_event_id and x.user_id = e.user_id and x.id <> e.id
      and x.created_at > least(e.created_at, two_tower.now()) - s.client_event_retry_window)
  limit 1;
  if found then
    raise exception 'an event with client_event_id % is already stored', v_repeated
      using errcode = 'unique_violation',
        hint = 'A retry: treat it as success, or send events with record_engagements().';
  end if;
end
$$;
comment on function two_tower.refuse_repeated_client_events(public.engagement_events[]) is
  'Raises 23505 for a client_event_id that its user sent before. The users are locked, so that two retries at once can not both pass.';

create function two_tower.interpret(p_events public.engagement_events[]) returns two_tower.lesson[]
language plpgsql stable set search_path = '' as $$
begin
  return (
    select array_agg(row(
             e.id, e.user_id, e.post_id, e.event_type, e.created_at,
             g.event_type, g.strength, g.label, g.bit, g.withdraws, w.bit, g.blocks_author,
             null, null, null, null)::two_tower.lesson order by e.id)
    from unnest(p_events) e
      cross join two_tower.settings s
      join two_tower.signals g on g.event_type = case
        when e.event_type <> 'dwell' or e.dwell_ms > s.long_dwell_ms then e.event_type
        when e.dwell_ms < s.short_dwell_ms then 'skip' else 'view' end
      left join two_tower.signals w on w.event_type = g.withdraws
  );
end
$$;
comment on function two_tower.interpret(public.engagement_events[]) is 'Events to lessons, in the order of their ids.';

create function two_tower.create_missing_users(p_user_ids uuid[]) returns void
language plpgsql set search_path = '' as $$
begin
  insert into two_tower.user_embeddings (user_id)
  select distinct id from unnest(p_user_ids) as id order by id on conflict do nothing;
exception when foreign_key_violation then
  raise exception 'user % does not exist',
    (select g.id from unnest(p_user_ids) as g (id)
      where not exists (select from auth.users a where a.id = g.id) limit 1)
    using errcode = 'foreign_key_violation',
      hint = 'Users are rows of auth.users. Nothing of this statement was stored.';
end
$$;
comment on function two_tower.create_missing_users(uuid[]) is 'Gives users their row at their first event. Raises 23503 for an unknown user.';

-- The verdict on each event, in order, against what the user did before. What the user did is
-- recorded whatever the verdict is; a bit of user_posts.signals is set only by what is learned, so
-- that it is learned once.
create function two_tower.decide(
  inout p_lessons two_tower.lesson[], inout p_pairs two_tower.user_posts[],
    inout p_users two_tower.user_embeddings[],
  p_posts two_tower.live_embeddings[], p_waiting bigint[], p_is_deferred boolean
) language plpgsql set search_path = '' as $$
declare
  v_lesson two_tower.lesson;
  v_pair two_tower.user_posts;
  v_user two_tower.user_embeddings;
  v_limit integer;
  v_is_frozen boolean;
  v_positive integer;
begin
  select s.learned_events_per_minute, st.frozen_at is not null,
         (select bit_or(g.bit) from two_tower.signals g where g.strength > 0)
  into v_limit, v_is_frozen, v_positive
  from two_tower.settings s cross join two_tower.state st;

  for v_place in 1..cardinality(p_lessons) loop
    v_lesson := p_lessons[v_place];
    v_pair := p_pairs[v_lesson.pair_index];
    if v_lesson.strength = 0 and v_lesson.withdrawn is null then
      v_lesson.verdict := 'seen';
      v_pair.signals := v_pair.signals | v_lesson.bit;
    else
      v_user := p_users[v_lesson.user_index];
      if v_user.minute is distinct from date_trunc('minute', v_lesson.created_at, 'UTC') then
        v_user.minute := date_trunc('minute', v_lesson.created_at, 'UTC');
        v_user.minute_count := 0;
      end if;
      v_lesson.verdict := case
        when v_lesson.post_index is not null and p_posts[v_lesson.post_index].is_deleted
          and v_lesson.withdrawn is null then 'post_deleted'
        when v_lesson.post_index is null
             and (select p.deleted_at is not null from public.posts p where p.id = v_lesson.post_id)
               then 'post_deleted'
        when v_lesson.post_index is null
          or (not p_is_deferred and v_lesson.post_id = any (p_waiting)) then 'defer'
        when v_is_frozen then 'defer'
        when v_lesson.withdrawn is not null and v_pair.signals & v_lesson.withdrawn_bit = 0
          then 'nothing_to_withdraw'
        when v_lesson.withdrawn is null and v_pair.signals & v_lesson.bit <> 0 then 'repeated'
        when v_lesson.withdrawn is not null then 'withdraw'
        when v_user.minute_count >= v_limit then 'rate_limited'
        else 'learn' end;
      if v_lesson.verdict in ('learn', 'withdraw') then
        v_pair.signals := case when v_lesson.withdrawn is null then v_pair.signals | v_lesson.bit
                               else v_pair.signals & ~v_lesson.withdrawn_bit end;
        v_user.minute_count := v_user.minute_count + (v_lesson.withdrawn is null)::integer;
        p_users[v_lesson.user_index] := v_user;
      end if;
      if v_lesson.withdrawn is null then
        v_pair.is_engaged := v_pair.is_engaged or v_lesson.strength > 0;
      elsif v_lesson.verdict <> 'defer' then
        v_pair.is_engaged := v_pair.signals & v_positive <> 0;
      end if;
      v_pair.is_hidden := v_pair.is_hidden or v_lesson.event_type in ('hide', 'not_interested');
    end if;
    v_pair.first_seen_at := least(v_pair.first_seen_at, v_lesson.created_at);
    v_pair.last_event_at := greatest(v_pair.last_event_at, v_lesson.created_at);
    p_pairs[v_lesson.pair_index] := v_pair;
    p_lessons[v_place] := v_lesson;
  end loop;
end
$$;
comment on function two_tower.decide(two_tower.lesson[], two_tower.user_posts[], two_tower.user_embeddings[], two_tower.live_embeddings[], bigint[], boolean) is
  'Fills in the verdicts, and what the users did with the posts. Waits for a post that is not encoded, or has earlier events waiting (p_waiting), and for the end of a freeze.';

create function two_tower.record_views(p_lessons two_tower.lesson[]) returns void
language plpgsql set search_path = '' as $$
begin
  insert into two_tower.user_posts as u (user_id, post_id, signals, first_seen_at, last_event_at)
  select l.user_id, l.post_id, bit_or(l.bit), min(l.created_at), max(l.created_at)
  from unnest(p_lessons) l group by l.user_id, l.post_id order by l.user_id, l.post_id
  on conflict (user_id, post_id) do update set
    signals = u.signals | excluded.signals,
    first_seen_at = least(u.first_seen_at, excluded.first_seen_at),
    last_event_at = greatest(u.last_event_at, excluded.last_event_at);
end
$$;
comment on function two_tower.record_views(two_tower.lesson[]) is
  'What impressions leave behind. Needs no lock of the user: it only adds the bit of a view, which no decision takes away.';

create function two_tower.record_decisions(
  p_lessons two_tower.lesson[], p_pairs two_tower.user_posts[], p_events public.engagement_events[],
    p_is_deferred boolean
) returns void language plpgsql set search_path = '' as $$
begin
  insert into two_tower.user_posts as u
  select * from unnest(p_pairs) p order by p.user_id, p.post_id
  on conflict (user_id, post_id) do update set
    signals = excluded.signals
      | (u.signals & (select bit from two_tower.signals where event_type = 'view')),
    is_engaged = excluded.is_engaged, is_hidden = u.is_hidden or excluded.is_hidden,
    first_seen_at = least(u.first_seen_at, excluded.first_seen_at),
    last_event_at = greatest(u.last_event_at, excluded.last_event_at);

  if exists (select from unnest(p_lessons) l where l.blocks_author) then
    insert into public.author_blocks (user_id, author_id, kind, created_at)
    select distinct on (l.user_id, p.author_id) l.user_id, p.author_id, l.event_type, l.created_at
    from unnest(p_lessons) l join public.posts p on p.id = l.post_id
    where l.blocks_author and p.author_id <> l.user_id and not p_is_deferred
    order by l.user_id, p.author_id, l.event_id desc
    on conflict (user_id, author_id) do update set kind = excluded.kind
    where author_blocks.kind = 'mute_author' and excluded.kind = 'block_author';
  end if;
  if exists (
    select from unnest(p_lessons) l where l.verdict not in ('learn', 'withdraw', 'seen')
  ) then
    insert into two_tower.deferred_events (event_id, event, user_id, post_id, reason)
    select l.event_id, e, l.user_id, l.post_id,
           case when l.post_index is null then 'post_not_encoded' else 'frozen' end
    from unnest(p_lessons) l join unnest(p_events) e on e.id = l.event_id
    where l.verdict = 'defer';
    insert into two_tower.unlearned_events
      (event_id, user_id, post_id, event_type, reason, created_at)
    select l.event_id, l.user_id, l.post_id, l.event_type, l.verdict, l.created_at
    from unnest(p_lessons) l where l.verdict not in ('learn', 'withdraw', 'seen', 'defer');
  end if;
end
$$;
comment on function two_tower.record_decisions(two_tower.lesson[], two_tower.user_posts[], public.engagement_events[], boolean) is
  'Stores what the users did, whom they block, and what is not learned now or ever. The users are locked, so all bits but that of a view are as decide() read them.';

-- Uniform draws: random ids of the range that turn out to be posts. Ids that are missing, deleted,
-- or engaged with are passed over, which keeps the rest uniform. When two rounds are not enough
-- (few posts, or many gaps), all are read.
create function two_tower.draw_posts(
  p_user_id uuid, p_slot smallint, p_count integer, p_lowest bigint, p_highest bigint,
    p_excluded bigint[],
  out post_ids bigint[], out embeddings extensions.vector[]
) language plpgsql volatile set search_path = '' as $$
declare
  v_tries integer := 2 * p_count + 8;
  v_span double precision := p_highest - p_lowest + 1;
  v_ids bigint[];
begin
  while v_tries < least(v_span, 30 * p_count + 8) loop
    v_ids := array(select distinct p_lowest + floor(random() * v_span)::bigint
      from generate_series(1, v_tries));
    select array_agg(d.post_id), array_agg(d.embedding) into post_ids, embeddings
    from (
      select v.post_id, v.embedding
      from two_tower.live_embeddings v
      where v.slot = p_slot and v.post_id = any (v_ids) and not v.is_deleted
        and v.post_id <> all (p_excluded) and v.author_id is distinct from p_user_id
        and not exists (select from two_tower.user_posts u
                        where u.user_id = p_user_id and u.post_id = v.post_id
                          and (u.is_engaged or u.is_hidden))
      order by random() limit p_count
    ) d;
    if cardinality(post_ids) = p_count then
      return;
    end if;
    v_tries := 10 * v_tries;
  end loop;
  select array_agg(d.post_id), array_agg(d.embedding) into post_ids, embeddings
  from (
    select v.post_id, v.embedding from two_tower.live_embeddings v
    where v.slot = p_slot and v.post_id between p_lowest and p_highest and not v.is_deleted
      and v.post_id <> all (p_excluded) and v.author_id is distinct from p_user_id
      and not exists (select from two_tower.user_posts u
                      where u.user_id = p_user_id and u.post_id = v.post_id
                        and (u.is_engaged or u.is_hidden))
    order by random() limit p_count
  ) d;
end
$$;
comment on function two_tower.draw_posts(uuid, smallint, integer, bigint, bigint, bigint[]) is
  'Draws up to so many different live posts of an id range, uniformly from those that the user neither engaged with, nor hid, nor wrote. Fewer only if there are fewer.';

create function two_tower.draw_negatives(
  p_lesson two_tower.lesson, p_slot smallint, p_lowest bigint, p_highest bigint,
  out post_ids bigint[], out embeddings extensions.vector[], out viewed integer
) language plpgsql volatile set search_path = '' as $$
declare
  v_settings two_tower.settings;
  v_more record;
  v_lowest bigint;
begin
  select * into v_settings from two_tower.settings;
  select coalesce(array_agg(d.post_id), '{}'), coalesce(array_agg(d.embedding), '{}') into post_ids,
    embeddings
  from (
    select v.post_id, v.embedding
    from (
      select distinct x.post_id from (
        select e.post_id from public.engagement_events e
        where e.user_id = p_lesson.user_id and e.event_type = 'view' and e.id < p_lesson.event_id
          and e.created_at between p_lesson.created_at - v_settings.viewed_negative_window
            and p_lesson.created_at
        order by e.created_at desc limit 200
      ) x
    ) as seen
    join two_tower.live_embeddings v on v.slot = p_slot and v.post_id = seen.post_id
    where not v.is_deleted and v.post_id <> p_lesson.post_id and v.author_id is distinct
      from p_lesson.user_id
      and not exists (select from two_tower.user_posts u
                      where u.user_id = p_lesson.user_id and u.post_id = v.post_id
                        and (u.is_engaged or u.is_hidden))
    order by random() limit v_settings.negatives_per_positive
  ) d;
  viewed := cardinality(post_ids);
  foreach v_lowest in array array[greatest(p_lowest, p_highest - v_settings.recent_posts_pool + 1),
    p_lowest] loop
    exit when cardinality(post_ids) = v_settings.negatives_per_positive;
    select * into v_more from two_tower.draw_posts(
      p_lesson.user_id, p_slot, v_settings.negatives_per_positive - cardinality(post_ids), v_lowest,
        p_highest,
      p_lesson.post_id || post_ids);
    post_ids := post_ids || coalesce(v_more.post_ids, '{}');
    embeddings := embeddings || coalesce(v_more.embeddings, '{}');
  end loop;
end
$$;
comment on function two_tower.draw_negatives(two_tower.lesson, smallint, bigint, bigint) is
  'Negatives of a positive pair: posts viewed in the time before and not engaged with, then random recent posts, then any.';

-- The two rules. Each takes one lesson and the user and post as they stand, and gives both as they
-- stand after it, with the factor that was added to the post. Norms: l2_normalize leaves a zero
-- vector zero, and norm(x) = norm(c x), so an average of two vectors needs one multiplication.

create function two_tower.renorm_user(p_user two_tower.user_embeddings)
  returns two_tower.user_embeddings
language plpgsql immutable set search_path = '' as $$
begin
  p_user.embedding := extensions.l2_normalize(
    case when p_user.base_embedding is null then p_user.engaged_sum
         else p_user.engaged_sum operator(extensions.+)
              (array_fill(p_user.base_weight, array[128])::extensions.vector
                operator(extensions.*) p_user.base_embedding)
    end);
  return p_user;
end
$$;
comment on function two_tower.renorm_user(two_tower.user_embeddings) is 'u = norm(base_weight * base_embedding + engaged_sum).';

create function two_tower.step_literal(
  p_strength real, p_rate real, p_alpha_limit real, inout p_user two_tower.user_embeddings,
    p_post extensions.vector,
  out post extensions.vector, out step real
) language plpgsql immutable set search_path = '' as $$
declare
  v_alpha double precision := least(p_alpha_limit, 1.0 / (p_user.engagement_count + 1));
begin
  step := p_rate * p_strength;
  post := extensions.l2_normalize(
    p_post operator(extensions.+) (array_fill(step, array[128])::extensions.vector
      operator(extensions.*) p_user.embedding));
  p_user.embedding := extensions.l2_normalize(
    p_user.embedding operator(extensions.+)
    (array_fill((v_alpha / (1 - v_alpha) * p_strength)::real, array[128])::extensions.vector
     operator(extensions.*) p_post));
end
$$;
comment on function two_tower.step_literal(real, real, real, two_tower.user_embeddings, extensions.vector) is
  'u'' = norm((1 - a) u + a s p), a = least(limit, 1 / (n + 1)); p'' = norm(p + rate s u). u and p as before the event.';

create function two_tower.step_contrastive(
  p_strength real, p_rate real, p_temperature real, p_pushed extensions.vector[],
  inout p_user two_tower.user_embeddings, p_post extensions.vector,
  out post extensions.vector, out step real, out push_factors real[]
) language plpgsql immutable set search_path = '' as $$
declare
  v_shares double precision[];
begin
  step := p_rate * p_strength;
  if p_strength > 0 and cardinality(p_pushed) > 0 then
    -- softmax over the post (first) and the pushed ones; cosines are at most 1, so subtracting 1
    -- keeps exp in range
    select array_agg(x.share order by x.place) into v_shares
    from (
      select c.place, c.weight / sum(c.weight) over () as share
      from (
        select d.place,
               exp((-(d.post operator(extensions.<#>) p_user.embedding) - 1) / p_temperature)
                 as weight
        from unnest(array_prepend(p_post, p_pushed)) with ordinality as d (post, place)
      ) c
    ) x;
    push_factors := (select array_agg(greatest(1e-12, step * q)::real order by place)
                     from unnest(v_shares[2:]) with ordinality as x (q, place));
    step := step * (1 - v_shares[1]);
  end if;
  post := p_post operator(extensions.+)
          (array_fill(step, array[128])::extensions.vector operator(extensions.*) p_user.embedding);
  post := case when extensions.vector_norm(post) > 1e-6 then extensions.l2_normalize(post)
    else p_post end;
  p_user := two_tower.renorm_user(p_user);
end
$$;
comment on function two_tower.step_contrastive(real, real, real, extensions.vector[], two_tower.user_embeddings, extensions.vector) is
  'q = softmax([p, pushed] u / temperature); p'' = norm(p + rate s (1 - q_p) u); u'' = norm(b + r''), where r'' = decay r + s p stands in p_user already. push_factors: rate s q of each pushed post, to be subtracted later. u and p as before the event.';

create function two_tower.popularity_of(p_strength real, p_at timestamptz) returns double precision
language plpgsql stable set search_path = '' as $$
begin
  return (
    select p_strength * 2 ^ greatest(-1000, least(1000,
      extract(epoch from p_at - timestamptz '2025-01-01 00:00:00+00')::double precision
      / extract(epoch from s.popularity_half_life)::double precision))
    from two_tower.settings s
  );
end
$$;
comment on function two_tower.popularity_of(real, timestamptz) is
  'What an engagement adds to a post''s popularity. Forward decay: instead of letting all old ones shrink, new ones count for more.';

-- Takes back, approximately, what a signal taught: the recorded step on the post, and the post's
-- part in the user's sum.
create function two_tower.step_back(
  p_lesson two_tower.lesson, p_settings two_tower.settings,
  p_example two_tower.training_examples,
  inout p_user two_tower.user_embeddings, inout p_post two_tower.live_embeddings
) language plpgsql stable set search_path = '' as $$
declare
  v_strength real := (select strength from two_tower.signals where event_type = p_lesson.withdrawn);
  v_place integer;
  v_part real;
begin
  p_post.engagement_count := p_post.engagement_count - 1;
  p_user.engagement_count := p_user.engagement_count - 1;

  if p_example.event_id is null then
    p_example.post_emb := p_post.embedding;
  else
    p_post.embedding := two_tower.push_away(p_post.embedding, array[p_example.step],
      array[p_example.user_emb::extensions.vector]);
    p_post.popularity := greatest(0,
      p_post.popularity - two_tower.popularity_of(v_strength, p_example.created_at));
  end if;

  select max(k) into v_place from generate_subscripts(p_user.recent_post_ids, 1) as k
  where p_user.recent_post_ids[k] = p_lesson.post_id and p_user.recent_strengths[k] = v_strength;
  if v_place is not null then
    v_part := v_strength * greatest(
      1e-12, p_settings.history_decay ^ (cardinality(p_user.recent_post_ids) - v_place));
    p_user.engaged_sum := p_user.engaged_sum operator(extensions.-)
      (array_fill(v_part, array[128])::extensions.vector
       operator(extensions.*) p_example.post_emb::extensions.vector);
    p_user.recent_post_ids :=
      p_user.recent_post_ids[:v_place - 1] || p_user.recent_post_ids[v_place + 1:];
    p_user.recent_strengths :=
      p_user.recent_strengths[:v_place - 1] || p_user.recent_strengths[v_place + 1:];
  end if;
  if p_user.recent_post_ids = '{}' then
    p_user.engaged_sum := array_fill(0::real, array[128])::extensions.vector;
  end if;
  if p_settings.learning_rule = 'contrastive' then
    p_user := two_tower.renorm_user(p_user);
  elsif p_user.recent_post_ids = '{}' then
    p_user.embedding := p_user.engaged_sum;
  else
    p_user.embedding := two_tower.push_away(
      p_user.embedding,
      array[least(p_settings.literal_maximum_alpha, 1.0 / (p_user.engagement_count + 1))::real
            * v_strength],
      array[p_example.post_emb::extensions.vector]);
  end if;
end
$$;
comment on function two_tower.step_back(two_tower.lesson, two_tower.settings, two_tower.training_examples, two_tower.user_embeddings, two_tower.live_embeddings) is
  'The opposite of a learned step, for unlike and unrepost. Approximate: normalised steps can not be subtracted exactly.';

-- One lesson that is learned: user and post before it in, both after it out, with its row of
-- training data and its row of pushes (null where it has none). The vectors of p_negatives and
-- p_pushed are as they stand now.
create function two_tower.learn_lesson(
  p_lesson two_tower.lesson, p_settings two_tower.settings, p_state two_tower.state,
  p_negatives two_tower.drawn_negatives, p_pushed two_tower.drawn_negatives,
  inout p_user two_tower.user_embeddings, inout p_post two_tower.live_embeddings,
  out example two_tower.training_examples, out push two_tower.deferred_pushes
) language plpgsql set search_path = '' as $$
declare
  v_step record;
  v_strength real := p_lesson.strength;
  v_user_before extensions.vector := p_user.embedding;
begin
  if v_strength < 0 then
    v_strength := v_strength * p_settings.negative_strength_factor;
  end if;
  p_user.engaged_sum :=
    (array_fill(p_settings.history_decay, array[128])::extensions.vector
     operator(extensions.*) p_user.engaged_sum) operator(extensions.+)
    (array_fill(v_strength, array[128])::extensions.vector operator(extensions.*) p_post.embedding);
  if p_settings.learning_rule = 'contrastive' then
    v_step := two_tower.step_contrastive(
      v_strength, p_settings.contrastive_learning_rate * p_state.learning_rate_factor,
      p_settings.temperature, p_pushed.embeddings, p_user, p_post.embedding);
    if v_step.push_factors is not null then
      push := row(null, p_state.epoch, v_user_before, p_pushed.post_ids, v_step.push_factors,
        p_lesson.created_at);
    end if;
  else
    v_step := two_tower.step_literal(
      p_lesson.strength, p_settings.literal_learning_rate * p_state.learning_rate_factor,
      p_settings.literal_maximum_alpha, p_user, p_post.embedding);
  end if;
  if p_lesson.label is not null then
    example := row(
      p_lesson.event_id, p_lesson.user_id, p_lesson.post_id, p_lesson.signal, p_lesson.label,
      v_user_before, p_post.embedding, v_step.step, coalesce(p_negatives.post_ids, '{}'),
      coalesce(p_negatives.embeddings::extensions.halfvec[], '{}'), coalesce(p_negatives.viewed, 0),
        p_lesson.created_at, false);
  end if;

  p_user := v_step.p_user;
  p_user.engagement_count := p_user.engagement_count + 1;
  p_user.recent_post_ids := (p_user.recent_post_ids || p_lesson.post_id)
    [greatest(1, cardinality(p_user.recent_post_ids) + 2 - p_settings.history_length):];
  p_user.recent_strengths := (p_user.recent_strengths || v_strength)
    [greatest(1, cardinality(p_user.recent_strengths) + 2 - p_settings.history_length):];
  p_user.updated_at := p_lesson.created_at;
  p_post.embedding := v_step.post;
  p_post.engagement_count := p_post.engagement_count + 1;
  p_post.is_pretrained := false;
  if p_lesson.strength > 0 then
    p_post.popularity := p_post.popularity + two_tower.popularity_of(p_lesson.strength,
      p_lesson.created_at);
  end if;
end
$$;
comment on function two_tower.learn_lesson(two_tower.lesson, two_tower.settings, two_tower.state, two_tower.drawn_negatives, two_tower.drawn_negatives, two_tower.user_embeddings, two_tower.live_embeddings) is
  'One event learned, in memory.';

create function two_tower.refresh_drawn(
  p_drawn two_tower.drawn_negatives, p_post_ids bigint[], p_posts two_tower.live_embeddings[]
) returns two_tower.drawn_negatives language plpgsql immutable set search_path = '' as $$
declare
  v_index integer;
begin
  for v_place in 1..coalesce(cardinality(p_drawn.post_ids), 0) loop
    v_index := width_bucket(p_drawn.post_ids[v_place], p_post_ids);
    if v_index > 0 and p_post_ids[v_index] = p_drawn.post_ids[v_place] then
      p_drawn.embeddings[v_place] := (p_posts[v_index]).embedding;
    end if;
  end loop;
  return p_drawn;
end
$$;
comment on function two_tower.refresh_drawn(two_tower.drawn_negatives, bigint[], two_tower.live_embeddings[]) is
  'Drawn vectors as they stand within the statement: those of posts that the statement itself has moved. p_post_ids is sorted.';

create function two_tower.apply_lessons(
  p_lessons two_tower.lesson[], p_post_ids bigint[], inout p_users two_tower.user_embeddings[],
  inout p_posts two_tower.live_embeddings[], out examples two_tower.training_examples[],
  out pushes two_tower.deferred_pushes[]
) language plpgsql set search_path = '' as $$
declare
  v_settings two_tower.settings;
  v_state two_tower.state;
  v_lowest bigint;
  v_highest bigint;
  v_lesson two_tower.lesson;
  v_negatives two_tower.drawn_negatives;
  v_pushed two_tower.drawn_negatives;
  v_example two_tower.training_examples;
  v_place integer;
  v_result record;
begin
  select * into v_settings from two_tower.settings;
  select * into v_state from two_tower.state;
  select min(post_id), max(post_id) into v_lowest, v_highest
  from two_tower.live_embeddings where slot = v_state.active_slot;

  foreach v_lesson in array p_lessons loop
    if v_lesson.verdict = 'withdraw' then
      select max(k) into v_place from generate_subscripts(examples, 1) as k
      where (examples[k]).user_id = v_lesson.user_id and (examples[k]).post_id = v_lesson.post_id
        and (examples[k]).event_type = v_lesson.withdrawn and not (examples[k]).is_withdrawn;
      if v_place is not null then
        v_example := examples[v_place];
        v_example.is_withdrawn := true;
        examples[v_place] := v_example;
      else
        update two_tower.training_examples x set is_withdrawn = true
        where x.user_id = v_lesson.user_id and x.post_id = v_lesson.post_id
          and x.event_type = v_lesson.withdrawn and not x.is_withdrawn
        returning x.* into v_example;
      end if;
      v_result := two_tower.step_back(v_lesson, v_settings, v_example, p_users[v_lesson.user_index],
        p_posts[v_lesson.post_index]);
      p_users[v_lesson.user_index] := v_result.p_user;
      p_posts[v_lesson.post_index] := v_result.p_post;
    elsif v_lesson.verdict = 'learn' then
      v_negatives := null;
      v_pushed := null;
      if v_lesson.label then
        v_negatives := two_tower.draw_negatives(v_lesson, v_state.active_slot, v_lowest, v_highest);
      end if;
      if v_lesson.strength > 0 and v_settings.learning_rule = 'contrastive' then
        select d.post_ids, d.embeddings, 0 into v_pushed from two_tower.draw_posts(
          v_lesson.user_id, v_state.active_slot, v_settings.pushes_per_positive, v_lowest,
            v_highest,
          array[v_lesson.post_id]) d;
      end if;
      if cardinality(p_post_ids) > 1 then
        v_negatives := two_tower.refresh_drawn(v_negatives, p_post_ids, p_posts);
        v_pushed := two_tower.refresh_drawn(v_pushed, p_post_ids, p_posts);
      end if;
      v_result := two_tower.learn_lesson(
        v_lesson, v_settings, v_state, v_negatives, v_pushed,
        p_users[v_lesson.user_index], p_posts[v_lesson.post_index]);
      p_users[v_lesson.user_index] := v_result.p_user;
      p_posts[v_lesson.post_index] := v_result.p_post;
      if v_lesson.label is not null then
        examples := examples || v_result.example;
      end if;
      if (v_result.push).post_ids is not null then
        pushes := pushes || v_result.push;
      end if;
    end if;
  end loop;
end
$$;
comment on function two_tower.apply_lessons(two_tower.lesson[], bigint[], two_tower.user_embeddings[], two_tower.live_embeddings[]) is
  'Applies the lessons in order, in memory. Reading the vectors of drawn posts takes no lock: another session may move one meanwhile, by at most one step.';

create function two_tower.write_learned(
  p_users two_tower.user_embeddings[], p_posts two_tower.live_embeddings[],
  p_examples two_tower.training_examples[], p_pushes two_tower.deferred_pushes[]
) returns void language plpgsql set search_path = '' as $$
declare
  v_slots smallint[] := (select case when filling_version is null then array[active_slot]
    else '{0, 1}' end
                         from two_tower.state);
begin
  update two_tower.user_embeddings u set
    embedding = n.embedding, engaged_sum = n.engaged_sum, recent_post_ids = n.recent_post_ids,
    recent_strengths = n.recent_strengths, engagement_count = n.engagement_count,
    minute = n.minute, minute_count = n.minute_count, updated_at = n.updated_at
  from unnest(p_users) n where u.user_id = n.user_id;
  update two_tower.live_embeddings p set
    embedding = n.embedding, engagement_count = n.engagement_count, popularity = n.popularity,
    is_pretrained = n.is_pretrained
  from unnest(p_posts) n where p.slot = any (v_slots) and p.post_id = n.post_id;
  insert into two_tower.training_examples select * from unnest(p_examples);
  insert into two_tower.deferred_pushes (epoch, user_vector, post_ids, factors, created_at)
  select n.epoch, n.user_vector, n.post_ids, n.factors, n.created_at from unnest(p_pushes) n;
end
$$;
comment on function two_tower.write_learned(two_tower.user_embeddings[], two_tower.live_embeddings[], two_tower.training_examples[], two_tower.deferred_pushes[]) is
  'Writes each row once. While a slot is being filled, engaged posts have the same vector in both.';

create function two_tower.lock_users(p_user_ids uuid[]) returns two_tower.user_embeddings[]
language plpgsql set search_path = '' as $$
declare
  v_users two_tower.user_embeddings[];
begin
  if (select count(*) from two_tower.user_embeddings where user_id = any (p_user_ids))
     < cardinality(p_user_ids) then
    perform two_tower.create_missing_users(p_user_ids);
  end if;
  select array_agg(u order by u.user_id) into v_users from (
    select * from two_tower.user_embeddings where user_id = any (p_user_ids)
      order by user_id for no key update
  ) u;
  return v_users;
end
$$;
comment on function two_tower.lock_users(uuid[]) is 'Locks the users'' rows in order, makes those that are missing, and returns them sorted by user_id.';

create function two_tower.index_lessons(p_lessons two_tower.lesson[], p_user_ids uuid[],
  p_post_ids bigint[])
returns two_tower.lesson[] language plpgsql immutable set search_path = '' as $$
begin
  return (
    select array_agg(row(
             l.event_id, l.user_id, l.post_id, l.event_type, l.created_at, l.signal, l.strength,
               l.label, l.bit,
             l.withdrawn, l.withdrawn_bit, l.blocks_author, u.place, p.place, l.pair_index,
               null)::two_tower.lesson
           order by l.event_id)
    from (select x.*, dense_rank() over (order by x.user_id, x.post_id) as pair_index
          from (select user_id, post_id, event_id, event_type, created_at, signal, strength, label,
            bit, withdrawn,
                       withdrawn_bit, blocks_author from unnest(p_lessons)) x) l
      join unnest(p_user_ids) with ordinality as u (user_id, place) on u.user_id = l.user_id
      left join unnest(p_post_ids) with ordinality as p (post_id, place) on p.post_id = l.post_id
  );
end
$$;
comment on function two_tower.index_lessons(two_tower.lesson[], uuid[], bigint[]) is
  'Fills in where each lesson''s user, post and pair stand in the working arrays. A post without a live vector has none.';

create function two_tower.load_pairs(p_lessons two_tower.lesson[]) returns two_tower.user_posts[]
language plpgsql stable set search_path = '' as $$
begin
  return (
    select array_agg(row(i.user_id, i.post_id, coalesce(u.signals, 0),
      coalesce(u.is_engaged, false),
                         coalesce(u.is_hidden, false), u.first_seen_at,
                           u.last_event_at)::two_tower.user_posts
                     order by i.pair_index)
    from (select distinct l.user_id, l.post_id, l.pair_index from unnest(p_lessons) l) i
      left join two_tower.user_posts u on u.user_id = i.user_id and u.post_id = i.post_id
  );
end
$$;
comment on function two_tower.load_pairs(two_tower.lesson[]) is 'What the users did with the posts so far, in order of pair_index.';

create function two_tower.learn(p_events public.engagement_events[],
  p_is_deferred boolean default false) returns void
language plpgsql set search_path = '' as $$
declare
  v_lessons two_tower.lesson[] := two_tower.interpret(p_events);
  v_user_ids uuid[];
  v_post_ids bigint[];
  v_waiting bigint[];
  v_users two_tower.user_embeddings[];
  v_posts two_tower.live_embeddings[];
  v_decided record;
  v_applied record;
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  if not exists (select from unnest(v_lessons) l where l.strength <> 0 or l.withdrawn is not null)
     and not exists (select from unnest(p_events) e where e.client_event_id is not null) then
    perform two_tower.record_views(v_lessons);
    return;
  end if;

  select array_agg(distinct l.user_id order by l.user_id), array_agg(distinct l.post_id
    order by l.post_id)
  into v_user_ids, v_post_ids from unnest(v_lessons) l;
  v_users := two_tower.lock_users(v_user_ids);
  if not p_is_deferred then
    perform two_tower.refuse_repeated_client_events(p_events);
  end if;
  v_waiting := array(select distinct d.post_id from two_tower.deferred_events d
    where d.post_id = any (v_post_ids));
  select array_agg(p order by p.post_id), coalesce(array_agg(p.post_id order by p.post_id), '{}')
  into v_posts, v_post_ids
  from (select v.* from two_tower.live_embeddings v
        where v.slot = (select active_slot from two_tower.state) and v.post_id = any (v_post_ids)
        order by v.post_id for no key update) p;

  v_lessons := two_tower.index_lessons(v_lessons, v_user_ids, v_post_ids);
  v_decided := two_tower.decide(v_lessons, two_tower.load_pairs(v_lessons), v_users, v_posts,
    v_waiting, p_is_deferred);
  perform two_tower.record_decisions(v_decided.p_lessons, v_decided.p_pairs, p_events,
    p_is_deferred);
  if exists (select from unnest(v_decided.p_lessons) l where l.verdict in ('learn', 'withdraw'))
    then
    v_applied := two_tower.apply_lessons(v_decided.p_lessons, v_post_ids, v_decided.p_users,
      v_posts);
    perform two_tower.write_learned(v_applied.p_users, v_applied.p_posts, v_applied.examples,
      v_applied.pushes);
  end if;
end
$$;
comment on function two_tower.learn(public.engagement_events[], boolean) is
  'Learns events in the order of their ids: all of them or, when it raises, none. p_is_deferred: events that waited, and whose time has come.';

create function two_tower.learn_from_events() returns trigger
language plpgsql security definer set search_path = ''
  set plan_cache_mode = force_generic_plan as $$
declare
  v_events public.engagement_events[];
begin
  select array_agg(row(e.id, e.user_id, e.post_id, e.event_type, e.dwell_ms, e.client_event_id,
    e.created_at)
                   ::public.engagement_events order by e.id)
  into v_events from new_events e;
  if v_events is not null then
    perform two_tower.check_events(v_events);
    perform two_tower.learn(v_events);
  end if;
  return null;
end
$$;
comment on function two_tower.learn_from_events() is
  'Definer: who inserts an event has no grant on embeddings, and learns only through this. Fires at the origin only: replicated rows bring their embeddings with them.';
create trigger learn_from_events after insert on public.engagement_events
  referencing new table as new_events
    for each statement execute function two_tower.learn_from_events();

create function two_tower.learn_deferred(p_limit integer default 500,
  p_post_ids bigint[] default null) returns integer
language plpgsql set search_path = '' as $$
declare
  v_events public.engagement_events[];
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  if (select frozen_at is not null from two_tower.state) then
    return 0;
  end if;
  with due as (
    select d.event_id from two_tower.deferred_events d
    where (p_post_ids is null or d.post_id = any (p_post_ids)) and (
      exists (select from two_tower.live_embeddings v
              where v.slot = (select active_slot from two_tower.state) and v.post_id = d.post_id)
      or exists (select from public.posts p where p.id = d.post_id and p.deleted_at is not null))
    order by d.event_id limit p_limit for update
  ), taken as (
    delete from two_tower.deferred_events d using due where d.event_id = due.event_id
      returning d.event
  )
  select array_agg(event order by (event).id) into v_events from taken;
  if v_events is not null then
    perform two_tower.learn(v_events, p_is_deferred => true);
  end if;
  return coalesce(cardinality(v_events), 0);
end
$$;
comment on function two_tower.learn_deferred(integer, bigint[]) is
  'Learns, in order, at most so many events that waited for their post''s embedding or for the end of a freeze. Returns how many.';

-- Where the encoder hands in what it computed. New posts get their live vector, then their waiting
-- events are learned, and only then are rows touched that others may hold: no lock is waited for
-- while one is held out of order.
create function two_tower.store_base_embeddings(
  p_post_ids bigint[], p_embeddings extensions.vector[], p_requests integer[] default null
) returns integer language plpgsql set search_path = '' as $$
declare
  v_new bigint[];
  v_stored bigint[];
  v_active smallint;
begin
  if cardinality(p_post_ids) is distinct from cardinality(p_embeddings)
     or cardinality(p_post_ids) is distinct
       from coalesce(cardinality(p_requests), cardinality(p_post_ids)) then
    raise exception 'post ids, embeddings and requests must be arrays of one length'
      using errcode = '22023',
        hint = 'Pass the request numbers that posts_to_encode() gave, or null.';
  end if;
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  v_active := (select active_slot from two_tower.state);
  with given as (
    select distinct on (g.post_id) g.post_id, g.embedding, g.request
    from unnest(p_post_ids, p_embeddings,
      coalesce(p_requests, array_fill(null::integer, array[cardinality(p_post_ids)])))
         as g (post_id, embedding, request)
    order by g.post_id
  ), locked as (
    select b.post_id, g.embedding from two_tower.base_embeddings b join given g using (post_id)
    where g.request is null or g.request = b.request
    order by b.post_id for no key update of b
  ), stored as (
    update two_tower.base_embeddings b
      set base_embedding = l.embedding, encoded_at = two_tower.now()
    from locked l where b.post_id = l.post_id
    returning b.post_id
  )
  select array_agg(post_id) into v_stored from stored;

  with inserted as (
    insert into two_tower.live_embeddings (slot, post_id, embedding, author_id, created_at,
      is_deleted, model_version)
    select slots.slot, p.id, projected.embedding, p.author_id, p.created_at,
      p.deleted_at is not null, slots.version
    from two_tower.slots_to_write() slots
      cross join two_tower.base_embeddings b
      join public.posts p on p.id = b.post_id
      cross join lateral (select two_tower.candidate_tower(b.base_embedding, slots.version))
        as projected (embedding)
    where b.post_id = any (v_stored) and extensions.vector_norm(projected.embedding) > 0
    on conflict do nothing
    returning post_id
  )
  select array_agg(distinct post_id) into v_new from inserted;
  perform two_tower.learn_deferred(500, v_new);

  with again as materialized (
    select v.slot, v.post_id,
      two_tower.candidate_tower(b.base_embedding, v.model_version) as embedding
    from two_tower.live_embeddings v join two_tower.base_embeddings b using (post_id)
    where v.post_id = any (v_stored) and v.post_id <> all (coalesce(v_new, '{}'))
      and v.is_pretrained
    order by v.post_id, v.slot <> v_active for no key update of v
  )
  update two_tower.live_embeddings v set embedding = a.embedding
  from again a where v.slot = a.slot and v.post_id = a.post_id;
  return coalesce(cardinality(v_stored), 0);
end
$$;
comment on function two_tower.store_base_embeddings(bigint[], extensions.vector[], integer[]) is
  'Stores base embeddings, projects them with the candidate tower, and learns the events that waited for them. An encoding of a text that has changed since (another request number) is passed over. Returns how many were stored.';
