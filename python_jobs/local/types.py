"""TypeScript types of a database: what the Supabase CLI writes, and what the engine knows."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from python_jobs.db import connect, value
from python_jobs.errors import CommandError, LocalStackError
from python_jobs.local.deno import DENO_IS_MISSING, find_deno
from python_jobs.migrate import Cli, with_sslmode

REFINEMENTS = Path(__file__).with_name("refined_types.ts")
HEADER = "// Written by `two-tower types`. Do not edit: run it again.\n"
GENERATED = "export type Database = {"


def generate_types(database_url: str, cli: Cli) -> str:
    """database.types.ts of a database with the engine, formatted. The same for the same database.

    Raises CommandError where the CLI fails, and LocalStackError without Deno.
    """
    done = cli(
        *("gen", "types", "--lang", "typescript", "--schema", "public"),
        f"--remote={with_sslmode(database_url)}",
        cwd=Path.cwd(),
    )
    if done.returncode != 0 or GENERATED not in done.stdout:
        raise CommandError(f"supabase gen types failed: {done.stderr or done.stdout}")
    with connect(database_url) as connection:
        names = value(
            connection, "select array_agg(event_type order by event_type) from two_tower.signals"
        )
    union = " | ".join(map(json.dumps, names))
    refinements = REFINEMENTS.read_text().replace("EventType = never", f"EventType = {union}")
    return _format(HEADER + done.stdout.replace(GENERATED, "type Generated = {", 1) + refinements)


def _format(source: str) -> str:
    deno = find_deno()
    if deno is None:
        raise LocalStackError(f"Deno formats the types, and is missing: {DENO_IS_MISSING}")
    done = subprocess.run(
        [str(deno), "fmt", "--no-config", "--line-width", "100", "--ext", "ts", "-"],
        input=source,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise CommandError(f"deno fmt failed: {done.stderr}")
    return done.stdout
