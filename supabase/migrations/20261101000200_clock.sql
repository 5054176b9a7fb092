-- Who this session is, and what time it is. Tests and replays of history set the clock.

create function two_tower.session_role() returns text
language sql stable set search_path = pg_catalog, pg_temp as $$
  select coalesce(nullif(current_setting('role', true), 'none'), session_user::text);
$$;
comment on function two_tower.session_role() is
  'The role this session acts as. Unlike current_user it stays the caller''s inside a SECURITY DEFINER function.';

create function two_tower.is_operator() returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select two_tower.session_role() = 'service_role'
      or pg_has_role(two_tower.session_role()::name,
                     (select nspowner from pg_namespace where nspname = 'two_tower'), 'member');
$$;
comment on function two_tower.is_operator() is
  'True for the service role and for members of the owner of this schema: who may set the clock and insert history.';

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
  'The one clock. The setting two_tower.now (a timestamp) replaces the time where an operator''s session gives one: tests, and replays of history. A client''s setting is ignored.';
