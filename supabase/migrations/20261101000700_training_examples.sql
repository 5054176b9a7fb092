-- Training data. A positive and its negatives share a user, a moment and a user vector, so they are
-- stored as one wide row; training_pairs shows them as the pairs that they are. Partitioned by week
-- and dropped by age.

create table two_tower.training_examples (
  event_id bigint not null,
  user_id uuid not null,
  post_id bigint not null,
  event_type text not null,
  label boolean not null,
  user_emb extensions.halfvec(128) not null,
  post_emb extensions.halfvec(128) not null,
  step real not null,
  negative_ids bigint[] not null default '{}',
  negative_embs extensions.halfvec[] not null default '{}',
  viewed_negatives smallint not null default 0,
  created_at timestamptz not null,
  is_withdrawn boolean not null default false,
  primary key (user_id, post_id, event_id, created_at),
  constraint negatives_have_embeddings
    check (cardinality(negative_ids) = cardinality(negative_embs)),
  constraint only_a_positive_has_negatives check (label or cardinality(negative_ids) = 0)
) partition by range (created_at);
comment on table two_tower.training_examples is
  'One row per labelled event: both vectors as they stood before it, and the negatives drawn for it. Read it as training_pairs.';
comment on column two_tower.training_examples.step is 'Factor of user_emb that was added to the post: what a withdrawal takes back.';
comment on column two_tower.training_examples.viewed_negatives is 'So many of the first negatives were viewed and not engaged with; the others are random recent posts.';
select two_tower.partition_by_time('two_tower.training_examples', '7 days',
  'training_examples_kept_for');

create view two_tower.training_pairs with (security_invoker = true) as
select
  x.event_id, x.user_id, x.post_id, x.user_emb, x.post_emb, x.label,
  case when x.label then 'event' else 'explicit' end as source,
  x.event_type, x.created_at
from two_tower.training_examples as x
join two_tower.signals as s on s.event_type = x.event_type
where exists (
  select from two_tower.user_posts as u
  where u.user_id = x.user_id and u.post_id = x.post_id and u.signals & s.bit <> 0
) and not x.is_withdrawn
union all
select
  x.event_id, x.user_id, n.post_id, x.user_emb, n.post_emb, false as label,
  case when n.place <= x.viewed_negatives then 'viewed' else 'random' end as source,
  x.event_type, x.created_at
from two_tower.training_examples as x
join two_tower.signals as s on s.event_type = x.event_type
cross join lateral unnest(x.negative_ids, x.negative_embs) with ordinality as n (post_id, post_emb,
  place)
where exists (
  select from two_tower.user_posts as u
  where u.user_id = x.user_id and u.post_id = x.post_id and u.signals & s.bit <> 0
) and not x.is_withdrawn and not exists (
  select from two_tower.user_posts as u
  where u.user_id = x.user_id and u.post_id = n.post_id and u.is_engaged
);
comment on view two_tower.training_pairs is
  'The pairs to train on: label true for a positive event; label false with source viewed or random (drawn for a positive) or explicit (a negative event). A withdrawn signal, and a negative that the user engaged with since, are not in it.';

-- Pushes on negatives wait here, one row per positive, so that no like waits for the rows of other
-- posts. The transaction that applies a row deletes it: applied exactly once, whatever happens.
create table two_tower.deferred_pushes (
  id bigint generated always as identity primary key,
  epoch integer not null,
  user_vector extensions.vector(128) not null,
  post_ids bigint[] not null,
  factors real[] not null,
  created_at timestamptz not null,
  constraint pushes_have_factors check (cardinality(post_ids) = cardinality(factors))
);
comment on table two_tower.deferred_pushes is 'Pushes on negatives that wait to be folded into live vectors: p = norm(p - factor * user_vector).';
comment on column two_tower.deferred_pushes.epoch is 'state.epoch when it was made: void when a rollback has raised it since.';

create function two_tower.push_away(
  p_start extensions.vector, p_factors real[], p_directions extensions.vector[]
) returns extensions.vector language plpgsql immutable set search_path = '' as $$
declare
  v_moved extensions.vector;
begin
  for v_place in 1..cardinality(p_factors) loop
    v_moved := p_start operator(extensions.-)
      (array_fill(p_factors[v_place], array[128])::extensions.vector
       operator(extensions.*) p_directions[v_place]);
    if extensions.vector_norm(v_moved) > 1e-6 then
      p_start := extensions.l2_normalize(v_moved);
    end if;
  end loop;
  return p_start;
end
$$;
comment on function two_tower.push_away(extensions.vector, real[], extensions.vector[]) is
  'p = norm(p - factor * direction), for each in turn. A push that would leave no direction changes nothing.';

create function two_tower.fold_pushes(p_limit integer default 500) returns integer
language plpgsql set search_path = '' as $$
declare
  v_slots smallint[];
  v_folded integer;
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  select case when filling_version is null then array[active_slot]
              else array[active_slot, 1 - active_slot] end into v_slots
    from two_tower.state;
  with taken as (
    select id from two_tower.deferred_pushes order by id limit p_limit for update skip locked
  ), pushes as (
    delete from two_tower.deferred_pushes d using taken t where d.id = t.id
    returning d.*
  ), parts as materialized (
    select d.id, n.post_id, n.factor, d.user_vector
    from pushes d join two_tower.state s on s.epoch = d.epoch
      cross join lateral unnest(d.post_ids, d.factors) as n (post_id, factor)
  ), locked as materialized (
    select v.slot, v.post_id, v.embedding from two_tower.live_embeddings v
    where v.slot = any (v_slots) and v.post_id in (select post_id from parts)
    order by v.post_id, array_position(v_slots, v.slot) for no key update
  ), moved as (
    select l.slot, l.post_id, two_tower.push_away(
             l.embedding, array_agg(p.factor order by p.id), array_agg(p.user_vector order by p.id)
           ) as embedding
    from locked l join parts p on p.post_id = l.post_id
    group by l.slot, l.post_id, l.embedding
  ), written as (
    update two_tower.live_embeddings v set embedding = m.embedding
    from moved m where v.slot = m.slot and v.post_id = m.post_id
  )
  select count(*) into v_folded from pushes;
  return v_folded;
end
$$;
comment on function two_tower.fold_pushes(integer) is
  'Folds at most so many deferred pushes into live vectors, oldest id first, and returns how many were taken. Each post row is locked in order of id and written once. Sessions may run it at once: rows taken by another are skipped.';
