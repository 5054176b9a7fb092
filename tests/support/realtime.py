"""Schema `realtime` of a hosted project, rebuilt: there is no Realtime server for the tests.

The signature of realtime.send and the columns of realtime.messages are those of supabase/realtime
on GitHub: lib/realtime/tenants/repo/migrations/20260420000000_squash_migrations.ex. The server asks
who may receive a topic as its lib/realtime/tenants/authorization.ex says: it inserts a row of the
topic and selects it as the user. There the table belongs to a role of its own, here to whoever
installs.
"""

from __future__ import annotations

REALTIME = """
  create schema realtime;
  grant usage on schema realtime to anon, authenticated, service_role;
  create table realtime.messages (
    topic text not null, extension text not null, payload jsonb, event text,
    private boolean default false, updated_at timestamp not null default now(),
    inserted_at timestamp not null default now(), id uuid not null default gen_random_uuid(),
    primary key (id, inserted_at)
  ) partition by range (inserted_at);
  create table realtime.messages_today partition of realtime.messages default;
  alter table realtime.messages enable row level security;
  grant select, insert, update on realtime.messages to anon, authenticated, service_role;
  create function realtime.send(payload jsonb, event text, topic text, private boolean default true)
  returns void language plpgsql as $$
  begin
    insert into realtime.messages (payload, event, topic, private, extension)
    values (payload, event, topic, private, 'broadcast');
  exception when others then
    raise warning 'not sent: %', sqlerrm;
  end $$;
"""
