-- What a study reads. SQL says which steps there are, and what they are made of. The worker
-- computes.

create function two_tower.study_window(p_study_id bigint)
returns table (event_id bigint, created_at timestamptz)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select w.event_id, w.created_at
  from two_tower.open_study(p_study_id) o
    cross join two_tower.list_studied(o.last_event_id, o.begun_at) w
  order by w.user_id, w.event_id;
$$;
comment on function two_tower.study_window(bigint) is
  'Returns the positives among which a study draws its steps, at most 20,000, user after user: study_steps() reads each user of a call once. Raises 55000 where the study is void or over. Definer: workers have no grant on tables.';

-- A sample of pages, not of rows: it reads no more than it needs, whatever there is. Posts of one
-- page have nothing in common but their time.
create function two_tower.draw_engaged_posts(p_slot smallint, p_count integer,
  out post_ids bigint[], out author_ids uuid[])
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_rows real := (select r.reltuples from pg_catalog.pg_class r
    where r.oid = 'two_tower.live_embeddings'::regclass);
  v_share real;
begin
  foreach v_share in array array[8, 64, null]::real[] loop
    v_share := coalesce(least(100, 100 * v_share * p_count / greatest(v_rows, 1)), 100);
    select array_agg(d.post_id), array_agg(d.author_id) into post_ids, author_ids
    from (
      select v.post_id, v.author_id
      from two_tower.live_embeddings v tablesample system (v_share)
      where v.slot = p_slot and not v.is_pretrained and v.is_listed
      order by random() limit p_count
    ) d;
    exit when v_share = 100 or cardinality(post_ids) = p_count;
  end loop;
end
$$;
comment on function two_tower.draw_engaged_posts(smallint, integer) is
  'Draws at most p_count different posts that somebody engaged with, uniformly, with their authors.';

create function two_tower.newest_engagements(p_user_id uuid, p_from timestamptz,
  p_to timestamptz, p_events bigint, p_limit bigint)
returns table (event_id bigint, created_at timestamptz, post_id bigint, strength real)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select f.event_id, f.created_at, f.post_id, f.strength
  from (
      select e.id, e.created_at, e.event_type from public.engagement_events e
      where e.user_id = p_user_id and e.created_at between p_from and p_to
      order by e.created_at desc, e.id desc limit p_events) e
    cross join lateral (
      select f.* from two_tower.engagements_in_force f
      where f.event_id = e.id and f.created_at = e.created_at offset 0) f
  -- A short dwell is a skip, whatever a long one is worth.
  where e.event_type = any (array(
    select g.event_type from two_tower.signals g where g.strength <> 0 or g.event_type = 'dwell'))
  order by e.created_at desc, e.id desc limit p_limit;
$$;
comment on function two_tower.newest_engagements(uuid, timestamptz, timestamptz, bigint, bigint) is
  'Returns the newest engagements in force of a user from a time to another, at most p_limit, among the newest p_events events. Null is no limit.';

-- Of one account at most 3,000 events a step are read, and 3,000 from before them. Who floods
-- shortens the histories of its own older steps. Of the post of a step there may be one engagement
-- of each kind, which are not its history.
create function two_tower.study_timeline(p_user_id uuid, p_steps bigint, p_oldest timestamptz,
  p_newest timestamptz, p_before bigint, out event_ids bigint[], out post_ids bigint[],
  out strengths real[])
language sql stable set search_path = pg_catalog, pg_temp as $$
  select array_agg(p.event_id order by p.created_at desc, p.event_id desc),
    array_agg(p.post_id order by p.created_at desc, p.event_id desc),
    array_agg(p.strength order by p.created_at desc, p.event_id desc)
  from (
    select * from two_tower.newest_engagements(p_user_id, p_oldest, p_newest, 3000 * p_steps, null)
    union all
    select * from two_tower.newest_engagements(p_user_id, '-infinity',
      p_oldest - interval '1 microsecond', 3000,
      p_before + (select count(*) from two_tower.signals))) p;
$$;
comment on function two_tower.study_timeline(uuid, bigint, timestamptz, timestamptz, bigint) is
  'Returns the engagements of a user from the oldest step of a study to the newest, and p_before from before them, newest first.';

create function two_tower.study_steps(p_study_id bigint, p_event_ids bigint[],
  p_created_at timestamptz[])
returns table (event_id bigint, post_id bigint, strength real, history_ids bigint[],
  history_weights real[], prior extensions.vector, negative_ids bigint[])
language plpgsql security definer set search_path = pg_catalog, pg_temp
  set jit = off set enable_hashjoin = off set enable_mergejoin = off set enable_seqscan = off
  set enable_bitmapscan = off as $$
declare
  v_study two_tower.studies := two_tower.open_study(p_study_id);
  v_settings two_tower.settings;
  v_pool bigint[];
  v_authors uuid[];
begin
  if cardinality(p_event_ids) > v_study.batch_steps then
    raise exception 'these are more than % steps', v_study.batch_steps using errcode = '22023',
      hint = 'Ask for studies.batch_steps at a time.';
  end if;
  select * into v_settings from two_tower.settings;
  select d.post_ids, d.author_ids into v_pool, v_authors
  from two_tower.draw_engaged_posts((select active_slot from two_tower.state),
    16384 - v_study.batch_steps * (v_settings.history_length + 1)) d;
  return query
  with step as materialized (
    select n.* from unnest(p_event_ids, p_created_at) as a (event_id, created_at)
      cross join lateral (select n.* from two_tower.engagements_in_force n
        where n.event_id = a.event_id and n.created_at = a.created_at offset 0) n
  ), account as materialized (
    select s.user_id, two_tower.scale(u.prior_weight, u.prior) as prior, t.*
    from (select s.user_id, count(*) as steps, min(s.created_at) as oldest,
        max(s.created_at) as newest from step s group by s.user_id) s
      join two_tower.user_embeddings u using (user_id)
      cross join lateral two_tower.study_timeline(s.user_id, s.steps, s.oldest, s.newest,
        v_settings.history_length) t
  ), past as materialized (
    select s.event_id, s.user_id, s.post_id, s.strength, a.prior, h.post_ids, h.weights
    from step s join account a using (user_id)
      cross join lateral (
        select array_agg(p.post_id order by p.place) as post_ids,
          array_agg(two_tower.decay_strength(p.strength, v_settings.history_decay, p.place - 1)
            order by p.place) as weights
        from (
          select k.post_id, k.strength, row_number() over (order by k.turn) as place
          from unnest(a.event_ids, a.post_ids, a.strengths)
            with ordinality as k (event_id, post_id, strength, turn)
          where k.turn > array_position(a.event_ids, s.event_id) and k.event_id < s.event_id
            and k.post_id <> s.post_id
          order by k.turn limit v_settings.history_length) p) h
  ), drawn as materialized (
    select s.event_id, s.user_id, s.post_id as target_id, array(
      select 1 + floor(random() * cardinality(v_pool))::integer
      from generate_series(1, v_settings.study_negatives * 3 / 2)
      where s.event_id is not null) as places
    from step s
  ), negative as materialized (
    select d.event_id, array(
      select v_pool[k.place] from unnest(d.places) with ordinality as k (place, turn)
      where v_pool[k.place] <> all (l.post_ids) and v_pool[k.place] <> d.target_id
        and v_authors[k.place] is distinct from d.user_id
      order by k.turn limit v_settings.study_negatives) as post_ids
    from drawn d
      cross join lateral (select array(
        select u.post_id from two_tower.user_posts u
        where u.user_id = d.user_id and (u.is_engaged or u.is_hidden)
          and u.post_id = any (array(select v_pool[k] from unnest(d.places) k))) as post_ids) l
  )
  select s.event_id, s.post_id, s.strength, coalesce(s.post_ids, '{}'), coalesce(s.weights, '{}'),
    s.prior, coalesce(n.post_ids, '{}')
  from past s left join negative n using (event_id) order by s.event_id;
end
$$;
comment on function two_tower.study_steps(bigint, bigint[], timestamptz[]) is
  'Returns what some steps of a study are made of. history: what the user was made of when the event came, each post with decay^age * strength; of each user at most 3,000 events a step are read, and 3,000 from before them. prior: what is added to that, or null. negatives: at most settings.study_negatives posts, drawn uniformly among those that somebody engaged with; none that the user engaged with, hid or wrote. Leaves out events that do not stand any more. Raises 22023 for more than studies.batch_steps, and 55000 where the study is void or over. Definer: workers have no grant on tables.';

create function two_tower.study_posts(p_study_id bigint, p_post_ids bigint[])
returns table (post_id bigint, embedding extensions.vector, engagements integer,
  log_share double precision)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_study two_tower.studies := two_tower.open_study(p_study_id);
begin
  if cardinality(p_post_ids) > 16384 then
    raise exception 'these are more than 16,384 posts' using errcode = '22023',
      hint = 'Ask for the posts of one batch of steps at a time.';
  end if;
  return query
  select v.post_id, v.embedding::extensions.vector, v.engagement_count,
    ln(least(1, two_tower.popularity_in_likes(v.popularity, v_study.popularity_total)) + 1e-4)
  from two_tower.live_embeddings v
  where v.slot = (select active_slot from two_tower.state) and v.post_id = any (p_post_ids)
  order by v.post_id;
end
$$;
comment on function two_tower.study_posts(bigint, bigint[]) is
  'Returns the vectors of posts as they stand, the engagements with each, and log_share: ln(share of all popularity + 0.0001). Raises 22023 for more than 16,384 posts, and 55000 where the study is void or over. Definer: workers have no grant on tables.';
