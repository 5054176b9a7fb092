"""Pieces of Markdown, as GitHub reads it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# What a comment says in code: quoted already, a list of JSON objects, a name of the database.
_CODE = re.compile(
    r"""
      (?P<quoted>`[^`]*`)
    | (?P<json>\[?\{"[^{}]*\}(?:,\ \.\.\.)?\]?)
    | (?P<family>\b[a-z]\w*<[a-z]+>\w*(?:\(\))?|<[a-z]+>_\w+)
    | (?P<variable>\b[A-Z]+(?:_[A-Z]+)+\b)
    | (?P<name>(?<![\w"'])[a-z]\w*(?:\.[a-z]\w*)*(?:\(\))?(?![\w"'(]))
    """,
    re.X,
)


def code(text: str) -> str:
    """A span of code."""
    return f"`{text}`"


def block(text: str, language: str = "") -> str:
    """A block of code."""
    return f"```{language}\n{text}\n```"


def link(text: str, heading: str) -> str:
    """A link to a heading of the same page; the first of its name where there are several."""
    return f"[{text}](#{slug(heading)})"


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def prose(comment: str) -> str:
    """A comment as text in which names are code and nothing is markup by accident."""
    pieces = []
    end = 0
    for found in _CODE.finditer(comment):
        text = found[0]
        is_code = "_" in text or text.startswith(("settings.", "public.")) or text[-1] == ")"
        if found["name"] and not is_code:
            continue
        pieces += [_escape(comment[end : found.start()]), code(text.strip("`"))]
        end = found.end()
    return "".join([*pieces, _escape(comment[end:])])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells of Markdown, without columns that are empty in all rows."""
    lines = [list(row) for row in rows]
    kept = [place for place in range(len(head)) if any(line[place] for line in lines)]
    cells = [[line[place].replace("|", r"\|") for place in kept] for line in lines]
    top = [[head[place] for place in kept], ["---"] * len(kept)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [*top, *cells])


def _escape(text: str) -> str:
    """What Markdown would take for emphasis, a link or HTML."""
    text = re.sub(r"(?<!\s)\*|\*(?!\s)|\](?=[(\[:])", r"\\\g<0>", text)
    return text.replace("<", "&lt;")
