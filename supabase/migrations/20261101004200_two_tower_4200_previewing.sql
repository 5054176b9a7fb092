-- What would a change do to a reader's page? It is made, looked at, and rolled back. Variables
-- outlive that.

create function two_tower.try_settings(p_settings jsonb) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_name text;
begin
  for v_name in select k from jsonb_object_keys(p_settings) k order by k loop
    if not exists (select from pg_catalog.pg_attribute a
      where a.attrelid = 'two_tower.settings'::regclass and a.attname = v_name
        and a.attnum > 0 and not a.attisdropped and v_name <> 'id') then
      raise exception 'there is no setting %', v_name using errcode = '22023',
        hint = 'Give an object of settings: {"recency_weight": 0.5}.';
    end if;
    execute format('update two_tower.settings set %1$I =
      (jsonb_populate_record(null::two_tower.settings, $1)).%1$I where id', v_name)
    using p_settings;
  end loop;
end
$$;
comment on function two_tower.try_settings(jsonb) is 'Sets settings by name. Raises 22023 for an unknown one, and 23514 for a value out of its range.';

create function two_tower.try_candidate_tower(p_version bigint) returns void
language plpgsql set search_path = pg_catalog, pg_temp as $$
begin
  if two_tower.missing_tensors(p_version) is not null or not exists (
    select from two_tower.model_weights w
    where w.version = p_version and w.tower = 'candidate_tower') then
    raise exception 'version % is no candidate tower that can be run', p_version
      using errcode = 'TT004', hint = 'See all versions: two-tower weights list.';
  elsif (select count(*) from (select from two_tower.live_embeddings v
      where v.slot = (select active_slot from two_tower.state) limit 20001) n) > 20000 then
    raise exception 'above 20,000 posts a version is not tried on all of them'
      using errcode = '55000', hint = 'The gate judges it: two-tower weights judge.';
  end if;
  update two_tower.live_embeddings v set embedding = n.embedding
  from (select b.post_id, two_tower.project_text(b.base_embedding, b.encoder, p_version)
          as embedding
        from two_tower.base_embeddings b) n
  where v.slot = (select active_slot from two_tower.state) and v.is_pretrained
    and v.post_id = n.post_id and extensions.vector_norm(n.embedding) > 0;
  perform two_tower.activate_version(p_version);
end
$$;
comment on function two_tower.try_candidate_tower(bigint) is 'Gives untouched posts the vectors of a version, and makes it serve. For a transaction that is rolled back: it keeps no slot. Raises TT004 for a version that is none, and 55000 above 20,000 posts.';

create function two_tower.preview_page(p_user_id uuid, p_settings jsonb default '{}',
  p_post_id bigint default null, p_event_type text default null, p_dwell_ms integer default null,
  p_candidate_tower bigint default null, p_limit integer default 20)
returns table (post_id bigint, post_key text, post_source text, place_before bigint,
  place_after bigint, score_before double precision, score_after double precision)
language plpgsql set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_before bigint[];
  v_scores_before double precision[];
  v_after bigint[];
  v_scores_after double precision[];
begin
  if (p_post_id is null) <> (p_event_type is null) then
    raise exception 'an event has a post and a type' using errcode = '22023',
      hint = 'Give both p_post_id and p_event_type, or none.';
  end if;
  begin
    if p_candidate_tower is not null then
      update two_tower.settings set exact_scan_limit = 1000000 where id;
    end if;
    select array_agg(p.post_id order by p.place), array_agg(p.score order by p.place)
    into v_before, v_scores_before
    from two_tower.page_for(p_user_id, p_limit) with ordinality as p (post_id, post_key,
      post_source, author_id, created_at, score, source, arm, cursor, place);
    perform two_tower.try_settings(p_settings);
    if p_candidate_tower is not null then
      perform two_tower.try_candidate_tower(p_candidate_tower);
    end if;
    if p_event_type is not null then
      insert into public.engagement_events (user_id, post_id, event_type, dwell_ms)
      values (p_user_id, p_post_id, p_event_type, p_dwell_ms);
      perform two_tower.fold_steps(1000);
    end if;
    select array_agg(p.post_id order by p.place), array_agg(p.score order by p.place)
    into v_after, v_scores_after
    from two_tower.page_for(p_user_id, p_limit) with ordinality as p (post_id, post_key,
      post_source, author_id, created_at, score, source, arm, cursor, place);
    raise exception 'the dry run ends';
  exception when raise_exception then
    if sqlerrm <> 'the dry run ends' then
      raise;
    end if;
  end;
  return query
    select coalesce(b.post_id, a.post_id), p.key, s.name, b.place, a.place, b.score, a.score
    from unnest(v_before, v_scores_before) with ordinality as b (post_id, score, place)
      full join unnest(v_after, v_scores_after) with ordinality as a (post_id, score, place)
        on a.post_id = b.post_id
      left join two_tower.posts p on p.id = coalesce(b.post_id, a.post_id)
      left join two_tower.sources s on s.id = p.source_id
    order by a.place nulls last, b.place;
end
$$;
comment on function two_tower.preview_page(uuid, jsonb, bigint, text, integer, bigint, integer) is
  'Says what changes would do to a user''s page, and changes nothing: each post with its place and score before and after, null where it is not on the page. p_settings: settings by name. p_post_id, p_event_type, p_dwell_ms: an event of this user; it teaches nothing while learning is frozen. p_candidate_tower: a version that would serve, without what was learned since its training. All is done and rolled back, so the user and posts are locked meanwhile. Raises 22023 for an unknown setting, 23514 for a value out of range, TT004 for a version that cannot be run, 55000 for a version above 20,000 posts, and what page_for() and an event raise.';
