from python_jobs.db import Connection, value, rows
from tests.support.database import add_user, as_user

APP = """
create table public.accounts (id uuid primary key references auth.users on delete cascade, handle text, about text);
create type public.state as enum ('draft', 'published');
create table public.articles (
  slug text not null unique, id uuid primary key default gen_random_uuid(), user_id uuid references public.accounts,
  title text not null, body text, status public.state not null default 'draft', published_at timestamp, score int default 0, secret boolean default false);
alter table public.articles enable row level security;
create policy a on public.articles for select to authenticated using (not secret);
grant select on public.articles, public.accounts to authenticated;
"""


def test_smoke(db: Connection) -> None:
    db.execute("select two_tower.detach('public.profiles')")
    db.execute("select two_tower.detach('public.posts')")
    db.execute(APP)
    u, a = add_user(db), add_user(db)
    db.execute("insert into public.accounts values (%s, 'ada', 'x'), (%s, 'ben', 'y')", [a, u])
    db.execute(
        "insert into public.articles (slug, user_id, title, status, published_at) select 's'||n, %s, 'title '||n, 'published', now() from generate_series(1, 30) n",
        [a],
    )
    print(
        value(
            db,
            "select two_tower.attach_posts('public.articles', content => '{title,body}', author => 'user_id', created_at => 'published_at', visible => $$status = 'published'$$)",
        )
    )
    print(
        value(
            db,
            "select two_tower.attach_profiles('public.accounts', \"user\" => 'id', content => '{about}')",
        )
    )
    print(value(db, "select two_tower.reconcile('articles')"))
    print(rows(db, "select * from two_tower.posts limit 3"))
    print(
        rows(db, "select * from two_tower.posts_to_encode(2)"),
        rows(db, "select * from two_tower.profiles_to_encode(2)"),
    )
    db.execute("update public.articles set secret = true where slug in ('s1','s2')")
    with as_user(db, u):
        page = rows(db, "select * from public.recommend(50)")
        print(len(page), page[0])
        h = rows(db, "select * from public.recommended_articles(50)")
        print(len(h), h[0])
        db.execute(
            "insert into public.engagement_events (post_key, event_type) values (%s, 'like')",
            [page[0].post_key.upper()],
        )
        print(
            rows(
                db,
                "select * from public.explain_recommendation(p_post_key => %s)",
                page[1].post_key,
            )
        )
    db.execute("alter table public.articles rename column title to headline")
    db.execute(
        "insert into public.articles (slug, user_id, headline, status, published_at) values ('z', %s, 'h', 'published', now())",
        [a],
    )
    print(
        rows(db, "select * from two_tower.source_reports"),
        rows(db, "select name, state from two_tower.sources"),
    )
    for _ in range(30):
        print(value(db, "select two_tower.tick()"))
    print(
        rows(db, "select name, state, walk, position, reconciled_at from two_tower.sources"),
        rows(db, "select kind, message, closed_at from two_tower.alerts"),
        value(
            db,
            "select count(*) from two_tower.posts where source_id = (select id from two_tower.sources where name='articles')",
        ),
    )
    assert 0
