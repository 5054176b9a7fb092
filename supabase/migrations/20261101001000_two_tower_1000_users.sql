-- Users of whom anything is stored. Of the engine's tables, this one alone refers to auth.users.
-- Deleting an account deletes its row, and all that refers to it, and asks for the erasure of the
-- rest. Both the key and the trigger belong to this schema, so a dump takes them along. It leaves
-- out triggers on auth.users.

create table two_tower.users (
  id uuid primary key references auth.users (id) on delete cascade,
  created_at timestamptz not null default two_tower.now()
);
comment on table two_tower.users is 'Users of whom anything is stored: who engaged, wrote a post, or filled in a profile.';
comment on column two_tower.users.created_at is 'When the engine first met the user.';

-- Two sessions: rows are inserted in order of id, so that two batches of new users do not wait for
-- each other.
create function two_tower.add_users(p_user_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_unknown uuid;
begin
  select n.id into v_unknown from unnest(p_user_ids) as n (id)
  where not exists (select from auth.users a where a.id = n.id)
  order by n.id limit 1;
  if found then
    raise exception 'user % does not exist', v_unknown using errcode = 'foreign_key_violation',
      hint = 'Users are rows of auth.users. Nothing of the statement was stored.';
  end if;
  insert into two_tower.users (id)
  select distinct n.id from unnest(p_user_ids) as n (id) order by n.id on conflict do nothing;
end
$$;
comment on function two_tower.add_users(uuid[]) is
  'Adds users of whom something is about to be stored; those who are there stay as they are. Raises 23503 for a user who has no row in auth.users.';

create table two_tower.users_to_erase (
  user_id uuid primary key,
  requested_at timestamptz not null default two_tower.now()
);
comment on table two_tower.users_to_erase is 'Deleted users of whom rows are left. It is empty when all is erased.';

create function two_tower.request_erasure() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  insert into two_tower.users_to_erase (user_id)
  select o.id from old_users o order by o.id on conflict do nothing;
  return null;
end
$$;
comment on function two_tower.request_erasure() is 'Asks for the erasure of deleted users. Definer: Auth deletes users, and has no grant here.';
create trigger request_erasure after delete on two_tower.users
  referencing old table as old_users
  for each statement execute function two_tower.request_erasure();
