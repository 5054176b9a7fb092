-- The rows into which a statement learns: users, then posts, each in order of id.

create function two_tower.refuse_unknown_post(p_post_id bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if not exists (select from two_tower.posts p where p.id = p_post_id) then
    perform two_tower.refuse_post(p_post_id::text);
  end if;
end
$$;
comment on function two_tower.refuse_unknown_post(bigint) is 'Raises 23503 for a post that does not exist.';

create function two_tower.lock_users(p_user_ids uuid[]) returns two_tower.user_embeddings[]
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_id uuid;
  v_user two_tower.user_embeddings;
  v_users two_tower.user_embeddings[];
begin
  foreach v_id in array p_user_ids loop
    loop
      select * into v_user from two_tower.user_embeddings u where u.user_id = v_id
      for no key update;
      exit when found;
      perform two_tower.add_users(array[v_id]);
      insert into two_tower.user_embeddings (user_id) values (v_id) on conflict do nothing;
    end loop;
    v_users := v_users || v_user;
  end loop;
  return v_users;
end
$$;
comment on function two_tower.lock_users(uuid[]) is 'Locks the users'' rows in the order given, which is that of their ids, and returns them. Makes the row of a new user in its turn, because that row is a lock too. Raises 23503 for an unknown user.';

create function two_tower.lock_posts(p_slot smallint, p_post_ids bigint[],
  out posts two_tower.live_embeddings[], out held_ids bigint[])
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  posts := array(
    select v from two_tower.live_embeddings v
    where v.slot = p_slot and v.post_id = any (p_post_ids)
    order by v.post_id for no key update skip locked);
  held_ids := p_post_ids;
  if cardinality(posts) < cardinality(p_post_ids) then
    held_ids := array(select p.post_id from unnest(posts) p);
    posts := array(
      select v
      from unnest(p_post_ids) with ordinality as i (post_id, place)
        left join two_tower.live_embeddings v on v.slot = p_slot and v.post_id = i.post_id
      order by i.place);
  end if;
end
$$;
comment on function two_tower.lock_posts(smallint, bigint[]) is
  'Locks the posts'' rows in the order given, which is that of their ids. Does not wait for a row that another session holds. posts: the rows as they stand, null for a post without a live embedding. held_ids: the posts whose rows are locked here.';

create function two_tower.load_user_posts(p_lessons two_tower.lesson[])
returns two_tower.user_posts[] language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_lesson two_tower.lesson;
  v_user_post two_tower.user_posts;
  v_user_posts two_tower.user_posts[];
begin
  foreach v_lesson in array p_lessons loop
    v_user_post := null;
    if v_lesson.user_post_place = coalesce(cardinality(v_user_posts), 0) + 1 then
      select * into v_user_post from two_tower.user_posts u
      where u.user_id = v_lesson.user_id and u.post_id = v_lesson.post_id;
      if not found then
        v_user_post := row(v_lesson.user_id, v_lesson.post_id, 0, false, 0, false, false,
          v_lesson.created_at, v_lesson.created_at);
      end if;
    end if;
    v_user_posts := v_user_posts || v_user_post;
  end loop;
  return v_user_posts;
end
$$;
comment on function two_tower.load_user_posts(two_tower.lesson[]) is
  'Returns what the users did with the posts so far, at the place of the first lesson about each; null at the other places. Looks up each row by its key, so that only one partition is opened.';

create function two_tower.find_place(p_post_id bigint, p_post_ids bigint[]) returns integer
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
  v_place integer := width_bucket(p_post_id, p_post_ids);
begin
  return case when v_place > 0 and p_post_ids[v_place] = p_post_id then v_place end;
end
$$;
comment on function two_tower.find_place(bigint, bigint[]) is 'Returns the place of an id in a sorted array, by binary search. Returns null if it is not there.';
