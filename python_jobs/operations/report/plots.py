"""The plots of a report. Each returns SVG, or nothing where there is nothing to show."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np

from python_jobs.operations.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    MUTED,
    ORANGE,
    RED,
    SERIES,
    VIOLET,
    WIDE,
    drawing,
)
from python_jobs.operations.report.story import Map
from python_jobs.operations.words import count

PERCENT = "share"


def over_time(
    names: Sequence[str], measured: dict[str, list[Any]], targets: dict[str, Any], since: datetime
) -> str:
    """Lines of metrics; with one metric its spread, its target (green) and its alert (red) too."""
    shown = [name for name in names if measured.get(name)]
    if not shown:
        return ""
    with drawing(names[0].replace("_", "-")) as made:
        axes, unit = made.axes, targets[shown[0]].unit
        scale = 100.0 if unit == PERCENT else 1.0
        lowest, highest = np.inf, 0.0
        for name, colour in zip(shown, SERIES, strict=False):
            points = measured[name]
            at = [row.at for row in points]
            mean, low, high = (
                scale * np.array([getattr(row, part) for row in points], float)
                for part in ("mean", "low", "high")
            )
            # Of a line of one point nothing is seen.
            single: dict[str, Any] = {"marker": "o", "clip_on": False} if len(at) == 1 else {}
            axes.plot(at, mean, color=colour, linewidth=1.6, label=name.replace("_", " "), **single)
            if len(shown) == 1:
                axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
            lowest, highest = min(lowest, low.min()), max(highest, high.max())
        if len(shown) == 1:
            _limits(axes, targets[shown[0]], scale, highest)
        else:
            made.legend()
        axes.set_xlim(since, max(row.at for name in shown for row in measured[name]))
        if lowest < highest / 2:
            axes.set_ylim(bottom=min(0.0, lowest))
        axes.set_ylabel("%" if unit == PERCENT else _unit(shown, targets))
        made.date_axis()
    return made.svg


def _unit(names: Sequence[str], targets: dict[str, Any]) -> str:
    """The unit of all of them; empty where they differ."""
    units = {targets[name].unit for name in names}
    return units.pop() if len(units) == 1 else ""


def _limits(axes: Any, target: Any, scale: float, highest: float) -> None:
    """Those that lie where the figure has been, or near."""
    for ends, colour in (
        ((target.target_low, target.target_high), GREEN),
        ((target.alert_low, target.alert_high), RED),
    ):
        for end in ends:
            if end is not None and scale * end <= 3 * max(highest, 1e-9):
                axes.axhline(scale * end, color=colour, linewidth=1, linestyle=(0, (4, 3)))


def gate(versions: Sequence[Any], since: datetime) -> str:
    """The measure of the promotion gate: how much better each version was than the one that
    served, with its interval, when it was judged."""
    judged = [row for row in versions if row.mean_difference is not None]
    if not judged:
        return ""
    with drawing("gate", width=WIDE, height=2.8) as made:
        axes = made.axes
        axes.axhline(0, color=MUTED, linewidth=1)
        for tower, marker in (("candidate_tower", "s"), ("user_tower", "o")):
            for is_accepted, colour in ((True, GREEN), (False, GREY)):
                some = [
                    row for row in judged
                    if row.tower == tower and (row.state != "rejected") is is_accepted
                ]  # fmt: skip
                if some:
                    mean = np.array([row.mean_difference for row in some], float)
                    lower = np.array([row.lower_bound for row in some], float)
                    verdict = "accepted" if is_accepted else "rejected"
                    axes.errorbar(
                        [row.decided_at for row in some], mean, yerr=np.abs(mean - lower),
                        fmt=marker, color=colour, markersize=5, linewidth=1.2,
                        label=f"{tower.replace('_', ' ')}, {verdict}",
                    )  # fmt: skip
        axes.set_xlim(left=since)
        axes.set_ylabel("better than what served")
        made.legend()
        made.date_axis()
    return made.svg


def experiments(results: Sequence[Any]) -> str:
    """The difference of each arm to its control, with its 95 % interval."""
    arms = [row for row in results if row.difference_low is not None]
    if not arms:
        return ""
    with drawing("experiments", height=0.9 + 0.45 * len(arms)) as made:
        axes, places = made.axes, np.arange(len(arms))[::-1]
        difference = np.array([row.difference for row in arms], float)
        low = np.array([row.difference_low for row in arms], float)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.errorbar(difference, places, xerr=difference - low, fmt="o", color=BLUE, linewidth=1.6)
        axes.set_yticks(places, [row.arm for row in arms])
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("positives a view, less those of the control")
    return made.svg


def post_map(found: Map) -> str:
    """Posts in the two directions in which they differ most, a reader's interests and path."""
    with drawing("map", width=WIDE, height=6.2) as made:
        axes = made.axes
        size = 9 + 14 * np.log1p(found.engagements)
        for name, some, colour, label in (
            ("untouched", found.engagements == 0, GREY, "posts"),
            ("touched", found.engagements > 0, BLUE, "engaged with: larger by more"),
        ):
            if not some.any():
                continue
            axes.scatter(*found.posts[some].T, s=size[some], color=colour, alpha=0.7, linewidth=0,
                         label=label, gid=name)  # fmt: skip
            made.titles[name] = [
                f"{found.keys[place]}: {count(int(found.engagements[place]), 'engagement')}"
                for place in np.flatnonzero(some)
            ]
        if len(found.path):
            axes.plot(*found.path.T, color=ORANGE, linewidth=1, alpha=0.8)
            fade = np.linspace(0.3, 1, len(found.path))
            axes.scatter(*found.path.T, s=22, color=ORANGE, alpha=fade, linewidth=0,
                         label="a reader's last engagements, the newest strongest")  # fmt: skip
        if len(found.interests):
            axes.scatter(*found.interests.T, s=120 + 500 * found.weights, marker="*", color=VIOLET,
                         linewidth=0, label="this reader's interests, by weight")  # fmt: skip
        if found.reader is not None:
            axes.scatter(*found.reader, s=110, marker="X", color=RED, linewidth=0,
                         label="this reader")  # fmt: skip
        axes.set(xticks=[], yticks=[])
        made.legend()
    return made.svg
