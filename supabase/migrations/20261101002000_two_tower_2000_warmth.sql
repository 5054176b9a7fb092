-- How warm a reader is: how far a page has gone from popular to personal. Warmth grows with a
-- reader's engagements, by a curve. The curve follows from how well popularity and the reader's
-- vector predicted what other new readers engaged with here (warmth_evidence.sql), or an operator
-- pins it (settings.cold_until).

-- Warmth is the root of the share: the first engagements say most, and there is no cliff. Without
-- engagements a vector comes from what the reader told: it counts for a tenth.
create function two_tower.compute_warmth(p_engagements integer, p_cold_until integer)
returns double precision language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return case when p_cold_until = 0 then 1 else
    sqrt(least(1, greatest(0.1, p_engagements / p_cold_until::double precision))) end;
end
$$;
comment on function two_tower.compute_warmth(integer, integer) is
  'Returns the warmth of a reader after p_engagements where 1 is reached with p_cold_until: the root of their ratio. Returns 1 where p_cold_until is 0.';

create function two_tower.read_warmth(p_engagements integer, p_settings two_tower.settings,
  p_state two_tower.state)
returns double precision language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return case when p_settings.cold_until is null and p_state.warmth is not null
    then p_state.warmth[1 + least(p_engagements, 20)]
    else two_tower.compute_warmth(p_engagements,
      coalesce(p_settings.cold_until, p_settings.cold_until_prior)) end;
end
$$;
comment on function two_tower.read_warmth(integer, two_tower.settings, two_tower.state) is
  'Returns the warmth, 0 to 1, of a reader of whom something is known, after p_engagements: by settings.cold_until where that is set, else by state.warmth.';

create table two_tower.warmth_evidence (
  engagements integer primary key
    constraint engagements_are_of_a_new_reader check (engagements between 0 and 20),
  trials double precision not null default 0,
  wins double precision[] not null default array_fill(0::double precision, '{11}')
    constraint there_are_wins_of_each_tenth check (cardinality(wins) = 11),
  counted_at timestamptz not null default 'epoch'
);
comment on table two_tower.warmth_evidence is 'How well each warmth predicted what readers engaged with, by how many engagements they had before: learn_warmth(). Sums, of which nothing tells a reader.';
comment on column two_tower.warmth_evidence.engagements is 'Engagements of the reader before. 20: of 20 and more.';
comment on column two_tower.warmth_evidence.trials is 'Positives, each weighing what its account does (weigh_account()). They halve by settings.warmth_half_life.';
comment on column two_tower.warmth_evidence.wins is 'For warmth 0, .1 ... 1: the sum over the trials of the share of compared posts that score lower than the positive at this warmth. A tie is half a win.';
comment on column two_tower.warmth_evidence.counted_at is 'When trials were added last, and the sums of before halved by what had passed.';
insert into two_tower.warmth_evidence (engagements) select generate_series(0, 20);
analyze two_tower.warmth_evidence;

-- The prior is worth trials in which each tenth of warmth that lies away from it wins one in a
-- hundred less. From 20 engagements on a reader is warm whatever the evidence says: what popularity
-- weighs then is settings.popularity_weight. The slowest curve leads there without a cliff. What
-- falls with more engagements is chance: the rising curve that is nearest has the mean of it
-- (isotonic regression by its min-max formula).
create function two_tower.fit_warmth() returns double precision[]
language sql stable set search_path = pg_catalog, pg_temp as $$
  with best as materialized (
    select e.engagements, s.cold_until_prior_trials + e.trials as weight,
      greatest(sqrt(e.engagements / 20.0::double precision), case when e.trials = 0 then p.warmth
        else (
          select (w.place - 1) / 10.0::double precision
          from unnest(e.wins) with ordinality as w (wins, place)
          order by w.wins - s.cold_until_prior_trials * 0.1
            * abs((w.place - 1) / 10.0::double precision - p.warmth) desc limit 1) end) as warmth
    from two_tower.warmth_evidence e
      cross join two_tower.settings s
      cross join lateral (
        select two_tower.compute_warmth(e.engagements, s.cold_until_prior) as warmth) p
  ), mean as materialized (
    select f.engagements as first, l.engagements as last,
      sum(b.weight * b.warmth) / sum(b.weight) as warmth
    from best f
      join best l on l.engagements >= f.engagements
      join best b on b.engagements between f.engagements and l.engagements
    group by f.engagements, l.engagements
  )
  select array_agg(least(1, n.warmth) order by n.engagements)
  from (
    select b.engagements, (
      select max(m.warmth) from (
        select min(m.warmth) as warmth from mean m
        where m.first <= b.engagements and m.last >= b.engagements group by m.first) m) as warmth
    from best b
  ) n;
$$;
comment on function two_tower.fit_warmth() is
  'Returns the warmth of readers after 0 to 20 engagements: the one that won most, as far as evidence outweighs the prior (settings.cold_until_prior, cold_until_prior_trials). It never falls, is at least that of a cold_until of 20, and ends with 1.';

create view two_tower.warmth with (security_invoker = true) as
select
  e.engagements, e.trials, round((100 * e.wins[11] / nullif(e.trials, 0))::numeric, 1) as personal,
  round((100 * e.wins[1] / nullif(e.trials, 0))::numeric, 1) as popular,
  two_tower.read_warmth(e.engagements, s, t) as warmth
from two_tower.warmth_evidence as e
cross join two_tower.settings as s
cross join two_tower.state as t;
comment on view two_tower.warmth is 'How a page goes from popular to personal, by engagements of its reader, and by what evidence.';
comment on column two_tower.warmth.engagements is 'Engagements of the reader. 20: 20 and more.';
comment on column two_tower.warmth.trials is 'Positives of such readers that were looked at, by weight of their accounts.';
comment on column two_tower.warmth.personal is 'In how many of 100 comparisons the page of a warm reader ranked the positive above another post.';
comment on column two_tower.warmth.popular is 'In how many of 100 comparisons popularity did.';
comment on column two_tower.warmth.warmth is 'What the reader vector weighs in the score. Popularity has the rest, and settings.popularity_weight.';
