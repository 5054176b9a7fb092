"""`two-tower metrics`: what health says, in the text format of Prometheus."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator

import click
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from python_jobs.db import rows
from python_jobs.errors import CommandError
from python_jobs.operations.database import open_database

STATES = ("ok", "warning", "alert")
LIMITS = ("target_low", "target_high", "alert_low", "alert_high")


class Health(Collector):
    """Reads two_tower.health at each collection; names and labels are those of functions/metrics.

    waits: whether a database that does not answer is told as two_tower_up 0, not raised.
    """

    def __init__(self, waits: bool) -> None:
        self.waits = waits

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """A gauge for each figure that has a value, its state and its limits."""
        try:
            with open_database() as connection:
                figures = rows(connection, "select * from two_tower.read_health()")
        except CommandError:
            if not self.waits:
                raise
            figures = []
        up = "Whether the database answered this collection."
        yield GaugeMetricFamily("two_tower_up", up, value=1.0 if figures else 0.0)
        state = GaugeMetricFamily(
            "two_tower_metric_state",
            "State of a metric against its ranges: 0 ok, 1 warning, 2 alert, NaN not yet measured.",
            labels=["metric"],
        )
        limit = GaugeMetricFamily(
            "two_tower_metric_limit",
            "Ends of the range in which a metric should be (target), and out of which it alerts.",
            labels=["metric", "limit"],
        )
        for row in figures:
            if row.value is not None:
                yield GaugeMetricFamily(f"two_tower_{row.name}", row.description, value=row.value)
            place = STATES.index(row.state) if row.state in STATES else math.nan
            state.add_metric([row.name], place)
            for end in LIMITS:
                if getattr(row, end) is not None:
                    limit.add_metric([row.name, end], getattr(row, end))
        yield state
        yield limit


@click.command()
@click.option("--port", type=int, help="Stay, and serve it to Prometheus at this port.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Whom; 0.0.0.0: all.")
def metrics(port: int | None, host: str) -> None:
    """Print the figures of health for Prometheus.

    Served, it is read anew for each scrape; two_tower_up is 0 while the database does not answer.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Health(waits=port is not None))
    if port is None:
        click.echo(generate_latest(registry).decode(), nl=False)
        return
    try:
        start_http_server(port, host, registry)
    except OSError as error:
        raise CommandError(f"Port {port} of {host} can not be used: {error.strerror}.") from error
    click.echo(f"Metrics are served at http://{host}:{port}/metrics. Ctrl-C ends it.")
    threading.Event().wait()
