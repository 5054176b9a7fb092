"""Where code holds on to the columns of a table: its row type, a star, or an alias as a value.

Words are read, not parsed: no parser reads the bodies of both SQL and PL/pgSQL.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pglast.parser import scan

BEFORE_A_RELATION = {"from", "join", "into", "update", "using", "only"}
BEFORE_A_VALUE = {"(", ",", "=", "select", "distinct", "returning", "then", "else", "when", "and"}
BOUNDARIES = {";", "begin", "loop", "then", "declare"}


def whole_rows(code: str, tables: Collection[str], rows: Collection[str] = ()) -> list[str]:
    """What in a function's body is a whole row of a table of `public`, in words.

    tables: their names, without schema. rows: what else stands for their rows without a schema:
    transition tables, and `new` and `old` of a row trigger.
    """
    tokens = [token for token in scan(code) if token.name not in ("SQL_COMMENT", "C_COMMENT")]
    words = [code.encode()[token.start : token.end + 1].decode().lower() for token in tokens]
    return [
        *_types(words, tables),
        *_stars(words, tables, rows),
        *_values(words, {*rows, *(alias for _, alias in _relations(words, tables, rows))}),
    ]


def _types(words: list[str], tables: Collection[str]) -> Iterator[str]:
    """A declaration, a cast or a %rowtype: a table's name where no relation can stand."""
    for place in range(len(words) - 2):
        first, dot, name = words[place : place + 3]
        before = words[place - 1] if place else ""
        if (first, dot) == ("public", ".") and name in tables and before not in BEFORE_A_RELATION:
            yield f"{before} public.{name}".strip()


def _relations(
    words: list[str], tables: Collection[str], rows: Collection[str]
) -> Iterator[tuple[int, str]]:
    """The relations that code reads or writes: the place of each, its name and its alias."""
    for place in range(1, len(words)):
        if words[place - 1] not in BEFORE_A_RELATION:
            continue
        if words[place] == "public" and "".join(words[place + 2 : place + 3]) in tables:
            last = place + 2
        elif words[place] in rows:
            last = place
        else:
            continue
        alias, after = [*words[last + 1 : last + 3], ";", ";"][:2]
        yield place, after if alias == "as" else alias if alias.isidentifier() else words[last]
        yield place, words[last]


def _stars(words: list[str], tables: Collection[str], rows: Collection[str]) -> Iterator[str]:
    """`*` and `x.*` in a statement, or a subquery, that names such a relation itself."""
    relations = list(_relations(words, tables, rows))
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        if word != "*" or before not in ("select", "returning", ",", "."):
            continue
        scope = set(_scope(words, place))
        named = {alias for at, alias in relations if at in scope}
        owner = words[place - 2] if before == "." else None
        if owner in rows or (named and owner is None) or owner in named:
            yield f"{owner}.*" if owner else f"{before} *"


def _scope(words: list[str], place: int) -> Iterator[int]:
    """The places of the statement around a place, without what stands deeper in parentheses."""
    for step, opening, closing in ((-1, "(", ")"), (1, ")", "(")):
        depth, at = 0, place
        while 0 <= at < len(words) and not (depth == 0 and words[at] in {*BOUNDARIES, opening}):
            depth += (words[at] == closing) - (words[at] == opening)
            if depth == 0:
                yield at
            at += step


def _values(words: list[str], aliases: Collection[str]) -> Iterator[str]:
    """An alias without a column after it, where an expression begins."""
    for before, word, after in zip(words, words[1:], words[2:], strict=False):
        if word in aliases and before in BEFORE_A_VALUE and after not in (".", "("):
            yield f"{before} {word} {after}"
