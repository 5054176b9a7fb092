-- What keeps the serving index and the exploration pool fresh, in small steps of tick().

create function two_tower.count_cold_start(p_impressions integer, p_engagements integer)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  insert into two_tower.cold_start_counts as c (hour, impressions, engagements)
  values (date_trunc('hour', two_tower.now(), 'UTC'), p_impressions, p_engagements)
  on conflict (hour) do update set impressions = c.impressions + excluded.impressions,
    engagements = c.engagements + excluded.engagements;
  delete from two_tower.cold_start_counts c
  where c.hour < two_tower.now() - interval '2 days';
end
$$;
comment on function two_tower.count_cold_start(integer, integer) is 'Adds to the counts of this hour.';

create function two_tower.cold_start_ctr() returns double precision
language sql stable set search_path = pg_catalog, pg_temp as $$
  select case when sum(c.impressions) >= 1000
    then sum(c.engagements) / sum(c.impressions)::double precision end
  from two_tower.cold_start_counts c where c.hour > two_tower.now() - interval '1 day';
$$;
comment on function two_tower.cold_start_ctr() is 'Returns the click-through rate of new posts over the last day: how many of those who viewed a post of the exploration pool engaged with it. Null below 1,000 views.';

-- The cursor overtakes events that commit late, and jumps when it is far behind. That costs an
-- impression, or a refresh for which the round makes up.
create function two_tower.follow_events(p_limit integer default 5000) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_newest bigint := (select max(id) from public.engagement_events);
  v_last bigint;
  v_engaged bigint[];
  v_liked bigint[];
  v_shown bigint[];
  v_times integer[];
  v_cold_shown integer;
  v_cold_engaged integer;
begin
  select greatest(position, v_newest - 20 * p_limit) into v_last
  from two_tower.cursors where name = 'followed_events';
  with next as materialized (
    select e.id, e.user_id, e.post_id, e.created_at,
      case when e.event_type <> 'dwell' or e.dwell_ms > c.long_dwell_ms then s.strength
        when e.dwell_ms < c.short_dwell_ms then -1 else 0 end as strength
    from (select id, user_id, post_id, event_type, dwell_ms, created_at
          from public.engagement_events
          where id > v_last order by id limit p_limit) e
      join two_tower.signals s using (event_type) cross join two_tower.settings c
  ), shown as (
    select n.post_id, count(distinct n.user_id)::integer as times
    from next n join two_tower.exploration_pool p using (post_id)
      join two_tower.posts r on r.id = n.post_id and r.author_id is distinct from n.user_id
    where n.strength = 0
      -- A reader counts once: in a step that reaches from before the first time to after it.
      and not exists (select from two_tower.user_posts u
        where u.user_id = n.user_id and u.post_id = n.post_id and u.first_seen_at < n.created_at)
    group by n.post_id
  ), cold as (
    select bool_or(n.strength = 0) as is_shown, bool_or(n.strength > 0) as is_engaged
    from next n join two_tower.exploration_pool p using (post_id)
      join two_tower.posts r on r.id = n.post_id and r.author_id is distinct from n.user_id
    group by n.user_id, n.post_id
  )
  select (select max(id) from next),
    (select array_agg(distinct post_id) from next where strength <> 0),
    (select array_agg(distinct n.post_id) from next n join two_tower.posts p on p.id = n.post_id
     where n.strength > 0 and p.author_id is distinct from n.user_id),
    (select array_agg(post_id) from shown), (select array_agg(times) from shown),
    (select count(*) from cold c where c.is_shown),
    (select count(*) from cold c where c.is_engaged)
  into v_last, v_engaged, v_liked, v_shown, v_times, v_cold_shown, v_cold_engaged;
  if v_last is null then
    return 0;
  end if;
  update two_tower.exploration_pool p set impressions = p.impressions + n.times
  from unnest(v_shown, v_times) as n (post_id, times) where p.post_id = n.post_id;
  delete from two_tower.exploration_pool p using two_tower.settings s
  where p.post_id = any (v_liked)
    or (p.post_id = any (v_shown) and p.impressions >= s.exploration_impressions);
  if v_cold_shown + v_cold_engaged > 0 then
    perform two_tower.count_cold_start(v_cold_shown, v_cold_engaged);
  end if;
  update two_tower.cursors set position = v_last where name = 'followed_events';
  perform two_tower.refresh_likeness(v_engaged[1:500]);
  return two_tower.copy_to_serving_index(v_engaged[1:500]);
end
$$;
comment on function two_tower.follow_events(integer) is
  'Looks at the next p_limit events. Counts impressions of explored posts, and who engaged with them, and refreshes the copies of at most 500 posts that were engaged with. Returns how many copies it wrote.';

create function two_tower.refresh_serving_index(p_limit integer default 500) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_slot smallint := (select active_slot from two_tower.state);
  v_post_ids bigint[];
  v_written integer;
begin
  v_written := two_tower.follow_events();
  select array_agg(v.post_id) into v_post_ids from (
    select post_id from two_tower.live_embeddings
    where slot = v_slot
      and post_id > (select position from two_tower.cursors where name = 'serving_round')
    order by post_id limit p_limit) v;
  update two_tower.cursors set position = coalesce(v_post_ids[cardinality(v_post_ids)],
    two_tower.first_bigint())
  where name = 'serving_round';
  delete from two_tower.exploration_pool p using two_tower.live_embeddings v
  where p.post_id = any (v_post_ids) and v.slot = v_slot and v.post_id = p.post_id
    and (not v.is_listed or p.created_at < two_tower.now()
      - (select exploration_age from two_tower.settings));
  v_written := v_written + two_tower.copy_to_serving_index(v_post_ids);
  if v_written > 0 then
    update two_tower.serving_builds set replaced = replaced + v_written
    where id = (select max(id) from two_tower.serving_builds);
  end if;
  return v_written;
end
$$;
comment on function two_tower.refresh_serving_index(integer) is
  'Keeps the index fresh, in one bounded step: posts of the newest events, then the next p_limit posts of an endless round. Takes posts of the round that are deleted or no longer new out of the exploration pool. Returns how many copies it wrote.';

create function two_tower.check_serving_index(p_sample integer default 30)
returns double precision
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_build two_tower.serving_builds;
  v_slot smallint := (select active_slot from two_tower.state);
  v_over_fetch integer := (select over_fetch from two_tower.settings);
  v_ef_search integer := (select ef_search from two_tower.settings);
  v_percent real := (select least(100, 100 * 50.0 * p_sample / greatest(1, c.reltuples))
    from pg_catalog.pg_class c where c.oid = 'two_tower.user_embeddings'::regclass);
  v_recall double precision;
  v_short double precision;
begin
  if (select serving_side is null from two_tower.state) then
    return null;
  end if;
  with sample as materialized (
    select u.user_id, two_tower.encode_user(u.user_id) as vector,
      v_ef_search * two_tower.count_interests(u.positive_interests) as breadth
    from (
      select user_id, positive_interests
      from two_tower.user_embeddings tablesample system (v_percent)
      where engagement_count > 0 order by random() limit p_sample) u
  )
  select avg((select count(*) from unnest(f.exact) e where e = any (f.near))
      / greatest(1, cardinality(f.exact))::double precision),
    avg(((
      select count(*) from unnest(f.unseen) as c (post_id)
        join two_tower.live_embeddings v on v.slot = v_slot and v.post_id = c.post_id
      where v.is_listed and two_tower.is_eligible(f.user_id, v.post_id, v.author_id)
    ) < 50)::integer)
  into v_recall, v_short
  from (
    select s.user_id, two_tower.find_nearest_posts(s.vector, v_over_fetch,
        p_breadth => s.breadth) as near,
      two_tower.find_nearest_posts(s.vector, v_over_fetch, s.user_id,
        p_breadth => s.breadth) as unseen,
      array(select v.post_id from two_tower.live_embeddings v
            where v.slot = v_slot and v.is_listed
            order by v.embedding operator(extensions.<#>) s.vector limit 50) as exact
    from sample s where s.vector is not null
  ) f;

  update two_tower.serving_builds set recall = v_recall, short_share = v_short,
    checked_at = two_tower.now(), recall_when_built = coalesce(recall_when_built, v_recall)
  where id = (select max(id) from two_tower.serving_builds) returning * into v_build;
  if exists (select from two_tower.settings s
             where v_build.recall < v_build.recall_when_built - s.serving_recall_tolerance
               or v_build.replaced > s.serving_rebuild_share * v_build.posts) then
    perform two_tower.enqueue_job('build_serving_index');
  end if;
  return v_recall;
end
$$;
comment on function two_tower.check_serving_index(integer) is
  'Samples p_sample users, and compares what the index proposes with the true nearest 50. Asks for a build when the index is worn: see settings.serving_recall_tolerance and settings.serving_rebuild_share. Returns the recall, or null where there is no index. Definer: workers have no grant on tables.';
