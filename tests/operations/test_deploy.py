"""The files that start workers fit the commands that they call; the board shows real metrics."""

from __future__ import annotations

import json
import math
import re
import shlex
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from python_jobs.cli import main
from python_jobs.db import URL_VARIABLE, connect, rows, value
from python_jobs.local.postgres import Cluster, free_port
from tests.support.database import PROJECT
from tests.support.patience import wait_until
from tests.support.servers import kill_all_of

DEPLOY = PROJECT / "deploy"
OURS = re.compile(r"two_tower_[a-z0-9_]+")


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """Name and options of a command line of two-tower. Fails where click would refuse it."""
    with click.Context(main) as context:
        command = main.get_command(context, arguments[0])
        assert command is not None, arguments
        return arguments[0], command.make_context("two-tower", arguments[1:]).params


def instructions() -> Iterator[tuple[str, str]]:
    """Of the Dockerfile: the word and what follows."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    for line in text.splitlines():
        if line and not line.startswith("#"):
            word, rest = line.split(maxsplit=1)
            yield word, rest


def test_the_image_runs_a_worker_that_answers_its_own_health_check_as_no_root() -> None:
    found = list(instructions())
    last = dict(found)
    name, options = parse(json.loads(last["CMD"]))
    assert (name, options["health_host"]) == ("worker", "0.0.0.0")
    assert f":{options['health_port']}/" in last["HEALTHCHECK"]
    assert int(last["EXPOSE"]) == options["health_port"]
    assert json.loads(last["ENTRYPOINT"]) == ["two-tower"]
    assert int(last["USER"]) > 0
    assert [word for word, _ in found].index("USER") < [w for w, _ in found].index("CMD")


def test_the_image_has_the_weights_and_all_that_it_copies_is_there() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    (install,) = (rest for word, rest in instructions() if word == "RUN" and "pip install" in rest)
    (extra,) = re.findall(r"'\.\[(\w+)\]'", install)
    assert any("minilm" in each for each in project["optional-dependencies"][extra])
    copied = [
        source
        for word, rest in instructions()
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    assert {"pyproject.toml", "python_jobs"} <= set(copied)
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for source in copied:
        assert (PROJECT / source).exists()
        assert f"!{source}" in allowed


def test_the_services_of_compose_are_commands_and_build_from_the_project() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    build = services["worker"]["build"]
    assert (DEPLOY / build["context"]).resolve() == PROJECT
    assert (PROJECT / build["dockerfile"]).is_file()
    name, options = parse(services["metrics"]["command"])
    assert name == "metrics"
    assert services["metrics"]["ports"] == [f"127.0.0.1:{options['port']}:{options['port']}"]
    assert str(options["port"]) in services["metrics"]["healthcheck"]["test"][-1]
    for each in services.values():
        assert each["read_only"]
        assert URL_VARIABLE in each["environment"]


def test_the_unit_of_systemd_starts_a_worker_and_gives_it_time_to_stop() -> None:
    lines = (DEPLOY / "two-tower-worker.service").read_text().splitlines()
    keys = dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    program, *arguments = shlex.split(keys["ExecStart"])
    assert program.endswith("/two-tower")
    assert parse(arguments)[0] == "worker"
    assert (keys["Restart"], keys["DynamicUser"]) == ("always", "yes")
    assert int(keys["TimeoutStopSec"]) >= 90


def test_kubernetes_probes_the_port_of_the_image() -> None:
    pod = yaml.safe_load((DEPLOY / "kubernetes.yaml").read_text())["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    image = dict(instructions())
    probe = container["readinessProbe"]["httpGet"]
    assert probe == {"path": "/", "port": int(image["EXPOSE"])}
    assert pod["securityContext"]["runAsUser"] == int(image["USER"])
    assert [each["name"] for each in container["env"]] == [URL_VARIABLE]


@pytest.fixture
def printed(clone_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What `two-tower metrics` prints of a database in which something is measured."""
    url = clone_database()
    with connect(url, autocommit=True) as connection:
        connection.execute(
            "update two_tower.metric_targets set description = E'A \"quote\",\\na \\\\ line.'"
            " where name = 'dead_jobs'"
        )
        value(connection, "select two_tower.record_metrics()")
    monkeypatch.setenv(URL_VARIABLE, url)
    ran = CliRunner().invoke(main, ["metrics"])
    assert ran.exit_code == 0, ran.output
    return ran.output


def test_a_parser_of_prometheus_reads_what_health_says(printed: str) -> None:
    families = {each.name: each for each in text_string_to_metric_families(printed)}
    assert families["two_tower_dead_jobs"].documentation == 'A "quote",\na \\ line.'
    states = {
        each.labels["metric"]: each.value for each in families["two_tower_metric_state"].samples
    }
    limits = {
        (each.labels["metric"], each.labels["limit"]): each.value
        for each in families["two_tower_metric_limit"].samples
    }
    assert families["two_tower_up"].samples[0].value == 1
    with connect() as connection:
        figures = rows(connection, "select * from public.read_metrics()")
    assert len(figures) > 10
    for row in figures:
        assert (f"two_tower_{row.name}" in families) is (row.value is not None)
        assert limits.get((row.name, "alert_high")) == row.alert_high
        known = ("ok", "warning", "alert")
        assert math.isnan(states[row.name]) is (row.state not in known)
        assert row.state not in known or known[int(states[row.name])] == row.state


def test_every_panel_of_the_board_asks_for_metrics_that_are_printed_or_can_be(
    printed: str,
) -> None:
    board = json.loads((DEPLOY / "grafana.json").read_text())
    known = {each.name for each in text_string_to_metric_families(printed)}
    with connect() as connection:
        names = rows(connection, "select name from two_tower.health")
    known |= {f"two_tower_{row.name}" for row in names}
    asked = [
        (panel["title"], name)
        for panel in board["panels"]
        for target in panel["targets"]
        for name in OURS.findall(target["expr"])
    ]
    assert len(asked) > 30
    assert [each for each in asked if each[1] not in known] == []
    for panel in board["panels"]:
        for target in panel["targets"]:
            for metric in re.findall(r'metric="(\w+)"', target["expr"]):
                assert f"two_tower_{metric}" in known


def test_no_two_panels_of_the_board_lie_on_each_other() -> None:
    places: set[tuple[int, int]] = set()
    for panel in json.loads((DEPLOY / "grafana.json").read_text())["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, panel["title"]
        assert place["x"] + place["w"] <= 24
        places |= cells


def test_metrics_are_served_and_say_when_the_database_is_away(
    durable: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()

    def up() -> float | None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
                text = answer.read().decode()
        except OSError:
            return None
        families = {each.name: each for each in text_string_to_metric_families(text)}
        return float(families["two_tower_up"].samples[0].value)

    monkeypatch.setenv(URL_VARIABLE, durable.url())
    process = subprocess.Popen(
        [sys.executable, "-m", "python_jobs", "metrics", "--port", str(port)], cwd=PROJECT
    )
    try:
        wait_until(lambda: up() == 1)
        kill_all_of(durable)
        wait_until(lambda: up() == 0)
        durable.start()
        wait_until(lambda: up() == 1)
    finally:
        process.kill()
        process.wait()
