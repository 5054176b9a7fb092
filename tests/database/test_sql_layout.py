"""The layout of the SQL that sqlfluff cannot see: to it a function's body is one quoted string."""

from __future__ import annotations

import re

from tests.support.database import PROJECT

SCRIPTS = {path.name: path.read_text() for path in PROJECT.glob("supabase/migrations/*.sql")}
WIDTH = 100
# Each stands on one line: its first half alone reads as something else.
PHRASES = (
    *("delete from", "distinct from", "do nothing", "do update set", "for each row"),
    *("for no key update", "for update", "group by", "insert into", "language plpgsql"),
    *("language sql", "not null", "on conflict", "on delete", "order by", "partition by"),
    *("partition of", "primary key", "return query", "row level security", "security definer"),
    *("security invoker", "skip locked", "union all", "with check"),
)
# A string that fills its line, and the statement that gives a comment.
PROSE = re.compile(r"\s*(comment on .*|((hint|detail) = |raise exception )?'.*'[,;]?( using)?)")


def broken(pattern: str) -> list[str]:
    """Where a line ends within what the pattern finds."""
    return [
        f"{name}:{(line := script.count(chr(10), 0, match.start())) + 1}:"
        f" {script.splitlines()[line].strip()}"
        for name, script in sorted(SCRIPTS.items())
        for match in re.finditer(pattern, script)
        if "\n" in match[0]
    ]


def test_no_line_ends_within_a_phrase() -> None:
    phrases = "|".join(phrase.replace(" ", r"\s+") for phrase in PHRASES)
    assert broken(rf"\b({phrases})\b") == []


def test_an_equals_sign_follows_its_left_side_on_the_same_line() -> None:
    assert broken(r"[\w)\]]\s+:?=(?=\s)") == []


def test_lines_keep_to_the_width_in_bodies_too() -> None:
    wide = [
        f"{name}:{number}: {len(line)} characters"
        for name, script in sorted(SCRIPTS.items())
        for number, line in enumerate(script.splitlines(), 1)
        if len(line) > WIDTH and not PROSE.fullmatch(line)
    ]
    assert wide == []
