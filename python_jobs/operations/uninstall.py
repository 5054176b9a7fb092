"""Writes the migration that removes the engine from a Supabase project."""

from __future__ import annotations

from pathlib import Path

import click

from python_jobs import migrations
from python_jobs.db import URL_VARIABLE, Connection
from python_jobs.errors import CommandError
from python_jobs.migrations.database import NO_DATABASE, read_database
from python_jobs.migrations.files import UNINSTALL, Migration, read_engine, rewrite
from python_jobs.migrations.folder import ProjectFolder
from python_jobs.migrations.preflight import bullet
from python_jobs.operations.database import open_given_database
from python_jobs.operations.install import INTO
from python_jobs.project import engine_dir

_SQL = Path(migrations.__file__).parent


@click.command()
@INTO
def uninstall(into: Path) -> None:
    """Write a migration that removes the engine from a project.

    The app's tables and rows stay. With TWO_TOWER_DATABASE_URL, lists what falls with the engine.
    """
    folder, engine = ProjectFolder(into), read_engine(engine_dir())
    functions = [
        name for each in engine.values() if not each.is_starter for name in each.signatures()
    ]
    with open_given_database() as connection:
        database = read_database(connection) if connection else NO_DATABASE
        if not folder.engine and not database.installed:
            raise CommandError(f"There is nothing to remove: {into} has no files of Two-Tower.")
        folder.refuse_pending_removal(database)
        falling = find_dependents(connection, functions) if connection else None
    schema = database.vector_schema or folder.vector_schema()
    text = rewrite((_SQL / "uninstall.sql").read_text(), schema)
    text = text.replace(":functions", ",\n  ".join(functions))
    removal = Migration(folder.migrations_dir / UNINSTALL, "", UNINSTALL, text)
    (name,) = folder.write([removal], database)
    click.echo(f"Wrote {folder.migrations_dir / name}.")
    _tell_falling(falling)
    click.echo("Next: stop the workers, then supabase db push")


def find_dependents(connection: Connection, functions: list[str]) -> list[str]:
    """The app's objects that fall with the engine, as Postgres describes them.

    functions: signatures of the engine's functions in public.
    """
    query = (_SQL / "dependents.sql").read_bytes()
    found = connection.execute(query, {"functions": functions}).fetchall()
    return [row.description for row in found]


def _tell_falling(falling: list[str] | None) -> None:
    if falling is None:
        click.echo(bullet(f"No database was asked: set {URL_VARIABLE} to see what falls with it."))
    elif falling:
        click.echo("With the engine fall these objects of the app, without a further question:")
        for line in falling:
            click.echo(bullet(line))
    else:
        click.echo("No object of the app falls with it.")
