"""Functions of the API as the catalogue has them, arguments by their types, and calls by SQL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from hypothesis import strategies as st
from psycopg.types.json import Jsonb

from python_jobs.db import Connection, rows
from tests.security.access import BACK_END_FUNCTIONS, CLIENT_FUNCTIONS
from tests.support.database import add_user, as_user
from tests.support.engagements import add_posts

# Stand for what only the database knows, in arguments that are drawn before there is one.
MY_ID, OTHER_ID, POST_ID, POST_KEY = "<me>", "<other>", "<post>", "<key>"

bigints = st.sampled_from([None, POST_ID, 0, 1, -1, 10**15, 2**53 + 1, 2**63 - 1, -(2**63)])
integers = st.sampled_from([None, 0, 1, -1, 20, 100, 500, 501, 2**31 - 1, -(2**31)])
texts = st.one_of(
    st.sampled_from(
        [
            *(None, "", " ", POST_KEY, "posts", "nobody", "a boat", "1e9", "NaN", "1e999999"),
            *("²", "007", "'; drop table posts; --", "%s", "\\", "\u202e\u0001", "💥" * 300),
            *("x" * 2000, "x" * 200_000, "{1,2}", "null", "0" * 4000, "-infinity"),
        ]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
)
lists = st.one_of(
    st.none(),
    st.lists(st.sampled_from([None, POST_KEY, "", "1", "x", "999999999999999999999"]), max_size=6),
    st.sampled_from([["1"] * 1000, ["1"] * 1001, ["x"] * 30_000, [None] * 1000]),
    st.sampled_from([["x" * 200_000], [["1"], ["2"]], [[None]]]),
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10),
)
documents = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text("abc", max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)
event_like = st.dictionaries(
    st.sampled_from(
        ["post_id", "post_key", "post_source", "event_type", "dwell_ms", "client_event_id", "x"]
    ),
    st.one_of(
        scalars,
        st.sampled_from([POST_ID, POST_KEY, "view", "like", "dwell", "posts", MY_ID, 1e300]),
        documents,
    ),
)
events = st.one_of(
    documents,
    st.lists(event_like, max_size=5),
    st.sampled_from([[{}] * 501, [[]] * 500, {"a": "x" * 1_000_001}, ["x" * 200_000]]),
)
ARGUMENTS: dict[str, st.SearchStrategy[Any]] = {
    "bigint": bigints,
    "integer": integers,
    "text": texts,
    "text[]": lists,
    "boolean": st.sampled_from([None, True, False]),
    "jsonb": events,
    "uuid": st.sampled_from([None, MY_ID, OTHER_ID, "00000000-0000-0000-0000-000000000000"]),
}
# Over HTTP, an argument may be of any other type too.
anything = st.one_of(documents, *ARGUMENTS.values())


@dataclass(frozen=True)
class Function:
    """A function of the API: its arguments by name with their types, and who calls it."""

    name: str
    arguments: dict[str, str]
    role: str


# Names are needed to collect tests, types come from the catalogue.
NAMES = sorted(
    name.removeprefix("public.")
    for name in {*CLIENT_FUNCTIONS, *BACK_END_FUNCTIONS}
    if name.startswith("public.")
)


def find_function(connection: Connection, name: str) -> Function:
    """The function of `public` with this name."""
    (found,) = rows(
        connection,
        "select p.proargnames[1:p.pronargs] as names, array(select format_type(t, null)"
        " from unnest(p.proargtypes::oid[]) with ordinality u (t, i) order by i) as types"
        " from pg_proc p where pronamespace = 'public'::regnamespace and proname = %s",
        name,
    )
    role = "service_role" if f"public.{name}" in BACK_END_FUNCTIONS else "authenticated"
    return Function(name, dict(zip(found.names or [], found.types, strict=True)), role)


def calls(function: Function) -> st.SearchStrategy[dict[str, Any]]:
    """Arguments of a call, some of them left out."""
    return st.fixed_dictionaries(
        {}, optional={name: ARGUMENTS[kind] for name, kind in function.arguments.items()}
    )


def documented(connection: Connection) -> set[str]:
    """The SQLSTATEs that a caller may be answered with."""
    return {row.sqlstate for row in rows(connection, "select sqlstate from two_tower.error_codes")}


class Sql:
    """Two users and some posts, and calls as one of them: each is taken back."""

    def __init__(self, connection: Connection) -> None:
        self.db = connection
        self.me, self.other = add_user(connection), add_user(connection)
        self.posts = add_posts(connection, 60, [self.other], np.random.default_rng(1))
        self.documented = documented(connection)

    def fill(self, given: Any) -> Any:
        """The same, with ids of this database in place of what stands for them."""
        known = {MY_ID: self.me, OTHER_ID: self.other, POST_ID: self.posts[0]}
        known[POST_KEY] = str(self.posts[0])
        if isinstance(given, dict):
            return {name: self.fill(each) for name, each in given.items()}
        if isinstance(given, list) and len(given) < 100:
            return [self.fill(each) for each in given]
        return known.get(given, given) if isinstance(given, str) else given

    def call(self, function: Function, given: dict[str, Any]) -> psycopg.Error | None:
        """What the call was refused with."""
        wrapped = {
            name: Jsonb(each) if function.arguments[name] == "jsonb" else each
            for name, each in self.fill(given).items()
        }
        named = ", ".join(f"{name} => %({name})s::{function.arguments[name]}" for name in wrapped)
        user = self.me if function.role == "authenticated" else None
        try:
            with (
                self.db.transaction(force_rollback=True),
                as_user(self.db, user, function.role),
            ):
                self.db.execute(f"select * from public.{function.name}({named})".encode(), wrapped)
        except psycopg.Error as error:
            return error
        return None
