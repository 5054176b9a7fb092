"""Plots as SVG that takes its colours from the page: one drawing serves light and dark."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

from python_jobs.errors import CommandError

# matplotlib wants colours; the page gives these their meaning.
INK, MUTED, GRID = "#010101", "#020202", "#030303"
BLUE, ORANGE, GREEN, RED = "#040404", "#050505", "#060606", "#070707"
VIOLET, GREY = "#080808", "#090909"
_VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", BLUE: "blue", ORANGE: "orange", GREEN: "green",
    RED: "red", VIOLET: "violet", GREY: "grey",
}  # fmt: skip
NARROW, WIDE = 4.4, 11.4  # inches: of a plot among others, and of one by itself
SERIES = (BLUE, ORANGE, GREEN, VIOLET, RED, GREY)

_SVG = "{http://www.w3.org/2000/svg}"
ElementTree.register_namespace("", _SVG.strip("{}"))
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


class Drawing:
    """A figure with one pair of axes. svg: what came of it, once it is drawn. titles: by the gid of
    points that were scattered, what each of them says under the mouse."""

    def __init__(self, figure: Any) -> None:
        self.figure = figure
        self.axes = figure.add_subplot()
        self.titles: dict[str, list[str]] = {}
        self.svg = ""

    def legend(self) -> None:
        """Above the plot, where nothing is drawn."""
        handles, labels = self.axes.get_legend_handles_labels()
        wide = self.figure.get_figwidth() > NARROW
        self.figure.legend(handles, labels, loc="outside upper left", ncols=5 if wide else 2)

    def date_axis(self) -> None:
        """Times along the bottom, in local time."""
        from datetime import datetime

        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        zone = datetime.now().astimezone().tzinfo
        locator = AutoDateLocator(tz=zone, minticks=3, maxticks=7)  # type: ignore[no-untyped-call]
        self.axes.xaxis.set_major_locator(locator)
        formatter = ConciseDateFormatter(locator, tz=zone)  # type: ignore[no-untyped-call]
        self.axes.xaxis.set_major_formatter(formatter)


@contextmanager
def drawing(name: str, width: float = NARROW, height: float = 2.1) -> Iterator[Drawing]:
    """A figure to draw into within the block. name: a word; ids within the page begin with it.

    Raises CommandError without matplotlib.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CommandError("A page with plots needs: pip install 'two-tower[report]'.") from error
    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9.0,
        "font.family": "sans-serif", "text.color": INK, "axes.labelcolor": MUTED,
        "axes.edgecolor": GRID, "xtick.color": MUTED, "ytick.color": MUTED, "grid.color": GRID,
        "axes.grid": True, "grid.linewidth": 0.6, "axes.spines.top": False,
        "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
        "legend.fontsize": 8.0, "xtick.major.size": 0, "ytick.major.size": 0,
    }  # fmt: skip
    with rc_context(style):
        made = Drawing(Figure(figsize=(width, height), layout="constrained"))
        yield made
        made.svg = _themed(made.figure, name)
        for group, titles in made.titles.items():
            made.svg = _with_titles(made.svg, f"{name}-{group}", titles)


def _themed(figure: Any, name: str) -> str:
    """The SVG of a figure without its prolog, with variables of the page for colours."""
    file = io.StringIO()
    none = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=none)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def _with_titles(svg: str, group: str, titles: list[str]) -> str:
    """The points of a group follow each other, in the order in which they were given.

    Each is a path of its own or, where many are alike, the use of one.
    """
    root = ElementTree.fromstring(svg)
    (within,) = (each for each in root.iter(f"{_SVG}g") if each.get("id") == group)
    defined = {each for defs in within.iter(f"{_SVG}defs") for each in defs.iter()}
    points = [
        each
        for each in within.iter()
        if each.tag in (f"{_SVG}use", f"{_SVG}path") and each not in defined
    ]
    for point, title in zip(points, titles, strict=True):
        ElementTree.SubElement(point, f"{_SVG}title").text = title
    return ElementTree.tostring(root, encoding="unicode")
