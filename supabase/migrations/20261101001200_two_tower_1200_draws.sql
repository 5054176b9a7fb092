-- The posts with which a positive event is compared.

create type two_tower.drawn_posts as (
  negative_ids bigint[], negative_embs extensions.halfvec[], viewed_count integer,
  pushed_ids bigint[], pushed_weights double precision[], are_untouched boolean[]
);
comment on type two_tower.drawn_posts is
  'Posts drawn for a lesson: the negatives of its pair, and the posts that it pushes away.';
comment on column two_tower.drawn_posts.viewed_count is 'How many of the first negatives the user viewed.';
comment on column two_tower.drawn_posts.pushed_weights is 'weigh_post() of each of pushed_ids.';
comment on column two_tower.drawn_posts.are_untouched is 'Whether each of pushed_ids is untouched. Such a post is compared with, and not pushed.';

create type two_tower.post_range as (
  slot smallint, lowest bigint, highest bigint, recent_places integer,
  popularity_total double precision
);
comment on type two_tower.post_range is 'A slot, the numbers between which its posts lie, the number of places of recent_posts, and the total of popularity.';

-- A popular post is engaged with more often than its vector explains, and the score says so
-- already. So the softmax knows it too, and vectors learn the rest. Cosines are at most 1, so
-- subtracting 1 keeps exp in range. Inlined, so it has no search_path. A like asks for some twenty
-- weights: without popularity it pays for no power.
create function two_tower.weigh_post(p_cosine double precision, p_popularity double precision,
  p_total double precision, p_temperature real, p_exponent real)
returns double precision language sql immutable parallel safe
return exp((p_cosine - 1) / p_temperature) * case when p_exponent = 0 then 1 else
  (least(1, two_tower.popularity_in_likes(p_popularity, p_total)) + 1e-4::double precision)
    ^ p_exponent end;
comment on function two_tower.weigh_post(double precision, double precision, double precision,
  real, real) is
  'Returns what a post weighs in the softmax of the contrastive rule: exp((cosine - 1) / temperature) * (share of all popularity + 0.0001)^exponent. p_exponent: settings.popularity_in_logits. While nothing is summed up (p_total is -infinity), all shares are 1.';

-- Random negatives come from the newest posts. An account that posts a lot would be all of them, so
-- each author has a share. An incoming post meets those that have their place already: what others
-- wrote stays among the recent ones, however much one writes.
create table two_tower.recent_posts (
  place integer primary key,
  number bigint not null
) with (fillfactor = 50);
comment on table two_tower.recent_posts is 'The posts that random negatives are drawn from: settings.recent_posts_pool of the newest, at most settings.account_share of them of one author while there are others. Ticks keep it.';
comment on column two_tower.recent_posts.place is 'From 1 without gaps, so that a random one is a draw.';
comment on column two_tower.recent_posts.number is 'The post: live_embeddings.number.';

create function two_tower.choose_recent_posts(p_slot smallint, p_since bigint,
  p_settings two_tower.settings)
returns bigint[] language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(array_agg(c.number order by c.number desc), '{}')
  from (
    select n.number
    from (
      select v.number, v.author_id is not null
          and row_number() over (partition by v.author_id order by v.number desc)
            > greatest(1, p_settings.account_share * p_settings.recent_posts_pool) as is_above
      from two_tower.live_embeddings v
      where v.slot = p_slot and v.number = any (array(
        (select w.number from two_tower.live_embeddings w
         where w.slot = p_slot and w.number > p_since order by w.number desc
         limit p_settings.recent_posts_pool + 5000)
        union
        select r.number from two_tower.recent_posts r))
    ) n
    order by n.is_above, n.number desc limit p_settings.recent_posts_pool
  ) c;
$$;
comment on function two_tower.choose_recent_posts(smallint, bigint, two_tower.settings) is
  'Returns which numbers belong into recent_posts, newest first. Looks at what is there, and at no more posts above the number p_since than settings.recent_posts_pool and 5,000. Posts without an author belong to no account, and have no share.';

create function two_tower.refresh_recent_posts() returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_slot smallint := (select active_slot from two_tower.state);
  v_settings two_tower.settings;
  v_since bigint := (select position from two_tower.cursors where name = 'recent_posts');
  v_highest bigint := (select max(v.number) from two_tower.live_embeddings v
    where v.slot = v_slot);
  v_is_full boolean;
  v_numbers bigint[];
  v_deleted integer;
  v_changed integer;
begin
  select * into v_settings from two_tower.settings;
  v_is_full := v_settings.recent_posts_pool = (select count(*) from two_tower.recent_posts);
  if v_is_full and v_highest = v_since then
    return 0;
  end if;
  v_numbers := two_tower.choose_recent_posts(v_slot, case when v_is_full then v_since else 0 end,
    v_settings);
  delete from two_tower.recent_posts r where r.place > cardinality(v_numbers);
  get diagnostics v_deleted = row_count;
  insert into two_tower.recent_posts as r (place, number)
  select n.place, n.number from unnest(v_numbers) with ordinality as n (number, place)
  on conflict (place) do update set number = excluded.number where r.number <> excluded.number;
  get diagnostics v_changed = row_count;
  update two_tower.cursors set position = v_highest
  where name = 'recent_posts' and position <> v_highest;
  return v_deleted + v_changed;
end
$$;
comment on function two_tower.refresh_recent_posts() is
  'Brings recent_posts up to date when posts have come. Returns how many places changed.';

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

-- A view arrives when it happened or later. So what happened in the window arrived after its start,
-- and the index on created_at serves. What was sent days late has a window in which much arrived:
-- the newest 1,000 events are read.
create function two_tower.find_viewed_posts(p_lesson two_tower.lesson,
  p_settings two_tower.settings)
returns bigint[] language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
  return array(
    select d.post_id from (
      select distinct l.post_id from (
        select r.post_id from (
          select e.id, e.post_id, e.event_type, e.happened_at, e.created_at
          from public.engagement_events e
          where e.user_id = p_lesson.user_id
            and e.created_at between p_lesson.happened_at - p_settings.viewed_negative_window
              and p_lesson.created_at
          order by e.created_at desc limit 1000) r
        where r.event_type = 'view' and r.id < p_lesson.event_id
          and coalesce(r.happened_at, r.created_at)
            between p_lesson.happened_at - p_settings.viewed_negative_window
              and p_lesson.happened_at
        order by r.created_at desc limit p_settings.negatives_per_positive * 3 / 2) l) d
    order by random());
end
$$;
comment on function two_tower.find_viewed_posts(two_tower.lesson, two_tower.settings) is
  'Returns the posts that the user viewed last within settings.viewed_negative_window before an event, in random order. Takes at most 3/2 settings.negatives_per_positive views, because some of the posts were engaged with.';

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
  v_places bigint[];
  v_recent bigint[];
  v_count integer;
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
    v_places := '{}';
    v_recent := '{}';
    if v_is_last then
      v_any := two_tower.draw_from_all(p_lesson.user_id, p_range.slot, p_excluded,
        2 * v_needed + cardinality(v_viewed));
    else
      -- One more than is needed, because now and then a number is passed over.
      v_tries := v_width * (v_needed + 1);
      v_count := case when v_negatives > 0 then v_tries - cardinality(v_viewed) else 0 end;
      if p_range.recent_places is null then -- no tick has been yet
        v_recent := two_tower.draw_numbers(v_lowest, p_range.highest, v_count);
      else
        v_places := two_tower.draw_numbers(1, p_range.recent_places, v_count);
      end if;
      v_any := two_tower.draw_numbers(p_range.lowest, p_range.highest,
        case when v_pushes > 0 or v_takes_any then v_tries else 0 end);
    end if;
    with recent as materialized (
      select v_recent || array(select r.number from two_tower.recent_posts r
                               where r.place = any (v_places)) as numbers
    ), tried as materialized (
      select v.post_id, v.author_id, v.embedding, v.popularity, v.is_pretrained,
        false as is_viewed,
        (v_takes_any or v.number = any ((select numbers from recent)::bigint[]))
          and v.post_id <> all (v_viewed) as is_recent,
        v.number = any (v_any) as is_any
      from two_tower.live_embeddings v
      where v.slot = p_range.slot and v.number = any ((select numbers from recent) || v_any)
      union all
      select v.post_id, v.author_id, v.embedding, v.popularity, v.is_pretrained, true, false, false
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
      (array_agg(two_tower.weigh_post(-(d.embedding operator(extensions.<#>) p_user),
        d.popularity, p_range.popularity_total, p_settings.temperature,
        p_settings.popularity_in_logits)) filter (where d.is_any))[:v_pushes],
      (array_agg(d.is_pretrained) filter (where d.is_any))[:v_pushes]
    into v_drawn.negative_ids, v_drawn.negative_embs, v_drawn.viewed_count, v_drawn.pushed_ids,
      v_drawn.pushed_weights, v_drawn.are_untouched
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
  p_drawn two_tower.drawn_posts, p_settings two_tower.settings, p_total double precision,
  p_user extensions.vector, p_post_ids bigint[], p_posts two_tower.live_embeddings[]
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
      p_drawn.pushed_weights[v_place] := two_tower.weigh_post(
        -((p_posts[v_index]).embedding operator(extensions.<#>) p_user),
        (p_posts[v_index]).popularity, p_total, p_settings.temperature,
        p_settings.popularity_in_logits);
      p_drawn.are_untouched[v_place] := (p_posts[v_index]).is_pretrained;
    end if;
  end loop;
  return p_drawn;
end
$$;
comment on function two_tower.refresh_drawn_posts(two_tower.drawn_posts, two_tower.settings, double precision, extensions.vector, bigint[], two_tower.live_embeddings[]) is
  'Returns the drawn posts as they stand within the statement, which has moved some of them itself. p_post_ids is sorted.';
