-- Who this session is, and what time it is. Tests and replays of history set the clock.

-- PL/pgSQL, because every statement of a client asks this, and a function in SQL is planned anew in
-- each statement.
create function two_tower.session_role() returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return coalesce(nullif(current_setting('role', true), 'none'), session_user::text);
end
$$;
comment on function two_tower.session_role() is
  'Returns the role that this session acts as. Inside a SECURITY DEFINER function it stays the caller''s, which current_user does not.';

create function two_tower.is_operator() returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_role name := two_tower.session_role();
begin
  return v_role = 'service_role' or pg_has_role(v_role, current_user, 'member');
end
$$;
comment on function two_tower.is_operator() is
  'Returns whether the session acts for an operator: the service role, or a member of the role that owns this schema. Operators may set the clock and insert history. Definer: so the owner is the current user, and need not be looked up.';

create function two_tower.require_user() returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_user_id uuid := auth.uid();
begin
  if v_user_id is null then
    raise exception 'the caller is not signed in' using errcode = '42501',
      hint = 'Call with the access token of a user. Backends call recommend_for() with the service role.';
  end if;
  return v_user_id;
end
$$;
comment on function two_tower.require_user() is 'Returns auth.uid(). Raises 42501 when the caller is not signed in.';

create function two_tower.require_caller() returns uuid
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return case when two_tower.is_operator() then auth.uid() else two_tower.require_user() end;
end
$$;
comment on function two_tower.require_caller() is 'Returns auth.uid(), which is null for an operator who acts for no user. Raises 42501 to others who are not signed in.';

create function two_tower.now() returns timestamptz
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
  v_now text := current_setting('two_tower.now', true);
begin
  if v_now is null or v_now = '' or not two_tower.is_operator() then
    return pg_catalog.now();
  end if;
  return v_now::timestamptz;
end
$$;
comment on function two_tower.now() is
  'Returns the time by the one clock. An operator''s session may replace it with the setting two_tower.now, a timestamp, for tests and replays of history. The setting of a client is ignored.';
