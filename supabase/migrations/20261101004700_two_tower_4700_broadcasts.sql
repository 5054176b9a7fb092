-- Broadcasts: where the project has Supabase Realtime, a tick tells readers that new posts wait for
-- them, and operators what went wrong. Nothing of it happens when an event or a post is inserted.
-- Without Realtime, a turn of a tick makes one look-up.

create table two_tower.active_readers (
  user_id uuid primary key references two_tower.users (id) on delete cascade,
  last_event_at timestamptz not null,
  looked_at timestamptz not null default '-infinity',
  told_at timestamptz not null default '-infinity',
  told_count integer not null default 0
);
comment on table two_tower.active_readers is 'Users who sent an event within the last hour, and what they were told since. Empty without Realtime.';
comment on column two_tower.active_readers.last_event_at is 'The last event. Posts that are newer wait for the user.';
comment on column two_tower.active_readers.looked_at is 'When their posts were counted last. Readers take turns.';
comment on column two_tower.active_readers.told_at is 'When the user was told last: at most once a minute.';
comment on column two_tower.active_readers.told_count is 'The number that was told since the last event. It is not told again.';
create index active_readers_looked_at_idx on two_tower.active_readers (looked_at);
create index active_readers_last_event_at_idx on two_tower.active_readers (last_event_at);

insert into two_tower.cursors (name, position) values ('announced_events', 0);

create function two_tower.has_realtime() returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  return to_regprocedure('realtime.send(jsonb, text, text, boolean)') is not null;
end
$$;
comment on function two_tower.has_realtime() is 'Returns whether the project can broadcast from SQL.';

-- Of what came since the last turn, the newest events count: after a flood, or where Realtime came
-- late, nobody reads a history.
create function two_tower.follow_readers(p_limit integer default 5000) returns void
language plpgsql set search_path = pg_catalog, pg_temp set enable_bitmapscan = off as $$
declare
  v_since timestamptz := two_tower.now() - interval '1 hour';
begin
  with newest as materialized (
    select e.id, e.user_id, e.created_at from public.engagement_events e
    where e.id > (select position from two_tower.cursors where name = 'announced_events')
    order by e.id desc limit p_limit
  ), moved as (
    update two_tower.cursors c set position = n.id
    from (select max(id) as id from newest) n
    where c.name = 'announced_events' and n.id is not null
  )
  insert into two_tower.active_readers as r (user_id, last_event_at)
  select u.id, max(n.created_at) from newest n join two_tower.users u on u.id = n.user_id
  where n.created_at > v_since
  group by u.id order by u.id
  on conflict (user_id) do update set last_event_at = excluded.last_event_at, told_count = 0
  where r.last_event_at < excluded.last_event_at;
  delete from two_tower.active_readers r where r.user_id in (
    select g.user_id from two_tower.active_readers g
    where g.last_event_at <= v_since order by g.last_event_at limit p_limit);
end
$$;
comment on function two_tower.follow_readers(integer) is 'Notes who sent one of the newest p_limit events since the last call. Forgets who has sent none for an hour.';

-- A tick cannot read as somebody else. So a source's posts count only where its owner says that all
-- signed-in users may read them: a number, too, would tell of the others.
create function two_tower.count_new_posts(p_limit integer)
returns table (user_id uuid, new_count integer)
language sql stable set search_path = pg_catalog, pg_temp as $$
  with fresh as materialized (
    select p.id, p.author_id, p.created_at
    from two_tower.posts p
    where p.is_listed and p.encoded_hash is not null
      and p.created_at > two_tower.now() - interval '1 hour' and p.created_at <= two_tower.now()
      and p.source_id in (select s.id from two_tower.sources s
        where s.is_announced and s.state <> 'detached')
      and exists (select from two_tower.listed_posts l where l.id = p.id)
    order by p.created_at desc limit 200
  ), readers as materialized (
    select r.user_id, r.last_event_at from two_tower.active_readers r
    order by r.looked_at, r.user_id limit p_limit
  )
  select r.user_id, n.new_count::integer
  from readers r
    cross join lateral (
      select count(*) as new_count
      from (
        select from fresh f
        where f.created_at > r.last_event_at and f.author_id is distinct from r.user_id
          and not (select exists (select from two_tower.withheld_authors a
            where a.user_id = r.user_id and a.author_id = f.author_id))
        limit 99) c) n;
$$;
comment on function two_tower.count_new_posts(integer) is 'Returns how many posts are newer than the last event of each of the p_limit readers whose turn it is: at most 99, of the newest 200 of an hour. Posts count of sources with is_announced.';

create function two_tower.announce_posts() returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_limit integer := (select announced_readers from two_tower.settings);
  v_reader record;
  v_told integer := 0;
begin
  if v_limit = 0 then
    return 0;
  end if;
  perform two_tower.follow_readers();
  for v_reader in
    with counted as materialized (
      select c.user_id, c.new_count from two_tower.count_new_posts(v_limit) c
    )
    update two_tower.active_readers r set
      looked_at = two_tower.now(),
      told_at = case when w.is_due then two_tower.now() else r.told_at end,
      told_count = case when w.is_due then w.new_count else r.told_count end
    from (
      select c.user_id, c.new_count, c.new_count > 0 and c.new_count <> o.told_count
          and o.told_at <= two_tower.now() - interval '1 minute' as is_due
      from counted c join two_tower.active_readers o using (user_id)
    ) w
    where r.user_id = w.user_id
    returning r.user_id, w.new_count, w.is_due
  loop
    continue when not v_reader.is_due;
    execute 'select realtime.send($1, ''new_posts'', $2, true)'
    using jsonb_build_object('new_posts', v_reader.new_count),
      'two_tower:user:' || v_reader.user_id;
    v_told := v_told + 1;
  end loop;
  return v_told;
end
$$;
comment on function two_tower.announce_posts() is 'Tells at most settings.announced_readers readers how many posts wait for them. Returns how many it told.';

create function two_tower.announce_alerts(p_limit integer default 100) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_alert record;
  v_told integer := 0;
begin
  for v_alert in
    update two_tower.alerts a set announced_at = two_tower.now()
    from (
      select o.id from two_tower.alerts o
      where o.closed_at is null and o.announced_at is null
      order by o.id limit p_limit for update skip locked
    ) o
    where a.id = o.id
    returning a.id, a.kind, a.subject, a.message, a.opened_at
  loop
    execute 'select realtime.send($1, ''alert'', ''two_tower:alerts'', true)'
    using jsonb_build_object('alert_id', v_alert.id, 'kind', v_alert.kind,
      'subject', v_alert.subject, 'message', v_alert.message, 'opened_at', v_alert.opened_at);
    v_told := v_told + 1;
  end loop;
  return v_told;
end
$$;
comment on function two_tower.announce_alerts(integer) is 'Tells operators of at most p_limit alerts that were opened and not told. Returns how many.';

create function two_tower.announce() returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if not two_tower.has_realtime() then
    return 0;
  end if;
  return two_tower.announce_posts() + two_tower.announce_alerts();
end
$$;
comment on function two_tower.announce() is
  'Broadcasts by Supabase Realtime, to private topics: event new_posts {"new_posts": n} to two_tower:user:<uuid>, for recently active readers, at most once a minute each; event alert to two_tower:alerts. Returns how many messages it sent, 0 where Realtime is missing.';

create function two_tower.allow_broadcasts() returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if not two_tower.lacks_broadcast_policy() then
    return false;
  end if;
  execute '
    create policy "readers receive what two_tower tells them" on realtime.messages
      for select to authenticated
      using (extension = ''broadcast''
        and topic = ''two_tower:user:'' || (select auth.uid())::text)';
  return true;
end
$$;
comment on function two_tower.allow_broadcasts() is
  'Makes the policy on realtime.messages by which signed-in users receive their own topic two_tower:user:<uuid>, and no other. Returns whether it was made now. Call it again where Realtime came after the engine. two_tower:alerts has no policy: the service role alone receives it.';

do $$
begin
  perform two_tower.allow_broadcasts();
exception when others then
  raise notice 'no policy for broadcasts (%): see two_tower.allow_broadcasts()', sqlerrm;
end
$$;
