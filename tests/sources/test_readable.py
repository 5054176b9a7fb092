"""The app's row level security is the law: no page shows what the reader may not read."""

from __future__ import annotations

import json

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from python_jobs.db import Connection, rows, value
from tests.support.articles import Articles, create_articles, without_starter
from tests.support.database import add_user, as_user

# Every page of a limit; similar_posts() also takes a post.
PAGES = {
    "recommend": "select post_id from public.recommend(%(limit)s)",
    "recommended": "select id::text from public.recommended_articles(%(limit)s) order by place",
    "similar": "select post_id from public.similar_posts(%(post)s, %(limit)s)",
    "popular": "select post_id from public.popular_posts(%(limit)s)",
    "followed": "select post_id from public.recent_from_followed(%(limit)s)",
}


@pytest.fixture(params=["lent", "integer", "uuid", "text"])
def articles(db: Connection, request: pytest.FixtureRequest) -> Articles:
    """Articles with each kind of key, the only attached posts."""
    if request.param == "lent":
        without_starter(db)
    else:
        db.execute("select two_tower.detach('public.posts')")
    return create_articles(db, request.param)


@pytest.fixture
def uuid_articles(db: Connection) -> Articles:
    """Articles with uuids as keys, the only attached posts."""
    db.execute("select two_tower.detach('public.posts')")
    return create_articles(db)


def page(db: Connection, reader: str, name: str, limit: int, post: int) -> list[int]:
    """The ids of the posts on a page."""
    with as_user(db, reader):
        found = db.execute(PAGES[name].encode(), {"limit": limit, "post": post}).fetchall()
    known = Articles(db)
    return [known.id_of(row[0]) if name == "recommended" else row[0] for row in found]


@pytest.mark.parametrize("name", PAGES)
def test_no_page_shows_an_unreadable_post_and_each_is_full(
    db: Connection, articles: Articles, name: str
) -> None:
    author, reader = add_user(db), add_user(db)
    db.execute("insert into public.follows (follower_id, followed_id) values (%s, %s)",
               [reader, author])  # fmt: skip
    readable = set(articles.write(12, author))
    articles.write(150, author, is_private=True)
    db.execute("select two_tower.refresh_popular_candidates()")
    asked = min(readable)
    wanted = readable - {asked} if name == "similar" else readable
    shown = page(db, reader, name, 12, asked)
    assert set(shown) == wanted
    assert len(shown) == len(wanted)
    assert set(page(db, reader, name, 5, asked)) < readable
    # The author may read all, and gets none of the own ones where pages leave them out.
    if name in ("similar", "popular"):
        assert len(page(db, author, name, 100, asked)) == 100


@pytest.mark.parametrize("name", PAGES)
def test_a_restrictive_policy_counts_too(
    db: Connection, uuid_articles: Articles, name: str
) -> None:
    author, reader = add_user(db), add_user(db)
    db.execute("insert into public.follows (follower_id, followed_id) values (%s, %s)",
               [reader, author])  # fmt: skip
    posts = uuid_articles.write(20, author)
    uuid_articles.change("title = 'for adults'", posts[:15])
    db.execute("select two_tower.refresh_popular_candidates()")
    db.execute(
        "create policy adults on public.articles as restrictive for select to authenticated"
        " using (title <> 'for adults')"
    )
    shown = page(db, reader, name, 20, posts[19])
    assert set(shown) == set(posts[15:]) - ({posts[19]} if name == "similar" else set())
    assert page(db, reader, "similar", 20, posts[0]) == []


def test_only_followers_get_what_only_followers_may_read(
    db: Connection, uuid_articles: Articles
) -> None:
    author, follower, other = (add_user(db) for _ in range(3))
    posts = uuid_articles.write(10, author)
    db.execute('drop policy "public rows are read, and one\'s own" on public.articles')
    db.execute(
        "create policy followers on public.articles for select to authenticated using (exists ("
        "  select from public.follows f where f.follower_id = (select auth.uid())"
        "  and f.followed_id = articles.author_id))"
    )
    db.execute("insert into public.follows (follower_id, followed_id) values (%s, %s)",
               [follower, author])  # fmt: skip
    assert set(page(db, follower, "recommend", 20, 0)) == set(posts)
    assert page(db, other, "recommend", 20, 0) == []
    db.execute("delete from public.follows where follower_id = %s", [follower])
    assert page(db, follower, "recommend", 20, 0) == []


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    granted=st.lists(st.booleans(), max_size=90),
    excluded=st.sets(st.integers(0, 89), max_size=20),
    seen=st.sets(st.integers(0, 89), max_size=20),
    limit=st.integers(1, 40),
    is_indexed=st.booleans(),
    is_warm=st.booleans(),
)
def test_a_page_is_what_the_policies_leave_of_what_is_eligible(
    db: Connection,
    granted: list[bool],
    excluded: set[int],
    seen: set[int],
    limit: int,
    is_indexed: bool,
    is_warm: bool,
) -> None:
    with db.transaction(force_rollback=True):
        db.execute("select two_tower.detach('public.posts')")
        articles = create_articles(db)
        author, reader = add_user(db), add_user(db)
        posts = articles.write(len(granted), author) if granted else []
        liked = articles.write(1, author)
        db.execute("create table public.readers (article uuid, reader uuid)")
        db.execute("grant select on public.readers to authenticated")
        db.execute(
            "create policy granted on public.articles as restrictive for select to authenticated"
            " using (exists (select from public.readers r"
            " where r.article = articles.id and r.reader = (select auth.uid())))"
        )
        db.execute(
            "insert into public.readers select p.key::uuid, %s from two_tower.posts p"
            " where p.id = any (%s)",
            [reader, [post for post, may in zip(posts, granted, strict=True) if may] + liked],
        )
        if is_indexed:
            db.execute("update two_tower.settings set ef_search = 40, over_fetch = 40")
            db.execute("select two_tower.build_serving_index('test')")
        gone = {posts[n] for n in excluded if n < len(posts)}
        viewed = [posts[n] for n in seen if n < len(posts)]
        db.execute(
            "insert into public.engagement_events (user_id, post_id, event_type)"
            " select %s, p, 'view' from unnest(%s::bigint[]) p",
            [reader, viewed],
        )
        if is_warm:
            db.execute("insert into public.engagement_events (user_id, post_id, event_type)"
                       " values (%s, %s, 'like')", [reader, liked[0]])  # fmt: skip
        eligible = {post for post, may in zip(posts, granted, strict=True) if may}
        eligible -= gone | set(viewed)
        if not is_warm:
            eligible |= set(liked)
        keys = [articles.key_of(post) for post in gone]
        for asked in (limit, 500):
            with as_user(db, reader):
                shown = [
                    row[0]
                    for row in db.execute(
                        "select post_id from public.recommend(%s, %s)", [asked, keys]
                    )
                ]
            assert len(set(shown)) == len(shown) == min(asked, len(eligible))
            assert set(shown) <= eligible


@pytest.mark.parametrize("is_indexed", [False, True])
def test_a_reader_of_few_of_the_posts_gets_all_of_them(db: Connection, is_indexed: bool) -> None:
    db.execute("select two_tower.detach('public.posts')")
    articles = create_articles(db)
    author, reader = add_user(db), add_user(db)
    db.execute(
        "insert into public.articles (author_id, title, is_private)"
        " select %s, 'article ' || n, n %% 400 <> 0 from generate_series(1, 8000) n",
        [author],
    )
    db.execute(
        "insert into two_tower.live_embeddings"
        " (slot, post_id, source_id, embedding, author_id, created_at, model_version)"
        " select 0, p.id, p.source_id, extensions.l2_normalize((select array_agg(random() - .5)"
        "   from generate_series(1, 128) where p.id < 0)::extensions.vector), p.author_id,"
        "   p.created_at, two_tower.active_version('candidate_tower') from two_tower.posts p"
    )
    db.execute("update two_tower.posts set encoded_hash = content_hash where true")
    if is_indexed:
        db.execute("select two_tower.build_serving_index('test')")
    readable = {
        articles.id_of(key)
        for (key,) in rows(db, "select id::text from public.articles where not is_private")
    }
    assert len(readable) == 20
    assert set(page(db, reader, "recommend", 50, 0)) == readable
    assert set(page(db, reader, "recommended", 50, 0)) == readable
    assert len(page(db, reader, "recommend", 7, 0)) == 7
    # Where more are readable than are scanned, the newest of them count.
    db.execute("update two_tower.settings set exact_scan_limit = 12")
    shown = page(db, reader, "recommend", 50, 0)
    assert 12 <= len(shown) <= 20
    assert set(shown) <= readable


def refusal(db: Connection, reader: str, statement: str, *arguments: object) -> tuple[str, ...]:
    """What a client sees of the error that a statement of the reader ends in."""
    with pytest.raises(psycopg.Error) as caught, db.transaction(), as_user(db, reader):
        db.execute(statement.encode(), list(arguments))
    diagnostics = caught.value.diag
    return tuple(
        str(part)
        for part in (
            *(diagnostics.sqlstate, diagnostics.message_primary, diagnostics.message_detail),
            *(diagnostics.message_hint, diagnostics.constraint_name, diagnostics.table_name),
        )
    )


UNKNOWN_ID = -(10**12)
UNKNOWN_KEY = "00000000-0000-4000-8000-00000000dead"


def explanation(db: Connection, reader: str, **names: object) -> str:
    """All that explain_recommendation() answers, as text."""
    given = ", ".join(f"{name} => %({name})s" for name in names)
    with as_user(db, reader):
        row = db.execute(
            f"select e::text from public.explain_recommendation({given}) e".encode(), names
        ).fetchone()
    assert row is not None
    return str(row[0])


@pytest.mark.parametrize("is_draft", [False, True])
def test_explain_says_of_an_unreadable_post_what_it_says_of_an_unknown_one(
    db: Connection, articles: Articles, is_draft: bool
) -> None:
    author, reader = add_user(db), add_user(db)
    (secret,) = articles.write(1, author, is_private=True, is_draft=is_draft)
    key = articles.key_of(secret)
    known_key = "4711" if key.lstrip("-").isdigit() else UNKNOWN_KEY
    wanted = '(,f,"there is no such post",,,,,,)'
    assert explanation(db, reader, p_post_id=UNKNOWN_ID) == wanted
    assert explanation(db, reader, p_post_id=secret) == wanted
    assert explanation(db, reader, p_post_key=known_key) == wanted
    assert explanation(db, reader, p_post_key=key) == wanted
    assert explanation(db, reader, p_post_key=key, p_post_source="articles") == wanted
    assert "your own post" in explanation(db, author, p_post_key=key) or is_draft


def test_the_place_that_explain_tells_is_that_on_the_readers_own_page(
    db: Connection, uuid_articles: Articles
) -> None:
    author, reader = add_user(db), add_user(db)
    uuid_articles.write(40, author, is_private=True)
    uuid_articles.write(10, author)
    shown = page(db, reader, "recommend", 500, 0)
    assert len(shown) == 10
    for place, post in enumerate(shown, 1):
        with as_user(db, reader):
            row = rows(db, "select * from public.explain_recommendation(%s)", post)[0]
        assert (row.is_eligible, row.reason, row.place) == (True, "eligible", place)


def sent(posts: list[dict[str, object]]) -> list[str]:
    """Statements that send events about posts, in their order: as rows, and as a batch."""
    events = [{"event_type": "view", **post} for post in posts]
    batch = json.dumps(events)
    return [
        f"insert into public.engagement_events (post_id, post_key, post_source, event_type)"
        f" select e.post_id, e.post_key, e.post_source, e.event_type from"
        f" jsonb_array_elements('{batch}') with ordinality as a (event, place), jsonb_to_record("
        f" a.event) as e (post_id bigint, post_key text, post_source text, event_type text)"
        f" order by a.place",
        f"select * from public.record_engagements('{batch}')",
    ]


@pytest.mark.parametrize("way", [0, 1], ids=["insert", "record_engagements"])
def test_an_event_about_an_unreadable_post_is_refused_as_one_about_an_unknown_post(
    db: Connection, uuid_articles: Articles, way: int
) -> None:
    author, reader = add_user(db), add_user(db)
    (secret,) = uuid_articles.write(1, author, is_private=True)
    (draft,) = uuid_articles.write(1, author, is_private=True, is_draft=True)
    (open_one,) = uuid_articles.write(1, author)
    key = uuid_articles.key_of(secret)

    def said(*posts: dict[str, object]) -> tuple[str, ...]:
        answer = refusal(db, reader, sent(list(posts))[way])
        assert answer[0] == "23503"
        return answer

    def shaped(answer: tuple[str, ...], name: object) -> tuple[str, ...]:
        """The answer without the name of the post, which the sender gave."""
        assert str(name) in answer[1]
        return tuple(part.replace(str(name), "X") for part in answer)

    plain = shaped(said({"post_id": UNKNOWN_ID}), UNKNOWN_ID)
    assert shaped(said({"post_id": secret}), secret) == plain
    assert shaped(said({"post_id": draft}), draft) == plain
    assert shaped(said({"post_key": UNKNOWN_KEY}), UNKNOWN_KEY) == plain
    assert shaped(said({"post_key": key}), key) == plain
    assert shaped(said({"post_key": key, "post_source": "articles"}), key) == plain
    # Both names at once, and batches of several: whichever is there, the first is named.
    for post_id in (UNKNOWN_ID, secret):
        assert shaped(said({"post_id": post_id, "post_key": "abc"}), "abc") == plain
    for first in ({"post_id": secret}, {"post_key": key}, {"post_id": UNKNOWN_ID - 1},
                  {"post_key": UNKNOWN_KEY}):  # fmt: skip
        for second in ({"post_id": UNKNOWN_ID}, {"post_key": UNKNOWN_KEY[:-1] + "e"},
                       {"post_id": draft}, {"post_id": open_one}):  # fmt: skip
            named = next(iter(first.values()))
            assert shaped(said(first, second), named) == plain
    assert value(db, "select count(*) from public.engagement_events") == 0
    assert value(db, "select count(*) from two_tower.user_posts") == 0


def test_an_operator_is_told_the_key_that_is_unknown(
    db: Connection, uuid_articles: Articles
) -> None:
    for role in ("postgres", "service_role"):
        with (
            pytest.raises(psycopg.errors.ForeignKeyViolation, match=UNKNOWN_KEY),
            db.transaction(),
            as_user(db, None, role),
        ):
            db.execute(
                "insert into public.engagement_events (user_id, post_key, event_type)"
                " values (gen_random_uuid(), %s, 'view')",
                [UNKNOWN_KEY],
            )


def test_a_source_that_does_not_ask_who_may_read_lets_events_pass(
    db: Connection, articles: Articles
) -> None:
    author, reader = add_user(db), add_user(db)
    (secret,) = articles.write(1, author, is_private=True)
    assert refusal(db, reader, sent([{"post_id": secret}])[0])[0] == "23503"
    articles.attach(check_readable=False)
    key = articles.key_of(secret)
    with as_user(db, reader):
        db.execute(sent([{"post_id": secret}])[0].encode())
        db.execute(sent([{"post_key": key}])[1].encode())
    assert value(db, "select count(*) from public.engagement_events") == 2
    assert refusal(db, reader, sent([{"post_id": UNKNOWN_ID}])[0])[0] == "23503"
    # Pages ask all the same.
    assert page(db, reader, "recommend", 20, 0) == []
    assert "no such post" in explanation(db, reader, p_post_id=secret)


@pytest.mark.parametrize("way", ["row", "draft", "removed"])
def test_late_events_about_what_is_gone_are_stored_and_teach_nothing(
    db: Connection, articles: Articles, way: str
) -> None:
    author, reader = add_user(db), add_user(db)
    (post,) = articles.write(1, author)
    key = articles.key_of(post)
    if way == "row":
        articles.delete([post])
    elif way == "draft":
        articles.change("is_draft = true, is_private = true", [post])
    else:
        db.execute("select public.remove_post(%s)", [post])
    db.execute("select two_tower.apply_post_changes()")
    before = value(db, "select embedding from two_tower.post_embeddings where post_id = %s", post)
    with as_user(db, reader):
        db.execute(
            "insert into public.engagement_events (post_id, event_type) values (%s, 'like')", [post]
        )
        db.execute(
            "insert into public.engagement_events (post_key, event_type) values (%s, 'reply')",
            [key],
        )
    reasons = rows(db, "select post_id, reason from two_tower.unlearned_events")
    assert reasons == [(post, "post_deleted")] * 2
    after = value(db, "select embedding from two_tower.post_embeddings where post_id = %s", post)
    assert after == before


@pytest.fixture
def two_sources(db: Connection, uuid_articles: Articles) -> tuple[Articles, Articles]:
    """Articles and notes; what is done to the first must leave the second."""
    return uuid_articles, create_articles(db, "bigint", "notes")


@pytest.mark.parametrize(
    "change",
    [
        "alter table public.articles rename to stories",
        "alter table public.articles set schema two_tower",
        "alter table public.articles drop column published_at cascade",
        "alter table public.articles drop column id cascade",
        "alter table public.articles rename column id to slug",
        "drop table public.articles cascade",
        "revoke select on public.articles from authenticated",
        'create policy failing on public.articles as restrictive for select to authenticated'
        " using (1 / length(repeat('x', (title = '')::int)) = 1)",
    ],
)  # fmt: skip
def test_a_table_that_was_changed_a_moment_ago_leaves_the_others(
    db: Connection, two_sources: tuple[Articles, Articles], change: str
) -> None:
    articles, notes = two_sources
    author, reader = add_user(db), add_user(db)
    articles.write(30, author)
    written = notes.write(10, author)
    db.execute("insert into public.follows (follower_id, followed_id) values (%s, %s)",
               [reader, author])  # fmt: skip
    db.execute("select two_tower.refresh_popular_candidates()")
    page(db, reader, "recommend", 40, 0)  # this session has plans for the table as it was
    db.execute(change.encode())
    for name in ("recommend", "popular", "followed"):
        shown = page(db, reader, name, 40, 0)
        assert set(written) <= set(shown)
    assert set(page(db, reader, "similar", 40, written[0])) >= set(written[1:])
    key = notes.key_of(written[0])
    with as_user(db, reader):
        assert len(rows(db, "select * from public.recommended_notes(40)")) == 10
        db.execute(
            "insert into public.engagement_events (post_key, post_source, event_type)"
            " values (%s, 'notes', 'view')",
            [key],
        )


def test_an_event_about_a_table_that_does_not_answer_is_refused_with_what_happened(
    db: Connection, two_sources: tuple[Articles, Articles]
) -> None:
    articles, _ = two_sources
    author, reader = add_user(db), add_user(db)
    (post,) = articles.write(1, author)
    key = articles.key_of(post)
    db.execute("alter table public.articles rename to stories")
    for event in ({"post_id": post}, {"post_key": key, "post_source": "articles"}):
        for statement in sent([event]):
            assert refusal(db, reader, statement)[0] == "42P01"


@pytest.mark.parametrize(
    "change",
    [
        "alter table public.articles rename to stories",
        "alter table public.articles set schema two_tower",
        "alter table public.articles rename column id to slug",
        "alter table public.articles rename column published_at to at",
        "alter table public.articles drop column is_draft cascade; select two_tower.attach_posts("
        "'public.articles', content => '{title}', author => 'author_id')",
        "revoke select on public.articles from authenticated;"
        " grant select (id, title, author_id) on public.articles to authenticated",
    ],
)
def test_a_tick_makes_a_table_that_was_changed_answer_again(
    db: Connection, two_sources: tuple[Articles, Articles], change: str
) -> None:
    articles, notes = two_sources
    author, reader = add_user(db), add_user(db)
    written = articles.write(9, author) + notes.write(9, author)
    page(db, reader, "recommend", 40, 0)
    db.execute(change.encode())
    for _ in range(5):
        db.execute("select two_tower.tick()")
    assert set(page(db, reader, "recommend", 40, 0)) == set(written)
    with as_user(db, reader):
        assert len(rows(db, "select * from public.recommended_articles(40)")) == 9
