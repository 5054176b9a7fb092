-- How rows of the app come into the registry and the mirrors. Triggers on the app's tables call
-- these with what a statement changed, and reconciliation with what it found.
--
-- Two sessions: rows of the registry are locked after the app's own, in order of id. The engine's
-- own steps pass over what an app's transaction holds.

create type two_tower.post_row as (
  key text, author_key text, created_at timestamptz, is_visible boolean, content_hash bigint,
  language text, tags text[]
);
comment on type two_tower.post_row is 'What a source says of a post.';
create type two_tower.follow_row as (follower_id uuid, followed_id uuid);
comment on type two_tower.follow_row is 'What a source says of a follow.';
create type two_tower.block_row as (user_id uuid, author_id uuid, kind text);
comment on type two_tower.block_row is 'What a source says of a block.';

create table two_tower.source_reports (
  id bigint generated always as identity primary key,
  source_id smallint not null,
  event text not null constraint event_of_source_is_known check (event in ('broken', 'emptied')),
  sqlstate text,
  message text,
  reported_at timestamptz not null default two_tower.now()
);
comment on table two_tower.source_reports is 'What triggers on attached tables report, until a tick acts on it.';
comment on column two_tower.source_reports.event is 'broken: a write was stored and not followed. emptied: the table was truncated.';
comment on column two_tower.source_reports.sqlstate is 'The error because of which the write was not followed.';
comment on column two_tower.source_reports.message is 'The message of that error.';

create function two_tower.change_posts(p_source_id smallint, p_rows two_tower.post_row[])
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  with known as materialized (
    select p.id, r.*
    from unnest(p_rows) r
      join two_tower.posts p on p.source_id = p_source_id and p.key = r.key
    order by p.id for no key update of p
  ), updated as (
    update two_tower.posts p set
      author_key = c.author_key, created_at = coalesce(c.created_at, p.created_at),
      arrived_at = coalesce(p.arrived_at, case when c.is_visible then two_tower.now() end),
      is_visible = c.is_visible, deleted_at = null, language = c.language, tags = c.tags,
      is_unreadable = p.is_unreadable and p.content_hash = c.content_hash,
      edited_at = case when p.content_hash = c.content_hash then p.edited_at
        else two_tower.now() end,
      content_hash = c.content_hash,
      requested_at = greatest(two_tower.now(), coalesce(c.created_at, p.created_at))
    from known c
    where p.id = c.id
      and ((p.author_key, p.is_visible, p.content_hash, p.language, p.tags)
          is distinct from (c.author_key, c.is_visible, c.content_hash, c.language, c.tags)
        or p.created_at <> coalesce(c.created_at, p.created_at) or p.deleted_at is not null)
    returning p.id
  )
  insert into two_tower.post_changes (post_id) select u.id from updated u order by u.id;
end
$$;
comment on function two_tower.change_posts(smallint, two_tower.post_row[]) is
  'Brings posts of the registry to what their source says. Passes over rows that it lacks.';

create function two_tower.add_posts(p_source_id smallint, p_rows two_tower.post_row[],
  p_is_import boolean)
returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_now timestamptz := two_tower.now();
  v_added integer;
  v_lends_ids boolean := (select lends_ids from two_tower.sources where id = p_source_id);
begin
  insert into two_tower.posts (id, source_id, key, author_key, created_at, arrived_at, is_visible,
    language, tags, content_hash, requested_at)
  select case when v_lends_ids then r.key::bigint else nextval('two_tower.post_ids') end,
    p_source_id, r.key, r.author_key, coalesce(r.created_at, v_now),
    case when not r.is_visible then null when p_is_import then least(r.created_at, v_now)
      else v_now end,
    r.is_visible, r.language, r.tags, r.content_hash, greatest(r.created_at, v_now)
  from unnest(p_rows) with ordinality as r (key, author_key, created_at, is_visible, content_hash,
    language, tags, place)
  where not exists (select from two_tower.posts p
                    where p.source_id = p_source_id and p.key = r.key)
  order by r.place
  on conflict (source_id, key) do nothing;
  get diagnostics v_added = row_count;
  return v_added;
end
$$;
comment on function two_tower.add_posts(smallint, two_tower.post_row[], boolean) is
  'Adds the posts that the registry lacks. Imported ones arrive when they were created, others now. Returns how many it added.';

-- A walk may add a post meanwhile, from what it read before this statement changed the row. So what
-- was not added here is compared.
create function two_tower.store_posts(p_source_id smallint, p_rows two_tower.post_row[])
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if p_rows <> '{}'
    and two_tower.add_posts(p_source_id, p_rows, two_tower.is_operator()) < cardinality(p_rows) then
    perform two_tower.change_posts(p_source_id, p_rows);
  end if;
end
$$;
comment on function two_tower.store_posts(smallint, two_tower.post_row[]) is 'Adds or changes posts of the registry, to what a statement of the app wrote. What an operator''s session writes is imported.';

-- A row that is removed may be on its way in: a walk has read it and has not ended. So it is put in
-- first, which waits for the walk. So are follows, blocks and profiles.
create function two_tower.remove_posts(p_source_id smallint, p_rows two_tower.post_row[])
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if p_rows = '{}' then
    return;
  end if;
  perform two_tower.add_posts(p_source_id, p_rows, p_is_import => true);
  with gone as materialized (
    select p.id from unnest(p_rows) r
      join two_tower.posts p on p.source_id = p_source_id and p.key = r.key
    where p.deleted_at is null
    order by p.id for no key update of p
  ), removed as (
    update two_tower.posts p set deleted_at = two_tower.now() from gone g where p.id = g.id
    returning p.id
  )
  insert into two_tower.post_changes (post_id) select r.id from removed r order by r.id;
end
$$;
comment on function two_tower.remove_posts(smallint, two_tower.post_row[]) is 'Marks posts as deleted whose rows are gone from the app''s table.';

create function two_tower.store_follows(p_source_id smallint, p_rows two_tower.follow_row[])
returns void language sql set search_path = pg_catalog, pg_temp as $$
  insert into two_tower.follows (follower_id, followed_id)
  select distinct r.follower_id, r.followed_id from unnest(p_rows) r
  where r.follower_id is not null and r.followed_id is not null
  order by r.follower_id, r.followed_id
  on conflict do nothing;
$$;
comment on function two_tower.store_follows(smallint, two_tower.follow_row[]) is 'Mirrors follows of the app.';

create function two_tower.remove_follows(p_source_id smallint, p_rows two_tower.follow_row[])
returns void language sql set search_path = pg_catalog, pg_temp as $$
  select two_tower.store_follows(p_source_id, p_rows);
  delete from two_tower.follows f using unnest(p_rows) r
  where f.follower_id = r.follower_id and f.followed_id = r.followed_id;
$$;
comment on function two_tower.remove_follows(smallint, two_tower.follow_row[]) is 'Takes follows out of the mirror.';

create function two_tower.store_blocks(p_source_id smallint, p_rows two_tower.block_row[])
returns void language sql set search_path = pg_catalog, pg_temp as $$
  insert into two_tower.blocks as b (user_id, author_id, kind)
  select distinct on (r.user_id, r.author_id) r.user_id, r.author_id, r.kind
  from unnest(p_rows) r
  where r.user_id is not null and r.author_id is not null
  order by r.user_id, r.author_id, r.kind
  on conflict (user_id, author_id) do update set kind = excluded.kind
  where b.kind <> excluded.kind;
$$;
comment on function two_tower.store_blocks(smallint, two_tower.block_row[]) is 'Mirrors blocks of the app.';

create function two_tower.remove_blocks(p_source_id smallint, p_rows two_tower.block_row[])
returns void language sql set search_path = pg_catalog, pg_temp as $$
  select two_tower.store_blocks(p_source_id, p_rows);
  delete from two_tower.blocks b using unnest(p_rows) r
  where b.user_id = r.user_id and b.author_id = r.author_id;
$$;
comment on function two_tower.remove_blocks(smallint, two_tower.block_row[]) is 'Takes blocks out of the mirror.';

-- An app's write must not fail because the engine could not follow it, and must not wait. So what
-- happened to a source goes to a queue, and a tick takes it from there.
create function two_tower.report_source(p_source_id smallint, p_event text,
  p_sqlstate text default null, p_message text default null)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  insert into two_tower.source_reports (source_id, event, sqlstate, message)
  values (p_source_id, p_event, p_sqlstate, p_message);
exception when others then
  raise warning 'source %: % was not reported: % (%)', p_source_id, p_event, sqlerrm, sqlstate;
end
$$;
comment on function two_tower.report_source(smallint, text, text, text) is
  'Reports that a write to a source was not followed, or that the source was truncated. Never raises.';
