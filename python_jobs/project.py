"""Where the project is: the folder with supabase/migrations."""

from __future__ import annotations

from pathlib import Path


def project_dir() -> Path:
    """The nearest folder, from the current one upwards, with supabase/migrations.

    Elsewhere, the checkout that this package is installed from.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "supabase" / "migrations").is_dir():
            return folder
    return Path(__file__).resolve().parent.parent
