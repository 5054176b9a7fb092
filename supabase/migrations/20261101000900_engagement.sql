-- The stream of engagements. engagement_events is append-only and partitioned by month; partitions
-- live in two_tower, so that none is an API table of its own, and are dropped when they age.
-- user_posts is what outlives them: one row per user and post with what was done, the truth for
-- seen, once-only, negatives and withdrawals.

create sequence two_tower.engagement_event_ids;
comment on sequence two_tower.engagement_event_ids is 'Ids of engagement_events: the order in which events of a statement are learned.';

create table public.engagement_events (
  id bigint not null default nextval('two_tower.engagement_event_ids'),
  user_id uuid not null default auth.uid(),
  post_id bigint not null,
  event_type text not null,
  dwell_ms integer,
  client_event_id uuid,
  created_at timestamptz not null default two_tower.now(),
  primary key (id, created_at)
) partition by range (created_at);
comment on table public.engagement_events is
  'Append-only: what users did. Inserting a row updates the embeddings, training data and counters in the same transaction.';
comment on column public.engagement_events.event_type is 'view, click, like, reply, repost, dwell, skip, hide, not_interested, block_author, mute_author, unlike, unrepost: see two_tower.signals. Checked by the trigger, which reads it anyway: a check constraint is parsed anew by each statement.';
comment on column public.engagement_events.dwell_ms is 'Milliseconds on screen, 0 or more; needed for dwell.';
comment on column public.engagement_events.client_event_id is
  'Chosen by the client, once per event: makes a retry recognisable (settings.client_event_retry_window).';
comment on column public.engagement_events.created_at is 'Set by the server; only operators may give one.';
create index engagement_events_user_id_created_at_idx
  on public.engagement_events (user_id, created_at desc);
create index engagement_events_client_event_id_idx
  on public.engagement_events (client_event_id, user_id)
  where client_event_id is not null;

create table two_tower.user_posts (
  user_id uuid not null,
  post_id bigint not null,
  signals integer not null default 0,
  is_engaged boolean not null default false,
  is_hidden boolean not null default false,
  first_seen_at timestamptz not null,
  last_event_at timestamptz not null,
  primary key (user_id, post_id)
) partition by hash (user_id);
comment on table two_tower.user_posts is 'What a user did with a post. Kept when partitions of events are dropped.';
comment on column two_tower.user_posts.signals is 'Bits of two_tower.signals now in force: each moved embeddings once.';
comment on column two_tower.user_posts.is_engaged is 'A positive signal is in force: never a negative for this user.';
comment on column two_tower.user_posts.is_hidden is 'Hidden or not interesting: never shown again.';
do $$
begin
  for v_part in 0..7 loop
    execute format('create table two_tower.user_posts_%s partition of two_tower.user_posts
      for values with (modulus 8, remainder %s) with (fillfactor = 80)', v_part, v_part);
  end loop;
end
$$;

create table two_tower.unlearned_events (
  event_id bigint not null,
  user_id uuid not null,
  post_id bigint not null,
  event_type text not null,
  reason text not null constraint reason_is_known check (reason in (
    'repeated', 'rate_limited', 'skipped', 'post_deleted', 'nothing_to_withdraw')),
  created_at timestamptz not null,
  primary key (event_id, created_at)
) partition by range (created_at);
comment on table two_tower.unlearned_events is 'Events that were recorded and, by rule, not learned: and why.';

create index unlearned_events_user_id_idx on two_tower.unlearned_events (user_id);

create table two_tower.deferred_events (
  event_id bigint primary key,
  event public.engagement_events not null,
  user_id uuid not null references auth.users (id) on delete cascade,
  post_id bigint not null references public.posts (id) on delete cascade,
  reason text not null constraint reason_to_wait_is_known
    check (reason in ('post_not_encoded', 'frozen'))
);
comment on table two_tower.deferred_events is
  'Events whose learning waits: until the post has an embedding, or until an operator ends a freeze. Deleted by the transaction that learns them.';
create index deferred_events_user_id_idx on two_tower.deferred_events (user_id);
create index deferred_events_post_id_idx on two_tower.deferred_events (post_id, event_id);

select two_tower.partition_by_time('public.engagement_events', '1 month', 'events_kept_for');
select two_tower.partition_by_time('two_tower.unlearned_events', '1 month', 'events_kept_for');
