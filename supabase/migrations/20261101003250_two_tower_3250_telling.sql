-- How what a reader tells is stored and encoded. Texts wait in the queue of requested_texts, and
-- store_text_embeddings() hands the encodings over.

create function two_tower.refresh_told_interests(p_limit integer default 1000) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_version bigint := two_tower.active_version('candidate_tower');
  v_taken integer;
  v_projected integer;
begin
  with due as materialized (
    select t.user_id, t.place, t.hash, t.content, r.id as text_id, r.base_embedding
    from two_tower.told_interests t
      left join two_tower.requested_texts r on r.user_id = t.user_id and r.hash = t.hash
    where t.content is not null and t.encoder is null and r.content is null
    order by t.user_id, t.place limit p_limit for no key update of t skip locked
  ), encoded as (
    update two_tower.told_interests t set
      base_embedding = d.base_embedding, encoder = two_tower.active_encoder(), embedding = null,
      model_version = null
    from due d where t.user_id = d.user_id and t.place = d.place and d.text_id is not null
  ), queued as (
    insert into two_tower.requested_texts (user_id, hash, content, turn_at)
    select d.user_id, d.hash, d.content, two_tower.now() + d.place * interval '0.1 s'
    from due d where d.text_id is null
    on conflict do nothing
  )
  select count(*) into v_taken from due;
  update two_tower.told_interests t set
    embedding = two_tower.project_text(t.base_embedding, t.encoder, v_version),
    model_version = v_version
  where (t.user_id, t.place) in (
    select o.user_id, o.place from two_tower.told_interests o
    where o.base_embedding is not null and o.model_version is distinct from v_version
    limit p_limit for no key update skip locked);
  get diagnostics v_projected = row_count;
  return v_taken + v_projected;
end
$$;
comment on function two_tower.refresh_told_interests(integer) is
  'Of at most p_limit told texts that are not encoded: takes over what the encoder made of them, or has them wait for it. Then projects at most p_limit by the candidate tower that serves. Returns how many it did.';

-- Two sessions: the user's row is locked, so that the last call stands as a whole.
create function two_tower.tell_interests(p_texts text[], p_post_ids bigint[]) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_user_id uuid := two_tower.require_user();
  v_old two_tower.told_interests[];
begin
  if cardinality(p_texts) + cardinality(p_post_ids) > 20 then
    raise exception '% interests are told: at most 20 are kept',
      cardinality(p_texts) + cardinality(p_post_ids)
      using errcode = 'TT002', hint = 'Tell those that matter most.';
  elsif exists (select from unnest(p_texts) t where length(t) > 200) then
    raise exception 'an interest has at most 200 characters' using errcode = 'TT002',
      hint = 'Name the subject. Several subjects are several texts.';
  elsif exists (select from unnest(p_texts) t where t is null or t !~ '\S') then
    raise exception 'an interest is empty' using errcode = '22023',
      hint = 'Pass texts with a word in them.';
  end if;
  perform two_tower.add_users(array[v_user_id]);
  perform from two_tower.users u where u.id = v_user_id for no key update;
  v_old := array(select t from two_tower.told_interests t where t.user_id = v_user_id);
  delete from two_tower.told_interests t where t.user_id = v_user_id;
  insert into two_tower.told_interests (user_id, place, post_id, content, hash, base_embedding,
    encoder, embedding, model_version, told_at)
  select v_user_id, row_number() over (order by n.told, n.number), n.post_id, n.content, n.hash,
    o.base_embedding, o.encoder, o.embedding, o.model_version,
    coalesce(o.told_at, two_tower.now())
  from (
    select 1 as told, min(t.number) as number, null::bigint as post_id,
      btrim(min(t.content), E' \t\r\n') as content, two_tower.hash_text(t.content) as hash
    from unnest(p_texts) with ordinality as t (content, number)
    group by two_tower.hash_text(t.content)
    union all
    select 2, min(p.number), p.id, null, null
    from unnest(p_post_ids) with ordinality as p (id, number) group by p.id
  ) n
    left join unnest(v_old) o on o.hash = n.hash or o.post_id = n.post_id;
  perform two_tower.refresh_told_interests();
end
$$;
comment on function two_tower.tell_interests(text[], bigint[]) is
  'The core of set_interests(). What was told before keeps its encoding. Does not ask who may read the posts. Definer: clients have no grant on what is told.';
