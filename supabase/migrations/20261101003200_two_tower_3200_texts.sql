-- Texts that callers want as vectors, such as a search. A text waits here for a worker, which
-- encodes it in between posts. Each caller has rows of its own: what another asked for
-- can be learned neither from an answer nor from how soon it comes.

create table two_tower.requested_texts (
  id bigint generated always as identity primary key,
  user_id uuid references two_tower.users (id) on delete cascade,
  hash bytea not null,
  content text,
  base_embedding extensions.vector(384),
  requested_at timestamptz not null default two_tower.now(),
  turn_at timestamptz not null,
  claimed_until timestamptz not null default '-infinity',
  constraint a_text_is_kept_until_it_is_encoded
    check (content is null or base_embedding is null),
  constraint a_text_is_there_once_for_each_caller unique nulls not distinct (hash, user_id)
);
comment on table two_tower.requested_texts is 'Texts that embed_text() was called with, for settings.requested_texts_kept_for.';
comment on column two_tower.requested_texts.user_id is 'Who asked. Null for back ends with the service role.';
comment on column two_tower.requested_texts.hash is 'The sha256 of the text.';
comment on column two_tower.requested_texts.content is 'The text, while it waits. Null once the encoder has answered.';
comment on column two_tower.requested_texts.base_embedding is 'The encoded text, of norm 1. Null while it waits, and for a text that the encoder cannot read.';
comment on column two_tower.requested_texts.turn_at is 'Texts are encoded in this order. Those of one caller that wait stand a tenth of a second apart, so that others come in between.';
comment on column two_tower.requested_texts.claimed_until is 'Until then one worker encodes it. Later any worker may.';
create index requested_texts_to_encode_idx on two_tower.requested_texts (turn_at, id)
  where content is not null;
create index requested_texts_of_a_caller_idx on two_tower.requested_texts (user_id, turn_at)
  where content is not null;
create index requested_texts_user_idx on two_tower.requested_texts (user_id, requested_at);
create index requested_texts_requested_at_idx on two_tower.requested_texts (requested_at);

create function two_tower.hash_text(p_text text) returns bytea
language sql immutable strict set search_path = pg_catalog, pg_temp as $$
  select sha256(convert_to(btrim(p_text, E' \t\r\n'), 'UTF8'));
$$;
comment on function two_tower.hash_text(text) is 'Returns what a text is known by. Space around it does not count.';

create function two_tower.find_text(p_user_id uuid, p_text text) returns extensions.vector
language sql stable set search_path = pg_catalog, pg_temp as $$
  select t.base_embedding from two_tower.requested_texts t
  where t.hash = two_tower.hash_text(p_text) and t.user_id is not distinct from p_user_id;
$$;
comment on function two_tower.find_text(uuid, text) is 'Returns the base embedding of a text that this user had encoded; a back end''s without a user. Null for any other text.';

create function two_tower.check_text(p_text text) returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_limit integer := (select requested_text_length from two_tower.settings);
begin
  if length(p_text) > v_limit then
    raise exception 'a text has at most % characters, not %', v_limit, length(p_text)
      using errcode = 'TT002', hint = 'Shorten it. The encoder reads about 200 words.';
  elsif p_text is null or p_text !~ '\S' then
    raise exception 'the text is empty' using errcode = '22023',
      hint = 'Pass p_text with a word in it.';
  end if;
end
$$;
comment on function two_tower.check_text(text) is 'Raises TT002 for a text longer than settings.requested_text_length, and 22023 for a blank one.';

-- Two sessions: the user's row is locked, so that calls at once do not pass the limit together.
create function two_tower.count_text(p_user_id uuid) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_limit integer := (select requested_texts_per_minute from two_tower.settings);
begin
  perform two_tower.add_users(array[p_user_id]);
  perform from two_tower.users u where u.id = p_user_id for no key update;
  if v_limit <= (select count(*) from two_tower.requested_texts t
    where t.user_id = p_user_id and t.requested_at > two_tower.now() - interval '1 minute') then
    raise exception 'a user asks for at most % new texts a minute', v_limit
      using errcode = 'TT005', hint = 'Wait a minute. Ask while the user pauses, not at each key.';
  end if;
end
$$;
comment on function two_tower.count_text(uuid) is 'Raises TT005 when the user has asked for settings.requested_texts_per_minute new texts within a minute.';

create function two_tower.queue_text(p_user_id uuid, p_text text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_hash bytea := two_tower.hash_text(p_text);
begin
  if exists (select from two_tower.requested_texts t
    where t.hash = v_hash and t.user_id is not distinct from p_user_id) then
    return;
  end if;
  if p_user_id is not null then
    perform two_tower.count_text(p_user_id);
  end if;
  insert into two_tower.requested_texts (user_id, hash, content, turn_at)
  select p_user_id, v_hash, p_text, greatest(two_tower.now(), max(w.turn_at) + interval '0.1 s')
  from (
    select t.turn_at from two_tower.requested_texts t
    where t.user_id = p_user_id and t.content is not null
    union all
    select t.turn_at from two_tower.requested_texts t
    where p_user_id is null and t.user_id is null and t.content is not null
  ) w
  on conflict do nothing;
end
$$;
comment on function two_tower.queue_text(uuid, text) is 'Has a text wait for a worker, unless it does. Raises TT005 for too many of one user, and 23503 for an unknown user.';

create function two_tower.request_text(p_text text)
returns table (status text, base_embedding real[], embedding real[], retry_after integer)
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_user_id uuid := two_tower.require_caller();
  v_base extensions.vector;
begin
  perform two_tower.check_text(p_text);
  select t.base_embedding into v_base from two_tower.requested_texts t
  where t.hash = two_tower.hash_text(p_text) and t.user_id is not distinct from v_user_id
    and t.content is null;
  if found then
    return query
    select case when v_base is null then 'unreadable' else 'ready' end, v_base::real[],
      two_tower.run_candidate_tower(v_base)::real[], null::integer;
    return;
  end if;
  perform two_tower.queue_text(v_user_id, p_text);
  return query
  select case when h.has_worker then 'waiting' else 'no_worker' end, null::real[], null::real[],
    case when h.has_worker then 1 else 30 end
  from two_tower.has_worker() as h (has_worker);
end
$$;
comment on function two_tower.request_text(text) is 'The core of embed_text(). Definer: clients have no grant on the queue and the towers.';

create function public.embed_text(p_text text)
returns table (status text, base_embedding real[], embedding real[], retry_after integer)
language sql set search_path = pg_catalog, pg_temp as $$
  select * from two_tower.request_text(p_text);
$$;
comment on function public.embed_text(text) is
  'Has a text encoded for the caller. Queues it when it is new: call again for the answer, after retry_after seconds. status: ready (with base_embedding, 384 numbers of the encoder, and embedding, 128 in the space of the posts), waiting, no_worker (it waits, and no worker lives), or unreadable (the encoder knows nothing in it). A text is kept for settings.requested_texts_kept_for, and for its caller alone. search_posts() finds posts like it. Raises 22023 for a blank text, TT002 for one longer than settings.requested_text_length, TT005 for more than settings.requested_texts_per_minute new ones, and 42501 when nobody is signed in.';

-- A claim is a lease, not a job: searches would leave a row of jobs each.
create function two_tower.texts_to_encode(p_limit integer default 32)
returns table (text_id bigint, content text)
language sql security definer set search_path = pg_catalog, pg_temp as $$
  update two_tower.requested_texts t
  set claimed_until = two_tower.now() + interval '20 seconds'
  where t.id = any (array( -- found once: a join could look again, and find the next ones
    select w.id from two_tower.requested_texts w
    where w.content is not null and w.claimed_until < two_tower.now()
    order by w.turn_at, w.id limit p_limit for update skip locked))
  returning t.id, t.content;
$$;
comment on function two_tower.texts_to_encode(integer) is
  'Claims at most p_limit texts that wait, by turns of their callers, and returns them. Another worker may claim them after 20 seconds. Definer: workers have no grant on tables.';

create function two_tower.store_text_embeddings(p_text_ids bigint[],
  p_embeddings extensions.vector[], p_encoder text default null)
returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_stored integer;
begin
  if cardinality(p_text_ids) is distinct from cardinality(p_embeddings) then
    raise exception 'text ids and embeddings are not arrays of one length'
      using errcode = '22023', hint = 'Pass an embedding for each text of texts_to_encode().';
  end if;
  if p_encoder <> two_tower.active_encoder() then
    return 0;
  end if;
  with stored as (
    update two_tower.requested_texts t set base_embedding = g.embedding, content = null
    from unnest(p_text_ids, p_embeddings) as g (text_id, embedding)
    where t.id = g.text_id and t.content is not null
    returning t.user_id, t.hash, t.base_embedding
  ), told as (
    update two_tower.told_interests i set
      base_embedding = s.base_embedding, encoder = two_tower.active_encoder(),
      embedding = two_tower.run_candidate_tower(s.base_embedding),
      model_version = two_tower.active_version('candidate_tower')
    from stored s where i.user_id = s.user_id and i.hash = s.hash
  )
  select count(*) into v_stored from stored;
  return v_stored;
end
$$;
comment on function two_tower.store_text_embeddings(bigint[], extensions.vector[], text) is
  'Stores encoded texts, and forgets their wording. Hands what users told (told_interests) over to them. null: the encoder cannot read the text. p_encoder: the model that read them; stores nothing of another one than that at work. Passes over those that are gone or encoded. Returns how many it stored. Raises 22023 for arrays of different lengths. Definer: workers have no grant on tables.';

create function two_tower.prune_requested_texts(p_limit integer default 1000) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_pruned integer;
begin
  delete from two_tower.requested_texts where id = any (array(
    select t.id from two_tower.requested_texts t
    where t.requested_at
      < two_tower.now() - (select s.requested_texts_kept_for from two_tower.settings s)
    order by t.requested_at limit p_limit for update skip locked));
  get diagnostics v_pruned = row_count;
  return v_pruned;
end
$$;
comment on function two_tower.prune_requested_texts(integer) is 'Deletes at most p_limit texts that are older than settings.requested_texts_kept_for. Returns how many.';
