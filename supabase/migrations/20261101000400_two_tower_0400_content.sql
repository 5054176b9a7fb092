-- What the engine knows of the app's rows. The tables are the app's: it attaches them, under any
-- name and with any key. Here stand the attached tables, a registry of their posts without their
-- texts, and mirrors of follows and blocks. All else in this schema refers to these.

create table two_tower.sources (
  id smallint generated always as identity primary key,
  name text not null constraint name_is_short check (octet_length(name) between 1 and 127),
  role text not null constraint role_is_known
    check (role in ('posts', 'profiles', 'follows', 'blocks')),
  relation regclass not null unique,
  relation_id oid not null,
  relation_name text not null,
  arguments jsonb not null,
  columns jsonb not null,
  key_type regtype,
  lends_ids boolean not null default false,
  check_readable boolean not null default true,
  is_announced boolean not null default false,
  popular_for_anon boolean not null default false,
  state text not null default 'attached'
    constraint state_of_source_is_known check (state in ('attached', 'broken', 'detached')),
  walk text constraint walk_is_known check (walk in ('rows', 'registry', 'removal')),
  position text,
  may_remove_all boolean not null default false,
  is_walk_wanted boolean not null default true,
  reconciled_at timestamptz,
  sampled_rows integer not null default 0,
  missing_rows integer not null default 0,
  attached_at timestamptz not null default two_tower.now()
);
comment on table two_tower.sources is 'The app''s tables that are or were attached. attach_posts() and its kin write the rows.';
comment on column two_tower.sources.name is 'The name of the source. Events give it as post_source. recommended_<name>() and <name>_page are named after it.';
comment on column two_tower.sources.role is 'What the table holds. At most one table holds profiles, one follows, one blocks.';
comment on column two_tower.sources.relation is 'The table. It follows renames.';
comment on column two_tower.sources.arguments is 'What was attached: a column or an expression for each part of a row.';
comment on column two_tower.sources.relation_id is 'The table by its number. A dump does not keep the number, so a restored table is known by it, and the numbers in columns do not count there.';
comment on column two_tower.sources.relation_name is 'The name of the table when the functions of the source were written last.';
comment on column two_tower.sources.columns is 'The columns of the table when the functions of the source were written last: number, type, and whether clients may read them. Where they differ now, a tick writes the functions anew. A renamed column is found by its number.';
comment on column two_tower.sources.key_type is 'The type of the key of posts.';
comment on column two_tower.sources.lends_ids is 'Whether the keys of its posts are their ids in the registry. That is so if the table was the first one, and its keys are positive numbers.';
comment on column two_tower.sources.check_readable is 'Whether an event is refused when its sender may not read the post.';
comment on column two_tower.sources.is_announced is 'Whether readers are told by Realtime how many new posts of it wait. That number asks no policy of the table. So set it only where every signed-in user may read what visible lets through.';
comment on column two_tower.sources.popular_for_anon is 'Whether those who are not signed in may call most_popular_<name>().';
comment on column two_tower.sources.state is 'attached: its rows are followed. broken: a write was stored and not followed, or the table cannot be followed any more. Reconciliation mends the one, attaching it again the other. detached: its posts are not recommended. They keep their ids.';
comment on column two_tower.sources.walk is 'What reconciliation does. rows: it reads the table. registry: it looks for posts that the table lacks. removal: it takes those out of the feed. Null: no walk runs.';
comment on column two_tower.sources.position is 'Where the walk goes on: a block of the table, or the last key of the registry. Null: at the start.';
comment on column two_tower.sources.may_remove_all is 'Whether the next walk may find more than a tenth of the posts gone, as after a truncate.';
comment on column two_tower.sources.is_walk_wanted is 'Whether another walk is due. A tick begins it.';
comment on column two_tower.sources.attached_at is 'When the table was attached first.';
comment on column two_tower.sources.reconciled_at is 'When the last walk ended.';
comment on column two_tower.sources.sampled_rows is 'Of a table of posts: how many rows the last sample had.';
comment on column two_tower.sources.missing_rows is 'How many of these the registry lacked. A walk brings them in.';
create unique index one_source_of_profiles_follows_blocks on two_tower.sources (role)
  where role <> 'posts' and state <> 'detached';
create unique index one_source_of_a_name on two_tower.sources (name) where state <> 'detached';

create function two_tower.list_callers(p_source two_tower.sources) returns text
language sql immutable set search_path = pg_catalog, pg_temp as $$
  select 'authenticated, service_role'
    || case when p_source.popular_for_anon then ', anon' else '' end;
$$;
comment on function two_tower.list_callers(two_tower.sources) is 'Returns the roles of the API that may ask for popular posts of a source.';

-- An author is a user or any other key of the app, and gets a uuid in either case. Whether a key is
-- a uuid is asked without a regular expression, which would take longer than all else here.
create function two_tower.author_id_of(p_key text) returns uuid
language sql immutable
return case
  when p_key like '________-____-____-____-____________'
    and translate(p_key, '0123456789abcdefABCDEF', '') = '----' then p_key::uuid
  else md5(p_key)::uuid end;
comment on function two_tower.author_id_of(text) is 'Returns the id of an author by the app''s key: the key itself if it is a uuid, else a uuid made of its md5.';

-- Ids that no source lends count down, so that they never meet one that is lent.
create sequence two_tower.post_ids increment -1 minvalue -9223372036854775808 maxvalue -1 start -1;
comment on sequence two_tower.post_ids is 'Ids of posts whose source does not lend its keys: -1, -2 and so on.';

create table two_tower.posts (
  id bigint primary key,
  source_id smallint not null,
  key text collate "C" not null,
  author_key text,
  author_id uuid generated always as (two_tower.author_id_of(author_key)) stored,
  created_at timestamptz not null,
  arrived_at timestamptz,
  is_visible boolean not null default true,
  deleted_at timestamptz,
  removed_at timestamptz,
  removed_by text,
  removal_reason text,
  is_listed boolean not null
    generated always as (is_visible and deleted_at is null and removed_at is null) stored,
  edited_at timestamptz,
  stands_since timestamptz
    generated always as (greatest(created_at, arrived_at, edited_at)) stored,
  language text,
  tags text[],
  content_hash bigint not null,
  encoded_hash bigint,
  is_unreadable boolean not null default false,
  requested_at timestamptz not null default two_tower.now(),
  unique (source_id, key)
) with (fillfactor = 80);
comment on table two_tower.posts is 'The registry: what the engine knows of each post of any source. The text stays in the app''s table.';
comment on column two_tower.posts.id is 'The id by which the engine knows the post. It stays, also when the source is detached and attached again.';
comment on column two_tower.posts.source_id is 'The source: sources.id. No foreign key: it would cost each insert of the app a lookup.';
comment on column two_tower.posts.key is 'The key of the row in the app''s table, as text.';
comment on column two_tower.posts.author_key is 'The author as the app names it. Null for none.';
comment on column two_tower.posts.author_id is 'The author as a uuid, which author_id_of() makes of the key.';
comment on column two_tower.posts.created_at is 'The time of the post, as the source names it. A post whose time is to come is not published yet.';
comment on column two_tower.posts.arrived_at is 'When the post was first visible here. Imported posts arrive when they were created. Freshness counts from the later of this and created_at.';
comment on column two_tower.posts.is_visible is 'Whether the row meets the condition visible of its source.';
comment on column two_tower.posts.deleted_at is 'When the row was found to be gone from the app''s table.';
comment on column two_tower.posts.removed_at is 'When an operator removed the post by remove_post(). The author cannot bring it back.';
comment on column two_tower.posts.removed_by is 'The role that removed it.';
comment on column two_tower.posts.removal_reason is 'The reason that remove_post() was given.';
comment on column two_tower.posts.is_listed is 'Whether the post may be recommended at all: visible, not deleted, not removed.';
comment on column two_tower.posts.edited_at is 'When the text last became another one. Null if it never did.';
comment on column two_tower.posts.stands_since is 'Since when the post says here what it says. Of posts that say the same, the one with the earliest is the original.';
comment on column two_tower.posts.language is 'The language of the text, as the source names it. Null for none.';
comment on column two_tower.posts.tags is 'The tags of the post, as the source names them. Null for none.';
comment on column two_tower.posts.content_hash is 'A hash of the text. An encoding of another text is not stored.';
comment on column two_tower.posts.encoded_hash is 'The hash of the text that was encoded last. Null until then.';
comment on column two_tower.posts.is_unreadable is 'Whether the encoder found nothing in the text that it can read: a blank one, emoji alone, a script that it does not know. Such a post has no embedding. It is shown by recency, not by likeness.';
comment on column two_tower.posts.requested_at is 'When the encoding was asked for. A post that is not published yet waits for its time.';
-- In the order in which due_posts are served.
create index posts_to_encode_idx on two_tower.posts (
  (coalesce(uuid_hash_extended(author_id, 0), source_id)), (encoded_hash is not null),
  requested_at, id
) where is_listed and encoded_hash is distinct from content_hash;
create index posts_deleted_at_idx on two_tower.posts (deleted_at) where deleted_at is not null;
-- Those below hold encoded posts only, so that an insert of the app pays for none.
create index posts_author_id_created_at_idx on two_tower.posts (author_id, created_at desc)
  where is_listed and encoded_hash is not null;
create index posts_content_hash_idx on two_tower.posts (content_hash, stands_since)
  where encoded_hash is not null;
create index posts_created_at_idx on two_tower.posts (created_at desc, id)
  where is_listed and encoded_hash is not null;
create index posts_unreadable_idx on two_tower.posts (created_at desc, id)
  where is_listed and is_unreadable;

create view two_tower.due_posts with (security_invoker = true) as
select
  p.id, p.source_id, p.key, p.content_hash, p.requested_at,
  coalesce(uuid_hash_extended(p.author_id, 0), p.source_id) as turn,
  p.encoded_hash is not null as is_edited
from two_tower.posts as p
where p.is_listed and p.encoded_hash is distinct from p.content_hash;
comment on view two_tower.due_posts is 'Posts whose text waits for the encoder.';
comment on column two_tower.due_posts.turn is 'In whose turn the post is encoded: a number for each author, and one for all posts of a source that have none.';
comment on column two_tower.due_posts.is_edited is 'Whether an earlier text of the post was encoded. New posts of a turn come before edited ones.';
comment on column two_tower.due_posts.requested_at is 'When the encoding was asked for. A time to come is that of a post that is not published yet.';

create table two_tower.post_changes (
  id bigint generated always as identity primary key,
  post_id bigint not null
);
comment on table two_tower.post_changes is 'Posts of which more than the text changed, until a tick has carried that into live_embeddings. One row a change, so that none is lost between two sessions.';

create table two_tower.vanished_posts (
  source_id smallint not null,
  key text collate "C" not null,
  primary key (source_id, key)
);
comment on table two_tower.vanished_posts is 'Posts that a walk did not find in the app''s table. When the walk has seen all of them, it takes them out of the feed.';

create table two_tower.follows (
  follower_id uuid not null,
  followed_id uuid not null,
  primary key (follower_id, followed_id)
);
create index follows_followed_id_idx on two_tower.follows (followed_id, follower_id);
comment on table two_tower.follows is 'Who follows whom: a mirror of the app''s table. Empty while none is attached.';
comment on column two_tower.follows.followed_id is 'The author, as author_id_of() names it.';

create table two_tower.blocks (
  user_id uuid not null,
  author_id uuid not null,
  kind text not null constraint kind_of_block_is_known
    check (kind in ('block_author', 'mute_author')),
  primary key (user_id, author_id)
);
comment on table two_tower.blocks is 'Who blocked or muted whom: a mirror of public.author_blocks, or of the app''s table.';
comment on column two_tower.blocks.author_id is 'The author, as author_id_of() names it.';
-- An index on either side has the other one too: whichever a plan takes, a pair is one row of it.
create index blocks_author_id_idx on two_tower.blocks (author_id, user_id);
