"""How tables and functions must be defined, so that nothing is exposed by oversight."""

from __future__ import annotations

from typing import Any

from python_jobs.db import Connection
from tests.support.catalogue import INLINED, INLINED_ROWS, READABLE
from tests.support.database import add_user, as_user


def names(connection: Connection, query: str, *arguments: Any) -> list[str]:
    """The first column of a query."""
    return [row[0] for row in connection.execute(query, list(arguments))]


def test_every_table_of_the_exposed_schema_has_row_level_security(
    db: Connection,
) -> None:
    assert (
        names(
            db,
            "select relname from pg_class where relnamespace = 'public'::regnamespace"
            " and relkind in ('r', 'p') and not relrowsecurity",
        )
        == []
    )


def test_no_function_of_the_exposed_schema_is_a_definer_function(
    db: Connection,
) -> None:
    assert (
        names(
            db,
            "select proname from pg_proc where pronamespace = 'public'::regnamespace and prosecdef",
        )
        == []
    )


def test_every_function_pins_its_search_path_with_temporary_objects_last(
    db: Connection,
) -> None:
    """An empty path searches pg_temp first, for types."""
    assert names(
        db,
        "select format('%%s.%%s', pronamespace::regnamespace, proname) from pg_proc p"
        " where pronamespace in ('public'::regnamespace, 'two_tower'::regnamespace)"
        " and not exists (select from pg_depend d where d.objid = p.oid and d.deptype = 'e')"
        " and not coalesce('search_path=pg_catalog, pg_temp' = any (proconfig), false)"
        " order by 1",
    ) == sorted((*INLINED, *INLINED_ROWS, *READABLE))


def test_every_definer_function_says_why(db: Connection) -> None:
    assert (
        names(
            db,
            "select proname from pg_proc where pronamespace = 'two_tower'::regnamespace"
            " and prosecdef and obj_description(oid, 'pg_proc') not like '%%Definer: %%'",
        )
        == []
    )


def test_a_client_can_not_set_the_clock(db: Connection) -> None:
    user = add_user(db)
    db.execute("select set_config('two_tower.now', '2020-01-01', true)")
    row = db.execute("select two_tower.now() < '2021-01-01'").fetchone()
    assert row == (True,)
    with as_user(db, user):
        row = db.execute("select two_tower.now() = pg_catalog.now()").fetchone()
    assert row == (True,)
    with as_user(db, None, "service_role"):
        row = db.execute("select two_tower.now() < '2021-01-01'").fetchone()
    assert row == (True,)
