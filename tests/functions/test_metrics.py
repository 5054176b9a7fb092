"""metrics: read by a real parser of Prometheus' format, with a secret."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.functions import METRICS_SECRET, Functions, FunctionServers


def test_metrics_say_what_the_health_view_says(functions: Functions) -> None:
    with functions.database() as connection:
        connection.execute(
            "update two_tower.metric_targets set description = E'A \"quote\",\\na \\\\ line.'"
            " where name = 'dead_jobs'"
        )
    answer = functions.call("metrics", token=METRICS_SECRET)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {each.name: each for each in text_string_to_metric_families(answer.text)}
    assert all(each.type == "gauge" for each in families.values())
    assert families["two_tower_dead_jobs"].documentation == 'A "quote",\na \\ line.'
    with functions.database() as connection:
        figures = connection.execute(
            "select name, value, state, alert_high from public.read_metrics()"
        ).fetchall()
    assert len(figures) > 10
    states = {
        sample.labels["metric"]: sample.value
        for sample in families["two_tower_metric_state"].samples
    }
    limits = {
        (sample.labels["metric"], sample.labels["limit"]): sample.value
        for sample in families["two_tower_metric_limit"].samples
    }
    for name, value, state, alert_high in figures:
        assert (f"two_tower_{name}" in families) is (value is not None)
        assert limits.get((name, "alert_high")) == alert_high
        if state == "unknown":
            assert math.isnan(states[name])
    assert families["two_tower_dead_jobs"].samples[0].value == 0
    assert states["dead_jobs"] == 0


@pytest.mark.parametrize("token", [None, "", "wrong", METRICS_SECRET[:-1], METRICS_SECRET + "x"])
def test_without_the_secret_nothing_is_told(functions: Functions, token: str | None) -> None:
    assert functions.refusal("metrics", token=token) == (401, "bad_secret")
    assert functions.refusal("metrics", token=functions.api.service_key) == (401, "bad_secret")


def test_without_a_secret_to_ask_for_it_does_not_serve(servers: FunctionServers) -> None:
    for secret in ("", "short"):
        open_ = servers.start(METRICS_SECRET=secret)
        for token in (None, secret):
            assert open_.refusal("metrics", token=token) == (503, "no_secret")
