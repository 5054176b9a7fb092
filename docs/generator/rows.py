"""What rows of tables say: settings, signals, error codes, metrics, schedules."""

from __future__ import annotations

from docs.generator.catalogue import Catalogue, Column, Relation
from docs.generator.expressions import readable_code, readable_number
from docs.generator.markdown import code, link, prose, table
from docs.generator.section import Section
from python_jobs.db import Connection, rows

ADVANCED = "Advanced. "
FIRST = "Settings that matter first"
REST = "Advanced settings"
RULES = "Rules of several settings"


def settings_section(catalogue: Catalogue) -> Section:
    """The settings that matter first, then the advanced ones, as their comments mark them."""
    settings = catalogue.relation("two_tower", "settings")
    columns = [each for each in settings.columns if each.name not in settings.key]
    advanced = [each for each in columns if each.comment.startswith(ADVANCED)]
    first = [each for each in columns if each not in advanced]
    blocks = [f"### {FIRST}", _settings(first, settings), f"### {REST}"]
    blocks += [_settings(advanced, settings), f"### {RULES}"]
    blocks += ["\n".join(f"- {rule}" for rule in settings.rules)]
    return Section(
        "Settings",
        "For whoever operates it. Each is a column of `two_tower.settings`, which has one row:"
        " `update two_tower.settings set cold_until = 20`. The next statement uses it, and"
        " `two_tower.setting_changes` remembers the change.",
        blocks,
        [FIRST, REST, RULES],
    )


def _settings(columns: list[Column], settings: Relation) -> str:
    ruled = " ".join(settings.rules)
    return table(
        ["setting", "type", "default", "allowed", "meaning"],
        (
            [
                code(each.name),
                code(each.type),
                code(each.default.strip("'")),
                each.limit or (link("by a rule", RULES) if each.name in ruled else ""),
                prose(each.comment.removeprefix(ADVANCED)),
            ]
            for each in columns
        ),
    )


def signals_section(connection: Connection) -> Section:
    """What each type of event means."""
    query = """
        select event_type, strength::text as strength, withdraws, blocks_author, description,
          case when label then 'positive' when not label then 'negative' end as pair
        from two_tower.signals order by bit
    """
    lines = [
        [
            code(row.event_type),
            row.strength,
            row.pair or "",
            code(row.withdraws) if row.withdraws else "",
            "yes" if row.blocks_author else "",
            prose(row.description),
        ]
        for row in rows(connection, query)
    ]
    head = [
        "`event_type`",
        "strength",
        "training pair",
        "withdraws",
        "blocks the author",
        "meaning",
    ]
    return Section(
        "Signals",
        "What an event teaches, for whoever writes the app or tunes it. Each is a row of"
        " `two_tower.signals`, and an update takes effect at once.",
        [table(head, lines)],
    )


def errors_section(connection: Connection) -> Section:
    """The SQLSTATEs that a caller may branch on."""
    found = rows(connection, "select * from two_tower.error_codes order by sqlstate")
    return Section(
        "Error codes",
        "For whoever handles errors: the API returns one as `code`, with a message and a hint.",
        [
            table(
                ["code", "name", "meaning"],
                ([code(row.sqlstate), code(row.name), prose(row.meaning)] for row in found),
            )
        ],
    )


def metrics_section(connection: Connection) -> Section:
    """What is measured, and the ranges in which it should be."""
    query = """
        select name, unit, is_quality, description,
          array[target_low::text, target_high::text] as target,
          array[alert_low::text, alert_high::text] as alert
        from two_tower.metric_targets order by name
    """
    lines = [
        [
            code(row.name),
            row.unit,
            _inside(*row.target),
            _outside(*row.alert),
            "yes" if row.is_quality else "",
            prose(row.description),
        ]
        for row in rows(connection, query)
    ]
    return Section(
        "Metrics",
        "For whoever operates it. `two_tower.health` shows their values; outside the target is a"
        " warning, in the alert range an alert. Ranges are rows of `two_tower.metric_targets`.",
        [table(["metric", "unit", "target", "alert", "audited", "meaning"], lines)],
    )


def schedules_section(connection: Connection) -> Section:
    """What runs by itself."""
    query = """
        select kind, every::text as every, every_events, runs_in, is_enabled, description
        from two_tower.schedules order by kind
    """
    lines = [
        [
            code(row.kind),
            _every(row.every, row.every_events),
            row.runs_in + ("" if row.is_enabled else " (disabled)"),
            prose(row.description),
        ]
        for row in rows(connection, query)
    ]
    return Section(
        "Schedules",
        "What runs by itself, for whoever operates it. Each is a row of `two_tower.schedules`;"
        " an update changes its interval or disables it.",
        [table(["kind", "every", "runs in", "meaning"], lines)],
    )


def _every(interval: str | None, events: int | None) -> str:
    if interval is None:
        return f"{events:,} events"
    return readable_code(f"'{interval}'").strip("'")


def _inside(low: str | None, high: str | None) -> str:
    low, high = (bound and readable_number(bound) for bound in (low, high))
    if low is not None and high is not None:
        return f"{low} to {high}"
    if low is None and high is None:
        return ""
    return f"{low} or more" if low is not None else f"at most {high}"


def _outside(low: str | None, high: str | None) -> str:
    sides = [("below", low), ("above", high)]
    return ", ".join(f"{side} {readable_number(bound)}" for side, bound in sides if bound)
