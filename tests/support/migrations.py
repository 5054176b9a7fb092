"""The statements of the migrations: what each makes, and what its code names.

Statements are parsed, not searched. Names in strings do not count: rows of tables, such as
schedules, and messages may name what a later file makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pglast
from pglast import ast
from pglast.parser import scan

from python_jobs.migrations.files import find_migrations
from tests.support.database import PROJECT

SCHEMAS = ("two_tower", "public")


@dataclass(frozen=True)
class Statement:
    """One statement of a file: what it makes, and the qualified names that stand in its code."""

    file: str
    makes: str | None
    uses: frozenset[str]


def name(node: ast.RangeVar) -> str:
    return f"{node.schemaname}.{node.relname}"


def made_by(statement: ast.Node) -> str | None:
    """The table, view, type, sequence or function that a statement creates, with its schema."""
    match statement:
        case ast.CreateStmt():
            return name(statement.relation)
        case ast.ViewStmt():
            return name(statement.view)
        case ast.CompositeTypeStmt():
            return name(statement.typevar)
        case ast.CreateSeqStmt():
            return name(statement.sequence)
        case ast.CreateFunctionStmt():
            parts = statement.funcname
        case ast.CreateEnumStmt():
            parts = statement.typeName
        case ast.CreateDomainStmt():
            parts = statement.domainname
        case _:
            return None
    return ".".join(part.sval for part in parts)


def code_of(statement: ast.Node, text: str) -> Iterator[str]:
    """The statement's own text and, of a function or a do block, its body."""
    if isinstance(statement, ast.CommentStmt):
        return
    yield text
    options = getattr(statement, "options", None) or getattr(statement, "args", None) or ()
    for option in options:
        if isinstance(option, ast.DefElem) and option.defname == "as":
            body = option.arg
            yield body.sval if isinstance(body, ast.String) else body[0].sval


def qualified_names(code: str) -> Iterator[str]:
    """Names with one of our schemas; comments and strings are no code."""
    tokens = [token for token in scan(code) if token.name not in ("SQL_COMMENT", "C_COMMENT")]
    words = [code.encode()[token.start : token.end + 1].decode() for token in tokens]
    for place, (word, dot) in enumerate(pairwise(words)):
        if word in SCHEMAS and dot == "." and place + 2 < len(words):
            yield f"{word}.{words[place + 2]}"


def statements() -> list[Statement]:
    """All statements of all migrations, in the order in which they are applied."""
    found = []
    for migration in find_migrations(PROJECT):
        script = migration.path.read_bytes()
        for raw in pglast.parse_sql(script.decode()):
            end = raw.stmt_location + raw.stmt_len if raw.stmt_len else len(script)
            text = script[raw.stmt_location : end].decode()
            uses = {used for code in code_of(raw.stmt, text) for used in qualified_names(code)}
            found.append(Statement(migration.path.name, made_by(raw.stmt), frozenset(uses)))
    return found
