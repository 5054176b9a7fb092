-- What readers say of themselves at the start: subjects in words, and posts that they pick. A sum
-- of three subjects is near to none of them. So they are no prior: each of them is owed places on
-- the pages of a reader who has engaged with little yet.

create table two_tower.told_interests (
  user_id uuid not null references two_tower.users (id) on delete cascade,
  place smallint not null constraint there_are_at_most_twenty check (place between 1 and 20),
  post_id bigint references two_tower.posts (id) on delete cascade,
  content text,
  hash bytea,
  base_embedding extensions.vector(384),
  encoder text,
  embedding extensions.vector(128),
  model_version bigint,
  told_at timestamptz not null default two_tower.now(),
  primary key (user_id, place),
  constraint an_interest_is_a_post_or_a_text check ((post_id is null) = (content is not null)),
  constraint a_text_has_its_hash check ((content is null) = (hash is null))
);
comment on table two_tower.told_interests is 'What users said that they are interested in, by set_interests(): texts, and posts that they picked.';
comment on column two_tower.told_interests.place is 'From 1, in the order told: texts first.';
comment on column two_tower.told_interests.hash is 'The sha256 of the text: requested_texts knows it by this.';
comment on column two_tower.told_interests.base_embedding is 'What the encoder made of the text. Null while it waits, and for one that the encoder cannot read.';
comment on column two_tower.told_interests.encoder is 'The encoder that read the text. Null while it waits.';
comment on column two_tower.told_interests.embedding is 'The text in the space of the posts, as model_version projects it.';
comment on column two_tower.told_interests.model_version is 'The candidate tower that projected it.';
create index told_interests_post_id_idx on two_tower.told_interests (post_id);
create index told_interests_to_encode_idx on two_tower.told_interests (user_id)
  where content is not null and encoder is null;
create index told_interests_model_version_idx on two_tower.told_interests (model_version);

-- Between a switch of towers and the step that projects it anew, a text is projected here.
create function two_tower.list_told(p_user_id uuid)
returns table (place smallint, vector extensions.vector)
language sql stable set search_path = pg_catalog, pg_temp rows 5 as $$
  select n.place, n.vector
  from (
    select t.place, case
        when t.post_id is not null then v.embedding
        when t.model_version = m.version then t.embedding
        else two_tower.project_text(t.base_embedding, t.encoder, m.version) end as vector
    from two_tower.told_interests t
      cross join (select two_tower.active_version('candidate_tower') as version) m
      left join two_tower.live_embeddings v
        on v.slot = (select active_slot from two_tower.state) and v.post_id = t.post_id
    where t.user_id = p_user_id
    union all
    select 0, u.prior from two_tower.user_embeddings u
    where u.user_id = p_user_id and u.prior_source = 'profile'
  ) n
  where extensions.vector_norm(n.vector) > 0;
$$;
comment on function two_tower.list_told(uuid) is
  'Returns what a user said to be interested in, as vectors in the space of the posts. place 0 is the profile. Leaves out what is not encoded.';
