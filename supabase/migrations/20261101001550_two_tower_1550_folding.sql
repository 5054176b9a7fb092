-- Deferred steps, folded into live embeddings in bounded batches.

create function two_tower.fold_steps(p_limit integer default 500) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_slots smallint[];
  v_folded integer;
  v_post_ids bigint[];
  v_bounded two_tower.post_step[];
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  select case when filling_version is null then array[active_slot]
              else array[active_slot, 1 - active_slot] end into v_slots
    from two_tower.state;
  with taken as (
    select event_id from two_tower.deferred_steps order by event_id limit p_limit
    for update skip locked
  ), queued as (
    delete from two_tower.deferred_steps d using taken t
    where d.event_id = t.event_id
    returning d.*
  ), valid as materialized (
    select q.* from queued q join two_tower.state s on s.epoch = q.epoch
  ), steps as materialized (
    select v.event_id, n.post_id,
      row(v.user_vector, -n.factor, 0, 0, 0, v.created_at, v.event_id,
        v.user_id)::two_tower.post_step as step
    from valid v cross join lateral unnest(v.pushed_ids, v.push_factors) as n (post_id, factor)
    where n.factor <> 0
    union all
    select v.event_id, v.post_id, row(v.user_vector, v.step, v.engagements, v.popularity,
      v.popularity_clock, v.created_at, v.event_id, v.user_id)::two_tower.post_step
    from valid v where v.post_id is not null
  ), locked as materialized (
    select v.slot, v.post_id, v as post from two_tower.live_embeddings v
    where v.slot = any (v_slots) and v.post_id in (select post_id from steps)
    order by v.post_id, array_position(v_slots, v.slot) for no key update
  ), moved as materialized (
    select l.slot, l.post_id, s.steps, m.p_post as post, m.p_steps as applied
    from locked l
      join (select post_id, array_agg(step order by event_id) as steps
            from steps group by post_id) s using (post_id)
      cross join two_tower.settings c
      cross join lateral two_tower.move_post(l.post, s.steps, c) m
  ), written as (
    update two_tower.live_embeddings v set
      embedding = (case when (a.post).is_pretrained then m.post else a.post end).embedding,
      engagement_count = (a.post).engagement_count, popularity = (a.post).popularity,
      is_pretrained = (a.post).is_pretrained, moved_hour = (a.post).moved_hour,
      moved = (a.post).moved, gained = (a.post).gained
    from moved m join moved a on a.post_id = m.post_id and a.slot = v_slots[1]
    where v.slot = m.slot and v.post_id = m.post_id
  ), bounded as (
    select m.post_id, m.applied[k] as step
    from moved m cross join generate_subscripts(m.steps, 1) as k
    where m.slot = v_slots[1] and (m.steps[k]).engagements > 0
      and ((m.steps[k]).step, (m.steps[k]).popularity)
        is distinct from ((m.applied[k]).step, (m.applied[k]).popularity)
  )
  select (select count(*) from queued),
    (select array_agg(b.post_id) from bounded b), (select array_agg(b.step) from bounded b)
  into v_folded, v_post_ids, v_bounded;
  for v_place in 1..coalesce(cardinality(v_bounded), 0) loop
    update two_tower.training_examples x
    set step = (v_bounded[v_place]).step, popularity = (v_bounded[v_place]).popularity
    where x.user_id = (v_bounded[v_place]).user_id and x.post_id = v_post_ids[v_place]
      and x.event_id = (v_bounded[v_place]).event_id
      and x.created_at = (v_bounded[v_place]).created_at;
  end loop;
  return v_folded;
end
$$;
comment on function two_tower.fold_steps(integer) is
  'Folds at most p_limit deferred rows into live embeddings, oldest event first. Returns how many it took. Locks each post row in order of id, and writes it once. Where a bound makes a step smaller, the ledger (training_examples) is told. In a slot that is being filled, touched posts take the vector of the slot that serves. Sessions may run it at once: each skips the rows that another has taken.';
