"""An app's own tables, attached; what the registry must say of them; ticks without a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
import pytest

from python_jobs.db import Connection, rows, value
from tests.support.patience import wait_until

ARTICLES = """
  create table {name} (
    id {key} primary key, user_id uuid, title text, body text, published_at timestamptz,
    status text not null default 'published', language text, tags text[],
    views integer not null default 0)
"""
ATTACH = """
  select two_tower.attach_posts({name!r}, content => '{{title,body}}', author => 'user_id',
    created_at => 'published_at', visible => $$status = 'published'$$, language => 'language',
    tags => 'tags')
"""
# The rule once more, and not by the engine's own functions: what a row of articles means.
TRUTH = """
  select a.id::text as key, a.user_id::text as author_key, a.status = 'published' as is_visible,
    hashtextextended(concat_ws(E'\\n', a.title, a.body), 0) as content_hash, a.language, a.tags
  from {name} a {where}
"""
KNOWN = """
  select p.key, p.author_key, p.is_visible, p.content_hash, p.language, p.tags
  from two_tower.posts p join two_tower.sources s on s.id = p.source_id
  where s.name = {source!r} and p.deleted_at is null
"""


def detach_starter(connection: Connection) -> None:
    """Detaches the tables of the starter app, which are empty, and lets the engine forget them."""
    for table in ("posts", "profiles", "follows"):
        connection.execute(f"select two_tower.detach('public.{table}')".encode())
        connection.execute(f"select two_tower.reconcile('{table}')".encode())
    connection.execute("delete from two_tower.sources where state = 'detached'")


def differences(
    connection: Connection,
    table: str = "public.articles",
    source: str = "articles",
    where: str = "",
) -> list[Any]:
    """Rows of which table and registry say different things; empty when all is well."""
    truth, known = TRUTH.format(name=table, where=where), KNOWN.format(source=source)
    return rows(
        connection,
        f"(({truth}) except ({known})) union all (({known}) except ({truth}))",
    )


def source(connection: Connection, name: str = "articles") -> Any:
    """The row of a source."""
    (found,) = rows(connection, "select * from two_tower.sources where name = %s", name)
    return found


def open_alerts(connection: Connection) -> dict[str, str]:
    """Messages of open alerts about sources, and of failed steps, by their kinds."""
    return {
        row.kind: row.message
        for row in rows(
            connection,
            "select kind, message from two_tower.alerts"
            " where closed_at is null and kind <> 'metric_out_of_range'",
        )
    }


def tick_until_quiet(connection: Connection, name: str = "articles") -> None:
    """Ticks, as a worker does all day, until a source is attached and no walk of it is due."""

    def is_quiet() -> bool:
        connection.execute("select two_tower.tick()")
        state = source(connection, name)
        return (
            state.state == "attached"
            and state.walk is None
            and not state.is_walk_wanted
            and value(connection, "select count(*) from two_tower.source_reports") == 0
            and value(
                connection,
                "select two_tower.is_written(s) from two_tower.sources s where name = %s",
                name,
            )
        )

    wait_until(is_quiet)


class App:
    """Tables of articles in one database."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.key_type = "bigint"

    def run(self, statement: str, *parameters: Any) -> Any:
        return self.connection.execute(statement.encode(), parameters or None)

    def create_articles(self, key: str = "bigint", name: str = "public.articles") -> None:
        self.key_type = key
        self.run(ARTICLES.format(name=name, key=key))

    def attach_articles(self, name: str = "public.articles") -> str:
        return str(value(self.connection, ATTACH.format(name=name)))

    def known(self, columns: str = "key", source: str = "articles") -> list[Any]:
        """Of posts that are not deleted, in order of their keys."""
        return rows(
            self.connection,
            f"select {columns} from two_tower.posts p join two_tower.sources s"
            f" on s.id = p.source_id where s.name = %s and p.deleted_at is null order by key",
            source,
        )

    def keys(self, source: str = "articles") -> list[str]:
        return [row.key for row in self.known(source=source)]

    def refusal(self, statement: str, *parameters: Any) -> tuple[str, str, str]:
        """SQLSTATE, message and hint of a statement that must fail, which leaves nothing."""
        with (
            pytest.raises(psycopg.Error) as caught,
            self.connection.transaction(force_rollback=True),
        ):
            self.connection.execute(statement.encode(), parameters or None)
        error = caught.value
        said = error.diag.message_primary or "", error.diag.message_hint or ""
        return str(error.sqlstate), *said

    def insert(self, keys: Sequence[Any], title: str = "a title", **columns: Any) -> None:
        names = ["id", "title", *columns]
        marks = ", ".join(["%s"] * len(names))
        with self.connection.cursor() as cursor:
            cursor.executemany(
                f"insert into public.articles ({', '.join(names)}) values ({marks})".encode(),
                [[key, f"{title} {key}", *columns.values()] for key in keys],
            )
