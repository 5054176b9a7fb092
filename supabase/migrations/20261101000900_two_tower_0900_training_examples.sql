-- Training data, which is also the ledger of what was learned. A positive and its negatives share a
-- user, a moment and a user vector, so they are stored as one wide row. training_pairs shows them
-- as pairs. The table is partitioned by week, and partitions are dropped by age.

create table two_tower.training_examples (
  event_id bigint not null,
  user_id uuid not null,
  post_id bigint not null,
  event_type text not null,
  label boolean,
  user_emb extensions.halfvec(128) not null,
  post_emb extensions.halfvec(128) not null,
  step real not null,
  popularity real not null default 0,
  popularity_clock double precision not null default 0,
  negative_ids bigint[] not null default '{}',
  negative_embs extensions.halfvec[] not null default '{}',
  viewed_negative_count smallint not null default 0,
  pushed_ids bigint[] not null default '{}',
  push_factors real[] not null default '{}',
  created_at timestamptz not null,
  is_withdrawn boolean not null default false,
  reset_count integer not null default 0,
  is_undone boolean not null default false
    constraint what_is_undone_is_withdrawn check (is_withdrawn or not is_undone),
  primary key (user_id, post_id, event_id, created_at)
) partition by range (created_at);
comment on table two_tower.training_examples is
  'One row per learned event: both vectors as they stood before it, the negatives drawn for it, and each step that it made. Trainings read it as training_pairs. A withdrawal reads it as a ledger.';
comment on column two_tower.training_examples.event_type is 'The signal of the event: for a short dwell it is skip.';
comment on column two_tower.training_examples.label is 'True for a positive pair, false for a negative pair. Null for an event that moved vectors and makes no pair, such as a click.';
comment on column two_tower.training_examples.user_emb is 'The user vector before the event.';
comment on column two_tower.training_examples.post_emb is 'The live embedding of the post before the event.';
comment on column two_tower.training_examples.step is 'Factor of user_emb by which the event moved the post, after all bounds. A withdrawal takes it back.';
comment on column two_tower.training_examples.popularity is 'What the event added to the post''s popularity, in likes of that moment, after all bounds. A withdrawal takes it back.';
comment on column two_tower.training_examples.popularity_clock is 'What read_popularity_clock() said of created_at when the event was learned.';
comment on column two_tower.training_examples.negative_ids is 'The negatives, viewed ones first.';
comment on column two_tower.training_examples.negative_embs is 'The live embeddings of negative_ids before the event.';
comment on column two_tower.training_examples.pushed_ids is 'Posts that the event pushes away, each by its push_factor times user_emb.';
comment on column two_tower.training_examples.push_factors is 'Factors of pushed_ids. 0 of one that was untouched: it was compared with, and not pushed.';
comment on column two_tower.training_examples.created_at is 'The time of the event.';
comment on column two_tower.training_examples.is_withdrawn is 'It is in force no more: the user took the signal back, or an operator undid it.';
comment on column two_tower.training_examples.is_undone is 'An operator took it back (undo()), and the user has not: the signal stands, and taught nothing.';
comment on column two_tower.training_examples.reset_count is 'user_embeddings.reset_count when it was learned. Where that is higher now, the user''s vector has nothing of it.';
comment on column two_tower.training_examples.viewed_negative_count is 'How many of the first negatives are viewed negatives. The others are random, most of them recent.';
-- Rows come in the order of time, all but those of an import. So the last hour is found without a
-- row's entry in an index, which each like would pay for.
create index training_examples_in_time_idx on two_tower.training_examples
  using brin (created_at, event_id) with (autosummarize = on);
-- A row with eight half-precision negatives is kept whole. Vectors do not compress, and a second
-- table for them would cost more than all else that a like writes.
select two_tower.partition_by_time('two_tower.training_examples', '7 days',
  'training_examples_kept_for', 'toast_tuple_target = 8160');

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
) and not x.is_withdrawn and x.label is not null
union all
select
  x.event_id, x.user_id, n.post_id, x.user_emb, n.post_emb, false as label,
  case when n.place <= x.viewed_negative_count then 'viewed' else 'random' end as source,
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
  'The pairs to train on. Left out are withdrawn signals, and negatives that the user has engaged with since.';
comment on column two_tower.training_pairs.label is 'True for a positive event.';
comment on column two_tower.training_pairs.source is 'event: a positive. explicit: a negative event. viewed or random: a negative drawn for a positive.';
