"""`two-tower weights`: versions of the towers as files, and the operator's word about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import click
import numpy as np

from python_jobs.db import Connection, call, rows, value
from python_jobs.errors import CommandError
from python_jobs.operations.database import open_database
from python_jobs.operations.tables import print_json, print_sections
from python_jobs.worker.jobs.user_tower import Version, judge_user_tower
from python_jobs.worker.jobs.versions import Origin, load, load_authors, store
from python_jobs.worker.towers.user import SIZE
from python_jobs.worker.towers.weights import TrainingResult, export_file, import_file

AUTHORS = "author.weight"  # in a file; in the database they are a table


@click.group()
def weights() -> None:
    """Export, import, judge and force versions of the towers."""


@weights.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(as_json: bool) -> None:
    """Show all versions with their verdicts."""
    with open_database() as connection:
        found = rows(
            connection,
            "select version, tower, state, parent_version, verdict, metrics -> 'gate' as gate,"
            " created_at from two_tower.model_weights order by version desc",
        )
    if as_json:
        print_json(found)
    else:
        print_sections({"Versions": found})


@weights.command("export")
@click.argument("version", type=int)
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
def export(version: int, path: Path) -> None:
    """Write VERSION to a safetensors file at PATH.

    With its config, the range of its data, and its metrics.
    """
    with open_database() as connection:
        about = _about(connection, version)
        tensors, _ = load(connection, version)
        if not tensors:
            raise CommandError(f"The tensors of version {version} are no longer kept.")
        authors = load_authors(connection, version)
    if authors:
        tensors[AUTHORS] = np.stack(list(authors.values()))
    about["authors"] = [str(author) for author in authors]
    metadata = {k: json.dumps(v, default=str) for k, v in about.items()}
    try:
        export_file(path, tensors, metadata)
    except OSError as error:
        raise CommandError(f"{path} can not be written: {error}") from error
    click.echo(f"Version {version} of the {about['tower']} is in {path}.")


@weights.command("import")
@click.argument("path", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def import_(path: Path) -> None:
    """Store the file at PATH as a new candidate. It serves nobody until judged or forced."""
    try:
        tensors, metadata = import_file(path)
        about = {k: json.loads(v) for k, v in metadata.items()}
        tower, config = about["tower"], about["config"]
        known = [UUID(author) for author in about["authors"]]
        json.dumps(about)  # deeper than it was read, it could not be handed on
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CommandError(f"{path} is no export of a tower: {error}") from error
    if not isinstance(tower, str) or not isinstance(config, dict):
        raise CommandError(f"{path} is no export of a tower: it names no tower and no config.")
    learned = tensors.pop(AUTHORS, np.zeros((0, SIZE), dtype=np.float32))
    if learned.shape != (len(known), SIZE):
        raise CommandError(f"{path} is no export of a tower: its authors do not fit.")
    if not tensors:
        raise CommandError(f"{path} is no export of a tower: it holds no tensors.")
    origin_keys = ("version", "trained_from", "held_out_from", "created_at", "metrics", "verdict")
    metrics = {"imported": {key: about.get(key) for key in origin_keys}}
    with open_database() as connection:
        # What it was trained on is known only where it was: here it is judged by what comes.
        following = "select coalesce(max(id), 0) + 1 from public.engagement_events"
        version = store(
            connection,
            tower,
            TrainingResult(tensors, {}, config),
            Origin(None, None, value(connection, following)),
            dict(zip(known, learned, strict=True)),
            metrics,
        )
    click.echo(f"Stored as version {version}. It is judged by events from now on: let some come,")
    click.echo(f"then two-tower weights judge {version}; or two-tower weights force {version} WHY.")


@weights.command()
@click.argument("version", type=int)
def judge(version: int) -> None:
    """Have the gate decide on VERSION, a candidate.

    By the events since it was trained or imported.
    """
    with open_database() as connection:
        tower = _about(connection, version)["tower"]
        if tower == "user_tower":
            candidate = Version(*load(connection, version))
            judge_user_tower(connection, version, candidate, load_authors(connection, version))
        else:
            call(connection, "select two_tower.judge_candidate_tower(%s)", version)
        about = _about(connection, version)
        wanted = value(connection, "select gate_minimum_events from two_tower.settings")
    events = about["metrics"]["gate"]["events"]
    early = f"too early to tell: {events} of {wanted} held-out events have come. Judge it later."
    click.echo(f"Version {version}: {about['verdict'] or early}")


@weights.command()
@click.argument("version", type=int)
@click.argument("reason")
def force(version: int, reason: str) -> None:
    """Put VERSION in place without the gate, for REASON. It stays on record, and is an alert."""
    with open_database() as connection:
        begins = value(connection, "select two_tower.force_version(%s, %s)", version, reason)
    if begins:
        click.echo(f"Version {version} is being put in place; workers do the rest.")
    else:
        click.echo(f"Version {version} is active already. Nothing was changed.")


def _about(connection: Connection, version: int) -> dict[str, Any]:
    found = rows(
        connection,
        "select version, tower, state, config, metrics, trained_from, held_out_from, verdict,"
        " created_at from two_tower.model_weights where version = %s",
        version,
    )
    if not found:
        raise CommandError(f"There is no version {version}: two-tower weights list.")
    return dict(found[0]._asdict())
