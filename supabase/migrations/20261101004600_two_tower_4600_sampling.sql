-- Rows that no trigger met are met by a sample. The daily walk would find them within a day. The
-- sample tells of them within a minute, and asks for the walk at once.

-- Half of the blocks are the last ones, where loads go, and half are drawn.
create function two_tower.draw_blocks(p_relation regclass, p_blocks integer default 20)
returns bigint[] language sql volatile set search_path = pg_catalog, pg_temp as $$
  select array(
    select distinct case when n.n <= least(p_blocks / 2, t.blocks) or t.blocks <= p_blocks
      then t.blocks - n.n else floor(random() * t.blocks)::bigint end
    from (select pg_relation_size(p_relation) / current_setting('block_size')::integer as blocks) t
      cross join generate_series(1, least(p_blocks, t.blocks)) as n (n));
$$;
comment on function two_tower.draw_blocks(regclass, integer) is 'Returns at most p_blocks blocks of a table: all of a small one.';

create function two_tower.sample_source(p_source two_tower.sources,
  out sampled integer, out missing integer)
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '200ms' as $$
begin
  execute format('
    select count(*), count(*) filter (where p.id is null or p.deleted_at is not null)
    from unnest($2) as b (block)
      cross join lateral two_tower.scan_source_%s(b.block, b.block + 1) r
      left join two_tower.posts p on p.source_id = $1 and p.key = r.key', p_source.id)
  into sampled, missing using p_source.id, two_tower.draw_blocks(p_source.relation);
end
$$;
comment on function two_tower.sample_source(two_tower.sources) is 'Returns how many rows of a sample of an attached table there are, and how many of them the registry lacks. Reads at most 20 blocks. Waits for at most 200 ms for the app.';

create function two_tower.sample_sources() returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_source two_tower.sources;
  v_missing integer := 0;
begin
  for v_source in
    select * from two_tower.sources s where s.role = 'posts' and s.state = 'attached'
    order by s.id for no key update skip locked
  loop
    begin
      select s.sampled, s.missing into v_source.sampled_rows, v_source.missing_rows
      from two_tower.sample_source(v_source) s;
      update two_tower.sources s set
        sampled_rows = v_source.sampled_rows, missing_rows = v_source.missing_rows,
        is_walk_wanted = s.is_walk_wanted or v_source.missing_rows > 0 and s.walk is null
      where s.id = v_source.id and (v_source.missing_rows > 0
        or (s.sampled_rows, s.missing_rows) <> (v_source.sampled_rows, v_source.missing_rows));
      v_missing := v_missing + v_source.missing_rows;
    exception when others then
      null; -- the app holds the table, or has changed it: reconciliation tells
    end;
  end loop;
  return v_missing;
end
$$;
comment on function two_tower.sample_sources() is 'Samples each attached table of posts, and asks for a walk where the registry lacks rows. Leaves out tables that cannot be read now. Returns how many rows of the samples are missing.';
