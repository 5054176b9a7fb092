-- What new readers engage with tells how warm new readers should be served. A tick looks at the
-- newest positives of all readers, so that no like pays for it. Each positive is compared with the
-- posts that the reader was shown and left alone (or, without views, with the random negatives):
-- by the score of a page, at each tenth of warmth. What was shown was chosen by some warmth, and
-- so is what was left alone. Random posts alone would say that whatever chose the page was right.
--
-- Vectors are those before the engagement. Popularity is that of now, less what the reader added.
-- So only positives of the last hour count: an import knows the future.
--
-- Nobody can weigh more than once at a number of engagements. It counts all that the account was
-- learned from, also what was withdrawn, or before it began anew: so no account passes it twice.

create function two_tower.find_new_positives(p_after bigint, p_limit integer)
returns setof two_tower.training_examples
language sql stable set search_path = pg_catalog, pg_temp as $$
  select x.*
  from (
    select e.id, e.user_id, e.post_id, e.event_type, e.created_at
    from public.engagement_events e where e.id > p_after order by e.id desc limit 10 * p_limit
  ) e
    join two_tower.signals g on g.event_type = e.event_type and (g.label or e.event_type = 'dwell')
    join two_tower.training_examples x on x.user_id = e.user_id and x.post_id = e.post_id
      and x.event_id = e.id and x.created_at = e.created_at
  where x.label and not x.is_withdrawn and x.created_at > two_tower.now() - interval '1 hour'
    and not exists (
      select from two_tower.training_examples y
      where y.user_id = x.user_id and y.post_id = x.post_id and y.event_id < x.event_id and y.label)
  order by x.event_id desc limit p_limit;
$$;
comment on function two_tower.find_new_positives(bigint, integer) is
  'Returns the newest p_limit positives after an event that are the reader''s first of their post, and of the last hour. Looks at the newest 10 * p_limit events.';

-- A reader may have clicked the post first, and the vectors know of it: those from before the first
-- event about the post count. 200 examples of an account are enough to tell that it is not new.
create function two_tower.compare_positives(p_positives two_tower.training_examples[])
returns table (event_id bigint, engagements integer, weight real, warmth double precision,
  win_share double precision)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with page as materialized (
    select r.*, s.active_slot
    from two_tower.load_reader(null) r cross join two_tower.state s
  ), positive as materialized (
    select x.event_id, x.user_id, x.post_id, x.created_at, x.viewed_negative_count,
      x.negative_ids, x.negative_embs, f.first_id, f.user_emb, f.post_emb, f.likes
    from unnest(p_positives) x
      cross join page p
      cross join lateral (
        select min(y.event_id) as first_id,
          (array_agg(y.user_emb order by y.event_id))[1]::extensions.vector as user_emb,
          (array_agg(y.post_emb order by y.event_id))[1]::extensions.vector as post_emb,
          coalesce(sum(y.popularity
              * two_tower.popularity_in_likes(y.popularity_clock, p.popularity_unit))
            filter (where not y.is_withdrawn), 0) as likes
        from two_tower.training_examples y
        where y.user_id = x.user_id and y.post_id = x.post_id) f
  ), post as materialized (
    select o.event_id, o.is_positive,
      -(o.embedding operator(extensions.<#>) o.user_emb) as cosine,
      ln(1 + greatest(0, two_tower.popularity_in_likes(v.popularity, p.popularity_unit) - o.likes))
        / p.popularity_scale as popular,
      2 ^ -least(1000, greatest(0, extract(epoch from o.created_at - v.created_at)::float8)
                       / p.recency_half_life) as fresh
    from (
      select x.event_id, x.user_id, x.created_at, x.user_emb, x.post_id, x.post_emb as embedding,
        x.likes, true as is_positive
      from positive x
      union all
      select x.event_id, x.user_id, x.created_at, x.user_emb, n.post_id,
        n.embedding::extensions.vector, 0, false
      from positive x
        cross join lateral unnest(x.negative_ids, x.negative_embs) with ordinality
          as n (post_id, embedding, place)
      where n.place <= x.viewed_negative_count or x.viewed_negative_count = 0
    ) o
      cross join page p
      join two_tower.live_embeddings v on v.slot = p.active_slot and v.post_id = o.post_id
    where extensions.vector_norm(o.user_emb) > 0 and (o.is_positive or not exists (
      select from two_tower.user_posts u
      where u.user_id = o.user_id and u.post_id = o.post_id and u.is_engaged))
  ), trial as (
    select l.event_id, g.tenths / 10.0::double precision as warmth,
      avg((1 + sign(g.tenths / 10.0 * (l.cosine - n.cosine)
        + (1 - g.tenths / 10.0 + p.popularity_weight) * (l.popular - n.popular)
        + p.recency_weight * (l.fresh - n.fresh))) / 2) as win_share
    from post l
      join post n on n.event_id = l.event_id and not n.is_positive
      cross join page p
      cross join generate_series(0, 10) as g (tenths)
    where l.is_positive
    group by l.event_id, g.tenths
  )
  select t.event_id,
    case when h.examples = 200 then 20
      else least(20, greatest(h.before, u.engagement_count - h.since)) end::integer,
    two_tower.weigh_account(u.active_days, s.account_weight_days), t.warmth, t.win_share
  from trial t
    join positive x on x.event_id = t.event_id
    join two_tower.user_embeddings u on u.user_id = x.user_id
    cross join two_tower.settings s
    cross join lateral (
      select count(*) as examples, count(*) filter (where y.event_id < x.first_id) as before,
        count(*) filter (where y.event_id >= x.first_id and not y.is_withdrawn) as since
      from (select y.event_id, y.is_withdrawn from two_tower.training_examples y
            where y.user_id = x.user_id limit 200) y) h;
$$;
comment on function two_tower.compare_positives(two_tower.training_examples[]) is
  'Returns for each positive, and warmth 0, .1 ... 1, in which share of comparisons it scores higher than another post (score_posts(), but for followed). A tie is half a win. engagements: of the reader before, at most 20. weight: of the account. Leaves out positives of readers of whom nothing was known, and those that have nothing to be compared with.';

create function two_tower.learn_warmth() returns integer
language plpgsql set search_path = pg_catalog, pg_temp set enable_seqscan = off set jit = off as $$
declare
  v_now timestamptz := two_tower.now();
  v_last bigint := (select max(e.id) from public.engagement_events e);
  v_positives two_tower.training_examples[];
  v_curve double precision[];
begin
  v_positives := array(
    select x from two_tower.cursors c
      cross join lateral two_tower.find_new_positives(c.position, 500) x
    where c.name = 'warmth');
  update two_tower.cursors set position = v_last where name = 'warmth' and position < v_last;
  if v_positives <> '{}' then
    with trial as materialized (
      select * from two_tower.compare_positives(v_positives)
    ), counted as (
      select c.engagements, max(c.trials) as trials, array_agg(c.wins order by c.warmth) as wins
      from (
        select t.engagements, t.warmth, sum(t.weight) as trials, sum(t.weight * t.win_share) as wins
        from trial t group by t.engagements, t.warmth) c
      group by c.engagements
    )
    update two_tower.warmth_evidence e set
      counted_at = v_now,
      trials = e.trials * k.kept + coalesce(n.trials, 0),
      wins = array(
        select w.wins * k.kept + coalesce(n.wins[w.place], 0)
        from unnest(e.wins) with ordinality as w (wins, place) order by w.place)
    from two_tower.warmth_evidence o
      cross join two_tower.settings s
      cross join lateral (
        select 2 ^ -least(1000, greatest(0, extract(epoch from v_now - o.counted_at)::float8)
          / extract(epoch from s.warmth_half_life)::float8) as kept) k
      left join counted n on n.engagements = o.engagements
    where e.engagements = o.engagements;
  end if;
  v_curve := two_tower.fit_warmth();
  update two_tower.state set warmth = v_curve where id and warmth is distinct from v_curve;
  return cardinality(v_positives);
end
$$;
comment on function two_tower.learn_warmth() is
  'Adds the newest 500 positives since its last call to warmth_evidence, and sets state.warmth (fit_warmth()). Returns how many positives it looked at.';
