-- The posts with which a positive event is compared, and the numbers by which they are drawn.

create type two_tower.drawn_posts as (
  negative_ids bigint[], negative_embs extensions.halfvec[], viewed_count integer,
  pushed_ids bigint[], pushed_weights double precision[]
);
comment on type two_tower.drawn_posts is
  'Posts drawn for a lesson: the negatives of its pair, and the posts that it pushes away.';
comment on column two_tower.drawn_posts.viewed_count is 'How many of the first negatives the user viewed.';
comment on column two_tower.drawn_posts.pushed_weights is 'exp((cosine - 1) / temperature) of each of pushed_ids with the user.';

create type two_tower.post_range as (slot smallint, lowest bigint, highest bigint);
comment on type two_tower.post_range is 'A slot, and the numbers between which its posts lie.';

-- A draw takes numbers of a range at random (live_embeddings.number). Nearly each is that of a
-- post. Numbers that are missing, or of posts engaged with, are passed over, which keeps the rest
-- uniform. All that a lesson needs is looked up at once: each post lies on a page of its own, and
-- each statement has a price.
create function two_tower.draw_numbers(p_lowest bigint, p_highest bigint, p_count integer)
returns bigint[] language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_span double precision := p_highest - p_lowest + 1;
  v_numbers bigint[] := '{}';
begin
  if p_count >= v_span then
    return array(select generate_series(p_lowest, p_highest));
  end if;
  for v_place in 1..p_count loop
    v_numbers[v_place] := p_lowest + floor(random() * v_span)::bigint;
  end loop;
  return v_numbers;
end
$$;
comment on function two_tower.draw_numbers(bigint, bigint, integer) is
  'Returns p_count numbers of a range, drawn with replacement. Returns each number once where the range has no more than p_count.';

create function two_tower.find_viewed_posts(p_lesson two_tower.lesson,
  p_settings two_tower.settings)
returns bigint[] language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  return array(
    select d.post_id from (
      select distinct l.post_id from (
        select e.post_id from public.engagement_events e
        where e.user_id = p_lesson.user_id and e.event_type = 'view' and e.id < p_lesson.event_id
          and e.created_at between p_lesson.created_at - p_settings.viewed_negative_window
            and p_lesson.created_at
        order by e.created_at desc limit p_settings.negatives_per_positive * 3 / 2) l) d
    order by random());
end
$$;
comment on function two_tower.find_viewed_posts(two_tower.lesson, two_tower.settings) is
  'Returns the posts that the user viewed last within settings.viewed_negative_window before an event, in random order. Reads at most 3/2 settings.negatives_per_positive views, because some of the posts were engaged with.';

create function two_tower.draw_from_all(p_user_id uuid, p_slot smallint, p_excluded bigint[],
  p_count integer)
returns bigint[] language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  return array(
    select v.number from two_tower.live_embeddings v
    where v.slot = p_slot and v.number is not null and v.author_id is distinct from p_user_id
      and v.post_id <> all (p_excluded) and not exists (
        select from two_tower.user_posts u
        where u.user_id = p_user_id and u.post_id = v.post_id and (u.is_engaged or u.is_hidden))
    order by random() limit p_count);
end
$$;
comment on function two_tower.draw_from_all(uuid, smallint, bigint[], integer) is
  'Returns the numbers of at most p_count posts, drawn from all. The last resort of draw_posts(), where few posts are left to draw: it reads all of them.';

create function two_tower.draw_posts(
  p_lesson two_tower.lesson, p_settings two_tower.settings, p_range two_tower.post_range,
  p_user extensions.vector, p_excluded bigint[]
) returns two_tower.drawn_posts
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
  v_negatives integer := case when p_lesson.label then p_settings.negatives_per_positive else 0 end;
  v_pushes integer := case when p_settings.learning_rule = 'contrastive'
    then p_settings.pushes_per_positive else 0 end;
  v_needed integer := greatest(v_negatives, v_pushes);
  v_lowest bigint := greatest(p_range.lowest, p_range.highest - p_settings.recent_posts_pool + 1);
  v_viewed bigint[] := '{}';
  v_recent bigint[];
  v_any bigint[];
  v_width integer;
  v_tries integer;
  v_is_last boolean;
  v_takes_any boolean;
  v_drawn two_tower.drawn_posts;
begin
  if v_negatives > 0 then
    v_viewed := two_tower.find_viewed_posts(p_lesson, p_settings);
  end if;
  -- Three rounds, each with six times as many numbers. After them, or at once where there are few
  -- posts, all posts are read.
  foreach v_width in array '{1, 6, 36, null}'::integer[] loop
    v_is_last := coalesce(4 * v_width * v_needed >= p_range.highest - p_range.lowest + 1, true);
    v_takes_any := v_is_last or v_width = 36;
    if v_is_last then
      v_recent := '{}';
      v_any := two_tower.draw_from_all(p_lesson.user_id, p_range.slot, p_excluded,
        2 * v_needed + cardinality(v_viewed));
    else
      -- One more than is needed, because now and then a number is passed over.
      v_tries := v_width * (v_needed + 1);
      v_recent := two_tower.draw_numbers(v_lowest, p_range.highest,
        case when v_negatives > 0 then v_tries - cardinality(v_viewed) else 0 end);
      v_any := two_tower.draw_numbers(p_range.lowest, p_range.highest,
        case when v_pushes > 0 or v_takes_any then v_tries else 0 end);
    end if;
    with tried as materialized (
      select v.post_id, v.author_id, v.embedding, false as is_viewed,
        (v_takes_any or v.number = any (v_recent)) and v.post_id <> all (v_viewed) as is_recent,
        v.number = any (v_any) as is_any
      from two_tower.live_embeddings v
      where v.slot = p_range.slot and v.number = any (v_recent || v_any)
      union all
      select v.post_id, v.author_id, v.embedding, true, false, false
      from two_tower.live_embeddings v
      where v.slot = p_range.slot and v.post_id = any (v_viewed) and v.is_listed
    )
    select
      (array_agg(d.post_id) filter (where d.is_viewed)
        || array_agg(d.post_id) filter (where d.is_recent))[:v_negatives],
      (array_agg(d.embedding::extensions.halfvec) filter (where d.is_viewed)
        || array_agg(d.embedding::extensions.halfvec) filter (where d.is_recent))[:v_negatives],
      least(v_negatives, count(*) filter (where d.is_viewed)),
      (array_agg(d.post_id) filter (where d.is_any))[:v_pushes],
      (array_agg(exp((-(d.embedding operator(extensions.<#>) p_user) - 1)
        / p_settings.temperature)) filter (where d.is_any))[:v_pushes]
    into v_drawn.negative_ids, v_drawn.negative_embs, v_drawn.viewed_count, v_drawn.pushed_ids,
      v_drawn.pushed_weights
    from (
      select t.* from tried t
      where t.author_id is distinct from p_lesson.user_id
        and t.post_id <> all (p_excluded || array(
          select u.post_id from two_tower.user_posts u
          where u.user_id = p_lesson.user_id and u.post_id = any (array(select post_id from tried))
            and (u.is_engaged or u.is_hidden)))
      order by random()
    ) d;
    exit when v_is_last or (coalesce(cardinality(v_drawn.negative_ids), 0) = v_negatives
      and coalesce(cardinality(v_drawn.pushed_ids), 0) = v_pushes);
  end loop;
  return v_drawn;
end
$$;
comment on function two_tower.draw_posts(two_tower.lesson, two_tower.settings, two_tower.post_range, extensions.vector, bigint[]) is
  'Draws different live posts that the user neither engaged with, nor hid, nor wrote. Negatives of a positive pair are viewed posts in random order, then random recent posts, then any. Pushed posts are drawn uniformly from all. Returns fewer only if there are fewer.';

-- A drawn post can be null in p_posts: encoded by another session since the rows were locked. Then
-- the statement has not moved it.
create function two_tower.refresh_drawn_posts(
  p_drawn two_tower.drawn_posts, p_temperature real, p_user extensions.vector,
  p_post_ids bigint[], p_posts two_tower.live_embeddings[]
) returns two_tower.drawn_posts
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_index integer;
begin
  for v_place in 1..coalesce(cardinality(p_drawn.negative_ids), 0) loop
    v_index := two_tower.find_place(p_drawn.negative_ids[v_place], p_post_ids);
    if (p_posts[v_index]).post_id is not null then
      p_drawn.negative_embs[v_place] := (p_posts[v_index]).embedding::extensions.halfvec;
    end if;
  end loop;
  for v_place in 1..coalesce(cardinality(p_drawn.pushed_ids), 0) loop
    v_index := two_tower.find_place(p_drawn.pushed_ids[v_place], p_post_ids);
    if (p_posts[v_index]).post_id is not null then
      p_drawn.pushed_weights[v_place] := exp((-((p_posts[v_index]).embedding
        operator(extensions.<#>) p_user) - 1) / p_temperature);
    end if;
  end loop;
  return p_drawn;
end
$$;
comment on function two_tower.refresh_drawn_posts(two_tower.drawn_posts, real, extensions.vector, bigint[], two_tower.live_embeddings[]) is
  'Returns the drawn posts as they stand within the statement, which has moved some of them itself. p_post_ids is sorted.';

-- Posts are drawn by number (live_embeddings.number). A new post gets the next number of a
-- sequence. Deleted posts and aborted transactions leave holes, and each hole makes draws try once
-- more. compact_numbers() closes them in small steps of tick(). A hole among the newest
-- settings.recent_posts_pool numbers takes the newest post below them. Any other hole takes the
-- oldest post. So the numbers from the lowest to the highest have no holes, and the newest posts
-- stay among the newest.
--
-- Two sessions: numbers that a session gave and has not committed look like holes. The numbering
-- lock keeps compact_numbers() out meanwhile. It waits for nobody: what another session holds is
-- left for a later step.

create function two_tower.find_holes(p_lowest bigint, p_highest bigint) returns bigint[]
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return array(
    select generate_series(p_lowest, p_highest)
    except
    select v.number from two_tower.live_embeddings v
    where v.slot in (0, 1) and v.number between p_lowest and p_highest
    order by 1 desc);
end
$$;
comment on function two_tower.find_holes(bigint, bigint) is 'Returns the numbers of a range that no post has in either slot, highest first.';

create function two_tower.give_numbers(p_post_ids bigint[], p_numbers bigint[]) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_held bigint[];
  v_given integer;
begin
  with held as materialized (
    select v.post_id from two_tower.live_embeddings v cross join two_tower.state s
    where v.slot in (0, 1) and v.post_id = any (p_post_ids)
    order by v.post_id, v.slot <> s.active_slot for no key update of v skip locked
  )
  select array_agg(h.post_id) into v_held
  from (select post_id, count(*) as rows from held group by post_id) h
  where h.rows = (select count(*) from two_tower.live_embeddings v
    where v.slot in (0, 1) and v.post_id = h.post_id);
  -- A statement of its own: it sees the rows as they are now that they are held.
  with given as (
    update two_tower.live_embeddings v set number = n.number
    from unnest(p_post_ids, p_numbers) as n (post_id, number)
    where v.slot in (0, 1) and v.post_id = n.post_id and v.post_id = any (v_held)
      and v.is_listed
    returning v.post_id
  )
  select count(distinct post_id) into v_given from given;
  return v_given;
end
$$;
comment on function two_tower.give_numbers(bigint[], bigint[]) is
  'Gives posts their numbers, in both slots. Passes over deleted posts, and those of which another session holds a row. Returns to how many it gave one.';

create function two_tower.compact_numbers(p_limit integer default 1000) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_slot smallint;
  v_lowest bigint;
  v_highest bigint;
  v_older bigint;
  v_position bigint;
  v_holes bigint[];
  v_recent_holes bigint[];
  v_post_ids bigint[];
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  if not pg_try_advisory_xact_lock(two_tower.numbering_lock()) then
    return 0;
  end if;
  v_slot := (select active_slot from two_tower.state);
  v_post_ids := array(select v.post_id from two_tower.live_embeddings v
    where v.slot = v_slot and v.number is null and v.is_listed
    order by v.created_at, v.post_id limit p_limit);
  if v_post_ids <> '{}' then
    return two_tower.give_numbers(v_post_ids,
      array(select nextval('two_tower.post_numbers') from unnest(v_post_ids)));
  end if;

  select min(v.number), max(v.number) into v_lowest, v_highest
  from two_tower.live_embeddings v where v.slot = v_slot;
  v_older := v_highest - (select recent_posts_pool from two_tower.settings);
  v_holes := two_tower.find_holes(greatest(v_lowest, v_highest - p_limit + 1), v_highest);
  if v_holes = '{}' and v_highest - v_lowest >= p_limit then
    -- An endless round, downwards, over the other numbers.
    select case when c.position between v_lowest and v_highest - p_limit then c.position
      else v_highest - p_limit end
    into v_position from two_tower.cursors c where c.name = 'numbering_round';
    v_holes := two_tower.find_holes(greatest(v_lowest, v_position - p_limit + 1), v_position);
    update two_tower.cursors set position = v_position - p_limit where name = 'numbering_round';
  end if;

  v_recent_holes := array(select h from unnest(v_holes) h where h > v_older order by h desc);
  v_post_ids := array(select v.post_id from two_tower.live_embeddings v
    where v.slot = v_slot and v.number <= v_older
    order by v.number desc limit cardinality(v_recent_holes));
  if v_post_ids = '{}' then
    v_recent_holes := v_holes;
    v_post_ids := array(
      select o.post_id
      from (
        select v.post_id, v.number, row_number() over (order by v.number) as place
        from two_tower.live_embeddings v where v.slot = v_slot
        order by v.number limit cardinality(v_holes)) o
      where o.number < v_holes[o.place] order by o.place);
  end if;
  return two_tower.give_numbers(v_post_ids, v_recent_holes);
end
$$;
comment on function two_tower.compact_numbers(integer) is
  'Keeps numbers of posts dense, in one bounded step. Gives numbers to at most p_limit restored posts. Where there are none, closes holes among the newest p_limit numbers or, if there is none, among the next p_limit of an endless round. Returns how many posts got a number. Returns 0 while another session gives new posts their numbers.';
