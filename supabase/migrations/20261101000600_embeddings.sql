-- Vectors. A post has a frozen base embedding (384, the encoder's) and a live one (128) that
-- learning moves. Live vectors stand in two slots: one serves and learns, the other is filled for
-- the next model version, or is what served before. Users, authors and actions have one row each.

create table two_tower.state (
  id boolean primary key default true constraint state_is_one_row check (id),
  active_slot smallint not null default 0 constraint there_are_two_slots
    check (active_slot in (0, 1)),
  serving_side smallint constraint there_are_two_sides check (serving_side in (0, 1)),
  filling_version bigint references two_tower.model_weights (version),
  filled_up_to bigint not null default 0,
  filling_checkpoint bigint,
  restored_up_to uuid,
  epoch integer not null default 0,
  frozen_at timestamptz,
  frozen_reason text,
  learning_rate_factor real not null default 1
    constraint learning_rate_factor_is_a_share
      check (learning_rate_factor > 0 and learning_rate_factor <= 1),
  constraint a_freeze_has_a_reason check ((frozen_at is null) = (frozen_reason is null))
);
comment on table two_tower.state is 'The pointer: which slot of live vectors serves, what is being filled, whether learning is frozen.';
comment on column two_tower.state.serving_side is 'The side of the serving index that answers; null when there is none and all posts are scanned.';
comment on column two_tower.state.filling_version is 'The candidate tower whose vectors are being written to the other slot; null when none.';
comment on column two_tower.state.filled_up_to is 'The other slot is filled for posts up to this id.';
comment on column two_tower.state.filling_checkpoint is 'The checkpoint that is being rolled back to; null when none.';
comment on column two_tower.state.restored_up_to is 'In a rollback, users up to this id have their state of the checkpoint again.';
comment on column two_tower.state.epoch is 'Raised by a rollback: deferred pushes of an older epoch are void.';
comment on column two_tower.state.learning_rate_factor is 'Lowered by resume() after a freeze.';
insert into two_tower.state default values;

-- Tables of a row or a few are never analysed by themselves, and guesses about them would ruin
-- plans.
analyze two_tower.settings, two_tower.signals, two_tower.state;

create function two_tower.last_uuid() returns uuid
language sql immutable parallel safe set search_path = '' as $$
  select 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid;
$$;
comment on function two_tower.last_uuid() is 'The largest id: all users are restored.';

create function two_tower.switch_lock() returns bigint
language sql immutable parallel safe set search_path = '' as 'select 2842384801';
comment on function two_tower.switch_lock() is
  'Key of the advisory lock between learning (shared) and a switch of slots (exclusive).';

create table two_tower.base_embeddings (
  post_id bigint primary key references public.posts (id) on delete cascade,
  base_embedding extensions.vector(384),
  request integer not null default 1,
  requested_at timestamptz not null default two_tower.now(),
  encoded_at timestamptz
);
comment on table two_tower.base_embeddings is 'What the encoder made of each post''s text. Frozen: only a change of the text changes it.';
comment on column two_tower.base_embeddings.request is 'Raised when the text changes, so that an encoding of the old text is not stored.';
create index base_embeddings_to_encode_idx on two_tower.base_embeddings (requested_at, post_id)
  where base_embedding is null;

-- Domains, not check constraints of the tables: those are parsed anew by each statement, and
-- cost a like 20 microseconds.
create domain two_tower.unit_vector as extensions.vector(128)
  constraint norm_is_one check (abs(extensions.vector_norm(value) - 1) < 0.001);
comment on domain two_tower.unit_vector is 'A vector of 128 dimensions and norm 1.';
create domain two_tower.unit_or_zero_vector as extensions.vector(128)
  constraint norm_is_one_or_zero check (
    abs(extensions.vector_norm(value) - 1) < 0.001 or extensions.vector_norm(value) = 0);
comment on domain two_tower.unit_or_zero_vector is
  'A vector of 128 dimensions and norm 1; zero where nothing is known.';

create table two_tower.live_embeddings (
  slot smallint not null,
  post_id bigint not null references public.posts (id) on delete cascade,
  embedding two_tower.unit_vector not null,
  author_id uuid,
  created_at timestamptz not null,
  is_deleted boolean not null default false,
  is_pretrained boolean not null default true,
  engagement_count integer not null default 0,
  popularity double precision not null default 0,
  moved_hour timestamptz,
  moved real not null default 0,
  pushed real not null default 0,
  model_version bigint not null references two_tower.model_weights (version),
  primary key (slot, post_id)
) with (fillfactor = 45);
comment on table two_tower.live_embeddings is
  'Live vectors of posts, in two slots (state.active_slot serves), with what ranking needs of a post, so that scoring reads one narrow row. No index on the vector: an update must stay HOT.';
comment on column two_tower.live_embeddings.is_pretrained is 'True until somebody engaged with the post: only then may a new tower replace its vector.';
comment on column two_tower.live_embeddings.popularity is 'Forward-decayed sum of positive strengths: each adds 2^((time - 2025-01-01) / half-life), so order never needs a refresh.';
comment on column two_tower.live_embeddings.moved is 'How far events about it moved the post in moved_hour: sum of their steps (settings.movement_per_hour).';
comment on column two_tower.live_embeddings.pushed is 'How far pushes moved the post while nobody had engaged with it (settings.untouched_post_push_limit).';
comment on column two_tower.live_embeddings.model_version is 'The candidate tower that projected it.';

create function two_tower.slots_to_write() returns table (slot smallint, version bigint)
language sql stable set search_path = '' as $$
  select s.active_slot, two_tower.active_version('candidate_tower') from two_tower.state s
  union all
  select (1 - s.active_slot)::smallint, s.filling_version from two_tower.state s
    where s.filling_version is not null;
$$;
comment on function two_tower.slots_to_write() is
  'The slot that serves with its candidate tower and, while the other one is being filled, that one with its own.';

create view two_tower.post_embeddings with (security_invoker = true) as
select
  b.post_id, b.base_embedding, v.embedding, coalesce(v.is_pretrained, true) as is_pretrained,
  coalesce(v.engagement_count, 0) as engagement_count, v.popularity, v.model_version, b.encoded_at
from two_tower.base_embeddings as b
cross join two_tower.state as s
left join two_tower.live_embeddings as v on v.post_id = b.post_id and v.slot = s.active_slot;
comment on view two_tower.post_embeddings is 'Every post with its frozen base embedding and its live embedding in the slot that serves. embedding is null until the text is encoded.';

create type two_tower.base_source as enum ('profile', 'user_tower');
comment on type two_tower.base_source is 'Where a user''s base vector comes from.';

create table two_tower.user_embeddings (
  user_id uuid primary key references auth.users (id) on delete cascade,
  embedding two_tower.unit_or_zero_vector not null
    default array_fill(0::real, array[128])::extensions.vector,
  engaged_sum extensions.vector(128) not null default array_fill(0::real,
    array[128])::extensions.vector,
  base_embedding extensions.vector(128),
  base_weight real not null default 0,
  base_source two_tower.base_source,
  recent_post_ids bigint[] not null default '{}',
  recent_strengths real[] not null default '{}',
  engagement_count integer not null default 0,
  minute timestamptz,
  minute_count integer not null default 0,
  updated_at timestamptz
) with (fillfactor = 55, toast_tuple_target = 8160);
comment on table two_tower.user_embeddings is 'One row per user who engaged or has a profile.';
comment on column two_tower.user_embeddings.embedding is 'Live vector, norm 1; zero for a user of whom nothing is known.';
comment on column two_tower.user_embeddings.engaged_sum is 'Rule contrastive: r = decay * r + strength * post, not normalised; embedding = norm(base_weight * base_embedding + r).';
comment on column two_tower.user_embeddings.base_embedding is 'What was known before engagements: profile, or the user tower''s output.';
comment on column two_tower.user_embeddings.recent_post_ids is 'The posts of the last learned events, oldest first: what the user is re-encoded from on read.';
comment on column two_tower.user_embeddings.recent_strengths is 'Strengths of recent_post_ids, as the rule weighs them.';
comment on column two_tower.user_embeddings.minute is 'The minute that minute_count counts learned events of.';

create table two_tower.author_embeddings (
  author_id uuid primary key references auth.users (id) on delete cascade,
  embedding extensions.vector(64) not null,
  engagement_count integer not null default 0,
  moved_hour timestamptz,
  moved real not null default 0,
  updated_at timestamptz not null default two_tower.now()
);
comment on table two_tower.author_embeddings is 'Author embeddings, learned with the user tower from a random start, and stepped by blocks.';
comment on column two_tower.author_embeddings.moved is 'How far blocks moved it within moved_hour (settings.movement_per_hour).';

create table two_tower.action_embeddings (
  event_type text primary key references two_tower.signals (event_type),
  embedding extensions.vector(64) not null,
  updated_at timestamptz not null default two_tower.now()
);
comment on table two_tower.action_embeddings is 'Embeddings of event types, learned with the user tower from a random start.';

create table two_tower.profile_embeddings (
  user_id uuid primary key references auth.users (id) on delete cascade,
  base_embedding extensions.vector(384),
  request integer not null default 1,
  requested_at timestamptz not null default two_tower.now()
);
comment on table two_tower.profile_embeddings is 'What the encoder made of each profile''s bio and interests.';
create index profile_embeddings_to_encode_idx
  on two_tower.profile_embeddings (requested_at, user_id)
  where base_embedding is null;

-- One way to encode a user, shared by recommend, the gate and the tests: the base vector plus the
-- live vectors of the last engagements, so that a user is always in the space in which the posts
-- are now.
create function two_tower.encode_user(p_user_id uuid) returns extensions.vector
language plpgsql stable set search_path = '' as $$
begin
  return (
    select case when s.learning_rule = 'literal'
      then case when extensions.vector_norm(u.embedding) > 0 then u.embedding end
      else extensions.l2_normalize((
      select extensions.sum(part.weight operator(extensions.*) part.embedding)
      from (
        select array_fill(u.base_weight, array[128])::extensions.vector as weight,
               u.base_embedding as embedding
        where u.base_embedding is not null
        union all
        select array_fill((r.strength * greatest(1e-12, s.history_decay
                           ^ (cardinality(u.recent_post_ids) - r.place)))::real,
                          array[128])::extensions.vector,
               v.embedding
        from unnest(u.recent_post_ids, u.recent_strengths)
               with ordinality as r (post_id, strength, place)
          join two_tower.live_embeddings v on v.slot = st.active_slot and v.post_id = r.post_id
      ) part
    )) end
    from two_tower.user_embeddings u
      cross join two_tower.settings s cross join two_tower.state st
    where u.user_id = p_user_id);
end
$$;
comment on function two_tower.encode_user(uuid) is
  'The vector a user is served with. Contrastive: norm(base + sum of decay^age * strength * live vector). Literal: the stored one. Null for a user of whom nothing is known.';

-- A post's row of embeddings appears with the post; its text is encoded by a worker. Only a change
-- of the text asks for another encoding; the live vector stays until then.
create function two_tower.request_post_encoding() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into two_tower.base_embeddings (post_id) select p.id from new_posts p;
  return null;
end
$$;
comment on function two_tower.request_post_encoding() is 'Definer: authors have no grant on embeddings.';
create trigger request_post_encoding after insert on public.posts
  referencing new table as new_posts
    for each statement execute function two_tower.request_post_encoding();

create function two_tower.follow_post_changes() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  v_slots smallint[];
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  select array[active_slot, 1 - active_slot] into v_slots from two_tower.state;
  update two_tower.base_embeddings b
  set base_embedding = null, encoded_at = null, request = b.request + 1,
    requested_at = two_tower.now()
  from new_posts n join old_posts o on o.id = n.id
  where b.post_id = n.id and n.content is distinct from o.content;

  with changed as materialized (
    select v.slot, v.post_id, n.author_id, n.created_at, n.deleted_at is not null as is_deleted
    from new_posts n
    join old_posts o on o.id = n.id
    join two_tower.live_embeddings v on v.slot = any (v_slots) and v.post_id = n.id
    where (n.author_id, n.created_at, n.deleted_at) is distinct
      from (o.author_id, o.created_at, o.deleted_at)
    order by v.post_id, array_position(v_slots, v.slot)
    for no key update of v
  )
  update two_tower.live_embeddings v
  set is_deleted = c.is_deleted, author_id = c.author_id, created_at = c.created_at
  from changed c where v.slot = c.slot and v.post_id = c.post_id;
  return null;
end
$$;
comment on function two_tower.follow_post_changes() is
  'Definer: authors have no grant on embeddings. Asks for an encoding of changed texts, and keeps what ranking reads of a post equal to it. Locks posts in the order in which learning locks them.';
create trigger follow_post_changes after update on public.posts
  referencing old table as old_posts new table as new_posts
  for each statement execute function two_tower.follow_post_changes();

create function two_tower.request_profile_encoding() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  insert into two_tower.profile_embeddings (user_id) values (new.user_id)
  on conflict (user_id) do update
  set base_embedding = null, request = profile_embeddings.request + 1,
    requested_at = two_tower.now();
  return null;
end
$$;
comment on function two_tower.request_profile_encoding() is 'Definer: users have no grant on embeddings.';
create trigger request_profile_encoding after insert on public.profiles
  for each row when (new.bio is not null or new.interests is not null)
  execute function two_tower.request_profile_encoding();
create trigger request_profile_reencoding after update of bio, interests on public.profiles
  for each row when ((old.bio, old.interests) is distinct from (new.bio, new.interests))
  execute function two_tower.request_profile_encoding();

create function two_tower.posts_to_encode(p_limit integer default 256)
returns table (post_id bigint, request integer, content text)
language sql stable set search_path = '' as $$
  select b.post_id, b.request, p.content
  from two_tower.base_embeddings b join public.posts p on p.id = b.post_id
  where b.base_embedding is null and p.deleted_at is null
  order by b.requested_at, b.post_id
  limit p_limit;
$$;
comment on function two_tower.posts_to_encode(integer) is 'Posts whose text waits for the encoder, oldest request first.';

create function two_tower.profiles_to_encode(p_limit integer default 256)
returns table (user_id uuid, request integer, content text)
language sql stable set search_path = '' as $$
  select e.user_id, e.request,
    concat_ws('. ', nullif(p.bio, ''), array_to_string(p.interests, ', '))
  from two_tower.profile_embeddings e join public.profiles p on p.user_id = e.user_id
  where e.base_embedding is null
  order by e.requested_at, e.user_id
  limit p_limit;
$$;
comment on function two_tower.profiles_to_encode(integer) is 'Profiles whose text waits for the encoder.';
