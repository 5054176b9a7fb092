"""Requests of every shape that the API describes: none is an error of the server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from python_jobs.db import connect
from tests.support.api import Api
from tests.support.database import add_user
from tests.support.invariants import assert_consistent
from tests.support.patience import PATIENCE_S


@pytest.mark.parametrize(
    "examples", [pytest.param(4, id="short"), pytest.param(100, id="long", marks=pytest.mark.long)]
)
def test_no_request_of_a_signed_in_user_is_an_error_of_the_server(
    api: Api, patient_http: httpx.Client, tmp_path: Path, examples: int
) -> None:
    """Schemathesis makes them from PostgREST's description: all tables, commands and functions."""
    with connect(api.database_url, autocommit=True) as connection:
        headers = api.headers(api.token(add_user(connection), lifetime_s=86400))
        description = tmp_path / "openapi.json"
        description.write_bytes(patient_http.get(f"{api.url}/rest/v1/", headers=headers).content)
        operations = sum(
            method in ("get", "post", "patch", "delete")
            for path in json.loads(description.read_text())["paths"].values()
            for method in path
        )
        done = subprocess.run(
            [
                *(sys.executable, "-c", "from schemathesis.cli import schemathesis as s; s()"),
                *("run", str(description), "--url", f"{api.url}/rest/v1"),
                *(part for name in headers for part in ("--header", f"{name}: {headers[name]}")),
                *("--checks", "not_a_server_error", "--max-examples", str(examples)),
                *("--phases", "fuzzing", "--generation-deterministic", "--continue-on-failure"),
                *(
                    "--request-timeout",
                    str(PATIENCE_S),
                    "--no-color",
                    "--suppress-health-check=all",
                ),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        print(*re.findall(r".*(?:Tested|generated).*", done.stdout), sep="\n")
        assert f"Tested: {operations}" in done.stdout
        assert_consistent(connection)
