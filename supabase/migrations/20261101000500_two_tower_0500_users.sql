-- Users of whom anything is stored. Of the engine's tables, this one alone refers to auth.users.
-- Deleting an account deletes its row, and all that refers to it, and asks for the erasure of the
-- rest. Both the key and the trigger belong to this schema, so a dump takes them along. It leaves
-- out triggers on auth.users.

create table two_tower.users (
  id uuid primary key,
  account_id uuid unique references auth.users (id) on delete cascade
    constraint account_is_the_user_s check (account_id = id),
  created_at timestamptz not null default two_tower.now()
);
comment on table two_tower.users is 'Users of whom anything is stored: who engaged, wrote a post, or filled in a profile.';
comment on column two_tower.users.account_id is 'The user''s row of auth.users: deleting it deletes this one. Null for an imported user without an account.';
comment on column two_tower.users.created_at is 'When the engine first met the user.';

create index users_without_account_idx on two_tower.users (id) where account_id is null;

-- Two sessions: rows are inserted in order of id, so that two batches of new users do not wait for
-- each other.
create function two_tower.add_users(p_user_ids uuid[]) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_unknown uuid;
begin
  select n.id into v_unknown from unnest(p_user_ids) as n (id)
  where not exists (select from auth.users a where a.id = n.id)
    and not exists (select from two_tower.users u where u.id = n.id)
  order by n.id limit 1;
  if found then
    raise exception 'user % does not exist', v_unknown using errcode = 'foreign_key_violation',
      hint = 'Users are rows of auth.users, or were named to import_users(). Nothing of the statement was stored.';
  end if;
  insert into two_tower.users (id, account_id)
  select distinct n.id, n.id from unnest(p_user_ids) as n (id)
  where exists (select from auth.users a where a.id = n.id)
  order by n.id on conflict do nothing;
end
$$;
comment on function two_tower.add_users(uuid[]) is
  'Adds users of whom something is about to be stored; those who are there stay as they are. Raises 23503 for a user who has no row in auth.users and was not imported.';

-- A back end that names a user who was deleted a moment ago must not make that user anew. So users
-- without an account are named here first.
create function two_tower.import_users(p_user_ids uuid[]) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_added integer;
begin
  insert into two_tower.users (id, account_id)
  select distinct n.id, a.id from unnest(p_user_ids) as n (id) left join auth.users a using (id)
  where n.id is not null order by n.id on conflict do nothing;
  get diagnostics v_added = row_count;
  return v_added;
end
$$;
comment on function two_tower.import_users(uuid[]) is
  'Adds users whose history is imported. They need no row in auth.users. Whoever gets one later under the same id keeps the history. Returns how many it added. Delete the row of two_tower.users to erase one.';

create function two_tower.link_accounts() returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_linked integer;
begin
  update two_tower.users u set account_id = a.id
  from auth.users a where a.id = u.id and u.account_id is null;
  get diagnostics v_linked = row_count;
  return v_linked;
end
$$;
comment on function two_tower.link_accounts() is 'Links imported users with the accounts that they got since, so that deleting the account erases them. Returns how many.';

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
