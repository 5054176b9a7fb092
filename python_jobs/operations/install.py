"""Writes the engine's files into a Supabase project."""

from __future__ import annotations

from pathlib import Path

import click

from python_jobs.db import URL_VARIABLE, Connection
from python_jobs.migrations.database import Database, read_database
from python_jobs.migrations.files import Migration, quote_schema, read_engine
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
    wanted = [
        each
        for number, each in engine.items()
        if starter or not each.is_starter or number in folder.engine
    ]
    with open_given_database() as connection:
        database = read_database(connection) if connection else None
        if database:
            database.refuse_newer(engine.values(), "this checkout")
            folder.refuse_pending_removal(database)
        schema = (
            (quote_schema(vector_schema) if vector_schema else None)
            or (database and database.vector_schema)
            or folder.vector_schema()
        )
        new = [
            each.written(schema)
            for each in wanted
            if each.number not in folder.engine
            and not (database and each.number in database.installed)
        ]
        if connection and database:
            _examine(connection, database, [*folder.engine.values(), *new])
    written = folder.write(new, database)
    _tell_written(written, folder)
    differences = folder.differences(engine)
    if database:
        differences += database.other_contents(wanted)
    for line in differences:
        click.echo(bullet(f"Left as it is: {line}"))
    if seed:
        _write_seed(folder)
    if written:
        _tell_next(database)


def _examine(connection: Connection, database: Database, files: list[Migration]) -> None:
    """Prints warnings. Raises InTheWayError."""
    pending = [each for each in files if each.number not in database.installed]
    if pending:
        for line in examine(connection, pending, is_first=not database.installed):
            click.echo(bullet(f"Warning: {line}"), err=True)


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


def _tell_next(database: Database | None) -> None:
    if database is None:
        click.echo(bullet(f"No database was asked: set {URL_VARIABLE} to see what is in the way."))
    click.echo("Next: supabase db push")
