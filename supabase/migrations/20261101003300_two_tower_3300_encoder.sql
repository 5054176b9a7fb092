-- From one encoder to another. settings.encoder is what an operator wants. The encoder at work is
-- the one that the active candidate tower reads (active_encoder()), and all texts are encoded with
-- it. So the change is a switch of towers:
--
--   1. A worker loads the model that settings.encoder names. One that does not load, or has another
--      number of dimensions, opens an alert, and nothing changes.
--   2. It encodes at most 2,000 of the newest posts, and fits a linear tower to their live vectors:
--      what the new model says of a text is mapped to where the post stands. Where there are few
--      posts, the fit leaves the other directions to an orthonormal projection.
--   3. The switch flips to that tower. No vector moves by it: a tower projects nothing that another
--      encoder read (project_text()).
--   4. From then on new texts are encoded with the new model. The others are asked for again, a
--      thousand at a time, behind new ones. Untouched posts are projected anew when their turn has
--      come. What was learned stays.
--
-- So live vectors are in one space all the time, and base embeddings of both models stand beside
-- each other until all are encoded anew. What compares base embeddings passes over those of the old
-- one, but for the rule content, the last resort of a page. A rollback to a checkpoint with the old
-- tower goes back to the old model in the same way.

create function two_tower.ask_for_encoder() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform two_tower.enqueue_job('change_encoder');
  return null;
end
$$;
comment on function two_tower.ask_for_encoder() is 'Has a worker try the encoder that the settings name now. Definer: whoever may change a setting need not be able to add jobs.';
create trigger change_encoder after update of encoder on two_tower.settings
  for each row when (old.encoder <> new.encoder) execute function two_tower.ask_for_encoder();

create function two_tower.encoder_to_try() returns text
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  select s.encoder from two_tower.settings s where s.encoder <> two_tower.active_encoder();
$$;
comment on function two_tower.encoder_to_try() is 'Returns the encoder that the settings name, or null when it is at work already. Definer: workers have no grant on tables.';

create function two_tower.texts_to_fit(p_limit integer default 2000)
returns table (post_id bigint, content text, embedding extensions.vector)
language sql stable security definer set search_path = pg_catalog, pg_temp as $$
  with newest as materialized (
    select p.id, p.source_id, p.key, p.content_hash, v.embedding
    from two_tower.live_embeddings v join two_tower.posts p on p.id = v.post_id
    where v.slot = (select active_slot from two_tower.state) and v.number is not null
      and p.encoded_hash = p.content_hash
    order by v.number desc limit p_limit
  )
  select n.id, left(t.content, 10000), n.embedding
  from (select m.source_id, array_agg(m.key) as keys from newest m group by m.source_id) s
    cross join lateral two_tower.read_texts(s.source_id, s.keys) t
    join newest n on n.source_id = s.source_id and n.key = t.key
  where hashtextextended(t.content, 0) = n.content_hash
  order by n.id;
$$;
comment on function two_tower.texts_to_fit(integer) is 'Returns the texts of the p_limit newest encoded posts with their live vectors, to which a tower for another encoder is fitted. Definer: workers have no grant on tables.';

create function two_tower.refuse_encoder(p_encoder text, p_reason text) returns void
language sql security definer set search_path = pg_catalog, pg_temp as $$
  select two_tower.open_alert('encoder_refused', p_encoder, format(
    '%s goes on encoding: %s. Name another model in settings.encoder, or set it anew to try again.',
    two_tower.active_encoder(), p_reason));
$$;
comment on function two_tower.refuse_encoder(text, text) is 'Opens an alert about a model that cannot be used. Definer: workers have no grant on tables.';

create function two_tower.switch_encoder(p_encoder text, p_version bigint) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_is_wanted boolean := p_encoder = (select s.encoder from two_tower.settings s);
begin
  if (select filling_checkpoint is not null from two_tower.state) then
    raise exception 'a rollback is in progress' using errcode = '55000',
      hint = 'The job is tried again by itself.';
  end if;
  update two_tower.model_weights set
    encoder = p_encoder, decided_at = two_tower.now(),
    state = case when v_is_wanted then state else 'rejected' end,
    verdict = case when v_is_wanted then 'accepted: it reads another encoder'
      else 'rejected: settings.encoder names another encoder by now' end
  where version = p_version and state = 'candidate' and verdict is null;
  if not found then
    raise exception 'version % is no candidate', p_version using errcode = '22023',
      hint = 'Pass the version that store_weights() returned.';
  end if;
  if v_is_wanted then
    perform two_tower.close_alert(a.kind, a.subject) from two_tower.alerts a
    where a.kind = 'encoder_refused' and a.closed_at is null;
    perform two_tower.begin_switch(p_version);
  end if;
  return v_is_wanted;
end
$$;
comment on function two_tower.switch_encoder(text, bigint) is 'Begins the switch to a version of the candidate tower that reads this encoder, if the settings still name it, and returns whether they do. There is nothing to judge: the active tower cannot read it. Raises 55000 during a rollback, and 22023 for a version that is no candidate. Definer: workers have no grant on tables.';

-- activate_version() adds the cursor when the encoder has changed. Walks by id, so that each post
-- is asked for once. A hash that is no text's says that the text is due, and that the post has an
-- embedding until then. What the app's transactions hold is passed over: it keeps what the old
-- model made of it until it is edited.
create function two_tower.encode_anew(p_limit integer default 1000) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_position bigint;
  v_last bigint;
  v_asked integer;
begin
  select c.position into v_position from two_tower.cursors c where c.name = 'encoding_round'
  for update;
  if not found or p_limit <= (
    select count(*) from (
      select from two_tower.posts p
      where p.is_listed and p.encoded_hash is distinct from p.content_hash limit p_limit) d) then
    return 0;
  end if;
  if v_position = two_tower.first_bigint() then
    delete from two_tower.requested_texts t where t.content is null;
    update two_tower.told_interests i set encoder = null
    where (i.user_id, i.place) in (
      select o.user_id, o.place from two_tower.told_interests o
      where o.encoder <> two_tower.active_encoder()
      limit p_limit for no key update);
    get diagnostics v_asked = row_count;
    if v_asked > 0 then
      return v_asked;
    end if;
    update two_tower.profile_embeddings e set
      base_embedding = null, requested_at = two_tower.now()
    where e.user_id = any (array(
      select o.user_id from two_tower.profile_embeddings o
      where o.base_embedding is not null and o.encoder <> two_tower.active_encoder()
      order by o.user_id limit p_limit for no key update));
    get diagnostics v_asked = row_count;
    if v_asked > 0 then
      return v_asked;
    end if;
  end if;
  with walked as materialized (
    select p.id from two_tower.posts p where p.id > v_position order by p.id limit p_limit
    for no key update skip locked
  ), asked as (
    update two_tower.posts p set encoded_hash = ~p.content_hash, requested_at = two_tower.now()
    from walked w
    where p.id = w.id and p.encoded_hash = p.content_hash and not exists (
      select from two_tower.base_embeddings b
      where b.post_id = p.id and b.encoder = two_tower.active_encoder())
  )
  select max(w.id), count(*) into v_last, v_asked from walked w;
  update two_tower.cursors c set position = v_last where c.name = 'encoding_round';
  if v_asked < p_limit then
    delete from two_tower.cursors c where c.name = 'encoding_round';
  end if;
  return v_asked;
end
$$;
comment on function two_tower.encode_anew(integer) is 'After a change of the encoder, asks for the texts that the old one read: first what users told, then profiles, then posts, of which it walks at most p_limit. Does nothing while p_limit posts wait for the encoder. Returns how many it looked at.';
