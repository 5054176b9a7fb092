"""The whole page."""

from __future__ import annotations

from docs.generator.attaching import attaching_section
from docs.generator.catalogue import prepare, read_catalogue
from docs.generator.clients import functions_section, tables_section
from docs.generator.commands import commands_section
from docs.generator.markdown import link
from docs.generator.private import files_section, operators_section
from docs.generator.rows import (
    errors_section,
    metrics_section,
    schedules_section,
    settings_section,
    signals_section,
)
from docs.generator.section import Section
from python_jobs.db import connect

START = """# Reference

What the database and the command line say of themselves. `make docs` writes this page: change a
comment in the SQL, not a line here. [architecture.md](architecture.md) says how it works,
[glossary.md](glossary.md) what the words mean."""


def generate(database_url: str) -> str:
    """The page as Markdown.

    database_url: a migrated database that nobody has used, so that ids begin at 1; nothing stays
    in it but numbers that sequences gave.
    """
    with connect(database_url) as connection:
        catalogue = read_catalogue(connection)
        with connection.transaction(force_rollback=True):
            connection.execute("reset search_path")
            clients = functions_section(catalogue, connection)
        with connection.transaction(force_rollback=True):
            attaching = attaching_section(catalogue, connection)
        prepare(connection)
        sections = [
            clients,
            tables_section(catalogue, connection),
            attaching,
            settings_section(catalogue),
            signals_section(connection),
            errors_section(connection),
            metrics_section(connection),
            schedules_section(connection),
            operators_section(catalogue),
            files_section(catalogue),
            commands_section(),
        ]
    pieces = [START, "## Contents", "\n".join(map(_entry, sections))]
    for section in sections:
        pieces += [f"## {section.title}", section.purpose, *section.blocks]
    return "\n\n".join(pieces) + "\n"


def _entry(section: Section) -> str:
    """A line of the contents."""
    below = ", ".join(link(entry, entry) for entry in section.entries)
    return f"- {link(section.title, section.title)}" + (f": {below}" if below else "")
