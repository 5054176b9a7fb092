"""The calls by which an app's tables are attached, made on the tables of a made-up app."""

from __future__ import annotations

from dataclasses import dataclass, field

from docs.generator.catalogue import Catalogue
from docs.generator.markdown import block, prose
from docs.generator.section import Section
from docs.generator.signatures import full
from python_jobs.db import Connection, value

WIDTH = 100
# What the app has before its first call. The starter app's tables make room.
APP = """
    create table public.accounts (
      id uuid primary key references auth.users (id),
      about text
    );
    create table public.articles (
      id uuid primary key default gen_random_uuid(),
      slug text not null unique,
      user_id uuid references public.accounts (id),
      title text not null,
      body text,
      language text,
      labels text[],
      status text not null default 'draft',
      published_at timestamptz
    );
    create table public.subscriptions (
      reader_id uuid references public.accounts (id),
      writer_id uuid references public.accounts (id),
      primary key (reader_id, writer_id)
    );
    create table public.silenced (
      account_id uuid references public.accounts (id),
      writer_id uuid references public.accounts (id),
      how text not null default 'mute_author',
      primary key (account_id, writer_id)
    );
    select two_tower.detach(relation) from two_tower.sources where name in ('profiles', 'follows');
"""


@dataclass(frozen=True)
class Attaching:
    """A call in a migration: arguments by place, then arguments by name."""

    function: str
    places: tuple[str, ...]
    names: dict[str, str | bool] = field(default_factory=dict)

    def statement(self) -> str:
        """The call in SQL; an argument a line where there are many."""
        given = [_literal(each) for each in self.places]
        given += [f"{name} => {_literal(each)}" for name, each in self.names.items()]
        line = f"select two_tower.{self.function}({', '.join(given)});"
        lines = ",\n  ".join(given)
        return line if len(line) <= WIDTH else f"select two_tower.{self.function}({lines});"


CALLS = (
    Attaching(
        "attach_posts",
        ("public.articles",),
        {
            "content": "{title,body}",
            "author": "user_id",
            "created_at": "published_at",
            "visible": "status = 'published'",
            "language": "coalesce(language, 'en')",
            "tags": "labels",
            "key": "slug",
            "name": "articles",
            "check_readable": True,
            "popular_for_anon": False,
        },
    ),
    Attaching("attach_profiles", ("public.accounts", "id"), {"content": "{about}"}),
    Attaching(
        "attach_follows",
        ("public.subscriptions",),
        {"follower": "reader_id", "followed": "writer_id"},
    ),
    Attaching("detach", ("public.author_blocks",)),
    Attaching(
        "attach_blocks",
        ("public.silenced", "account_id"),
        {"author": "writer_id", "kind": "how"},
    ),
    Attaching("reconcile", ("articles",), {"p_may_remove_all": False}),
)


def attaching_section(catalogue: Catalogue, connection: Connection) -> Section:
    """Each function with its signature, a call, and what the call returned."""
    private = {each.name: each for each in catalogue.functions if each.schema == "two_tower"}
    connection.execute(APP)
    blocks = []
    for call in CALLS:
        function = private[call.function]
        returned = value(connection, call.statement().rstrip(";"))
        shown = f"{call.statement()}\n-- {returned}" if returned else call.statement()
        blocks += [f"### {function.name}()", prose(function.comment), block(full(function), "sql")]
        blocks += ["For example:", block(shown, "sql")]
    return Section(
        "Attaching tables",
        "For whoever writes the app's migrations. The calls may be made again, and belong where the"
        " tables are made. Whoever calls owns the table and may act as the engine's owner, as"
        " `postgres` does in a project.",
        blocks,
        [f"{call.function}()" for call in CALLS],
    )


def _literal(given: str | bool) -> str:
    if isinstance(given, bool):
        return str(given).lower()
    return f"$${given}$$" if "'" in given else f"'{given}'"
