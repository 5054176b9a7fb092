"""Writes the engine's files into a Supabase project."""

from __future__ import annotations

from pathlib import Path

import click

from python_jobs.db import URL_VARIABLE
from python_jobs.migrations.database import NO_DATABASE, read_database
from python_jobs.migrations.files import quote_schema, read_engine
from python_jobs.migrations.folder import ProjectFolder
from python_jobs.migrations.preflight import bullet, examine
from python_jobs.operations.database import open_given_database
from python_jobs.project import engine_dir

INTO = click.option(
    "--into",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The project's folder: the one with a folder supabase.",
)


@click.command()
@INTO
@click.option("--starter", is_flag=True, help="With the starter app: profiles, posts, follows.")
@click.option("--seed", is_flag=True, help="With rows for the starter app, in seed.sql.")
@click.option("--vector-schema", help="Where pgvector lies, if no database says it [extensions].")
def install(into: Path, starter: bool, seed: bool, vector_schema: str | None) -> None:
    """Write the engine's new migrations into a Supabase project.

    With TWO_TOWER_DATABASE_URL, looks there first for what is in the way.
    """
    if seed and not starter:
        raise click.UsageError("--seed fills the tables of the starter app: add --starter.")
    folder, engine = ProjectFolder(into), read_engine(engine_dir())
    folder.refuse_newer(engine)
    wanted = [each for each in engine.values() if starter or not each.is_starter]
    with open_given_database() as connection:
        database = read_database(connection) if connection else NO_DATABASE
        database.refuse_newer(engine.values(), "this checkout")
        folder.refuse_pending_removal(database)
        asked = quote_schema(vector_schema) if vector_schema else None
        schema = asked or database.vector_schema or folder.vector_schema()
        new = [
            each.written(schema)
            for each in wanted
            if each.number not in {*folder.engine, *database.installed}
        ]
        to_push = [*new, *database.without(folder.engine.values())]
        if connection and to_push:
            for line in examine(connection, to_push, is_first=not database.installed):
                click.echo(bullet(f"Warning: {line}"), err=True)
    _tell_written(folder.write(new, database), folder)
    for line in [*folder.differences(engine), *database.other_contents(wanted)]:
        click.echo(bullet(f"Left as it is: {line}"))
    if seed:
        _write_seed(folder)
    if database is NO_DATABASE:
        click.echo(bullet(f"No database was asked: set {URL_VARIABLE} to see what is in the way."))
    if new or (to_push and database is not NO_DATABASE):
        click.echo("Next: supabase db push")


def _write_seed(folder: ProjectFolder) -> None:
    ours = engine_dir() / "supabase" / "seed.sql"
    if not folder.seed.exists():
        folder.seed.write_text(ours.read_text())
        click.echo("Wrote seed.sql.")
    elif folder.seed.read_text() != ours.read_text():
        click.echo(bullet(f"Left as it is: the project's seed.sql. Add to it what {ours} has."))


def _tell_written(written: list[str], folder: ProjectFolder) -> None:
    if not written:
        click.echo("Nothing to write: the engine's files are there.")
        return
    files = "one file" if len(written) == 1 else f"{len(written)} files"
    click.echo(f"Wrote {files} into {folder.migrations_dir}:")
    for name in written if len(written) < 4 else [written[0], "...", written[-1]]:
        click.echo(f"  {name}")
