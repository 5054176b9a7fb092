"""`two-tower status`: what the database says about itself."""

from __future__ import annotations

import click
from rich.console import Console

from python_jobs.operations.tables import print_json, print_sections, read_sections

QUERIES = {
    "Overview": "select * from two_tower.overview",
    "Health": "select name, value, unit, state from two_tower.health order by name",
    "Jobs": "select kind, state, count(*) as jobs, max(finished_at) as last_finished_at"
    " from two_tower.jobs group by 1, 2 order by 1, 2",
    "Schedules": "select kind, runs_in, every::text, every_events, is_enabled, last_run_at"
    " from two_tower.schedules order by kind",
    "Towers": "select version, tower, state, verdict, created_at from two_tower.model_weights"
    " order by version desc limit 10",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Show counts, health, jobs, schedules and versions of towers."""
    sections = read_sections(QUERIES)
    if as_json:
        print_json(sections)
        return
    console = Console()
    for name, number in sections.pop("Overview")[0]._asdict().items():
        console.print(f"{name.replace('_', ' '):16} {'-' if number is None else number}")
    print_sections(sections)
