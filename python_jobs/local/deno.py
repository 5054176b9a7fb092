"""Deno, and the edge functions that the local stack serves with it."""

from __future__ import annotations

import importlib.util
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DENO_IS_MISSING = "pip install deno"


def find_deno() -> Path | None:
    """The Deno binary: that of the PyPI package, else one on the PATH."""
    if importlib.util.find_spec("deno") is not None:
        from deno import find_deno_bin

        return Path(find_deno_bin())
    system = shutil.which("deno")
    return Path(system) if system else None


@dataclass(frozen=True)
class EdgeFunctions:
    """The functions of a project: supabase/functions, and what supabase/config.toml says of them.

    secrets: what `supabase secrets set` gives hosted ones; beside supabase/functions/.env.
    """

    project: Path
    secrets: Mapping[str, str] = field(default_factory=dict)

    def settings(self, cache: Path, database_url: str) -> dict[str, Any]:
        """What functions.mjs wants to know. cache: a folder for what Deno downloads."""
        supabase = self.project.resolve() / "supabase"
        config = supabase / "config.toml"
        said = tomllib.loads(config.read_text()) if config.exists() else {}
        deno = find_deno()
        return {
            "deno": str(deno) if deno else None,
            "folder": str(supabase / "functions"),
            "cache": str(cache),
            "configs": said.get("functions", {}),
            "environment": dict(self.secrets),
            "database_url": database_url,
        }
