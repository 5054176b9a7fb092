"""`two-tower evaluate --feed`: whether a person would enjoy the feed."""

from __future__ import annotations

import json
import math
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import click
import numpy as np
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from python_jobs.laboratory.feed_world.database import TwoTower
from python_jobs.laboratory.feed_world.measure import (
    Page,
    interval,
    likes_by_reader,
    run,
    summarise,
)
from python_jobs.laboratory.feed_world.systems import System, peers
from python_jobs.laboratory.feed_world.texts import KEPT_APART, SUBJECTS, read_texts
from python_jobs.laboratory.feed_world.world import DAY_S, LARGE, SMALL, Scale, World
from python_jobs.laboratory.server import databases

SEEDS = (11, 12, 13, 14, 15)
KEPT_APART_SEEDS = (21, 22, 23, 24, 25)
ORACLES = ("labels known", "oracle")
SHOWN_PAGES = 10
COLUMNS = {
    "likes": ("\nlikes", "{:.2f}"),
    "of_oracle": ("of\nbest", "{:.2f}"),
    "kept": ("\nkept", "{:.0%}"),
    "kept_truth": ("kept,\ntruth", "{:.0%}"),
    "age_days": ("age,\ndays", "{:.1f}"),
    "first_interested_hours": ("new,\nhours", "{:.1f}"),
    "copies": ("\ncopies", "{:.0%}"),
    "one_author": ("one\nauthor", "{:.0%}"),
    "coverage": ("\nshown", "{:.0%}"),
    "short": ("\nshort", "{:.0%}"),
}


@dataclass(frozen=True)
class Loops:
    """All systems in the world of one seed."""

    world: World
    pages: dict[str, list[Page]]


def evaluate_feed(
    is_small: bool, is_kept_apart: bool, seeds: int, settings: dict[str, Any],
    as_json: bool, shows_pages: bool,
) -> None:  # fmt: skip
    """Runs the closed loops of all systems in each world, and prints what their pages say.

    seeds: so many worlds, at most five; settings: of our system.
    """
    scale = SMALL if is_small else LARGE
    chosen = (KEPT_APART_SEEDS if is_kept_apart else SEEDS)[: 1 if shows_pages else seeds]
    texts, base = _encode(KEPT_APART if is_kept_apart else SUBJECTS, scale)
    found = []
    with ExitStack() as on_exit, Progress(console=Console(stderr=True)) as progress:
        new_database = on_exit.enter_context(databases())
        for seed in chosen:
            world = World(seed, scale, texts, base)
            systems: list[System] = [TwoTower(world, new_database(on_exit), settings)]
            if not shows_pages:
                systems += peers(world)
            task = progress.add_task(f"seed {seed}", total=len(world.visits) * len(systems))
            step = partial(progress.advance, task)
            found.append(Loops(world, {each.name: run(world, each, step) for each in systems}))
    if shows_pages:
        show_pages(found[0])
    elif as_json:
        click.echo(json.dumps(describe(found), indent=2))
    else:
        show(describe(found))


def _encode(subjects: dict[str, str], scale: Scale) -> tuple[dict[str, list[str]], np.ndarray]:
    """Texts by subject, and their base embeddings."""
    from python_jobs.worker.encoder import Encoder

    chosen = dict(list(subjects.items())[: scale.subjects])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes in the sources that are parsed
        texts = read_texts(chosen, scale.texts)
    return texts, Encoder().encode([text for own in texts.values() for text in own])


def describe(found: list[Loops]) -> dict[str, Any]:
    """All figures: means over seeds, and where we stand between the best other and the oracle."""
    names = list(found[0].pages)
    likes = [
        np.array([likes_by_reader(loops.world, loops.pages[name]) for name in names])
        for loops in found
    ]
    totals = sum(one.sum(axis=1) for one in likes)
    means = totals[:, 0] / totals[:, 1]
    ours, oracle = 0, names.index("oracle")
    best = max((k for k, n in enumerate(names) if k and n not in ORACLES), key=lambda k: means[k])

    def ratio(number: int, of: np.ndarray) -> Any:
        return of[number] / of[oracle]

    def progress(of: np.ndarray) -> Any:
        return (of[ours] - of[best]) / (of[oracle] - of[best])

    systems = []
    for number, name in enumerate(names):
        figures = [summarise(loops.world, loops.pages[name]) for loops in found]
        low, high = interval(likes, partial(ratio, number))
        systems.append({
            "name": name,
            **{key: _mean([one[key] for one in figures]) for key in figures[0]},
            "likes": float(means[number]),
            "of_oracle": float(means[number] / means[oracle]),
            "of_oracle_low": low, "of_oracle_high": high,
            "by_seed": [one["likes"] for one in figures],
        })  # fmt: skip
    low, high = interval(likes, progress)
    world = found[0].world
    return {
        "seeds": [loops.world.seed for loops in found],
        "subjects": world.subjects,
        "texts": len(world.texts),
        "posts": len(world.born),
        "readers": world.scale.readers,
        "pages": sum(len(loops.world.visits) for loops in found),
        "best_other": names[best],
        "progress": {"value": float(progress(means)), "low": low, "high": high},
        "systems": systems,
    }


def _mean(values: list[float]) -> float | None:
    """None where no seed had a case, or one never saw it happen."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known and max(known) < math.inf else None


def show(report: dict[str, Any]) -> None:
    """A table for people, of at most 80 columns."""
    console = Console(width=80)
    console.print(
        f"{len(report['seeds'])} world(s) of {report['posts']:,} posts"
        f" ({report['texts']:,} texts of {len(report['subjects'])} subjects) and"
        f" {report['readers']} readers; {report['pages']:,} pages of 20."
    )
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head, _ in COLUMNS.values():
        table.add_column(head, justify="right", no_wrap=True)
    for row in report["systems"]:
        cells = ["-" if row[k] is None else form.format(row[k]) for k, (_, form) in COLUMNS.items()]
        table.add_row(row["name"], *cells)
    console.print(table)
    console.print(
        "({} - {}) / (oracle - {}): {value:.2f} ({low:.2f} to {high:.2f})".format(
            report["systems"][0]["name"], *[report["best_other"]] * 2, **report["progress"]
        )
    )
    console.print(
        "Likes: expected ones a page, after the first fifth of feed time. Of best: of the oracle's."
        " Kept: readers whose pages hold each interest within 40 % of its share in their last 100"
        " likes, or of the truth. Age: median of what is shown. New: median until an interested"
        " reader saw a new post. One author: largest share of a page. Shown: posts that anybody"
        " saw. Short: pages that are not full. In brackets: bootstrap over seeds and readers, 95 %."
    )


def show_pages(loops: Loops) -> None:
    """Ten pages of one reader of three interests, as texts."""
    world, pages = loops.world, loops.pages[TwoTower.name]
    three = np.flatnonzero((world.start + world.end > 0).sum(axis=1) == 3)
    reader = int(three[0]) if len(three) else 0
    own = [page for page in pages if page.visit.reader == reader]
    for page in own[:SHOWN_PAGES]:
        weights = world.weights(reader, page.visit.time)
        wishes = ", ".join(f"{world.subjects[k]} {weights[k]:.0%}" for k in np.argsort(-weights)
                           if weights[k] > 0)  # fmt: skip
        click.echo(f"\nDay {page.visit.time / DAY_S:.1f}; the reader's interests: {wishes}")
        for post, answer, is_copy in zip(page.posts, page.answers, page.is_copy, strict=True):
            subject = world.subjects[world.post_subject[post]]
            text = world.texts[world.post_text[post]]
            note = "copy" if is_copy else answer
            click.echo(f"  {note:4}  {subject:21.21}  {text[:49]}")
