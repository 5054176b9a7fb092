-- What came to an attached table without its triggers is found: rows that were there before it was
-- attached, a restore, a load with triggers off, a write that was not followed. A walk reads the
-- table in blocks, then the registry, in small steps of tick().
--
-- Two sessions: a post of the registry is locked before its row is read, so that what a trigger
-- wrote meanwhile is not written over by what was read before.

create function two_tower.reconcile_posts(p_source_id smallint, p_rows two_tower.post_row[])
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_keys text[];
  v_known text[];
  v_rows two_tower.post_row[];
begin
  v_keys := array(
    select r.key from unnest(p_rows) r
      left join two_tower.posts p on p.source_id = p_source_id and p.key = r.key
    where p.id is null or p.deleted_at is not null
      or p.created_at <> coalesce(r.created_at, p.created_at)
      or (p.author_key, p.is_visible, p.content_hash, p.language, p.tags)
        is distinct from (r.author_key, r.is_visible, r.content_hash, r.language, r.tags));
  if v_keys = '{}' then
    return;
  end if;
  v_known := array(
    select p.key from two_tower.posts p
    where p.source_id = p_source_id and p.key = any (v_keys)
    order by p.id for no key update);
  execute format('select array(select f from two_tower.find_in_source_%s($1) f)', p_source_id)
  into v_rows using v_keys;
  perform two_tower.change_posts(p_source_id, array(
    select r from unnest(v_rows) r where r.key = any (v_known)));
  perform two_tower.add_posts(p_source_id, array(
    select r from unnest(v_rows) r where r.key <> all (v_known)), p_is_import => true);
end
$$;
comment on function two_tower.reconcile_posts(smallint, two_tower.post_row[]) is 'Brings the registry to what the source says of posts now, where it differs. Posts that it lacks are imported: they arrived when they were created.';

-- What of the registry and the mirrors is next on a walk, and where that ends.
create function two_tower.list_posts(p_source_id smallint, p_after text, p_limit integer,
  out rows two_tower.post_row[], out last text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select array_agg(row(n.key, null, null, null, null, null, null)::two_tower.post_row), max(n.key)
  from (
    select p.key from two_tower.posts p
    where p.source_id = p_source_id and (p_after is null or p.key > p_after)
    order by p.key limit p_limit) n;
$$;
create function two_tower.list_profiles(p_source_id smallint, p_after text, p_limit integer,
  out rows two_tower.profile_row[], out last text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select array_agg(row(n.user_id, null)::two_tower.profile_row),
    (array_agg(n.user_id::text order by n.user_id desc))[1]
  from (
    select e.user_id from two_tower.profile_embeddings e
    where p_after is null or e.user_id > p_after::uuid
    order by e.user_id limit p_limit) n;
$$;
create function two_tower.list_follows(p_source_id smallint, p_after text, p_limit integer,
  out rows two_tower.follow_row[], out last text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select array_agg(row(n.follower_id, n.followed_id)::two_tower.follow_row),
    (array_agg(n.follower_id || ' ' || n.followed_id
      order by n.follower_id desc, n.followed_id desc))[1]
  from (
    select f.follower_id, f.followed_id from two_tower.follows f
    where p_after is null or (f.follower_id, f.followed_id)
      > (split_part(p_after, ' ', 1)::uuid, split_part(p_after, ' ', 2)::uuid)
    order by f.follower_id, f.followed_id limit p_limit) n;
$$;
create function two_tower.list_blocks(p_source_id smallint, p_after text, p_limit integer,
  out rows two_tower.block_row[], out last text)
language sql stable set search_path = pg_catalog, pg_temp as $$
  select array_agg(row(n.user_id, n.author_id, n.kind)::two_tower.block_row),
    (array_agg(n.user_id || ' ' || n.author_id order by n.user_id desc, n.author_id desc))[1]
  from (
    select b.user_id, b.author_id, b.kind from two_tower.blocks b
    where p_after is null or (b.user_id, b.author_id)
      > (split_part(p_after, ' ', 1)::uuid, split_part(p_after, ' ', 2)::uuid)
    order by b.user_id, b.author_id limit p_limit) n;
$$;
comment on function two_tower.list_posts(smallint, text, integer) is 'Returns the next posts of a source by their keys, and the last key. Only the key of each is given.';
comment on function two_tower.list_profiles(smallint, text, integer) is 'Returns the next known profiles, and the last one''s user.';
comment on function two_tower.list_follows(smallint, text, integer) is 'Returns the next mirrored follows, and the last one.';
comment on function two_tower.list_blocks(smallint, text, integer) is 'Returns the next mirrored blocks, and the last one.';

create function two_tower.note_missing_posts(p_source_id smallint, p_rows two_tower.post_row[])
returns void language sql set search_path = pg_catalog, pg_temp as $$
  insert into two_tower.vanished_posts (source_id, key)
  select p_source_id, p.key from unnest(p_rows) r
    join two_tower.posts p on p.source_id = p_source_id and p.key = r.key
  where p.deleted_at is null
  on conflict do nothing;
$$;
comment on function two_tower.note_missing_posts(smallint, two_tower.post_row[]) is 'Notes posts that the walk does not find, until it knows how many there are.';

create function two_tower.walk_rows(p_source two_tower.sources) returns two_tower.sources
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_first bigint := coalesce(p_source.position, '0');
  v_blocks bigint := pg_relation_size(p_source.relation)
    / current_setting('block_size')::integer;
begin
  execute format('select two_tower.%1$s_%2$s($1, array(
      select s from two_tower.scan_source_%3$s($2, $3) s))',
    case p_source.role when 'posts' then 'reconcile' else 'store' end, p_source.role, p_source.id)
  using p_source.id, v_first, v_first + 100;
  p_source.position := v_first + 100;
  if v_first + 100 >= v_blocks then
    p_source.walk := 'registry';
    p_source.position := null;
  end if;
  return p_source;
end
$$;
comment on function two_tower.walk_rows(two_tower.sources) is 'Reads the next 100 blocks of a table into the registry. Returns the source as it stands then.';

-- The next table of follows or blocks has the mirror: its walk takes out what it lacks.
create function two_tower.is_replaced(p_source two_tower.sources) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select p_source.state = 'detached' and p_source.role <> 'posts' and exists (
    select from two_tower.sources s where s.role = p_source.role and s.state <> 'detached');
$$;
comment on function two_tower.is_replaced(two_tower.sources) is 'Returns whether another table holds what this one held before it was detached.';

create function two_tower.walk_registry(p_source two_tower.sources) returns two_tower.sources
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_last record;
begin
  if two_tower.is_replaced(p_source) then
    p_source.walk := 'removal';
    return p_source;
  end if;
  execute format('
      with next as materialized (select * from two_tower.list_%1$s($1, $2, 1000)), taken as (
        select two_tower.%2$s($1, array(select m from %3$s m)) from next)
      select n.last, coalesce(cardinality(n.rows), 0) as count from next n cross join taken',
    p_source.role,
    case p_source.role when 'posts' then 'note_missing_posts' else 'remove_' || p_source.role end,
    case p_source.state when 'detached' then 'unnest((select n.rows from next n))'
      else format('two_tower.missing_in_source_%s((select n.rows from next n))', p_source.id) end)
  into v_last using p_source.id, p_source.position;
  p_source.position := v_last.last;
  if v_last.count < 1000 then
    p_source.walk := 'removal';
    p_source.position := null;
  end if;
  return p_source;
end
$$;
comment on function two_tower.walk_registry(two_tower.sources) is 'Asks of the next 1,000 rows of the registry or a mirror whether the table has them. Of a detached table none is there. Returns the source as it stands then.';

-- A table that seems to have lost much may be half restored. Nothing is removed then.
create function two_tower.is_removal_refused(p_source two_tower.sources) returns boolean
language sql stable set search_path = pg_catalog, pg_temp as $$
  select p_source.state <> 'detached' and not p_source.may_remove_all and v.count > 20
    and v.count > (
    select count(*) / 10 from two_tower.posts p
    where p.source_id = p_source.id and p.deleted_at is null)
  from (select count(*) from two_tower.vanished_posts v where v.source_id = p_source.id) v;
$$;
comment on function two_tower.is_removal_refused(two_tower.sources) is 'Returns whether a walk found more than a tenth of the posts gone, and more than 20, without having been told to expect it.';

-- What was reported meanwhile is for the next walk, and so is leave to remove all.
create function two_tower.end_walk(p_source two_tower.sources) returns two_tower.sources
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  p_source.walk := null;
  p_source.position := null;
  p_source.reconciled_at := two_tower.now();
  if not p_source.is_walk_wanted then
    p_source.may_remove_all := false;
    p_source.state := case p_source.state when 'broken' then 'attached' else p_source.state end;
    perform two_tower.close_alert('source_broken', p_source.name);
  end if;
  return p_source;
end
$$;
comment on function two_tower.end_walk(two_tower.sources) is 'Returns a source whose walk has ended. Closes its alert, and it is attached again, unless another walk is wanted already.';

create function two_tower.walk_removal(p_source two_tower.sources) returns two_tower.sources
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_keys text[];
  v_rows two_tower.post_row[];
begin
  if p_source.position is null and two_tower.is_removal_refused(p_source) then
    perform two_tower.open_alert('source_lost_posts', p_source.name, format(
      'More than a tenth of the posts of %s are gone from the table. Nothing was removed. If that is right: select two_tower.reconcile(%L, true).',
      p_source.relation, p_source.name));
    delete from two_tower.vanished_posts v where v.source_id = p_source.id;
  else
    with gone as (
      delete from two_tower.vanished_posts v
      where v.source_id = p_source.id and v.key in (
        select n.key from two_tower.vanished_posts n where n.source_id = p_source.id limit 1000)
      returning v.key
    )
    select array_agg(g.key) into v_keys from gone g;
    if v_keys is not null then
      v_rows := array(
        select row(p.key, null, null, null, null, null, null)::two_tower.post_row
        from two_tower.posts p where p.source_id = p_source.id and p.key = any (v_keys)
        order by p.id for no key update);
      if p_source.state <> 'detached' then
        execute format('select array(select m from two_tower.missing_in_source_%s($1) m)',
          p_source.id) into v_rows using v_rows;
      end if;
      perform two_tower.remove_posts(p_source.id, v_rows);
      p_source.position := 'begun';
      return p_source;
    end if;
    perform two_tower.close_alert('source_lost_posts', p_source.name);
  end if;
  return two_tower.end_walk(p_source);
end
$$;
comment on function two_tower.walk_removal(two_tower.sources) is 'Removes the next 1,000 posts that are gone, and ends the walk when there are none. Opens an alert instead when is_removal_refused(). Returns the source as it stands then.';

create function two_tower.take_source_reports() returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_report record;
begin
  for v_report in
    with taken as (
      delete from two_tower.source_reports r where r.id in (
        select n.id from two_tower.source_reports n order by n.id limit 100000
        for update skip locked)
      returning r.source_id, r.event, r.sqlstate, r.message
    )
    select s.id, s.name, s.relation, t.event, min(t.sqlstate) as sqlstate,
      min(t.message) as message, count(*) as writes
    from taken t join two_tower.sources s on s.id = t.source_id and s.state <> 'detached'
    group by s.id, s.name, s.relation, t.event order by s.id, t.event
  loop
    update two_tower.sources s set is_walk_wanted = true,
      may_remove_all = s.may_remove_all or v_report.event = 'emptied',
      state = case v_report.event when 'broken' then 'broken' else s.state end
    where s.id = v_report.id;
    if v_report.event = 'broken' then
      perform two_tower.open_alert('source_broken', v_report.name, format(
        'Writes to %s were stored and not followed: %s. Reconciliation mends it. If the alert stays open, attach the table again.',
        v_report.relation, v_report.message),
        jsonb_build_object('sqlstate', v_report.sqlstate, 'writes', v_report.writes));
    end if;
  end loop;
end
$$;
comment on function two_tower.take_source_reports() is 'Acts on what triggers reported: marks sources as broken, opens alerts and asks for walks.';

create function two_tower.walk_source(p_source two_tower.sources) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_source two_tower.sources := p_source;
begin
  if v_source.walk is null then
    v_source.walk := case v_source.state when 'detached' then 'registry' else 'rows' end;
    v_source.position := null;
    v_source.is_walk_wanted := false;
    delete from two_tower.vanished_posts v where v.source_id = v_source.id;
  end if;
  loop
    v_source := case v_source.walk when 'rows' then two_tower.walk_rows(v_source)
      when 'registry' then two_tower.walk_registry(v_source)
      else two_tower.walk_removal(v_source) end;
    exit when v_source.walk is null or v_source.position is not null;
  end loop;
  update two_tower.sources s set walk = v_source.walk, position = v_source.position,
    is_walk_wanted = v_source.is_walk_wanted, may_remove_all = v_source.may_remove_all,
    state = v_source.state, reconciled_at = v_source.reconciled_at
  where s.id = v_source.id;
end
$$;
comment on function two_tower.walk_source(two_tower.sources) is 'Takes one step of a source''s walk: as far as it reads enough for now. A small table is walked in one.';

-- A step that would wait for the app is not taken now: nothing of the app waits for a step that
-- waits. One that fails leaves the steps of other sources.
create function two_tower.try_step(p_source two_tower.sources) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform two_tower.walk_source(p_source);
  return true;
exception
  when lock_not_available then
    return false;
  when others then
    perform two_tower.break_source(p_source, format(
      'Rows of %s cannot be read: %s. Mend the row, or attach the table again with parts that every row has.',
      p_source.relation, sqlerrm), jsonb_build_object('sqlstate', sqlstate));
    return false;
end
$$;
comment on function two_tower.try_step(two_tower.sources) is 'Takes one step of a walk. Returns whether it did; opens an alert where the step failed. Run it under a lock_timeout.';

-- Which walk goes on is drawn, so that none waits for the end of another.
create function two_tower.reconcile_sources(p_limit integer default 1) returns integer
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '200ms' as $$
declare
  v_source two_tower.sources;
  v_steps integer;
begin
  perform two_tower.take_source_reports();
  v_steps := two_tower.mend_sources();
  for v_source in
    select s.* from two_tower.sources s
    where (s.walk is not null or s.is_walk_wanted)
      and (s.state = 'detached' or two_tower.is_written(s))
    order by random() limit p_limit for no key update skip locked
  loop
    v_steps := v_steps + two_tower.try_step(v_source)::integer;
  end loop;
  return v_steps;
end
$$;
comment on function two_tower.reconcile_sources(integer) is 'Acts on reports of triggers, mends sources whose table has changed, and takes a step of at most p_limit of the walks that are due. Waits for nothing that the app holds. Returns how many sources it mended and steps it took.';

create function two_tower.request_reconciliation() returns void
language sql set search_path = pg_catalog, pg_temp as $$
  update two_tower.sources set is_walk_wanted = true where state <> 'detached';
$$;
comment on function two_tower.request_reconciliation() is 'Asks for a walk of every attached table: the daily one.';

create function two_tower.reconcile(p_name text, p_may_remove_all boolean default false)
returns bigint language plpgsql
set search_path = pg_catalog, pg_temp set lock_timeout = '200ms' as $$
declare
  v_source two_tower.sources;
  v_steps bigint := 0;
begin
  perform two_tower.take_source_reports();
  update two_tower.sources s set walk = null, position = null, is_walk_wanted = true,
    may_remove_all = s.may_remove_all or p_may_remove_all
  where s.id = (select n.id from two_tower.sources n where n.name = p_name
                order by n.state = 'detached', n.id desc limit 1)
  returning * into v_source;
  if not found then
    raise exception 'no table is attached as %', p_name using errcode = '22023',
      hint = 'Attached tables: select name, relation from two_tower.sources.';
  end if;
  perform two_tower.mend_sources();
  loop
    select * into v_source from two_tower.sources s where s.id = v_source.id;
    if v_source.state <> 'detached' and not two_tower.is_written(v_source) then
      raise exception 'the table of % cannot be followed', p_name using errcode = '55000',
        hint = coalesce((
          select a.message from two_tower.alerts a
          where a.kind = 'source_broken' and a.subject = p_name and a.closed_at is null),
          'The app holds a lock on it. Try again.');
    end if;
    exit when v_steps > 0 and v_source.walk is null;
    if not two_tower.try_step(v_source) then
      raise warning 'the app holds what comes next of %, or it cannot be read: ticks go on',
        p_name;
      exit;
    end if;
    v_steps := v_steps + 1;
  end loop;
  return v_steps;
end
$$;
comment on function two_tower.reconcile(text, boolean) is
  'Compares a whole table with the registry, in this transaction: after a restore, or a load with triggers off. p_may_remove_all: take posts out of the feed even where more than a tenth of them are gone from the table. Leaves to ticks what the app holds. Returns how many steps it took. Raises 22023 for an unknown name, and 55000 for a table that cannot be followed.';
