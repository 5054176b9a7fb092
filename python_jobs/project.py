"""Where the project is: the folder with supabase/migrations."""

from __future__ import annotations

from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent


def project_dir() -> Path:
    """The nearest folder, from the current one upwards, with supabase/migrations.

    Elsewhere, the checkout that this package is installed from.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "supabase" / "migrations").is_dir():
            return folder
    return _CHECKOUT


def engine_dir() -> Path:
    """The folder with the engine's own migrations, from which they are written into a project.

    That is the checkout that this package is installed from. A package installed by itself has no
    migrations: then the folder of project_dir().
    """
    return _CHECKOUT if (_CHECKOUT / "supabase" / "migrations").is_dir() else project_dir()
