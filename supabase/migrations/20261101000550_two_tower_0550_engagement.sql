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
  post_key text,
  post_source text,
  event_type text not null,
  dwell_ms integer,
  client_event_id uuid,
  happened_at timestamptz,
  created_at timestamptz not null default two_tower.now(),
  primary key (id, created_at)
) partition by range (created_at);
comment on table public.engagement_events is
  'Append-only: what users did. Inserting a row updates embeddings, training data and counters in the same transaction.';
comment on column public.engagement_events.post_id is 'The post, as the engine knows it (two_tower.posts). Leave it out where post_key is given.';
comment on column public.engagement_events.post_key is 'The post, by the key of its row in the app''s table. It counts where post_id is left out.';
comment on column public.engagement_events.post_source is 'The table of post_key: the name under which it is attached. It may be left out while one table of posts is attached.';
comment on column public.engagement_events.event_type is 'view, click, like, reply, repost, dwell, skip, hide, not_interested, block_author, mute_author, unlike, unrepost, unhide, undo_not_interested: see two_tower.signals. The trigger checks it, because it reads signals anyway; each statement would parse a check constraint anew.';
comment on column public.engagement_events.dwell_ms is 'Milliseconds on screen, 0 or more. An event of type dwell needs it.';
comment on column public.engagement_events.client_event_id is
  'Chosen by the client, once per event. It makes a retry recognisable, within settings.client_event_retry_window.';
comment on column public.engagement_events.happened_at is 'When it happened, by the client''s clock, for what is sent late: it orders histories and viewed posts. Brought to within seven days before created_at. Null: when it arrived.';
comment on column public.engagement_events.created_at is 'When it arrived: set by the server. It bounds influence. Only operators may give one.';
create index engagement_events_user_id_created_at_id_idx
  on public.engagement_events (user_id, created_at desc, id desc);
create index engagement_events_client_event_id_idx
  on public.engagement_events (client_event_id, user_id)
  where client_event_id is not null;

-- A key as the source's type writes it: a uuid in capitals is the same key. What that type cannot
-- hold is no key of the source.
create function two_tower.canonical_key(p_key text, p_type regtype) returns text
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return case
    when p_type = 'uuid'::regtype
      and p_key !~ '^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'
      then p_key::uuid::text
    when p_type in ('bigint'::regtype, 'integer'::regtype, 'smallint'::regtype)
      then p_key::bigint::text
    else p_key end;
exception when invalid_text_representation or numeric_value_out_of_range then
  return null;
end
$$;
comment on function two_tower.canonical_key(text, regtype) is 'Returns a key as its type writes it. Returns null for what the type cannot hold.';

create function two_tower.choose_source(p_name text) returns two_tower.sources
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_sources two_tower.sources[] := array(
    select s from two_tower.sources s
    where s.role = 'posts' and s.state <> 'detached' and (p_name is null or s.name = p_name)
    order by s.id);
begin
  if cardinality(v_sources) > 1 then
    raise exception '% tables of posts are attached, and none is named', cardinality(v_sources)
      using errcode = '22023', hint = 'Name the table: post_source.';
  elsif v_sources = '{}' then
    raise exception 'no table of posts is attached%', coalesce(' as ' || p_name, '')
      using errcode = '22023', hint = 'Attach one: select two_tower.attach_posts(...).';
  end if;
  return v_sources[1];
end
$$;
comment on function two_tower.choose_source(text) is 'Returns the attached table of posts with this name. null: the only one. Raises 22023 where there is none, or more than one.';

create function two_tower.find_post(p_key text, p_source text) returns bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_source two_tower.sources := two_tower.choose_source(p_source);
begin
  return (select p.id from two_tower.posts p
    where p.source_id = v_source.id and p.key = two_tower.canonical_key(p_key, v_source.key_type));
end
$$;
comment on function two_tower.find_post(text, text) is 'Returns the id of the post with this key in this source, or null. Raises 22023 where the source is not clear.';

create function two_tower.refuse_post(p_post text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  raise exception 'post % does not exist', left(p_post, 200)
    using errcode = 'foreign_key_violation',
    hint = 'Insert the post before its engagements.';
end
$$;
comment on function two_tower.refuse_post(text) is 'Raises 23503. What is said of a post that does not exist is said of one that the sender may not read, too.';

-- 0 is no post's id. A client's unknown key is not refused here, because in a batch that would tell
-- it from one that the client may not read: check_readable refuses both.
create function two_tower.resolve_post_key() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if new.post_key is null then
    raise exception 'the event names no post' using errcode = 'not_null_violation',
      hint = 'Give post_id or post_key.';
  end if;
  new.post_id := two_tower.find_post(new.post_key, new.post_source);
  if new.post_id is null then
    if two_tower.is_operator() then
      perform two_tower.refuse_post(new.post_key);
    end if;
    new.post_id := 0;
  end if;
  return new;
end
$$;
comment on function two_tower.resolve_post_key() is 'Finds the post of an event that names it by its key. Of a client''s event it is 0 for an unknown one; to an operator, raises 23503. Raises 23502 without a key, and 22023 where the source is not clear. Definer: clients have no grant on the registry.';
create trigger resolve_post_key before insert on public.engagement_events
  for each row when (new.post_id is null) execute function two_tower.resolve_post_key();

-- A client's clock may be wrong, or lie. Only events that name a time pay for this.
create function two_tower.clamp_happened_at() returns trigger
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  new.happened_at := least(new.created_at,
    greatest(new.happened_at, new.created_at - interval '7 days'));
  return new;
end
$$;
comment on function two_tower.clamp_happened_at() is 'Brings the time at which an event happened to within seven days before it arrived.';
create trigger clamp_happened_at before insert on public.engagement_events
  for each row when (new.happened_at is not null) execute function two_tower.clamp_happened_at();

create table public.author_blocks (
  user_id uuid not null default auth.uid() references two_tower.users (id) on delete cascade,
  author_id uuid not null,
  kind text not null constraint kind_of_block_is_known
    check (kind in ('block_author', 'mute_author')),
  created_at timestamptz not null default two_tower.now(),
  primary key (user_id, author_id),
  constraint nobody_blocks_themselves check (user_id <> author_id)
);
comment on table public.author_blocks is
  'Authors whose posts a user does not want to see. Events of type block_author and mute_author write the rows. The user lifts a block by deleting its row. An app that keeps blocks in a table of its own attaches that instead.';
comment on column public.author_blocks.author_id is 'The author, as recommend() names authors (author_id).';
comment on column public.author_blocks.kind is 'block_author or mute_author. A block replaces a mute, but no mute a block.';
create index author_blocks_author_id_idx on public.author_blocks (author_id, user_id);

-- An app may add columns to engagement_events. So what passes events on has a type of its own, of
-- the columns that the engine knows.
create type two_tower.event as (
  id bigint, user_id uuid, post_id bigint, event_type text, dwell_ms integer,
  client_event_id uuid, created_at timestamptz, happened_at timestamptz
);
comment on type two_tower.event is 'A row of engagement_events, without columns of the app.';

create table two_tower.user_posts (
  user_id uuid not null,
  post_id bigint not null,
  signals integer not null default 0,
  is_engaged boolean not null default false,
  hidden_by integer not null default 0,
  is_hidden boolean not null generated always as (hidden_by <> 0) stored,
  was_withdrawn boolean not null default false,
  first_seen_at timestamptz not null,
  last_event_at timestamptz not null,
  primary key (user_id, post_id)
) partition by hash (user_id);
comment on table two_tower.user_posts is 'What a user did with a post. It is kept when partitions of events are dropped. A row, whatever is in it, means that the user has seen the post.';
comment on column two_tower.user_posts.signals is 'Bits of the signals in force (signals.bit). A signal whose bit is set is not learned again.';
comment on column two_tower.user_posts.is_engaged is 'A positive event is in force: the post is never a negative for this user.';
comment on column two_tower.user_posts.hidden_by is 'Bits of hide and not_interested that the user gave and did not take back, learned or not.';
comment on column two_tower.user_posts.is_hidden is 'The user hid the post or found it not interesting. It is never a negative for this user.';
comment on column two_tower.user_posts.was_withdrawn is 'The user took a signal back at some time, so training_examples may tell how often.';
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
    'repeated', 'rate_limited', 'skipped', 'post_deleted', 'own_post', 'blocked',
    'nothing_to_withdraw', 'withdrawn', 'withdrawn_often', 'post_unreadable', 'reset')),
  created_at timestamptz not null,
  primary key (event_id, created_at)
) partition by range (created_at);
comment on table two_tower.unlearned_events is 'Events that were recorded and, by rule, not learned, with the reason.';
comment on column two_tower.unlearned_events.reason is 'repeated: its signal is in force already. rate_limited: too many events of its user waited (settings.waiting_events_per_user). skipped: resume() passed it over after a freeze, or undo() while it waited. post_deleted: its post was deleted. own_post: its user wrote the post. blocked: the post''s author has blocked its user. nothing_to_withdraw: what it takes back is not in force. withdrawn: it was taken back while it waited. withdrawn_often: its user took the same back too often that day (settings.withdrawals_per_day). post_unreadable: the encoder cannot read its post''s text. reset: its user began anew (reset_my_feed()) while it waited.';

create index unlearned_events_user_id_idx
  on two_tower.unlearned_events (user_id, created_at, event_id);

create table two_tower.deferred_events (
  event_id bigint primary key,
  user_id uuid not null references two_tower.users (id) on delete cascade,
  post_id bigint not null references two_tower.posts (id) on delete cascade,
  event_type text not null,
  dwell_ms integer,
  client_event_id uuid,
  created_at timestamptz not null,
  happened_at timestamptz,
  reason text not null constraint reason_to_wait_is_known
    check (reason in ('post_not_encoded', 'frozen', 'minute_full')),
  deferred_at timestamptz not null default two_tower.now()
);
comment on table two_tower.deferred_events is
  'Events whose lessons wait: until the post has an embedding, until an operator ends a freeze, or for a minute in which their user''s bound leaves room. The transaction that learns an event deletes its row.';
comment on column two_tower.deferred_events.event_id is 'The id of the event. The other columns but reason and deferred_at are the event''s own too: its partition may be gone when it is learned.';
comment on column two_tower.deferred_events.reason is 'post_not_encoded, frozen, or minute_full (settings.learned_events_per_minute). A withdrawal never waits for a minute.';
comment on column two_tower.deferred_events.deferred_at is 'Since when it waits for this reason.';
create index deferred_events_user_id_idx
  on two_tower.deferred_events (user_id, reason, event_id);
create index deferred_events_post_id_idx
  on two_tower.deferred_events (post_id, reason, user_id);
create index deferred_events_in_order_idx on two_tower.deferred_events (post_id, event_id)
  where reason <> 'minute_full';

select two_tower.partition_by_time('public.engagement_events', '1 month', 'events_kept_for');
select two_tower.partition_by_time('two_tower.unlearned_events', '1 month', 'events_kept_for');
