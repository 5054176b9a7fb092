"""A database in which one account floods: what it may do often, it did by the ten thousands."""

from __future__ import annotations

from python_jobs.db import Connection, value
from tests.support.database import add_user
from tests.support.engagements import add_posts
from tests.support.learning import rng

MANY = 20_000

# Written as a restore writes, without triggers: the rows are what is left of the flood.
POSTS = """
  with new_posts as (
    insert into public.posts (author_id, content, created_at)
    select %(author)s, 'flood ' || n, now() - interval '1 day' - n * interval '1 second'
    from generate_series(1, %(many)s) n
    returning id, author_id, created_at, hashtextextended(content, 0) as hash
  )
  insert into two_tower.posts (id, source_id, key, author_key, created_at, arrived_at,
    content_hash, encoded_hash, requested_at)
  select p.id, s.id, p.id::text, p.author_id::text, p.created_at, p.created_at,
    p.hash, case when %(encoded)s then p.hash end, p.created_at
  from new_posts p cross join two_tower.sources s where s.name = 'posts'
"""
LIVE = """
  insert into two_tower.live_embeddings (slot, post_id, embedding, author_id, created_at, source_id,
    model_version)
  select s.active_slot, p.id, l.embedding, p.author_id, p.created_at, p.source_id, l.model_version
  from two_tower.posts p cross join two_tower.state s
    join (select row_number() over () - 1 as n, v.embedding, v.model_version
          from two_tower.live_embeddings v, two_tower.state s where v.slot = s.active_slot
          limit 100) l on l.n = mod(abs(p.id), 100)
  where p.author_id = %(author)s and p.encoded_hash is not null
  order by p.created_at
"""
FLOOD = [
    # Views of all posts of the author, and as many of one post.
    "insert into public.engagement_events (user_id, post_id, event_type, client_event_id,"
    "   created_at)"
    " select %(flooder)s, p.id, 'view', gen_random_uuid(),"
    "   now() - row_number() over () * interval '100 ms'"
    " from two_tower.posts p where p.author_id = %(author)s",
    "insert into public.engagement_events (user_id, post_id, event_type, client_event_id,"
    "   created_at)"
    " select %(flooder)s, %(post)s, 'view', gen_random_uuid(), now() - n * interval '100 ms'"
    " from generate_series(1, %(many)s) n",
    # The flooder has seen posts that are gone since: its pages are those of any reader.
    "insert into two_tower.user_posts (user_id, post_id, signals, first_seen_at, last_event_at)"
    " select %(flooder)s::uuid, 1000000000 + n, two_tower.view_bit(), now(), now()"
    " from generate_series(1, %(many)s) n"
    " union all select %(fan)s::uuid, p.id, two_tower.view_bit(), now(), now()"
    " from two_tower.posts p where p.author_id = %(author)s",
    "insert into two_tower.unlearned_events (event_id, user_id, post_id, event_type, reason,"
    "   created_at)"
    " select nextval('two_tower.engagement_event_ids'), %(flooder)s, %(post)s, 'like', 'repeated',"
    "   now() - n * interval '100 ms' from generate_series(1, %(many)s) n",
    "insert into two_tower.deferred_events (event_id, user_id, post_id, event_type, reason,"
    "   created_at)"
    " select nextval('two_tower.engagement_event_ids'), %(flooder)s, %(waiting)s, 'like',"
    "   'post_not_encoded', now() - n * interval '100 ms' from generate_series(1, %(many)s) n",
    "insert into two_tower.training_examples (event_id, user_id, post_id, event_type, label,"
    "   user_emb, post_emb, step, created_at)"
    " select nextval('two_tower.engagement_event_ids'), %(flooder)s, p.id, 'click', null,"
    "   v.embedding, v.embedding, 0, now() - row_number() over () * interval '1 second'"
    " from two_tower.posts p join two_tower.live_embeddings v on v.post_id = p.id"
    " where p.author_id = %(author)s",
    "insert into two_tower.follows (follower_id, followed_id)"
    " select %(flooder)s::uuid, gen_random_uuid() from generate_series(1, %(many)s)"
    " union all select %(flooder)s::uuid, %(author)s::uuid"
    " union all select u, %(author)s::uuid from unnest(array[%(reader)s, %(fan)s]::uuid[]) u"
    " union all select gen_random_uuid(), %(author)s::uuid from generate_series(1, %(many)s)",
    "insert into two_tower.blocks (user_id, author_id, kind)"
    " select %(flooder)s::uuid, gen_random_uuid(), 'block_author' from generate_series(1, %(many)s)"
    " union all"
    " select gen_random_uuid(), %(flooder)s::uuid, 'block_author'"
    " from generate_series(1, %(many)s)",
    # Who was deleted, and whom many follow and block.
    "with gone as ("
    "   insert into two_tower.users_to_erase (user_id, requested_at)"
    "   values (gen_random_uuid(), now() - interval '1 hour') returning user_id"
    " ), followed as ("
    "   insert into two_tower.follows (follower_id, followed_id)"
    "   select gen_random_uuid(), g.user_id from gone g, generate_series(1, %(many)s)"
    " )"
    " insert into two_tower.blocks (user_id, author_id, kind)"
    " select gen_random_uuid(), g.user_id, 'mute_author'"
    " from gone g, generate_series(1, %(many)s)",
    "insert into two_tower.requested_texts (user_id, hash, content, requested_at, turn_at)"
    " select gen_random_uuid(), sha256(n::text::bytea), 'text ' || n, t.at, t.at"
    " from generate_series(1, %(many)s) n"
    "   cross join lateral (select now() - interval '2 days' - n * interval '1 ms' as at) t",
    "insert into public.author_blocks (user_id, author_id, kind)"
    " select b.user_id, b.author_id, b.kind from two_tower.blocks b where b.user_id = %(flooder)s",
]

A_BLOCKED_AUTHOR = "select author_id from public.author_blocks where user_id = %s limit 1"


class Flooded:
    """flooder: the account that floods. author: one of many posts.

    post: one that it viewed many times. waiting: a post that is not encoded, which it liked as
    often. liked, fresh: posts of other authors, of which it liked the first and has not seen the
    others. blocked: an author whom it blocked. reader, fan: follow author alone. The reader has
    seen one post, the fan all of author's.
    """

    def __init__(self, connection: Connection) -> None:
        self.flooder, self.author, self.reader, self.fan = (add_user(connection) for _ in range(4))
        others = [add_user(connection) for _ in range(200)]
        self.posts = add_posts(connection, 600, others, rng())
        self.post, self.liked, *self.fresh = self.posts
        (self.waiting,) = add_posts(connection, 1, others[:1])
        for user in (self.flooder, self.reader, self.fan):
            for event_type in ("view", "like"):
                connection.execute(
                    "insert into public.engagement_events (user_id, post_id, event_type)"
                    " values (%s, %s, %s)",
                    [user, self.liked, event_type],
                )
        names = {
            "flooder": self.flooder,
            "author": self.author,
            "reader": self.reader,
            "fan": self.fan,
            "post": self.post,
            "waiting": self.waiting,
            "many": MANY,
        }
        connection.execute("set session_replication_role = replica")
        connection.execute("insert into public.profiles (user_id) values (%s)", [self.author])
        connection.execute(POSTS, {**names, "encoded": True})
        connection.execute(LIVE, names)
        for statement in FLOOD:
            connection.execute(statement, names)
        connection.execute(POSTS, {**names, "encoded": False})
        connection.execute("reset session_replication_role")
        self.blocked = value(connection, A_BLOCKED_AUTHOR, self.flooder)
        connection.execute("select two_tower.build_serving_index()")
        connection.execute("select two_tower.refresh_recent_posts()")
        connection.execute("select two_tower.refresh_popular_candidates()")
        connection.execute("analyze")
