-- From texts to vectors. A row asks for an encoding, and a worker computes it.
-- store_base_embeddings() takes it from there, to live embeddings and to the events that waited for
-- them.

-- A post's row of base_embeddings appears with the post. Only a change of the text asks for another
-- encoding. The live embedding stays until then.
create function two_tower.request_post_encoding() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_new_ids uuid[] := array(select p.author_id from new_posts p
    where p.author_id is not null
      and not exists (select from two_tower.users u where u.id = p.author_id));
begin
  if v_new_ids <> '{}' then
    perform two_tower.add_users(v_new_ids);
  end if;
  insert into two_tower.base_embeddings (post_id) select p.id from new_posts p;
  return null;
end
$$;
comment on function two_tower.request_post_encoding() is 'Asks for an encoding of new posts, and adds their authors to the users. Definer: authors have no grant on embeddings.';
create trigger request_post_encoding after insert on public.posts
  referencing new table as new_posts
    for each statement execute function two_tower.request_post_encoding();

create function two_tower.follow_post_changes() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
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
    where (n.author_id, n.created_at, n.deleted_at)
      is distinct from (o.author_id, o.created_at, o.deleted_at)
    order by v.post_id, array_position(v_slots, v.slot)
    for no key update of v
  )
  update two_tower.live_embeddings v
  set is_deleted = c.is_deleted, author_id = c.author_id, created_at = c.created_at,
    number = case when not c.is_deleted then v.number end
  from changed c where v.slot = c.slot and v.post_id = c.post_id;
  return null;
end
$$;
comment on function two_tower.follow_post_changes() is
  'Asks for an encoding of changed texts, and copies to live_embeddings what ranking reads of a post. Locks posts in the order in which learning locks them. Definer: authors have no grant on embeddings.';
create trigger follow_post_changes after update on public.posts
  referencing old table as old_posts new table as new_posts
  for each statement execute function two_tower.follow_post_changes();

create function two_tower.request_profile_encoding() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform two_tower.add_users(array[new.user_id]);
  insert into two_tower.profile_embeddings (user_id) values (new.user_id)
  on conflict (user_id) do update set
    base_embedding = null, request = profile_embeddings.request + 1,
    requested_at = two_tower.now();
  return null;
end
$$;
comment on function two_tower.request_profile_encoding() is 'Asks for an encoding of a new or changed profile. Definer: users have no grant on embeddings.';
create trigger request_profile_encoding after insert on public.profiles
  for each row when (new.bio is not null or new.interests is not null)
  execute function two_tower.request_profile_encoding();
create trigger request_profile_reencoding after update of bio, interests on public.profiles
  for each row when ((old.bio, old.interests) is distinct from (new.bio, new.interests))
  execute function two_tower.request_profile_encoding();

create function two_tower.posts_to_encode(p_limit integer default 256)
returns table (post_id bigint, request integer, content text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select b.post_id, b.request, p.content
  from two_tower.base_embeddings b join public.posts p on p.id = b.post_id
  where b.base_embedding is null and p.deleted_at is null
  order by b.requested_at, b.post_id
  limit p_limit;
$$;
comment on function two_tower.posts_to_encode(integer) is 'Returns at most p_limit posts whose text waits for the encoder, oldest request first. Definer: workers have no grant on tables.';

create function two_tower.profiles_to_encode(p_limit integer default 256)
returns table (user_id uuid, request integer, content text)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select e.user_id, e.request,
    concat_ws('. ', nullif(p.bio, ''), array_to_string(p.interests, ', '))
  from two_tower.profile_embeddings e join public.profiles p on p.user_id = e.user_id
  where e.base_embedding is null
  order by e.requested_at, e.user_id
  limit p_limit;
$$;
comment on function two_tower.profiles_to_encode(integer) is 'Returns at most p_limit profiles whose text waits for the encoder, oldest request first. Definer: workers have no grant on tables.';

-- Where the encoder hands in what it computed. New posts get their live embedding, then deferred
-- events are learned, and only then are rows touched that others may hold. So no lock is waited for
-- while one is held out of order.
create function two_tower.store_base_embeddings(
  p_post_ids bigint[], p_embeddings extensions.vector[], p_requests integer[] default null
) returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_new bigint[];
  v_stored bigint[];
  v_active smallint;
begin
  if cardinality(p_post_ids) is distinct from cardinality(p_embeddings)
     or cardinality(p_post_ids)
       is distinct from coalesce(cardinality(p_requests), cardinality(p_post_ids)) then
    raise exception 'post ids, embeddings and requests are not arrays of one length'
      using errcode = '22023',
        hint = 'Pass the request numbers that posts_to_encode() returned, or null.';
  end if;
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  v_active := (select active_slot from two_tower.state);
  with given as (
    select distinct on (g.post_id) g.post_id, g.embedding, g.request
    from unnest(p_post_ids, p_embeddings,
      coalesce(p_requests, array_fill(null::integer, array[cardinality(p_post_ids)])))
         as g (post_id, embedding, request)
    order by g.post_id
  ), locked as (
    select b.post_id, g.embedding from two_tower.base_embeddings b join given g using (post_id)
    where g.request is null or g.request = b.request
    order by b.post_id for no key update of b
  ), stored as (
    update two_tower.base_embeddings b
      set base_embedding = l.embedding, encoded_at = two_tower.now()
    from locked l where b.post_id = l.post_id
    returning b.post_id
  )
  select array_agg(post_id) into v_stored from stored;

  perform pg_advisory_xact_lock_shared(two_tower.numbering_lock());
  with arrived as (
    select p.id, p.author_id, p.created_at, p.deleted_at is not null as is_deleted,
      b.base_embedding
    from two_tower.base_embeddings b join public.posts p on p.id = b.post_id
    where b.post_id = any (v_stored) and not exists (
      select from two_tower.live_embeddings v where v.slot = v_active and v.post_id = b.post_id)
    -- Of posts that came at once, ids below zero count down.
    order by b.requested_at, greatest(b.post_id, ~b.post_id)
  ), numbered as materialized (
    select a.*, case when not a.is_deleted then nextval('two_tower.post_numbers') end as number
    from arrived a
  ), inserted as (
    insert into two_tower.live_embeddings (slot, post_id, number, embedding, author_id, created_at,
      is_deleted, model_version)
    select slots.slot, n.id, n.number, projected.embedding, n.author_id, n.created_at,
      n.is_deleted, slots.version
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
  return coalesce(cardinality(v_stored), 0);
end
$$;
comment on function two_tower.store_base_embeddings(bigint[], extensions.vector[], integer[]) is
  'Stores base embeddings, projects them with the candidate tower, and learns at most 500 of the events that waited for them. Passes over an encoding of a text that has changed since (another request number). Returns how many it stored. Raises 22023 for arrays of different lengths. Definer: workers have no grant on tables.';
