-- From texts to vectors. A worker hands in what it made of texts. store_base_embeddings() takes it
-- from there, to live embeddings and to the events that waited for them.

-- What changed of a post beside its text. A statement of the app writes the registry alone, and
-- waits for no lesson.
create function two_tower.apply_post_changes(p_limit integer default 1000) returns integer
language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_post_ids bigint[];
  v_taken integer;
  v_active smallint;
begin
  with due as (
    select c.id from two_tower.post_changes c order by c.id limit p_limit for update skip locked
  ), taken as (
    delete from two_tower.post_changes c using due d where c.id = d.id returning c.post_id
  )
  select array_agg(distinct t.post_id order by t.post_id), count(*) into v_post_ids, v_taken
  from taken t;
  if v_taken = 0 then
    return 0;
  end if;
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  v_active := (select active_slot from two_tower.state);
  perform from two_tower.live_embeddings v
  where v.post_id = any (v_post_ids)
  order by v.post_id, v.slot <> v_active for no key update;
  -- A statement of its own: it sees the rows that fill_slot() added while this one waited.
  update two_tower.live_embeddings v set
    is_listed = p.is_listed, author_id = p.author_id,
    created_at = greatest(p.created_at, p.arrived_at),
    number = case when p.is_listed then v.number end
  from two_tower.posts p
  where v.post_id = any (v_post_ids) and p.id = v.post_id
    and (v.author_id, v.created_at, v.is_listed)
      is distinct from (p.author_id, greatest(p.created_at, p.arrived_at), p.is_listed);
  return v_taken;
end
$$;
comment on function two_tower.apply_post_changes(integer) is
  'Carries at most p_limit changes of the registry into live_embeddings. Locks posts in the order in which learning locks them. Returns how many it took.';

create function two_tower.mark_encoded(p_stored bigint[], p_unreadable bigint[],
  p_post_ids bigint[], p_hashes bigint[])
returns integer language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_encoded integer;
begin
  with locked as materialized (
    select p.id from two_tower.posts p
    where p.id = any (p_stored || p_unreadable)
    order by p.id for no key update of p skip locked
  ), encoded as (
    update two_tower.posts p set
      encoded_hash = p.content_hash, is_unreadable = p.id = any (p_unreadable)
    from locked l
    where p.id = l.id and (p_hashes is null or exists (
      select from unnest(p_post_ids, p_hashes) as g (post_id, hash)
      where g.post_id = p.id and coalesce(g.hash, p.content_hash) = p.content_hash))
    returning p.id, p.author_id, greatest(p.created_at, p.arrived_at) as created_at, p.is_listed
  ), changed as (
    insert into two_tower.post_changes (post_id)
    select v.post_id from two_tower.live_embeddings v left join encoded e on e.id = v.post_id
    where v.post_id = any (p_stored)
      and (v.author_id, v.created_at, v.is_listed)
        is distinct from (e.author_id, e.created_at, e.is_listed)
    group by v.post_id
  )
  select count(*) into v_encoded from encoded;
  return v_encoded;
end
$$;
comment on function two_tower.mark_encoded(bigint[], bigint[], bigint[], bigint[]) is 'Notes of posts that their texts are encoded, or that the encoder cannot read them, unless they were changed meanwhile or a transaction of the app holds them. Returns of how many.';

-- How much of a text is left after an edit, by the cosine distance of the encodings. What MiniLM
-- makes of ten posts edited by hand (median, largest):
--
--   capitals .02 .05   a line of thanks .02 .06   a word .04 .14   a typo .08 .13
--   half cut .17 .31   three typos .19 .43        a sentence added .19 .33   paraphrase .23 .24
--   half of it another text .39 .52               another text 1.00 (least .89)
--
-- So what is within .1 is the same text, and from .6 on it is another one.
create function two_tower.compare_texts(p_old extensions.vector, p_new extensions.vector)
returns real language sql immutable strict set search_path = pg_catalog, pg_temp as $$
  select least(1, greatest(0, 1.2 - 2 * (p_old operator(extensions.<=>) p_new)))::real;
$$;
comment on function two_tower.compare_texts(extensions.vector, extensions.vector) is 'Returns the share of a text that an edit has left, by both base embeddings: 1 up to a cosine distance of .1, 0 from .6 on, and linear in between.';

-- What was learned of a post was learned of its text. An edit takes the share of it away that it
-- takes from the text, measured from the text with which learning began: many small edits add up,
-- and one that is taken back costs nothing twice. What comes in its place is the new text's
-- projection. An untouched post is projected anew.
--
-- Where the encoder has changed, texts can not be compared, and what was learned stays.
create function two_tower.follow_edits(p_stored bigint[], p_new bigint[], p_unreadable bigint[])
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_active smallint := (select active_slot from two_tower.state);
  v_version bigint := two_tower.active_version('candidate_tower');
begin
  perform from two_tower.live_embeddings v
  where v.post_id = any (p_stored || p_unreadable)
    and v.post_id <> all (p_new)
  order by v.post_id, v.slot <> v_active for no key update;
  delete from two_tower.live_embeddings v where v.post_id = any (p_unreadable);
  update two_tower.live_embeddings v set embedding = n.embedding
  from (
    select a.slot, a.post_id,
      two_tower.project_text(b.base_embedding, b.encoder, a.model_version) as embedding
    from two_tower.live_embeddings a join two_tower.base_embeddings b using (post_id)
    where a.post_id = any (p_stored) and a.post_id <> all (p_new)
      and a.is_pretrained
    offset 0) n
  where v.slot = n.slot and v.post_id = n.post_id and extensions.vector_norm(n.embedding) > 0;

  update two_tower.base_embeddings b set learned_from = null
  from two_tower.live_embeddings v
  where b.post_id = any (p_stored) and b.learned_from is not null
    and v.slot = v_active and v.post_id = b.post_id and v.is_pretrained;
  with edited as materialized (
    select b.post_id, c.kept, c.kept / b.kept as share,
      two_tower.project_text(b.base_embedding, b.encoder, v_version) as projected
    from two_tower.base_embeddings b
      join two_tower.live_embeddings v on v.slot = v_active and v.post_id = b.post_id
      cross join lateral (
        select two_tower.compare_texts(b.learned_from, b.base_embedding) as kept) c
    where b.post_id = any (p_stored) and not v.is_pretrained and c.kept < b.kept
    offset 0
  ), moved as (
    update two_tower.live_embeddings v set
      embedding = two_tower.move_vector(e.projected, (e.share / nullif(1 - e.share, 0))::real,
        v.embedding),
      popularity = v.popularity
        + case when e.share > 0 then ln(e.share) / ln(2::float8) else '-infinity' end
    from edited e where v.post_id = e.post_id and not v.is_pretrained
      and e.projected is not null
  )
  update two_tower.base_embeddings b set
    kept = case when e.kept > 0 then e.kept else 1 end,
    learned_from = case when e.kept > 0 then b.learned_from end
  from edited e where b.post_id = e.post_id;
end
$$;
comment on function two_tower.follow_edits(bigint[], bigint[], bigint[]) is 'Brings posts whose base embeddings were stored to their new texts. p_new: those that got their live embeddings just now. p_unreadable: these lose theirs. Locks posts in the order in which learning locks them.';

create type two_tower.encoded_post as (post_id bigint, embedding extensions.vector);
comment on type two_tower.encoded_post is 'What the encoder made of the text of a post: null where it cannot read it.';

create function two_tower.take_encoded(p_post_ids bigint[], p_embeddings extensions.vector[],
  p_hashes bigint[]) returns two_tower.encoded_post[]
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
  if cardinality(p_post_ids) is distinct from cardinality(p_embeddings)
     or cardinality(p_post_ids)
       is distinct from coalesce(cardinality(p_hashes), cardinality(p_post_ids)) then
    raise exception 'post ids, embeddings and hashes are not arrays of one length'
      using errcode = '22023',
        hint = 'Pass the hashes that posts_to_encode() returned, or null.';
  end if;
  return array(
    select row(g.post_id, g.embedding)::two_tower.encoded_post
    from (
      select distinct on (n.post_id) n.post_id, n.embedding, n.hash
      from unnest(p_post_ids, p_embeddings,
        coalesce(p_hashes, array_fill(null::bigint, array[cardinality(p_post_ids)])))
           as n (post_id, embedding, hash)
      order by n.post_id) g
      join two_tower.posts p on p.id = g.post_id
    where g.hash is null or g.hash = p.content_hash
    order by g.post_id);
end
$$;
comment on function two_tower.take_encoded(bigint[], extensions.vector[], bigint[]) is 'Returns what was made of texts that are still those of the posts, one of each post, in order of id. Raises 22023 for arrays of different lengths.';

create function two_tower.add_live_embeddings(p_post_ids bigint[], p_slot smallint)
returns bigint[] language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_new bigint[];
begin
  perform pg_advisory_xact_lock_shared(two_tower.numbering_lock());
  with arrived as (
    select p.id, p.author_id, greatest(p.created_at, p.arrived_at) as created_at, p.is_listed,
      p.source_id, b.base_embedding, b.encoder
    from two_tower.base_embeddings b join two_tower.posts p on p.id = b.post_id
    where b.post_id = any (p_post_ids) and not exists (
      select from two_tower.live_embeddings v where v.slot = p_slot and v.post_id = b.post_id)
    -- Of posts that came at once, ids below zero count down.
    order by p.requested_at, greatest(b.post_id, ~b.post_id)
  ), numbered as materialized (
    select a.*, case when a.is_listed then nextval('two_tower.post_numbers') end as number
    from arrived a
  ), inserted as (
    insert into two_tower.live_embeddings (slot, post_id, number, embedding, author_id, created_at,
      is_listed, source_id, model_version)
    select slots.slot, n.id, n.number, projected.embedding, n.author_id, n.created_at,
      n.is_listed, n.source_id, slots.version
    from two_tower.slots_to_write() slots
      cross join numbered n
      -- "offset 0" keeps it from being computed once for each place that names it.
      cross join lateral (
        select two_tower.project_text(n.base_embedding, n.encoder, slots.version) offset 0)
        as projected (embedding)
    where extensions.vector_norm(projected.embedding) > 0
    on conflict (post_id, slot) do nothing
    returning post_id
  )
  select array_agg(distinct post_id) into v_new from inserted;
  return coalesce(v_new, '{}');
end
$$;
comment on function two_tower.add_live_embeddings(bigint[], smallint) is 'Gives posts that have none in this slot their live embeddings: the projections of their base embeddings, in each slot that is written. Returns these posts.';

-- Where the encoder hands in what it computed. New posts get their live embedding, then deferred
-- events are learned, and only then are rows touched that others may hold. So no lock is waited for
-- while one is held out of order.
--
-- The registry comes last, and waits for nobody: a transaction of the app may hold a post there and
-- wait for what is locked here. A post that it holds, or whose text has changed meanwhile, stays
-- due. Whatever may have changed since the embedding was made is looked at by apply_post_changes(),
-- after both have committed: the app's transaction asks for that, too.
create function two_tower.store_base_embeddings(
  p_post_ids bigint[], p_embeddings extensions.vector[], p_hashes bigint[] default null,
  p_encoder text default null
) returns integer language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_given two_tower.encoded_post[] := two_tower.take_encoded(p_post_ids, p_embeddings, p_hashes);
  v_stored bigint[] := array(select g.post_id from unnest(v_given) g where g.embedding is not null);
  v_unreadable bigint[] := array(select g.post_id from unnest(v_given) g where g.embedding is null);
  v_new bigint[];
begin
  perform pg_advisory_xact_lock_shared(two_tower.switch_lock());
  if p_encoder <> two_tower.active_encoder() then
    return 0;
  end if;
  delete from two_tower.base_embeddings b where b.post_id = any (v_unreadable);
  insert into two_tower.base_embeddings as b (post_id, base_embedding, encoder)
  select g.post_id, extensions.l2_normalize(g.embedding), two_tower.active_encoder()
  from unnest(v_given) g where g.embedding is not null
  order by g.post_id
  on conflict (post_id) do update set
    base_embedding = excluded.base_embedding, encoder = excluded.encoder,
    encoded_at = excluded.encoded_at,
    kept = case when b.encoder = excluded.encoder then b.kept else 1 end,
    learned_from = case when b.encoder = excluded.encoder
      then coalesce(b.learned_from, b.base_embedding) end;
  insert into two_tower.users (id, account_id)
  select distinct p.author_id, p.author_id
  from two_tower.posts p join auth.users a on a.id = p.author_id
  where p.id = any (v_stored) order by p.author_id
  on conflict do nothing;
  v_new := two_tower.add_live_embeddings(v_stored, (select active_slot from two_tower.state));
  perform two_tower.learn_deferred(500, v_new);
  perform two_tower.follow_edits(v_stored, v_new, v_unreadable);
  return two_tower.mark_encoded(v_stored, v_unreadable, p_post_ids, p_hashes);
end
$$;
comment on function two_tower.store_base_embeddings(bigint[], extensions.vector[], bigint[], text) is
  'Stores base embeddings, projects them with the candidate tower, learns at most 500 of the events that waited for them, and takes from edited posts what was learned of their old texts. An embedding that is null says that the encoder cannot read the text: the post has none then. Passes over an encoding of a text that has changed since (another hash), and leaves due what a transaction of the app holds. p_encoder: the model that read the texts; null: the one at work. Stores nothing of another one. Returns how many posts are encoded by it. Raises 22023 for arrays of different lengths. Definer: workers have no grant on tables.';
