-- The stream of engagements. engagement_events is append-only and partitioned by month. Its
-- partitions live in two_tower, so that none is an API table of its own. They are dropped when they
-- age. user_posts outlives them: one row per user and post with what was done. It decides what was
-- seen, what was learned once, what may be a negative, and what can be withdrawn.

create sequence two_tower.engagement_event_ids;
comment on sequence two_tower.engagement_event_ids is 'Ids of engagement_events. The events of a statement are learned in their order.';

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
  'Append-only: what users did. Inserting a row updates embeddings, training data and counters in the same transaction.';
comment on column public.engagement_events.event_type is 'view, click, like, reply, repost, dwell, skip, hide, not_interested, block_author, mute_author, unlike, unrepost: see two_tower.signals. The trigger checks it, because it reads signals anyway; each statement would parse a check constraint anew.';
comment on column public.engagement_events.dwell_ms is 'Milliseconds on screen, 0 or more. An event of type dwell needs it.';
comment on column public.engagement_events.client_event_id is
  'Chosen by the client, once per event. It makes a retry recognisable, within settings.client_event_retry_window.';
comment on column public.engagement_events.created_at is 'Set by the server. Only operators may give one.';
create index engagement_events_user_id_created_at_idx
  on public.engagement_events (user_id, created_at desc);
create index engagement_events_client_event_id_idx
  on public.engagement_events (client_event_id, user_id)
  where client_event_id is not null;

-- An app may add columns to engagement_events. So what passes events on has a type of its own, of
-- the columns that the engine knows.
create type two_tower.event as (
  id bigint, user_id uuid, post_id bigint, event_type text, dwell_ms integer,
  client_event_id uuid, created_at timestamptz
);
comment on type two_tower.event is 'A row of engagement_events, without columns of the app.';

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
comment on table two_tower.user_posts is 'What a user did with a post. It is kept when partitions of events are dropped. A row, whatever is in it, means that the user has seen the post.';
comment on column two_tower.user_posts.signals is 'Bits of the signals in force (signals.bit). A signal whose bit is set is not learned again.';
comment on column two_tower.user_posts.is_engaged is 'A positive event is in force: the post is never a negative for this user.';
comment on column two_tower.user_posts.is_hidden is 'The user hid the post or found it not interesting. It is never a negative for this user.';
comment on column two_tower.user_posts.first_seen_at is 'The time of the earliest event.';
comment on column two_tower.user_posts.last_event_at is 'The time of the latest event.';
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
comment on table two_tower.unlearned_events is 'Events that were recorded and, by rule, not learned, with the reason.';
comment on column two_tower.unlearned_events.reason is 'repeated: its signal is in force already. rate_limited: see settings.learned_events_per_minute. skipped: resume() passed it over after a freeze. post_deleted: its post was deleted. nothing_to_withdraw: what it takes back is not in force.';

create index unlearned_events_user_id_idx on two_tower.unlearned_events (user_id);

create table two_tower.deferred_events (
  event_id bigint primary key,
  user_id uuid not null references two_tower.users (id) on delete cascade,
  post_id bigint not null references public.posts (id) on delete cascade,
  event_type text not null,
  dwell_ms integer,
  client_event_id uuid,
  created_at timestamptz not null,
  reason text not null constraint reason_to_wait_is_known
    check (reason in ('post_not_encoded', 'frozen'))
);
comment on table two_tower.deferred_events is
  'Events whose lessons wait until the post has an embedding, or until an operator ends a freeze. The transaction that learns an event deletes its row.';
comment on column two_tower.deferred_events.event_id is 'The id of the event. The other columns but reason are the event''s own too: its partition may be gone when it is learned.';
comment on column two_tower.deferred_events.reason is 'post_not_encoded or frozen.';
create index deferred_events_user_id_idx on two_tower.deferred_events (user_id);
create index deferred_events_post_id_idx on two_tower.deferred_events (post_id, event_id);

select two_tower.partition_by_time('public.engagement_events', '1 month', 'events_kept_for');
select two_tower.partition_by_time('two_tower.unlearned_events', '1 month', 'events_kept_for');
