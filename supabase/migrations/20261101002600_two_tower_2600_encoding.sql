-- From texts to vectors. A new or changed text waits for a worker, which encodes it.
-- store_base_embeddings() takes it from there, to live embeddings and to the events that waited for
-- them. Texts are read where they are: in the app's tables.

create type two_tower.profile_row as (user_id uuid, content_hash bigint);
comment on type two_tower.profile_row is 'What a source says of a profile. content_hash is null for a blank one.';

create function two_tower.store_profiles(p_source_id smallint, p_rows two_tower.profile_row[])
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_rows two_tower.profile_row[] := array(
    select r from unnest(p_rows) r
    where r.content_hash is not null
      and exists (select from auth.users a where a.id = r.user_id)
    order by r.user_id);
begin
  delete from two_tower.profile_embeddings e using unnest(p_rows) r
  where e.user_id = r.user_id and r.content_hash is null;
  perform two_tower.add_users(array(select r.user_id from unnest(v_rows) r));
  insert into two_tower.profile_embeddings as e (user_id, content_hash)
  select r.user_id, r.content_hash from unnest(v_rows) r order by r.user_id
  on conflict (user_id) do update set
    base_embedding = null, content_hash = excluded.content_hash, requested_at = two_tower.now()
  where e.content_hash <> excluded.content_hash;
end
$$;
comment on function two_tower.store_profiles(smallint, two_tower.profile_row[]) is 'Asks for an encoding of new and changed profiles. Passes over those of whom auth.users has no row, and forgets blank ones.';

create function two_tower.remove_profiles(p_source_id smallint, p_rows two_tower.profile_row[])
returns void language sql set search_path = pg_catalog, pg_temp as $$
  delete from two_tower.profile_embeddings e using unnest(p_rows) r where e.user_id = r.user_id;
$$;
comment on function two_tower.remove_profiles(smallint, two_tower.profile_row[]) is 'Forgets profiles. What they gave their users as a prior stays until it is computed again.';

-- Texts of rows of any source, by their keys. Each source has a function of its own, which
-- attaching wrote.
create function two_tower.read_texts(p_source_id smallint, p_keys text[])
returns table (key text, content text)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return query execute format('select t.key, t.content from two_tower.texts_in_source_%s($1) t',
    p_source_id) using p_keys;
exception when others then
  return; -- the table has changed since, or a row of it cannot be read: reconciliation tells
end
$$;
comment on function two_tower.read_texts(smallint, text[]) is 'Returns the texts of rows of a source. Returns nothing for a table that cannot be read as it was attached, until reconciliation has followed or has opened an alert.';

-- A queue by turns: each author who waits is served one post before any is served two. So nobody
-- waits longer because another wrote more. A call begins at a random turn and goes round. An index
-- leads from turn to turn, so that the walk costs what there are authors, not posts.
create function two_tower.turns_to_encode(p_limit integer) returns bigint[]
language plpgsql set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  v_now timestamptz := two_tower.now();
  v_start bigint := uuid_hash_extended(gen_random_uuid(), 0);
  v_turn bigint := v_start;
  v_turns bigint[] := '{}';
  v_is_round boolean := false;
begin
  while cardinality(v_turns) < p_limit loop
    select d.turn into v_turn from two_tower.due_posts d
    where d.turn > v_turn and d.requested_at <= v_now order by d.turn limit 1;
    exit when v_is_round and (v_turn is null or v_turn > v_start);
    if v_turn is null then
      v_turn := two_tower.first_bigint();
      v_is_round := true;
    else
      v_turns := v_turns || v_turn;
    end if;
  end loop;
  return v_turns;
end
$$;
comment on function two_tower.turns_to_encode(integer) is
  'Returns at most p_limit turns in which posts wait for the encoder, from a random one on.';

create function two_tower.find_due_posts(p_turns bigint[], p_from integer, p_until integer)
returns two_tower.due_posts[] language plpgsql stable set search_path = pg_catalog, pg_temp
  set enable_seqscan = off set enable_bitmapscan = off as $$
begin
  return array(
    select row(n.id, n.source_id, n.key, n.content_hash, n.requested_at, n.turn, n.is_edited
      )::two_tower.due_posts
    from unnest(p_turns) with ordinality as t (turn, place)
      cross join lateral (
        select d.*, row_number() over (order by d.is_edited, d.requested_at, d.id) as post_place
        from (values (false), (true)) as e (is_edited)
          cross join lateral (
            select w.* from two_tower.due_posts w
            where w.turn = t.turn and w.is_edited = e.is_edited
              and w.requested_at <= two_tower.now()
            order by w.requested_at, w.id limit p_until) d
      ) n
    where n.post_place > p_from and n.post_place <= p_until
    order by n.post_place, t.place);
end
$$;
comment on function two_tower.find_due_posts(bigint[], integer, integer) is
  'Returns of each turn the posts p_from + 1 to p_until: the first of all turns, then the second, and so on. New posts of a turn come before edited ones, and the oldest request first.';

-- Posts whose text is not there, or is not the one that the registry knows, are passed over until
-- reconciliation has found out. Others of their turn do not wait behind them: of each turn more
-- posts are looked at, four times as many in each round.
--
-- A batch is short in characters too. Else a new post would wait for 256 long ones of another.
create function two_tower.posts_to_encode(p_limit integer default 256)
returns table (post_id bigint, content_hash bigint, content text)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_turns bigint[] := two_tower.turns_to_encode(greatest(p_limit, 64));
  v_from integer := 0;
  v_until integer := ceil(greatest(p_limit, 64) / greatest(cardinality(v_turns), 1)::real);
  v_due two_tower.due_posts[];
  v_left integer := p_limit;
  v_characters integer := 8000;
begin
  for v_round in 1..6 loop
    v_due := two_tower.find_due_posts(v_turns, v_from, v_until);
    exit when v_due = '{}';
    for v_first in 1..cardinality(v_due) by 64 loop
      for post_id, content_hash, content in
        select d.id, d.content_hash, left(t.content, 10000)
        from (
          select n.source_id, array_agg(n.key) as keys from unnest(v_due[v_first:v_first + 63]) n
            join two_tower.sources s on s.id = n.source_id and s.state <> 'detached'
          group by n.source_id
        ) s
          cross join lateral two_tower.read_texts(s.source_id, s.keys) t
          join unnest(v_due[v_first:v_first + 63]) with ordinality as d (id, source_id, key,
            content_hash, requested_at, turn, is_edited, place)
            on d.source_id = s.source_id and d.key = t.key
        where hashtextextended(t.content, 0) = d.content_hash
        order by d.place
      loop
        return next;
        v_left := v_left - 1;
        v_characters := v_characters - least(length(content), 1000);
        if v_left <= 0 or v_characters <= 0 then
          return;
        end if;
      end loop;
    end loop;
    v_from := v_until;
    v_until := 4 * v_until;
  end loop;
end
$$;
comment on function two_tower.posts_to_encode(integer) is 'Returns at most p_limit posts whose text waits for the encoder, by turns of their authors, with the first 10,000 characters: an encoder reads about a thousand. Ends after the text with which it has read 8,000, so that a post that comes meanwhile does not wait long. Definer: workers have no grant on tables.';

create function two_tower.profiles_to_encode(p_limit integer default 256)
returns table (user_id uuid, content_hash bigint, content text)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return query
  with due as materialized (
    select e.user_id, e.requested_at from two_tower.profile_embeddings e
    where e.base_embedding is null order by e.requested_at, e.user_id limit p_limit
  )
  select d.user_id, hashtextextended(t.content, 0), left(t.content, 10000)
  from two_tower.sources s
    cross join lateral two_tower.read_texts(s.id,
      array(select d.user_id::text from due d)) t
    join due d on d.user_id = t.key::uuid
  where s.role = 'profiles' and s.state <> 'detached'
  order by d.requested_at, d.user_id;
end
$$;
comment on function two_tower.profiles_to_encode(integer) is 'Returns at most p_limit profiles whose text waits for the encoder, oldest request first, with its first 10,000 characters. Definer: workers have no grant on tables.';

-- What changed of a post beside its text. A statement of the app writes the registry alone, and
-- waits for no lesson.
create function two_tower.apply_post_changes(p_limit integer default 1000) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_post_ids bigint[];
  v_taken integer;
  v_active smallint;
begin
  with due as (
    select c.id from two_tower.post_changes c order by c.id limit p_limit for update skip locked
  ), taken as (
    delete from two_tower.post_changes c using due d where c.id = d.id returning c.post_id
  )
  select array_agg(distinct t.post_id order by t.post_id), count(*) into v_post_ids, v_taken
  from taken t;
  if v_taken = 0 then
    return 0;
  end if;
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  v_active := (select active_slot from two_tower.state);
  perform from two_tower.live_embeddings v
  where v.slot in (0, 1) and v.post_id = any (v_post_ids)
  order by v.post_id, v.slot <> v_active for no key update;
  -- A statement of its own: it sees the rows that fill_slot() added while this one waited.
  update two_tower.live_embeddings v set
    is_listed = p.is_listed, author_id = p.author_id,
    created_at = greatest(p.created_at, p.arrived_at),
    number = case when p.is_listed then v.number end
  from two_tower.posts p
  where v.slot in (0, 1) and v.post_id = any (v_post_ids) and p.id = v.post_id
    and (v.author_id, v.created_at, v.is_listed)
      is distinct from (p.author_id, greatest(p.created_at, p.arrived_at), p.is_listed);
  return v_taken;
end
$$;
comment on function two_tower.apply_post_changes(integer) is
  'Carries at most p_limit changes of the registry into live_embeddings. Locks posts in the order in which learning locks them. Returns how many it took.';

create function two_tower.mark_encoded(p_stored bigint[], p_post_ids bigint[], p_hashes bigint[])
returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_encoded integer;
begin
  with locked as materialized (
    select p.id from two_tower.posts p
    where p.id = any (p_stored)
    order by p.id for no key update of p skip locked
  ), encoded as (
    update two_tower.posts p set encoded_hash = p.content_hash
    from locked l
    where p.id = l.id and (p_hashes is null or exists (
      select from unnest(p_post_ids, p_hashes) as g (post_id, hash)
      where g.post_id = p.id and coalesce(g.hash, p.content_hash) = p.content_hash))
    returning p.id, p.author_id, greatest(p.created_at, p.arrived_at) as created_at, p.is_listed
  ), changed as (
    insert into two_tower.post_changes (post_id)
    select v.post_id from two_tower.live_embeddings v left join encoded e on e.id = v.post_id
    where v.slot in (0, 1) and v.post_id = any (p_stored)
      and (v.author_id, v.created_at, v.is_listed)
        is distinct from (e.author_id, e.created_at, e.is_listed)
    group by v.post_id
  )
  select count(*) into v_encoded from encoded;
  return v_encoded;
end
$$;
comment on function two_tower.mark_encoded(bigint[], bigint[], bigint[]) is 'Notes of posts whose embeddings were stored that their texts are encoded, unless they were changed meanwhile or a transaction of the app holds them. Returns of how many.';

-- Where the encoder hands in what it computed. New posts get their live embedding, then deferred
-- events are learned, and only then are rows touched that others may hold. So no lock is waited for
-- while one is held out of order.
--
-- The registry comes last, and waits for nobody: a transaction of the app may hold a post there and
-- wait for what is locked here. A post that it holds, or whose text has changed meanwhile, stays
-- due. Whatever may have changed since the embedding was made is looked at by apply_post_changes(),
-- after both have committed: the app's transaction asks for that, too.
create function two_tower.store_base_embeddings(
  p_post_ids bigint[], p_embeddings extensions.vector[], p_hashes bigint[] default null
) returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_new bigint[];
  v_stored bigint[];
  v_active smallint;
begin
  if cardinality(p_post_ids) is distinct from cardinality(p_embeddings)
     or cardinality(p_post_ids)
       is distinct from coalesce(cardinality(p_hashes), cardinality(p_post_ids)) then
    raise exception 'post ids, embeddings and hashes are not arrays of one length'
      using errcode = '22023',
        hint = 'Pass the hashes that posts_to_encode() returned, or null.';
  end if;
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  v_active := (select active_slot from two_tower.state);
  with given as (
    select distinct on (g.post_id) g.post_id, g.embedding, g.hash
    from unnest(p_post_ids, p_embeddings,
      coalesce(p_hashes, array_fill(null::bigint, array[cardinality(p_post_ids)])))
         as g (post_id, embedding, hash)
    order by g.post_id
  ), stored as (
    insert into two_tower.base_embeddings (post_id, base_embedding)
    select p.id, g.embedding from two_tower.posts p join given g on g.post_id = p.id
    where g.hash is null or g.hash = p.content_hash
    order by p.id
    on conflict (post_id) do update set
      base_embedding = excluded.base_embedding, encoded_at = excluded.encoded_at
    returning post_id
  )
  select array_agg(post_id) into v_stored from stored;
  insert into two_tower.users (id, account_id)
  select distinct p.author_id, p.author_id
  from two_tower.posts p join auth.users a on a.id = p.author_id
  where p.id = any (v_stored) order by p.author_id
  on conflict do nothing;

  perform pg_advisory_xact_lock_shared(two_tower.numbering_lock());
  with arrived as (
    select p.id, p.author_id, greatest(p.created_at, p.arrived_at) as created_at, p.is_listed,
      p.source_id, b.base_embedding
    from two_tower.base_embeddings b join two_tower.posts p on p.id = b.post_id
    where b.post_id = any (v_stored) and not exists (
      select from two_tower.live_embeddings v where v.slot = v_active and v.post_id = b.post_id)
    -- Of posts that came at once, ids below zero count down.
    order by p.requested_at, greatest(b.post_id, ~b.post_id)
  ), numbered as materialized (
    select a.*, case when a.is_listed then nextval('two_tower.post_numbers') end as number
    from arrived a
  ), inserted as (
    insert into two_tower.live_embeddings (slot, post_id, number, embedding, author_id, created_at,
      is_listed, source_id, model_version)
    select slots.slot, n.id, n.number, projected.embedding, n.author_id, n.created_at,
      n.is_listed, n.source_id, slots.version
    from two_tower.slots_to_write() slots
      cross join numbered n
      -- "offset 0" keeps it from being computed once for each place that names it.
      cross join lateral (
        select two_tower.run_candidate_tower(n.base_embedding, slots.version) offset 0)
        as projected (embedding)
    where extensions.vector_norm(projected.embedding) > 0
    on conflict (slot, post_id) do nothing
    returning post_id
  )
  select array_agg(distinct post_id) into v_new from inserted;
  perform two_tower.learn_deferred(500, coalesce(v_new, '{}'));

  with again as materialized (
    select v.slot, v.post_id,
      two_tower.run_candidate_tower(b.base_embedding, v.model_version) as embedding
    from two_tower.live_embeddings v join two_tower.base_embeddings b using (post_id)
    where v.post_id = any (v_stored) and v.post_id <> all (coalesce(v_new, '{}'))
      and v.is_pretrained
    order by v.post_id, v.slot <> v_active for no key update of v
  )
  update two_tower.live_embeddings v set embedding = a.embedding
  from again a where v.slot = a.slot and v.post_id = a.post_id;
  return two_tower.mark_encoded(v_stored, p_post_ids, p_hashes);
end
$$;
comment on function two_tower.store_base_embeddings(bigint[], extensions.vector[], bigint[]) is
  'Stores base embeddings, projects them with the candidate tower, and learns at most 500 of the events that waited for them. Passes over an encoding of a text that has changed since (another hash), and leaves due what a transaction of the app holds. Returns how many posts are encoded by it. Raises 22023 for arrays of different lengths. Definer: workers have no grant on tables.';
