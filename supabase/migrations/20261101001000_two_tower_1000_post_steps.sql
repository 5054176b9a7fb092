-- How learning moves a post: at once, or by a row of a queue that is folded later.

-- One row per event. Its pushes always wait, so that no like waits for the rows of other posts. The
-- step on its own post waits when another session holds that row, so that no like waits for another
-- like. The transaction that applies a row deletes it, so it is applied exactly once.
create table two_tower.deferred_steps (
  event_id bigint primary key,
  user_id uuid,
  epoch integer not null,
  user_vector extensions.vector(128) not null,
  pushed_ids bigint[] not null,
  push_factors real[] not null,
  post_id bigint,
  step real not null default 0,
  engagements integer not null default 0,
  popularity real not null default 0,
  popularity_clock double precision not null default 0,
  created_at timestamptz not null
);
comment on table two_tower.deferred_steps is 'Deferred steps, which wait to be folded into live embeddings. Each of pushed_ids: p = norm(p - push_factor * user_vector). post_id: p = norm(p + step * user_vector).';
comment on column two_tower.deferred_steps.event_id is 'The event. Rows are folded in the order of their events.';
comment on column two_tower.deferred_steps.user_id is 'Where post_id is given: whose event it is, so that the ledger is told when a bound makes the step smaller. Null after the user was erased.';
comment on column two_tower.deferred_steps.epoch is 'state.epoch when the row was made. The row is void when a rollback has raised that since.';
comment on column two_tower.deferred_steps.user_vector is 'The user vector before the event.';
comment on column two_tower.deferred_steps.pushed_ids is 'The posts that are pushed away.';
comment on column two_tower.deferred_steps.push_factors is 'Factors of pushed_ids: above zero, or below where a withdrawal takes a push back.';
comment on column two_tower.deferred_steps.post_id is 'The post that the event was about, if another session held its row. Else null.';
comment on column two_tower.deferred_steps.step is 'Factor of user_vector for post_id.';
comment on column two_tower.deferred_steps.engagements is 'What the event adds to the post''s engagement_count: 1 when learned, -1 when withdrawn.';
comment on column two_tower.deferred_steps.popularity is 'What the event adds to the post''s popularity or takes off it, in likes.';
comment on column two_tower.deferred_steps.popularity_clock is 'What read_popularity_clock() said when these likes were learned.';
comment on column two_tower.deferred_steps.created_at is 'The time of the event or, of a withdrawal, of the event that it takes back.';

create type two_tower.post_step as (
  direction extensions.vector, step real, engagements integer, popularity real,
  popularity_clock double precision, created_at timestamptz, event_id bigint, user_id uuid
);
comment on type two_tower.post_step is 'A step of a post: p = norm(p + step * direction).';
comment on column two_tower.post_step.engagements is '1 for an event about the post, -1 for a withdrawn one, 0 for a push or one that is taken back.';
comment on column two_tower.post_step.popularity is 'In likes.';
comment on column two_tower.post_step.popularity_clock is 'What read_popularity_clock() said when these likes were learned.';
comment on column two_tower.post_step.created_at is 'The time of the event. Of a withdrawal: of the event that it takes back.';

-- The only place where learning moves a post. Bounds keep a crowd from deciding alone where a
-- post stands. In an hour, events about the post move it by at most settings.movement_per_hour,
-- and raise its popularity by at most settings.popularity_per_hour. They do not move a post that
-- is held. Pushes do not move an untouched post at all: what nobody engaged with stands where its
-- text puts it. A draw asked that already, but a post that lost its vector and was encoded anew is
-- untouched again.
-- What is taken back gives its room back, and needs none: it is what was applied. A step that is
-- late counts in the hour that has begun, so that going back and forth between hours gives no
-- room. History that is imported out of order has hours of its own. The steps are returned as
-- they were applied, for the ledger.
create function two_tower.move_post(inout p_post two_tower.live_embeddings,
  inout p_steps two_tower.post_step[], p_settings two_tower.settings)
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_step two_tower.post_step;
  v_hour timestamptz;
  v_left real;
begin
  for v_place in 1..cardinality(p_steps) loop
    v_step := p_steps[v_place];
    continue when v_step.engagements = 0 and p_post.is_pretrained;
    if v_step.engagements > 0 then
      v_hour := date_trunc('hour', v_step.created_at, 'UTC');
      if p_post.moved_hour is null or v_hour > p_post.moved_hour
        or v_hour < p_post.moved_hour - interval '1 day' then
        p_post.moved_hour := v_hour;
        p_post.moved := 0;
        p_post.gained := 0;
      end if;
      v_left := case when p_post.is_held then 0
        else greatest(0, p_settings.movement_per_hour - p_post.moved) end;
      if abs(v_step.step) > v_left then
        if v_left > 0 then
          perform two_tower.open_alert('post_moved_in_concert', p_post.post_id::text, format(
            'Events moved post %s by settings.movement_per_hour, the most in an hour. Further events do not move it this hour.',
            p_post.post_id), jsonb_build_object('hour', p_post.moved_hour));
        end if;
        v_step.step := sign(v_step.step) * v_left;
      end if;
      v_step.popularity := least(v_step.popularity,
        greatest(0, p_settings.popularity_per_hour - p_post.gained));
      p_post.moved := p_post.moved + abs(v_step.step);
      p_post.gained := p_post.gained + v_step.popularity;
      p_post.popularity := two_tower.add_popularity(p_post.popularity,
        two_tower.compute_popularity(v_step.popularity, v_step.popularity_clock));
      p_post.is_pretrained := false;
    elsif v_step.engagements < 0 then
      if p_post.moved_hour = date_trunc('hour', v_step.created_at, 'UTC') then
        p_post.moved := greatest(0, p_post.moved - abs(v_step.step));
        p_post.gained := greatest(0, p_post.gained - v_step.popularity);
      end if;
      p_post.popularity := two_tower.subtract_popularity(p_post.popularity,
        two_tower.compute_popularity(v_step.popularity, v_step.popularity_clock));
    end if;
    p_post.engagement_count := p_post.engagement_count + v_step.engagements;
    p_post.embedding := two_tower.move_vector(p_post.embedding, v_step.step, v_step.direction);
    p_steps[v_place] := v_step;
  end loop;
end
$$;
comment on function two_tower.move_post(two_tower.live_embeddings, two_tower.post_step[], two_tower.settings) is
  'Returns a post after steps, one after the other, and the steps as they were applied. Opens an alert when events reach the bound of the hour.';
