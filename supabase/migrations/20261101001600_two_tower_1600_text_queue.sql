-- Texts that wait for a worker: posts, by turns of their authors, and profiles. A new or changed
-- text waits until its encoding is stored. Texts are read where they are: in the tables of the app.

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
  select two_tower.store_profiles(p_source_id, p_rows);
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
  set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
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
  set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
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
