-- Vectors. A post has a frozen base embedding (384, the encoder's) and a live embedding (128) that
-- learning moves. Live embeddings stand in two slots. One serves and learns. The other is being
-- filled for the next version, or is what served before. Users, authors and actions have one row
-- each.

create table two_tower.base_embeddings (
  post_id bigint primary key references two_tower.posts (id) on delete cascade,
  base_embedding extensions.vector(384) not null,
  encoder text not null default two_tower.active_encoder(),
  learned_from extensions.vector(384),
  kept real not null default 1 constraint kept_is_a_share check (kept > 0 and kept <= 1),
  encoded_at timestamptz not null default two_tower.now()
);
comment on table two_tower.base_embeddings is 'What the encoder made of each post''s text. Frozen: only a change of the text or of the encoder changes it.';
comment on column two_tower.base_embeddings.base_embedding is 'Of norm 1, whatever the encoder hands in. Zero where it hands in zero.';
comment on column two_tower.base_embeddings.encoder is 'The encoder that made it.';
comment on column two_tower.base_embeddings.learned_from is 'Of an edited post that was engaged with: the base embedding of the text with which learning began. Edits are measured from it, so that many small ones add up.';
comment on column two_tower.base_embeddings.kept is 'The share of what was learned of that text which edits have left to the post.';

create sequence two_tower.post_numbers;
comment on sequence two_tower.post_numbers is 'Gives new posts their number. Only workers draw from it, so that no client can burn numbers.';

create table two_tower.live_embeddings (
  slot smallint not null,
  post_id bigint not null references two_tower.posts (id) on delete cascade,
  number bigint default nextval('two_tower.post_numbers')
    constraint a_post_that_is_not_listed_has_no_number check (number is null or is_listed),
  embedding two_tower.unit_vector not null,
  author_id uuid,
  created_at timestamptz not null,
  is_listed boolean not null default true,
  source_id smallint not null,
  is_pretrained boolean not null default true,
  is_held boolean not null default false,
  engagement_count integer not null default 0,
  popularity double precision not null default '-infinity',
  moved_hour timestamptz,
  moved real not null default 0,
  gained real not null default 0,
  model_version bigint not null references two_tower.model_weights (version),
  primary key (post_id, slot)
) with (fillfactor = 45);
comment on table two_tower.live_embeddings is
  'Live embeddings of posts, in two slots (state.active_slot serves). A row also holds what ranking needs of a post, so that scoring reads one narrow row. The vector has no index, so that an update stays HOT.';
comment on column two_tower.live_embeddings.number is 'Dense numbers, the newest post has the highest. Posts are drawn by them, because ids have gaps. The same in both slots. Null while the post is not listed, and until compact_numbers() comes round to one that is listed again.';
comment on column two_tower.live_embeddings.embedding is 'The vector in the space of learning, of norm 1.';
comment on column two_tower.live_embeddings.author_id is 'posts.author_id.';
comment on column two_tower.live_embeddings.created_at is 'The later of posts.created_at and arrived_at.';
comment on column two_tower.live_embeddings.is_listed is 'posts.is_listed, as of the last tick.';
comment on column two_tower.live_embeddings.source_id is 'posts.source_id.';
comment on column two_tower.live_embeddings.is_pretrained is 'True while the post is untouched. Then no push moves it, and a new tower may replace its vector.';
comment on column two_tower.live_embeddings.is_held is 'Whether events about the post move nothing until the next checkpoint: hold_posts().';
comment on column two_tower.live_embeddings.engagement_count is 'Learned events about the post, less withdrawn ones.';
comment on column two_tower.live_embeddings.popularity is 'Log2 of the sum of likes * 2^clock over positive events, with what read_popularity_clock() said at each; -infinity without any. popularity_in_likes() tells the sum as of now.';
comment on column two_tower.live_embeddings.moved_hour is 'The hour that moved and gained are about.';
comment on column two_tower.live_embeddings.moved is 'How far events about the post moved it in moved_hour: the sum of their steps (settings.movement_per_hour).';
comment on column two_tower.live_embeddings.gained is 'By how much events raised the popularity in moved_hour, in likes (settings.popularity_per_hour).';
comment on column two_tower.live_embeddings.model_version is 'The candidate tower that projected the post or, of a learned vector, for which the slot was filled.';

-- No index begins with the slot: while statistics call a slot empty, one that does looks as cheap
-- as the right one, and reads all of it for each post.
create unique index live_embeddings_number_slot_idx on two_tower.live_embeddings (number, slot);
create index live_embeddings_held_idx on two_tower.live_embeddings (post_id) where is_held;
create index live_embeddings_to_number_idx on two_tower.live_embeddings (post_id)
  where number is null and is_listed;

create view two_tower.post_embeddings with (security_invoker = true) as
select
  p.id as post_id, b.base_embedding, v.embedding, coalesce(v.is_pretrained, true) as is_pretrained,
  coalesce(v.engagement_count, 0) as engagement_count, v.popularity, v.model_version, b.encoded_at
from two_tower.posts as p
cross join two_tower.state as s
left join two_tower.base_embeddings as b on b.post_id = p.id
left join two_tower.live_embeddings as v on v.post_id = p.id and v.slot = s.active_slot;
comment on view two_tower.post_embeddings is 'Every post with its base embedding, and its live embedding in the slot that serves.';
comment on column two_tower.post_embeddings.embedding is 'The live embedding. Null until the text is encoded.';
comment on column two_tower.post_embeddings.is_pretrained is 'True while the post is untouched.';
comment on column two_tower.post_embeddings.encoded_at is 'When the base embedding was stored. Null while the text waits for the encoder.';

create type two_tower.prior_source as enum ('profile', 'user_tower');
comment on type two_tower.prior_source is 'Where a user''s prior comes from.';

create table two_tower.user_embeddings (
  user_id uuid primary key references two_tower.users (id) on delete cascade,
  embedding two_tower.unit_or_zero_vector not null
    default two_tower.zero_vector(),
  engaged_sum extensions.vector(128) not null default two_tower.zero_vector(),
  prior extensions.vector(128),
  prior_weight real not null default 0,
  prior_source two_tower.prior_source,
  recent_post_ids bigint[] not null default '{}',
  recent_strengths real[] not null default '{}',
  positive_ids bigint[] not null default '{}',
  positive_interests smallint[] not null default '{}',
  interest_sums extensions.halfvec(128)[] not null default '{}',
  engagement_count integer not null default 0,
  active_days integer not null default 0,
  minute timestamptz,
  minute_count integer not null default 0,
  waits_until timestamptz,
  reset_count integer not null default 0,
  history_from bigint not null default 0,
  updated_at timestamptz
) with (fillfactor = 55, toast_tuple_target = 8160);
comment on table two_tower.user_embeddings is 'One row per user who engaged, sent a batch of events, or has an encoded profile.';
comment on column two_tower.user_embeddings.embedding is 'The user vector, of norm 1, as learning left it. Zero for a user of whom nothing is known.';
comment on column two_tower.user_embeddings.engaged_sum is 'r = decay * r + strength * post at each learned event, not normalised. By the contrastive rule embedding = norm(prior_weight * prior + r).';
comment on column two_tower.user_embeddings.prior is 'What is known of the user before engagements: the vector of the user tower or of the profile.';
comment on column two_tower.user_embeddings.prior_weight is 'What the prior weighs beside the engaged sum.';
comment on column two_tower.user_embeddings.recent_post_ids is 'The posts of the last learned events, oldest first. For a page, the user is encoded from them.';
comment on column two_tower.user_embeddings.recent_strengths is 'Strengths of recent_post_ids, as the rule weighs them.';
comment on column two_tower.user_embeddings.positive_ids is 'The posts of the last learned positives (settings.interest_length), each once, oldest first.';
comment on column two_tower.user_embeddings.positive_interests is 'The number of the interest, 1 to 4, of each of positive_ids.';
comment on column two_tower.user_embeddings.interest_sums is 'For each interest i = decay * i + post at each of its positives, not normalised. It only gives positives their number: list_interests() tells what the interests are. Null where the number is free.';
comment on column two_tower.user_embeddings.engagement_count is 'Learned events of the user, less withdrawn ones.';
comment on column two_tower.user_embeddings.active_days is 'On how many days (UTC) an event of the user was learned. weigh_account() makes a weight of it.';
comment on column two_tower.user_embeddings.minute is 'The minute that minute_count is about.';
comment on column two_tower.user_embeddings.minute_count is 'Learned events in that minute (settings.learned_events_per_minute).';
comment on column two_tower.user_embeddings.waits_until is 'When the next of the user''s events that wait for a minute may be learned. Null when none waits. Later events wait behind them.';
create index user_embeddings_waits_until_idx on two_tower.user_embeddings (waits_until)
  where waits_until is not null;
comment on column two_tower.user_embeddings.reset_count is 'How often the user began anew (reset_my_feed()).';
comment on column two_tower.user_embeddings.history_from is 'The newest event when the user last began anew. Later ones are the user''s history.';
comment on column two_tower.user_embeddings.updated_at is 'The time of the last learned event.';

-- An account is worth what it costs to keep up: days of use. Days are those of the events, so an
-- import counts as it happened.
create function two_tower.weigh_account(p_active_days integer, p_account_weight_days integer)
returns real language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
begin
  return least(1, p_active_days::real / p_account_weight_days);
end
$$;
comment on function two_tower.weigh_account(integer, integer) is
  'Returns what an account weighs in popularity and where accounts are counted: its active days over settings.account_weight_days, at most 1.';

create table two_tower.author_embeddings (
  author_id uuid primary key,
  embedding extensions.vector(64) not null,
  moved_hour timestamptz,
  moved real not null default 0,
  updated_at timestamptz not null default two_tower.now()
);
comment on table two_tower.author_embeddings is 'Embeddings of authors. The user tower learns them from a random start, and blocks move them.';
comment on column two_tower.author_embeddings.moved_hour is 'The hour that moved is about.';
comment on column two_tower.author_embeddings.moved is 'How far blocks moved the author in moved_hour (settings.movement_per_hour).';

create table two_tower.action_embeddings (
  event_type text primary key references two_tower.signals (event_type),
  embedding extensions.vector(64) not null,
  updated_at timestamptz not null default two_tower.now()
);
comment on table two_tower.action_embeddings is 'Embeddings of event types. The user tower learns them from a random start.';

create table two_tower.profile_embeddings (
  user_id uuid primary key references two_tower.users (id) on delete cascade,
  content_hash bigint not null,
  base_embedding extensions.vector(384),
  encoder text not null default two_tower.active_encoder(),
  requested_at timestamptz not null default two_tower.now()
);
comment on table two_tower.profile_embeddings is 'What the encoder made of each profile''s bio and interests.';
comment on column two_tower.profile_embeddings.base_embedding is 'Null while the text waits for the encoder.';
comment on column two_tower.profile_embeddings.encoder is 'The encoder that made it.';
comment on column two_tower.profile_embeddings.content_hash is 'A hash of the text. An encoding of another text is not stored.';
comment on column two_tower.profile_embeddings.requested_at is 'When the encoding was asked for.';
create index profile_embeddings_to_encode_idx
  on two_tower.profile_embeddings (requested_at, user_id)
  where base_embedding is null;

-- The one way to encode a user, shared by pages, samples and tests. The gate forms the same sum
-- from vectors of the past. The user is always in the space in which the posts are now, because the
-- sum is made of today's live embeddings.
create function two_tower.encode_user(p_user_id uuid) returns extensions.vector
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return (
    select case when s.learning_rule = 'literal'
      then case when extensions.vector_norm(u.embedding) > 0 then u.embedding end
      else extensions.l2_normalize((
      select extensions.sum(part.embedding)
      from (
        select two_tower.scale(u.prior_weight, u.prior) as embedding where u.prior is not null
        union all
        select two_tower.scale(two_tower.decay_strength(r.strength, s.history_decay,
          cardinality(u.recent_post_ids) - r.place), v.embedding)
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
  'Returns the user vector for a page. By the contrastive rule: norm(prior_weight * prior + sum of decay^age * strength * live embedding). By the literal rule: the stored one. Returns null for a user of whom nothing is known.';
