-- What blocking or muting an author teaches, and how lifting the block takes it back. The author's
-- posts are gone at once, because every reader of posts asks for blocks. The author's embedding
-- steps away from what the user likes. That is the normalised, weighted mean of the authors whose
-- posts the user engaged with. The step is kept, so that lifting the block takes back exactly that.
--
-- Two sessions: rows of author_embeddings are locked in order of author_id, and last of all. Blocks
-- move an author by at most settings.movement_per_hour in an hour, as events do a post.

create table two_tower.author_steps (
  user_id uuid not null references two_tower.users (id) on delete cascade,
  author_id uuid not null,
  step extensions.vector(64) not null,
  primary key (user_id, author_id)
);
comment on table two_tower.author_steps is 'What each block in force added to the author''s embedding. A row is deleted when a new user tower has learned the author anew.';
comment on column two_tower.author_steps.step is 'What was added, and is taken off when the block is lifted.';
create index author_steps_author_id_idx on two_tower.author_steps (author_id, user_id);

create function two_tower.average_liked_authors(p_user_id uuid) returns extensions.vector
language sql stable set search_path = pg_catalog, pg_temp as $$
  select extensions.l2_normalize(extensions.sum(two_tower.scale(
    two_tower.decay_strength(r.strength, s.history_decay,
      cardinality(u.recent_post_ids) - r.place), a.embedding)))
  from two_tower.user_embeddings u
    cross join two_tower.settings s
    cross join two_tower.state st
    cross join lateral unnest(u.recent_post_ids, u.recent_strengths)
      with ordinality as r (post_id, strength, place)
    join two_tower.live_embeddings v on v.slot = st.active_slot and v.post_id = r.post_id
    join two_tower.author_embeddings a on a.author_id = v.author_id
  where u.user_id = p_user_id and r.strength > 0;
$$;
comment on function two_tower.average_liked_authors(uuid) is 'Returns norm(sum of decay^age * strength * author) over the authors of the last posts that the user engaged with. Returns null when none of them has an embedding.';

create function two_tower.step_author(p_user_id uuid, p_author_id uuid, p_kind text) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_settings two_tower.settings;
  v_author two_tower.author_embeddings;
  v_direction extensions.vector := two_tower.average_liked_authors(p_user_id);
  v_hour timestamptz := date_trunc('hour', two_tower.now(), 'UTC');
  v_size real;
  v_step extensions.vector;
begin
  select * into v_author from two_tower.author_embeddings a where a.author_id = p_author_id
  for no key update;
  if not found or v_direction is null then
    return;
  end if;
  select * into v_settings from two_tower.settings;
  v_size := (select -g.strength from two_tower.signals g where g.event_type = p_kind)
    * v_settings.negative_strength_factor * v_settings.contrastive_learning_rate
    * (select learning_rate_factor from two_tower.state);
  if v_author.moved_hour is distinct from v_hour then
    v_author.moved := 0;
  end if;
  if v_size > v_settings.movement_per_hour - v_author.moved then
    if v_author.moved < v_settings.movement_per_hour then
      perform two_tower.open_alert('author_blocked_in_concert', p_author_id::text, format(
        'Blocks moved author %s by settings.movement_per_hour, the most in an hour. Further blocks do not move the author this hour.',
        p_author_id), jsonb_build_object('hour', v_hour));
    end if;
    v_size := greatest(0, v_settings.movement_per_hour - v_author.moved);
  end if;
  v_step := two_tower.scale(-v_size, v_direction);
  update two_tower.author_embeddings a set
    embedding = a.embedding operator(extensions.+) v_step, moved_hour = v_hour,
    moved = v_author.moved + v_size, updated_at = two_tower.now()
  where a.author_id = p_author_id;
  insert into two_tower.author_steps (user_id, author_id, step)
  values (p_user_id, p_author_id, v_step) on conflict do nothing;
end
$$;
comment on function two_tower.step_author(uuid, uuid, text) is
  'Moves an author away from what the user likes: a'' = a - rate * strength * negative_strength_factor * likes. Keeps to the bound of the hour. Opens an alert when blocks reach the bound. Does nothing for an author, or a user, of whom nothing was learned.';

create function two_tower.learn_from_blocks() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  if not (select frozen_at is not null from two_tower.state) then
    perform two_tower.step_author(b.user_id, b.author_id, b.kind)
    from (
      select n.user_id, n.author_id, n.kind from new_blocks n order by n.author_id, n.user_id) b;
  end if;
  return null;
end
$$;
comment on function two_tower.learn_from_blocks() is 'Moves the authors of new blocks. Learns nothing while learning is frozen. Definer: who blocks an author has no grant on embeddings.';
create trigger learn_from_blocks after insert on two_tower.blocks
  referencing new table as new_blocks
  for each statement execute function two_tower.learn_from_blocks();

create function two_tower.unlearn_blocks() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_lifted record;
  v_step extensions.vector;
begin
  for v_lifted in
    select b.user_id, b.author_id from old_blocks b order by b.author_id, b.user_id
  loop
    delete from two_tower.author_steps s
    where s.user_id = v_lifted.user_id and s.author_id = v_lifted.author_id
    returning s.step into v_step;
    if found then
      update two_tower.author_embeddings a
      set embedding = a.embedding operator(extensions.-) v_step, updated_at = two_tower.now()
      where a.author_id = v_lifted.author_id;
    end if;
  end loop;
  return null;
end
$$;
comment on function two_tower.unlearn_blocks() is 'Takes back the step of each lifted block. Definer: who lifts a block has no grant on embeddings.';
create trigger unlearn_blocks after delete on two_tower.blocks
  referencing old table as old_blocks
  for each statement execute function two_tower.unlearn_blocks();
