-- Training data, which is also the ledger of what was learned. A positive and its negatives share
-- a user, a moment and a user vector, so they are stored as one wide row; training_pairs shows them
-- as the pairs that they are. Partitioned by week and dropped by age, which bounds both.

create table two_tower.training_examples (
  event_id bigint not null,
  user_id uuid not null,
  post_id bigint not null,
  event_type text not null,
  label boolean,
  user_emb extensions.halfvec(128) not null,
  post_emb extensions.halfvec(128) not null,
  step real not null,
  negative_ids bigint[] not null default '{}',
  negative_embs extensions.halfvec[] not null default '{}',
  viewed_negatives smallint not null default 0,
  pushed_ids bigint[] not null default '{}',
  push_factors real[] not null default '{}',
  created_at timestamptz not null,
  is_withdrawn boolean not null default false,
  primary key (user_id, post_id, event_id, created_at)
) partition by range (created_at);
comment on table two_tower.training_examples is
  'One row per learned event: both vectors as they stood before it, the negatives drawn for it, and each step that it made. Read it as training_pairs; an undo reads it as a ledger.';
comment on column two_tower.training_examples.label is 'True for a positive pair, false for a negative one; null for an event that moved vectors and makes no pair, such as a click.';
comment on column two_tower.training_examples.step is 'Factor of user_emb that was added to the post: what a withdrawal takes back.';
comment on column two_tower.training_examples.pushed_ids is 'Posts pushed away by this event, each by its push_factor times user_emb.';
comment on column two_tower.training_examples.viewed_negatives is 'So many of the first negatives were viewed and not engaged with; the others are random recent posts.';
-- A row of eight half-precision negatives is kept whole: vectors do not compress, and a second
-- table for them would cost more than all else that a like writes.
select two_tower.partition_by_time('two_tower.training_examples', '7 days',
  'training_examples_kept_for', 'toast_tuple_target = 8160');

create view two_tower.training_pairs with (security_invoker = true) as
select
  x.event_id, x.user_id, x.post_id, x.user_emb, x.post_emb, x.label,
  case when x.label then 'event' else 'explicit' end as source,
  x.event_type, x.created_at
from two_tower.training_examples as x
join two_tower.signals as s on s.event_type = x.event_type
where exists (
  select from two_tower.user_posts as u
  where u.user_id = x.user_id and u.post_id = x.post_id and u.signals & s.bit <> 0
) and not x.is_withdrawn and x.label is not null
union all
select
  x.event_id, x.user_id, n.post_id, x.user_emb, n.post_emb, false as label,
  case when n.place <= x.viewed_negatives then 'viewed' else 'random' end as source,
  x.event_type, x.created_at
from two_tower.training_examples as x
join two_tower.signals as s on s.event_type = x.event_type
cross join lateral unnest(x.negative_ids, x.negative_embs) with ordinality as n (post_id, post_emb,
  place)
where exists (
  select from two_tower.user_posts as u
  where u.user_id = x.user_id and u.post_id = x.post_id and u.signals & s.bit <> 0
) and not x.is_withdrawn and not exists (
  select from two_tower.user_posts as u
  where u.user_id = x.user_id and u.post_id = n.post_id and u.is_engaged
);
comment on view two_tower.training_pairs is
  'The pairs to train on: label true for a positive event; label false with source viewed or random (drawn for a positive) or explicit (a negative event). A withdrawn signal, and a negative that the user engaged with since, are not in it.';

-- Steps of posts that wait, one row per event: the pushes on its negatives always, so that no like
-- waits for the rows of other posts; its step on its own post when another session held that row,
-- so that no like waits for another like. The transaction that applies a row deletes it: applied
-- exactly once, whatever happens.
create table two_tower.deferred_pushes (
  id bigint generated always as identity primary key,
  event_id bigint not null,
  epoch integer not null,
  user_vector extensions.vector(128) not null,
  post_ids bigint[] not null,
  factors real[] not null,
  post_id bigint,
  step real not null default 0,
  engagements integer not null default 0,
  popularity double precision not null default 0,
  created_at timestamptz not null
);
comment on table two_tower.deferred_pushes is 'Steps that wait to be folded into live vectors: p = norm(p - factor * user_vector) for each of post_ids, and p = norm(p + step * user_vector) for post_id.';
comment on column two_tower.deferred_pushes.epoch is 'state.epoch when it was made: void when a rollback has raised it since.';
comment on column two_tower.deferred_pushes.post_id is 'The post that the event was about, if its row was held by another session; else null.';
comment on column two_tower.deferred_pushes.engagements is 'What the event adds to the post''s engagement_count: 1 when learned, -1 when withdrawn.';

create type two_tower.post_step as (
  direction extensions.vector, step real, engagements integer, popularity double precision,
  created_at timestamptz
);
comment on type two_tower.post_step is 'p = norm(p + step * direction). engagements: 1 for an event about the post, -1 for one withdrawn, 0 for a push.';

create function two_tower.move(p_start extensions.vector, p_step real,
  p_direction extensions.vector)
returns extensions.vector language plpgsql immutable set search_path = '' as $$
declare
  v_moved extensions.vector := p_start operator(extensions.+)
    (array_fill(p_step, array[128])::extensions.vector operator(extensions.*) p_direction);
begin
  return case when extensions.vector_norm(v_moved) > 1e-6 then extensions.l2_normalize(v_moved)
    else p_start end;
end
$$;
comment on function two_tower.move(extensions.vector, real, extensions.vector) is
  'norm(start + step * direction). A step that would leave no direction changes nothing.';

-- The only place where learning moves a post. Two bounds, so that no crowd decides alone where a
-- post stands: events about it move it by at most so much per hour, and pushes move one that nobody
-- has engaged with by at most so much at all.
create function two_tower.move_post(p_post two_tower.live_embeddings,
  p_steps two_tower.post_step[], p_settings two_tower.settings)
returns two_tower.live_embeddings language plpgsql set search_path = '' as $$
declare
  v_step two_tower.post_step;
  v_hour timestamptz;
  v_left real;
begin
  foreach v_step in array p_steps loop
    if v_step.engagements <> 0 then
      v_hour := date_trunc('hour', v_step.created_at, 'UTC');
      if p_post.moved_hour is distinct from v_hour then
        p_post.moved_hour := v_hour;
        p_post.moved := 0;
      end if;
      v_left := greatest(0, p_settings.movement_per_hour - p_post.moved);
      if abs(v_step.step) > v_left then
        if v_left > 0 then
          perform two_tower.open_alert('post_moved_in_concert', p_post.post_id::text, format(
            'Events moved post %s by the most that one hour allows (settings.movement_per_hour); what more they teach of it this hour is not learned.',
            p_post.post_id), jsonb_build_object('hour', v_hour));
        end if;
        v_step.step := sign(v_step.step) * v_left;
      end if;
      p_post.moved := p_post.moved + abs(v_step.step);
      p_post.engagement_count := p_post.engagement_count + v_step.engagements;
      p_post.popularity := greatest(0, p_post.popularity + v_step.popularity);
      p_post.is_pretrained := false;
    elsif p_post.is_pretrained then
      v_left := greatest(0, p_settings.untouched_post_push_limit - p_post.pushed);
      v_step.step := greatest(v_step.step, -v_left);
      p_post.pushed := p_post.pushed - v_step.step;
    end if;
    p_post.embedding := two_tower.move(p_post.embedding, v_step.step, v_step.direction);
  end loop;
  return p_post;
end
$$;
comment on function two_tower.move_post(two_tower.live_embeddings, two_tower.post_step[], two_tower.settings) is
  'A post after steps, one after the other. Opens an alert when events reach the bound of the hour.';

create function two_tower.fold_pushes(p_limit integer default 500) returns integer
language plpgsql set search_path = '' as $$
declare
  v_slots smallint[];
  v_folded integer;
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  select case when filling_version is null then array[active_slot]
              else array[active_slot, 1 - active_slot] end into v_slots
    from two_tower.state;
  with taken as (
    select id from two_tower.deferred_pushes order by id limit p_limit for update skip locked
  ), queued as (
    delete from two_tower.deferred_pushes d using taken t where d.id = t.id
    returning d.*
  ), valid as materialized (
    select q.* from queued q join two_tower.state s on s.epoch = q.epoch
  ), steps as materialized (
    select v.id, n.post_id,
           row(v.user_vector, -n.factor, 0, 0, v.created_at)::two_tower.post_step as step
    from valid v cross join lateral unnest(v.post_ids, v.factors) as n (post_id, factor)
    union all
    select v.id, v.post_id,
           row(v.user_vector, v.step, v.engagements, v.popularity, v.created_at)
             ::two_tower.post_step
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
comment on function two_tower.fold_pushes(integer) is
  'Folds at most so many deferred rows into live vectors, oldest id first, and returns how many were taken. Each post row is locked in order of id and written once; in a slot that is being filled, engaged posts take the vector of the slot that serves. Sessions may run it at once: rows taken by another are skipped.';
