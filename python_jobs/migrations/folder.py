"""A Supabase project's folder, into which the engine's files are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from python_jobs.errors import CommandError
from python_jobs.migrations.database import Database
from python_jobs.migrations.files import (
    UNINSTALL,
    VECTOR_SCHEMA,
    Migration,
    engine_files,
    find_migrations,
    since_uninstall,
    stamps_after,
)


class ProjectFolder:
    """The folder of somebody's project.

    engine: by number, the engine's files that are in it, and that no later one removes.
    Raises CommandError for a folder that is no Supabase project.
    """

    def __init__(self, root: Path) -> None:
        if not (root / "supabase").is_dir():
            raise CommandError(f"{root} has no folder supabase: run supabase init there.")
        self.migrations_dir = root / "supabase" / "migrations"
        self.seed = root / "supabase" / "seed.sql"
        self._migrations = find_migrations(root)
        self.engine = engine_files(since_uninstall(self._migrations))

    def vector_schema(self) -> str:
        """Where the engine's files that are in it have pgvector, as an identifier."""
        schemas = [each.vector_schema for each in self.engine.values()]
        return schemas[-1] if schemas else VECTOR_SCHEMA

    def refuse_newer(self, engine: Mapping[str, Migration]) -> None:
        """Raises CommandError when it has a file of the engine that is not among these."""
        if unknown := sorted(set(self.engine) - set(engine)):
            raise CommandError(
                f"{self.engine[unknown[0]].path.name} is of a newer Two-Tower: update the checkout."
            )

    def refuse_pending_removal(self, database: Database) -> None:
        """Raises CommandError when it removes the engine and the database still has it."""
        removals = [each for each in self._migrations if each.name == UNINSTALL]
        if removals and database.installed and not database.has_version(removals[-1].version):
            raise CommandError(
                f"The database has not had {removals[-1].path.name} yet: supabase db push first."
            )

    def differences(self, engine: Mapping[str, Migration]) -> list[str]:
        """A line for each of its files that is not what would be written now."""
        found = []
        for number, each in self.engine.items():
            ours = engine[number]
            if each.hash != ours.hash:
                found.append(f"{each.path.name} is of another version.")
            elif each.text not in (ours.text, ours.written(each.vector_schema).text):
                found.append(f"{each.path.name} was edited.")
        return found

    def write(self, files: Iterable[Migration], database: Database) -> list[str]:
        """Writes new files and returns their names.

        They are stamped after all that the folder, and the database, has: a push asks no question.
        """
        last = self._migrations[-1].version if self._migrations else ""
        stamps = stamps_after(max(last, database.last_version()))
        self.migrations_dir.mkdir(exist_ok=True)
        names = []
        for file in files:
            name = file.stamped(next(stamps)).path.name
            (self.migrations_dir / name).write_text(file.text)
            names.append(name)
        return names
