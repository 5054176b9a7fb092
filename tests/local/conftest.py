"""An app's database without the engine, served, and supabase-js to call it with."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from python_jobs.local.node import NodeTools, find_node
from tests.support.api import Api
from tests.support.patience import PATIENCE_S

APP = Path(__file__).with_name("app.sql")


@pytest.fixture(scope="session")
def app(start_api: Callable[[str], Api], create_database: Callable[..., str]) -> Api:
    """REST and Auth over the tables of app.sql; each test signs up its own users."""
    url = create_database()
    with psycopg.connect(url) as connection:
        connection.execute(APP.read_bytes())
    return start_api(url)


@pytest.fixture(scope="session")
def run_js(app: Api, node_tools: NodeTools) -> Callable[[str], Any]:
    """Runs JavaScript with `connect(key)`, `anonKey` and `secretKey`; returns what it returns."""

    def run(body: str) -> Any:
        script = f"""
            import {{ createClient }} from "@supabase/supabase-js";
            const {{ url, anonKey, secretKey }} = JSON.parse(process.env.STACK);
            const auth = {{ persistSession: false }};
            const connect = (key) => createClient(url, key, {{ auth }});
            const answer = await (async () => {{ {body} }})();
            console.log(JSON.stringify(answer));
            process.exit(0);
        """
        stack = {"url": app.url, "anonKey": app.anon_key, "secretKey": app.service_key}
        done = subprocess.run(
            [str(find_node()), "--input-type=module"],
            input=script,
            cwd=node_tools.folder,
            env={**os.environ, "STACK": json.dumps(stack)},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
