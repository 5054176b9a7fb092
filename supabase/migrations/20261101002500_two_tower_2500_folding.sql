-- Deferred steps, folded into live embeddings in bounded batches.

create function two_tower.fold_steps(p_limit integer default 500) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_slots smallint[];
  v_folded integer;
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  select case when filling_version is null then array[active_slot]
              else array[active_slot, 1 - active_slot] end into v_slots
    from two_tower.state;
  with taken as (
    select id from two_tower.deferred_steps order by id limit p_limit for update skip locked
  ), queued as (
    delete from two_tower.deferred_steps d using taken t where d.id = t.id
    returning d.*
  ), valid as materialized (
    select q.* from queued q join two_tower.state s on s.epoch = q.epoch
  ), steps as materialized (
    select v.id, n.post_id,
      row(v.user_vector, -n.factor, 0, 0, v.created_at)::two_tower.post_step as step
    from valid v cross join lateral unnest(v.pushed_ids, v.push_factors) as n (post_id, factor)
    union all
    select v.id, v.post_id, row(v.user_vector, v.step, v.engagements, v.popularity,
      v.created_at)::two_tower.post_step
    from valid v where v.post_id is not null
  ), locked as materialized (
    select v.slot, v.post_id, v as post from two_tower.live_embeddings v
    where v.slot = any (v_slots) and v.post_id in (select post_id from steps)
    order by v.post_id, array_position(v_slots, v.slot) for no key update
  ), moved as materialized (
    select l.slot, l.post_id, two_tower.move_post(l.post, s.steps, c) as post
    from locked l
      join (select post_id, array_agg(step order by id) as steps from steps group by post_id) s
        using (post_id)
      cross join two_tower.settings c
  ), written as (
    update two_tower.live_embeddings v set
      embedding = (case when (a.post).is_pretrained then m.post else a.post end).embedding,
      engagement_count = (a.post).engagement_count, popularity = (a.post).popularity,
      is_pretrained = (a.post).is_pretrained, moved_hour = (a.post).moved_hour,
      moved = (a.post).moved, pushed = (a.post).pushed
    from moved m join moved a on a.post_id = m.post_id and a.slot = v_slots[1]
    where v.slot = m.slot and v.post_id = m.post_id
  )
  select count(*) into v_folded from queued;
  return v_folded;
end
$$;
comment on function two_tower.fold_steps(integer) is
  'Folds at most p_limit deferred rows into live embeddings, oldest id first. Returns how many it took. Locks each post row in order of id, and writes it once. In a slot that is being filled, touched posts take the vector of the slot that serves. Sessions may run it at once: each skips the rows that another has taken.';
