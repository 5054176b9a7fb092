"""A section of the page."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Section:
    """A heading, what is below it for, blocks of Markdown, and the headings that contents name."""

    title: str
    purpose: str
    blocks: list[str]
    entries: list[str] = field(default_factory=list)
