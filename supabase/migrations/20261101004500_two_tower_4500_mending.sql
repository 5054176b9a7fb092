-- What becomes of a source when the app changes its table: a tick writes its functions anew, as far
-- as that goes. Until then writes of the app are stored and not followed, and are reported.

-- Columns that were renamed, added or dropped, or got another type or other grants, and what of
-- the engine was dropped with them. The app's own objects may stand on the page: then it stays as
-- it is.
create function two_tower.rewrite_source(p_source two_tower.sources) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_source two_tower.sources := p_source;
begin
  perform two_tower.require_table(v_source.relation);
  v_source.arguments := two_tower.rename_arguments(v_source);
  if v_source.role = 'posts' then
    v_source.key_type := (two_tower.find_key_column(v_source.relation,
      v_source.arguments ->> 'key')).atttypid;
  end if;
  perform two_tower.write_source(v_source);
  perform two_tower.write_triggers(v_source);
  update two_tower.sources s set is_walk_wanted = true where s.id = v_source.id;
  if v_source.role = 'posts' then
    begin
      perform two_tower.write_page(v_source);
    exception when dependent_objects_still_exist then
      perform two_tower.open_alert('page_is_old', v_source.name, format(
        'The columns of %s have changed, and %I cannot follow: %s. Drop what depends on it, and attach the table again.',
        v_source.relation, v_source.name || '_page', sqlerrm));
    end;
  end if;
end
$$;
comment on function two_tower.rewrite_source(two_tower.sources) is 'Writes functions, triggers and page of a source anew, and asks for a walk. Raises where the table cannot be followed any more.';

create function two_tower.break_source(p_source two_tower.sources, p_message text,
  p_details jsonb)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform two_tower.open_alert('source_broken', p_source.name, p_message, p_details);
  update two_tower.sources s set state = 'broken' where s.id = p_source.id;
end
$$;
comment on function two_tower.break_source(two_tower.sources, text, jsonb) is 'Marks a source as broken, and opens the alert that says why.';

create function two_tower.mend_source(p_source two_tower.sources) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  perform two_tower.rewrite_source(p_source);
  return true;
exception
  when lock_not_available then
    return false; -- the app holds its table: the next tick tries again
  when others then
    perform two_tower.break_source(p_source, format(
      'Table %s has changed, and cannot be followed: %s. Attach it again as it is now, or detach it.',
      p_source.relation, sqlerrm), jsonb_build_object('sqlstate', sqlstate));
    return false;
end
$$;
comment on function two_tower.mend_source(two_tower.sources) is 'Has a source follow its table as that is now. Returns whether it can; if not, opens an alert.';

create function two_tower.mend_sources() returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_source two_tower.sources;
  v_count integer := 0;
begin
  if exists (select from two_tower.sources s
             where s.state <> 'detached' and not two_tower.is_written(s))
    and pg_try_advisory_xact_lock(two_tower.sources_lock()) then
    v_count := two_tower.detach_dropped();
    for v_source in
      select * from two_tower.sources s
      where s.state <> 'detached' and not two_tower.is_written(s)
      order by s.id for no key update skip locked
    loop
      v_count := v_count + two_tower.mend_source(v_source)::integer;
    end loop;
  end if;
  return v_count;
end
$$;
comment on function two_tower.mend_sources() is 'Has sources follow their tables as those are now, and detaches those whose tables are gone. Returns how many it changed.';
