-- What a caller names in a request: a user, the posts to leave out, a filter, a cursor, a post.
-- Clients have no grant on what is looked up here, so most of it is SECURITY DEFINER. It acts for
-- auth.uid() alone.

create function two_tower.require_reader(p_user_id uuid) returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if p_user_id is distinct from auth.uid() and not two_tower.is_operator() then
    raise exception 'the caller is not user %', p_user_id using errcode = '42501',
      hint = 'Call recommend(), or call with the service role.';
  end if;
  return p_user_id;
end
$$;
comment on function two_tower.require_reader(uuid) is 'Returns the user, if the caller may ask for this user''s page: the user, or an operator. Raises 42501 to others.';

create function two_tower.find_excluded(p_keys text[], p_source text) returns bigint[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  if cardinality(p_keys) > 1000 then
    raise exception 'p_exclude has % keys: at most 1000 are left out', cardinality(p_keys)
      using errcode = 'TT002',
        hint = 'Leave out the last ones shown. Record views: what was viewed does not come again.';
  end if;
  return case when p_keys = '{}' then '{}' else two_tower.find_keyed_posts(p_keys, p_source) end;
end
$$;
comment on function two_tower.find_excluded(text[], text) is 'Returns the ids of posts by their keys, in one source or, for null, in all. Passes over unknown keys. Raises TT002 for more than 1,000. Definer: clients have no grant on the registry.';

create function two_tower.filter_for(p_user_id uuid, p_filter jsonb, p_source text)
returns two_tower.page_filter
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return two_tower.read_filter(p_filter, two_tower.require_reader(p_user_id), p_source);
end
$$;
comment on function two_tower.filter_for(uuid, jsonb, text) is 'Returns what read_filter() does, to the user and to operators. Raises 42501 to others. Definer: clients have no grant on the registry.';

create function two_tower.muted_for(p_user_id uuid) returns tsquery
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_words text[] := (select array_agg(m.term) from public.muted_terms m
    where m.user_id = two_tower.require_reader(p_user_id) and m.kind = 'word');
begin
  return case when v_words is not null then two_tower.write_word_query(v_words) end;
end
$$;
comment on function two_tower.muted_for(uuid) is 'Returns what a text with a muted word matches, to the user and to operators. Returns null for who has muted none. Raises 42501 to others. Definer: the service role asks for a user.';

create function two_tower.shown_before(p_user_id uuid, p_cursor text) returns bigint[]
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return two_tower.read_blocks(
    two_tower.open_cursor(two_tower.require_reader(p_user_id), p_cursor));
end
$$;
comment on function two_tower.shown_before(uuid, text) is 'Returns the posts that a cursor says were shown. Raises 22023 for what is no cursor of the user. Definer: clients have no grant on state.hash_seed.';

create function two_tower.cursor_after(p_user_id uuid, p_cursor text, p_post_ids bigint[])
returns text
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return two_tower.write_cursor(two_tower.require_reader(p_user_id), p_cursor, p_post_ids);
end
$$;
comment on function two_tower.cursor_after(uuid, text, bigint[]) is 'Returns the cursor of a page, as write_cursor() does. Definer: clients have no grant on state.hash_seed.';

create function two_tower.identify_post(p_post_id bigint, p_key text, p_source text) returns bigint
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
  return coalesce(p_post_id, case when p_key is not null
    then two_tower.find_post(p_key, p_source) end);
end
$$;
comment on function two_tower.identify_post(bigint, text, text) is 'Returns the id of a post that a caller names by id or by key; null for an unknown key. Definer: clients have no grant on the registry.';
