-- How learning moves a post: at once, or by a row of a queue that is folded later.

-- One row per event. Its pushes always wait, so that no like waits for the rows of other posts. The
-- step on its own post waits when another session holds that row, so that no like waits for another
-- like. The transaction that applies a row deletes it, so it is applied exactly once.
create table two_tower.deferred_steps (
  id bigint generated always as identity primary key,
  event_id bigint not null,
  epoch integer not null,
  user_vector extensions.vector(128) not null,
  pushed_ids bigint[] not null,
  push_factors real[] not null,
  post_id bigint,
  step real not null default 0,
  engagements integer not null default 0,
  popularity double precision not null default 0,
  created_at timestamptz not null
);
comment on table two_tower.deferred_steps is 'Deferred steps, which wait to be folded into live embeddings. Each of pushed_ids: p = norm(p - push_factor * user_vector). post_id: p = norm(p + step * user_vector).';
comment on column two_tower.deferred_steps.epoch is 'state.epoch when the row was made. The row is void when a rollback has raised that since.';
comment on column two_tower.deferred_steps.user_vector is 'The user vector before the event.';
comment on column two_tower.deferred_steps.pushed_ids is 'The posts that are pushed away.';
comment on column two_tower.deferred_steps.push_factors is 'Factors of pushed_ids, above zero.';
comment on column two_tower.deferred_steps.post_id is 'The post that the event was about, if another session held its row. Else null.';
comment on column two_tower.deferred_steps.step is 'Factor of user_vector for post_id.';
comment on column two_tower.deferred_steps.engagements is 'What the event adds to the post''s engagement_count: 1 when learned, -1 when withdrawn.';
comment on column two_tower.deferred_steps.popularity is 'What the event adds to the post''s popularity.';
comment on column two_tower.deferred_steps.created_at is 'The time of the event.';

create type two_tower.post_step as (
  direction extensions.vector, step real, engagements integer, popularity double precision,
  created_at timestamptz
);
comment on type two_tower.post_step is 'A step of a post: p = norm(p + step * direction).';
comment on column two_tower.post_step.engagements is '1 for an event about the post, -1 for a withdrawn one, 0 for a push.';

-- The only place where learning moves a post. Two bounds keep a crowd from deciding alone where a
-- post stands. Events about the post move it by at most settings.movement_per_hour in an hour.
-- Pushes move an untouched post by at most settings.untouched_post_push_limit in all.
create function two_tower.move_post(p_post two_tower.live_embeddings,
  p_steps two_tower.post_step[], p_settings two_tower.settings)
returns two_tower.live_embeddings language plpgsql set search_path = pg_catalog, pg_temp as $$
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
            'Events moved post %s by settings.movement_per_hour, the most in an hour. Further events do not move it this hour.',
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
    p_post.embedding := two_tower.move_vector(p_post.embedding, v_step.step, v_step.direction);
  end loop;
  return p_post;
end
$$;
comment on function two_tower.move_post(two_tower.live_embeddings, two_tower.post_step[], two_tower.settings) is
  'Returns a post after steps, one after the other. Opens an alert when events reach the bound of the hour.';
