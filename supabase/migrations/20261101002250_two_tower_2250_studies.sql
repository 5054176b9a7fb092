-- Study: what a job can do that a trigger cannot. It repeats contrastive steps over the newest
-- positives, against the vectors of today, each with negatives of its own. The posts in the user's
-- history take their part of the gradient too, which a like has no time for.
--
--   begin_study()  what is new since the last study, and how many steps it is worth
--   study_window() the newest positives in force: the worker draws its steps among them
--   study_steps()  of some of them: the user's history as of then, and negatives
--   study_posts()  where the posts that these name stand now
--   apply_study()  deltas of some posts, as the worker computed them
--   end_study()
--
-- Each call is a transaction of its own, and names at most 16,384 posts: what a study takes does
-- not grow with the catalogue.
--
-- Two sessions, a crash: a study applies to each post once. study_posts remembers which, so a
-- worker that takes over goes on where the other one was killed, whoever else still works. A study
-- is void after ten minutes, and when a rollback, a switch of towers, a freeze or
-- settings.study_enabled came between: then the vectors are not those that it was computed from.
--
-- Influence: each positive is repeated at most once in a study, a post moves by at most
-- settings.study_movement_limit, and nothing is learned of a post with a signal that its user ever
-- took back. So going back and forth moves a post once, by one small step.

create table two_tower.studies (
  id bigint generated always as identity primary key,
  state text not null default 'open'
    constraint state_of_a_study_is_known check (state in ('open', 'done', 'void')),
  begun_at timestamptz not null default two_tower.now(),
  ended_at timestamptz,
  epoch integer not null,
  candidate_tower bigint not null references two_tower.model_weights (version),
  last_event_id bigint not null,
  engagements integer not null,
  steps integer not null,
  batch_steps integer not null,
  rate real not null,
  temperature real not null,
  popularity_in_logits real not null,
  popularity_total double precision not null,
  moved_posts integer not null default 0,
  movement double precision not null default 0,
  constraint an_ended_study_says_when check ((state = 'open') = (ended_at is null))
);
comment on table two_tower.studies is 'Studies: each a job that repeated contrastive steps over the newest positives.';
comment on column two_tower.studies.state is 'open, done or void: the vectors changed under it, or it took too long.';
comment on column two_tower.studies.epoch is 'state.epoch when it began.';
comment on column two_tower.studies.candidate_tower is 'The version that served when it began.';
comment on column two_tower.studies.last_event_id is 'The newest positive that it repeats. Later ones are for the next study.';
comment on column two_tower.studies.engagements is 'Positives that are new since the last study.';
comment on column two_tower.studies.steps is 'How many positives it repeats.';
comment on column two_tower.studies.batch_steps is 'At most this number of steps is asked for at a time.';
comment on column two_tower.studies.rate is 'Step of a post at strength 1.';
comment on column two_tower.studies.temperature is 'settings.temperature when it began.';
comment on column two_tower.studies.popularity_in_logits is 'settings.popularity_in_logits when it began.';
comment on column two_tower.studies.popularity_total is 'state.popularity_total when it began.';
comment on column two_tower.studies.movement is 'The sum of the cosine distances by which it moved posts.';
create unique index one_open_study on two_tower.studies (state) where state = 'open';
create index studies_candidate_tower_idx on two_tower.studies (candidate_tower);
create index studies_begun_at_idx on two_tower.studies (begun_at);

create table two_tower.study_posts (
  study_id bigint not null references two_tower.studies (id) on delete cascade,
  post_id bigint not null,
  primary key (study_id, post_id)
);
comment on table two_tower.study_posts is 'The posts to which the open study was applied: each once.';

-- What was learned and still stands. Events of users who are being erased are not read, nor those
-- from before a user began anew. The selected exists is looked up by both sides of the pair: as a
-- join, it may read all that the user has seen.
create view two_tower.engagements_in_force with (security_invoker = true) as
select
  e.id as event_id, e.user_id, e.post_id, e.created_at, g.label,
  two_tower.weigh_strength(g.strength, s.negative_strength_factor) as strength
from public.engagement_events as e
cross join two_tower.settings as s
join two_tower.signals as g on g.strength <> 0 and g.event_type = case
  when e.event_type <> 'dwell' or e.dwell_ms > s.long_dwell_ms then e.event_type
  when e.dwell_ms < s.short_dwell_ms then 'skip' else 'view' end
where (
  select exists (
    select from two_tower.user_posts as u
    where u.user_id = e.user_id and u.post_id = e.post_id and u.signals & g.bit <> 0
      and not u.was_withdrawn
  )
) and exists (
  select from two_tower.user_embeddings as m
  where m.user_id = e.user_id and m.history_from < e.id
) and not exists (
  select from two_tower.users_to_erase as w where w.user_id = e.user_id
) and not exists (
  select from two_tower.unlearned_events as x
  where x.event_id = e.id and x.created_at = e.created_at
) and not exists (
  select from two_tower.training_examples as t
  where t.user_id = e.user_id and t.post_id = e.post_id and t.event_id = e.id
    and t.created_at = e.created_at and t.is_undone
) and not exists (
  select from two_tower.rollbacks as r
  where e.id > r.after_event_id and e.id <= r.last_event_id
);
comment on view two_tower.engagements_in_force is
  'Events that were learned and stand: not taken back, not undone by an operator or a rollback. Left out are events from before a user began anew, users who are being erased, and posts with a signal that the user ever took back.';
comment on column two_tower.engagements_in_force.strength is 'As the contrastive rule weighs it.';

-- Walks the events by id, newest first, and looks up by its key what may be a positive. Most events
-- are views: of each the walk reads the type and no more.
create function two_tower.newest_in_force(p_last_event_id bigint, p_before timestamptz)
returns table (event_id bigint, user_id uuid, post_id bigint, created_at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp
  set jit = off set enable_hashjoin = off set enable_mergejoin = off set enable_seqscan = off
  set enable_bitmapscan = off as $$
  select e.id, n.user_id, n.post_id, e.created_at
  from public.engagement_events e
    cross join lateral (select f.user_id, f.post_id from two_tower.engagements_in_force f
      where f.event_id = e.id and f.created_at = e.created_at and f.label offset 0) n
  where e.id <= p_last_event_id and e.created_at <= p_before
    and e.event_type = any (array(select g.event_type from two_tower.signals g where g.label))
  order by e.id desc limit 20000;
$$;
comment on function two_tower.newest_in_force(bigint, timestamptz) is
  'Returns the newest 20,000 positives in force up to an event and a time, newest first.';

create function two_tower.list_studied(p_last_event_id bigint, p_begun_at timestamptz)
returns table (event_id bigint, user_id uuid, post_id bigint, created_at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with read as materialized (
    select n.*, row_number() over (partition by n.user_id, n.post_id order by n.event_id desc)
      as place
    from two_tower.newest_in_force(p_last_event_id, p_begun_at - interval '10 minutes') n
  ), single as materialized (
    select r.event_id, r.user_id, r.post_id, r.created_at,
      row_number() over (partition by r.user_id order by r.event_id desc) as place
    from read r where r.place = 1
  ), cap as materialized (
    select two_tower.cap_account(u.user_ids, two_tower.share_of_account(u.user_ids)) as places
    from (select coalesce(array_agg(s.user_id), '{}') as user_ids from single s) u
  )
  select s.event_id, s.user_id, s.post_id, s.created_at
  from single s cross join cap c where s.place <= c.places order by s.event_id desc;
$$;
comment on function two_tower.list_studied(bigint, timestamptz) is
  'Returns the window of a study: the newest positives that are in force for ten minutes, one of each user and post, and of one account at most share_of_account() of them.';

create function two_tower.may_study() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select s.study_enabled and s.learning_rule = 'contrastive' and st.frozen_at is null
    and st.filling_version is null and not exists (
      select from (
        select * from two_tower.studies where state = 'done' order by id desc limit 1) l
      where l.ended_at + (l.ended_at - l.begun_at) * (1 / s.study_share - 1) > two_tower.now())
  from two_tower.settings s cross join two_tower.state st;
$$;
comment on function two_tower.may_study() is
  'Returns whether a study may begin: it is switched on, learning goes on by the contrastive rule, no slot is being filled, and the last study has rested for long enough (settings.study_share).';

create function two_tower.is_study_valid(p_study two_tower.studies) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select p_study.state = 'open' and s.study_enabled and st.frozen_at is null
    and st.epoch = p_study.epoch
    and two_tower.active_version('candidate_tower') = p_study.candidate_tower
    and two_tower.now() <= p_study.begun_at + interval '10 minutes'
  from two_tower.settings s cross join two_tower.state st;
$$;
comment on function two_tower.is_study_valid(two_tower.studies) is
  'Returns whether a study is open, and its deltas still belong to the vectors that serve.';

create function two_tower.close_study(p_study_id bigint, p_state text) returns void
language sql set search_path = pg_catalog, pg_temp as $$
  update two_tower.studies set state = p_state, ended_at = two_tower.now()
  where id = p_study_id and state = 'open';
  delete from two_tower.study_posts where study_id = p_study_id;
  delete from two_tower.studies
  where state <> 'open' and begun_at < two_tower.now() - interval '30 days'
    and id <> (select max(l.id) from two_tower.studies l where l.state = 'done');
$$;
comment on function two_tower.close_study(bigint, text) is
  'Ends a study, as done or void. Forgets to which posts it was applied, and studies that began more than 30 days ago.';

create function two_tower.begin_study() returns two_tower.studies
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_study two_tower.studies;
  v_settings two_tower.settings;
  v_now timestamptz := two_tower.now();
begin
  select * into v_study from two_tower.studies where state = 'open' for no key update;
  if found then
    if two_tower.is_study_valid(v_study) then
      return v_study;
    end if;
    perform two_tower.close_study(v_study.id, 'void');
  end if;
  if not two_tower.may_study() then
    return null;
  end if;
  select * into v_settings from two_tower.settings;
  v_study := null;
  select count(*) filter (where w.event_id > d.last_event_id), count(*), max(w.event_id)
  into v_study.engagements, v_study.steps, v_study.last_event_id
  from two_tower.list_studied(9223372036854775807, v_now) w
    cross join (select coalesce(max(last_event_id), 0) as last_event_id from two_tower.studies
      where state = 'done') d;
  if v_study.engagements = 0 then
    return null;
  end if;
  -- 512 positives and histories of 30 name 15,872 posts, and 512 negatives are drawn from beside.
  insert into two_tower.studies (begun_at, epoch, candidate_tower, last_event_id, engagements,
    steps, batch_steps, rate, temperature, popularity_in_logits, popularity_total)
  select v_now, st.epoch, two_tower.active_version('candidate_tower'), v_study.last_event_id,
    v_study.engagements,
    least(v_settings.study_passes * v_study.engagements, v_study.steps),
    least(512, 16384 / (v_settings.history_length + 2)),
    v_settings.contrastive_learning_rate * v_settings.study_rate * st.learning_rate_factor,
    v_settings.temperature, v_settings.popularity_in_logits, st.popularity_total
  from two_tower.state st
  returning * into v_study;
  return v_study;
end
$$;
comment on function two_tower.begin_study() is
  'Returns the open study, for a worker that takes it over, or begins one. It repeats settings.study_passes times as many positives as are new, each at most once: with more new ones than a part of the window, there are fewer passes. Returns nulls when there is nothing to study or may_study() says no. Definer: workers have no grant on tables.';

create function two_tower.open_study(p_study_id bigint) returns two_tower.studies
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_study two_tower.studies;
begin
  select * into v_study from two_tower.studies where id = p_study_id;
  if two_tower.is_study_valid(v_study) is not true then
    raise exception 'study % is not open', p_study_id using errcode = '55000',
      hint = 'Drop this work. begin_study() says what to study now.';
  end if;
  return v_study;
end
$$;
comment on function two_tower.open_study(bigint) is 'Returns a study. Raises 55000 where it is void or over.';

-- Two sessions: the study's row comes before the posts, which come in the order in which learning
-- locks them. No like waits for a post that is locked here: its step is deferred.
create function two_tower.apply_study(p_study_id bigint, p_post_ids bigint[],
  p_deltas extensions.vector[])
returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_study two_tower.studies;
  v_slots smallint[];
  v_limit real := 0.999 * (select study_movement_limit from two_tower.settings);
  v_moved integer;
  v_distance double precision;
begin
  if cardinality(p_post_ids) > 1000 or cardinality(p_post_ids) <> cardinality(p_deltas) then
    raise exception 'these are not deltas of at most 1,000 posts' using errcode = '22023',
      hint = 'Hand in deltas in smaller batches, one for each post.';
  end if;
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  select * into v_study from two_tower.studies where id = p_study_id for no key update;
  if two_tower.is_study_valid(v_study) is not true then
    perform two_tower.close_study(p_study_id, 'void');
    return null;
  end if;
  select case when filling_version is null then array[active_slot]
              else array[active_slot, 1 - active_slot] end into v_slots
    from two_tower.state;
  with delta as materialized (
    select distinct on (d.post_id) d.post_id, d.delta,
      extensions.vector_norm(d.delta) as length
    from unnest(p_post_ids, p_deltas) as d (post_id, delta)
    where extensions.vector_norm(d.delta) > 0 order by d.post_id
  ), fresh as (
    insert into two_tower.study_posts (study_id, post_id)
    select p_study_id, d.post_id from delta d order by d.post_id
    on conflict do nothing
    returning post_id
  ), locked as materialized (
    select v.slot, v.post_id, v.embedding from two_tower.live_embeddings v
    where v.slot = any (v_slots) and v.post_id in (select post_id from fresh)
      and not v.is_pretrained and not v.is_held
    order by v.post_id, array_position(v_slots, v.slot) for no key update
  ), moved as materialized (
    select l.post_id, l.embedding as was, two_tower.move_vector(l.embedding,
      least(1, v_limit / d.length)::real, d.delta) as embedding
    from locked l join delta d using (post_id) where l.slot = v_slots[1]
  ), written as (
    update two_tower.live_embeddings v set embedding = m.embedding
    from moved m where v.slot = any (v_slots) and v.post_id = m.post_id
  )
  select count(*), coalesce(sum(1 + (m.was operator(extensions.<#>) m.embedding)), 0)
  into v_moved, v_distance from moved m;
  update two_tower.studies set moved_posts = moved_posts + v_moved,
    movement = movement + greatest(0, v_distance)
  where id = p_study_id;
  return v_moved;
end
$$;
comment on function two_tower.apply_study(bigint, bigint[], extensions.vector[]) is
  'Moves posts by the deltas of a study: p = norm(p + delta), at most settings.study_movement_limit away. Returns how many it moved. Passes over posts to which the study was applied before, untouched ones and held ones. Returns null, and moves nothing, where the study is void or over. Raises 22023 for more than 1,000 posts. Definer: workers have no grant on tables.';

create function two_tower.end_study(p_study_id bigint) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform two_tower.open_study(p_study_id);
  perform two_tower.close_study(p_study_id, 'done');
end
$$;
comment on function two_tower.end_study(bigint) is
  'Ends a study: what it repeated is not new any more. Raises 55000 where it is void or over. Definer: workers have no grant on tables.';

create function two_tower.measure_study() returns table (name text, value double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with last as (
    select l.* from two_tower.studies l where l.state = 'done' order by l.id desc limit 1
  )
  select 'study_lag', case when (
      select s.study_enabled and s.learning_rule = 'contrastive' from two_tower.settings s)
    then count(*) end from (
    select from public.engagement_events e
    where e.id > coalesce((select last_event_id from last), 0)
      and e.event_type in (select g.event_type from two_tower.signals g where g.label)
    limit 50000) n
  union all select 'study_passes', (select l.steps / l.engagements::double precision from last l)
  union all select 'study_movement', (
    select sum(y.movement / greatest(1, y.moved_posts))
      / greatest(1, extract(epoch from two_tower.now() - c.made_at) / 86400)
    from (select * from two_tower.checkpoints order by id desc limit 1) c
      join two_tower.studies y on y.begun_at >= c.made_at
    group by c.made_at);
$$;
comment on function two_tower.measure_study() is
  'Returns the metrics of study. study_lag: null while study is switched off. study_movement: the sum over studies since the newest checkpoint of the mean cosine distance by which each moved its posts, per day; a checkpoint of today counts as a day old.';
