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
    where v.number between p_lowest and p_highest
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
    where v.post_id = any (p_post_ids)
    order by v.post_id, v.slot <> s.active_slot for no key update of v skip locked
  )
  select array_agg(h.post_id) into v_held
  from (select post_id, count(*) as rows from held group by post_id) h
  where h.rows = (select count(*) from two_tower.live_embeddings v
    where v.post_id = h.post_id);
  -- A statement of its own: it sees the rows as they are now that they are held.
  with given as (
    update two_tower.live_embeddings v set number = n.number
    from unnest(p_post_ids, p_numbers) as n (post_id, number)
    where v.post_id = n.post_id and v.post_id = any (v_held)
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
