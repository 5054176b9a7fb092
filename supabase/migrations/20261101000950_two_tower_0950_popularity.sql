-- Popularity: what the last engagements with a post are worth, in likes.
--
-- It decays by a clock of the engine, which counts half-lives. An engagement adds
-- likes * 2^clock, so old ones never have to shrink, and the order of posts needs no refresh. Few
-- engagements say something only if they are counted over a long time. So ticks set the half-life
-- to what the app's own traffic needs, and the clock goes on from where it stands: what was added
-- before keeps its worth. Each engagement's reading is kept with it, since a withdrawal takes back
-- what was added then.
--
-- Sums are kept as log2. Plain ones would leave the range of a double after a thousand half-lives.

create function two_tower.read_popularity_clock(p_at timestamptz, p_state two_tower.state)
returns double precision language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return p_state.popularity_clock
    + extract(epoch from p_at - p_state.popularity_clock_at)::double precision
      / extract(epoch from p_state.popularity_half_life)::double precision;
end
$$;
comment on function two_tower.read_popularity_clock(timestamptz, two_tower.state) is
  'Returns what the popularity clock reads at a time, in half-lives. It is also the popularity of one like of that time.';

create function two_tower.compute_popularity(p_likes real, p_clock double precision)
returns double precision language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return case when p_likes > 0
    then ln(p_likes::double precision) / ln(2::double precision) + p_clock else '-infinity' end;
end
$$;
comment on function two_tower.compute_popularity(real, double precision) is
  'Returns log2 of what likes add to a post''s popularity: log2(likes) + clock. p_clock: read_popularity_clock() of their time. Returns -infinity for none.';

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

-- Inlined, so it has no search_path. The power of -1000 stands for nothing: a double has no less.
create function two_tower.popularity_in_likes(p_popularity double precision,
  p_of_one_like double precision)
returns double precision language sql immutable parallel safe
return 2 ^ greatest(-1000, least(1000, p_popularity - p_of_one_like));
comment on function two_tower.popularity_in_likes(double precision, double precision) is
  'Returns a popularity in likes of a time. p_of_one_like: read_popularity_clock() of that time.';

-- The longest time that holds fewer than three. Where even the oldest event is within it, the time
-- that there is stands for the time that it takes.
create function two_tower.measure_half_life(p_now timestamptz, out days double precision,
  out newest_at timestamptz)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with newest as materialized (
    select e.user_id, e.post_id, e.event_type, e.dwell_ms, e.created_at
    from public.engagement_events e order by e.id desc limit 100000
  ), engaged as (
    select n.post_id, max(n.created_at) as at
    from newest n
      join two_tower.signals g on g.event_type = n.event_type and g.strength > 0
      cross join two_tower.settings s
    where n.event_type <> 'dwell' or n.dwell_ms > s.long_dwell_ms
    group by n.user_id, n.post_id
  ), placed as (
    select e.at, row_number() over (order by e.at desc, e.post_id) as positives,
      row_number() over (partition by e.post_id order by e.at desc) = 1 as is_of_new_post
    from engaged e
  ), counted as (
    select p.at, p.positives, max(p.at) over () as newest_at,
      count(*) filter (where p.is_of_new_post) over (order by p.positives) as posts
    from placed p
  )
  select extract(epoch from p_now - c.at) / 86400 * 3 * c.posts / c.positives, c.newest_at
  from counted c where c.positives < 3 * c.posts order by c.positives desc limit 1;
$$;
comment on function two_tower.measure_half_life(timestamptz) is
  'Returns in how many days 3 readers come for each post that is engaged with in them, and when the newest did. Reads the newest 100,000 events. Nulls without any.';

create function two_tower.sum_popularity(p_slot smallint, p_clock double precision)
returns double precision language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(ln(sum(two_tower.popularity_in_likes(v.popularity, p_clock)))
    / ln(2::double precision) + p_clock, '-infinity')
  from two_tower.live_embeddings v where v.slot = p_slot and v.popularity > '-infinity';
$$;
comment on function two_tower.sum_popularity(smallint, double precision) is
  'Returns log2 of the sum of 2^popularity over all posts, -infinity without any. p_clock: a reading of the clock near those of the newest events.';

-- Popularity is chance where a half-life holds few engagements, and old where it holds many. While
-- nobody engages, the clock is left alone: an idle night says nothing. A total of some minutes ago
-- will do for shares of it: kept by each like, it would be a row that all likes wait for. It reads
-- all live embeddings, so nothing is summed up that no softmax asks for.
create function two_tower.set_popularity_clock() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_state two_tower.state;
  v_new two_tower.state;
  v_now timestamptz := two_tower.now();
  v_days double precision;
  v_newest_at timestamptz;
  v_most double precision;
begin
  select * into v_state from two_tower.state;
  v_new := v_state;
  v_new.popularity_total := case when (select s.popularity_in_logits > 0 from two_tower.settings s)
    then two_tower.sum_popularity(v_state.active_slot,
      two_tower.read_popularity_clock(v_now, v_state))
    else '-infinity' end;
  select m.days, m.newest_at into v_days, v_newest_at from two_tower.measure_half_life(v_now) m;
  if v_newest_at > v_state.popularity_clock_at and v_now > v_state.popularity_clock_at then
    v_most := 2 ^ least(1, extract(epoch from v_now - v_state.popularity_clock_at) / 86400);
    v_new.popularity_half_life := greatest('1 day', v_state.popularity_half_life / v_most,
      least('1096 days', v_state.popularity_half_life * v_most, v_days * interval '1 day'));
    v_new.popularity_clock := two_tower.read_popularity_clock(v_now, v_state);
    v_new.popularity_clock_at := v_now;
  end if;
  if v_new is distinct from v_state then
    update two_tower.state set popularity_total = v_new.popularity_total,
      popularity_half_life = v_new.popularity_half_life,
      popularity_clock = v_new.popularity_clock, popularity_clock_at = v_new.popularity_clock_at
    where id;
  end if;
end
$$;
comment on function two_tower.set_popularity_clock() is
  'Sets state.popularity_half_life to measure_half_life(): from 1 day to 3 years, and at most twice or half of what it was a day before. The clock goes on from where it stands. Sets state.popularity_total, which reads all live embeddings, if settings.popularity_in_logits is above 0.';
