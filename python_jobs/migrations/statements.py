"""A script as the statements that it is made of."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Statement:
    """One SQL statement of a file, as the CLI stores it, and the line on which its SQL begins."""

    text: str
    line: int


# Whatever may hide a semicolon, then the semicolon itself. A dollar quote ends at its own tag.
_TOKENS = re.compile(
    r"""
      (?P<line_comment>--[^\n]*)
    | (?P<block_comment>/\*)
    | (?P<escape_string>\b[eE]'(?:[^'\\]|\\.|'')*')
    | (?P<string>'(?:[^']|'')*')
    | (?P<identifier>"(?:[^"]|"")*")
    | (?P<dollar>(?<![\w$])\$(?P<tag>[^\W\d]\w*)?\$.*?\$(?P=tag)\$|(?<![\w$])\$\$.*?\$\$)
    | (?P<atomic>\bbegin\s+atomic\b)
    | (?P<case>\bcase\b)
    | (?P<end>\bend\b)
    | (?P<semicolon>;)
    """,
    re.X | re.S | re.I,
)


def split_statements(script: str) -> list[Statement]:
    """Splits a script at the semicolons that end statements, as the Supabase CLI does.

    Comments belong to the statement that follows. Strings, quoted names, dollar quotes, nested
    block comments and `begin atomic ... end` bodies may contain semicolons.
    """
    pieces: list[tuple[int, int]] = []
    start = position = depth = 0
    while token := _TOKENS.search(script, position):
        position = token.end()
        kind = token.lastgroup
        if kind == "block_comment":
            position = _end_of_comment(script, token.start())
        elif kind == "atomic" or (kind == "case" and depth):
            depth += 1
        elif kind == "end" and depth:
            depth -= 1
        elif kind == "semicolon" and not depth:
            pieces.append((start, token.start()))
            start = position
    pieces.append((start, len(script)))
    statements = []
    for begin, end in pieces:
        text = script[begin:end].strip()
        if text:
            line = script.count("\n", 0, _start_of_code(script, begin)) + 1
            statements.append(Statement(text, line))
    return statements


def _start_of_code(script: str, start: int) -> int:
    """The first position from `start` on that is neither blank nor comment."""
    while found := re.compile(r"\s+|--[^\n]*|/\*").match(script, start):
        start = _end_of_comment(script, start) if found[0] == "/*" else found.end()
    return start


def _end_of_comment(script: str, start: int) -> int:
    """Where the block comment that begins at `start` ends; they nest in SQL."""
    depth = 0
    for mark in re.finditer(r"/\*|\*/", script[start:]):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return start + mark.end()
    return len(script)
