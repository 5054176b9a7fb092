"""The reports of `two-tower bench` as tables for people."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table


def show_inserts(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    rows = [
        [
            case["case"],
            *(f"{case[f'p{p}_ms']:.2f}" for p in (50, 95, 99)),
            f"{case['p50_to_plain']:.2f}" if case["p50_to_plain"] else "",
            f"{case['events_per_s']:,.0f}",
            f"{case['wal_bytes_per_event']:,.0f}",
        ]
        for case in report["cases"]
    ]
    head = ["insert", "p50 ms", "p95 ms", "p99 ms", "p50 / plain", "events/s", "WAL B/event"]
    console.print(table("Inserts, medians over rounds in turn", head, rows))
    for title, unit, parts in (
        ("Where a like spends its time", "us", report["parts_of_a_like_us"]),
        ("What a like writes to the WAL", "bytes", report["wal_of_a_like_bytes"]),
    ):
        total = sum(parts.values())
        rows = [[k, f"{v:,.0f}", f"{v / total:.0%}"] for k, v in parts.items() if v >= total / 100]
        console.print(table(title, ["part", unit, "share"], rows))
    shares = [[name, f"{share:.2%}"] for name, share in report["updates_in_place"].items()]
    console.print(table("Updates within their page (HOT)", ["table", "share"], shares))
    show_budgets(console, report)
    show_facts(console, {**report["versions"], **report["verdicts"]})


def show_cpu(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    rows = [[name, f"{cost:,.0f}"] for name, cost in report["events"].items()]
    console.print(table("CPU time of the server", ["event", "us an event"], rows))
    sample = report["sample"]
    show_budgets(console, report)
    console.print(
        f"The sample costs {sample['us']:.1f} us a like ({sample['low_us']:.1f} to"
        f" {sample['high_us']:.1f}, 95 %): {sample['asking_us']:.1f} to ask, and of"
        f" {sample['timed_share']:.2%} {sample['timing_us']:.0f} to write it down."
        f" Over {sample['likes']:,} likes and as many views, with it and without."
    )
    show_facts(console, report["versions"])


def show_operations(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    show_budgets(console, report)
    figures = report["figures"]
    facts = {
        "posts in the checkpoint": f"{figures['checkpoint_posts']:,}",
        "users in it": f"{figures['checkpoint_users']:,}",
        "slowest like": f"{figures['slowest_write_ms']:.0f} ms",
        "while it was made": f"{figures['slowest_write_during_ms']:.0f} ms",
        "the serving index was built in": f"{figures['index_s']:.0f} s",
    }
    show_facts(console, {**facts, **report["versions"]})


def show_study(report: dict[str, Any]) -> None:
    """A table for people."""
    console = wide_console()
    show_budgets(console, report)
    figures = report["figures"]
    before, during = (
        "of too few pages" if figures[name] is None else f"{figures[name]:.1f} ms"
        for name in ("read_p99_ms", "read_p99_during_ms")
    )
    facts = {
        "steps": f"{figures['steps']:,}",
        "posts moved": f"{figures['moved_posts']:,}",
        "page p99": before,
        "during it": during,
        "slowest like before it": f"{figures['slowest_write_ms']:.0f} ms",
    }
    show_facts(console, {**facts, **report["versions"]})


def show_upkeep(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    rows = [
        [step["step"], f"{step['seconds']:,.3f}", f"{step['slowest_write_ms']:,.0f}"]
        for step in report["steps"]
    ]
    console.print(table("What runs by itself", ["step", "s", "slowest like ms"], rows))
    show_budgets(console, report)
    fact = {"slowest like with nothing beside": f"{report['slowest_write_ms']:.0f} ms"}
    show_facts(console, {**fact, **report["versions"]})


def show_alternatives(report: dict[str, Any]) -> None:
    """A table for people."""
    console = wide_console()
    columns = ["", "like p50 ms", "p99 ms", "likes/s, 8 clients", "page p50 ms", "p99 ms"]
    lines = [
        [
            way["way"],
            *(f"{way[name]:.2f}" for name in ("like_p50_ms", "like_p99_ms")),
            f"{way['likes_per_s']:,.0f}",
            *(f"{way[name]:.2f}" for name in ("page_p50_ms", "page_p99_ms")),
            f"{way['counted']:,} of {way['likes_of_one_post']:,}",
        ]
        for way in report["ways"]
    ]
    console.print(
        table("Likes and pages of 50", [*columns, "likes of one post at once: counted"], lines)
    )
    show_facts(console, report["versions"])


def show_growth(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    rows = [
        [
            line["table"],
            *(f"{line['bytes'][k] / 2**20:,.1f}" for k in (1, len(line["bytes"]) // 2, -1)),
            f"{line['index_share']:.0%}",
            f"{line['bytes_per_event']:,.0f}",
            f"{line['dead']:,}",
            f"{line['autovacuums']}",
            line["bounded_by"],
        ]
        for line in report["tables"]
    ]
    head = ["table", "MB first", "middle", "end", "indexes", "B/event", "dead", "vacuums"]
    console.print(table(f"Growth over {report['events']:,} events", [*head, "bounded by"], rows))
    slices = [
        [f"{number + 1}", *(f"{ms:.2f}" for ms in line.values())]
        for number, line in enumerate(report["latency_ms"])
    ]
    ratios = ["late to early", *(f"{ratio:.2f} x" for ratio in report["late_to_early"].values())]
    head = ["slice", "p50 ms", "p95 ms", "p99 ms"]
    console.print(table("A statement of 20 events, 4 clients", head, [*slices, ratios]))
    names = ("events_per_s", "wal_bytes_per_event", "ticks", "longest_tick_s", "left_in_queue")
    show_facts(console, {**{k: f"{report[k]:,.1f}" for k in names}, **report["versions"]})


def show_serving(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    states = {"fresh": "On a fresh index", "worn": f"After {report['engagements']:,} engagements"}
    for state, title in states.items():
        if state not in report:
            continue
        measured = report[state]
        rows = []
        for case in measured["cases"]:
            k = case["interests"]
            bare = measured["bare"][k]
            is_bare = case["case"] == "bare HNSW"
            rows.append(
                [
                    case["case"] + (f", ef {bare['ef']}, {bare['rows']} rows" if is_bare else ""),
                    *(str(k), str(case["clients"])),
                    f"{bare['recall'] if is_bare else measured['recall'][k]:.3f}",
                    *(f"{case[f'p{p}_ms']:.2f}" for p in (50, 95, 99)),
                    f"{case['pages_per_s']:,.0f}",
                ]
            )
        head = ["", "interests", "clients", "recall@50", "p50 ms", "p95 ms", "p99 ms", "pages/s"]
        console.print(table(f"{title}: pages of 50, 1,000 seen, 20 blocked", head, rows))
    rows = [
        [case["situation"], *(f"{case[name]:.1f}" for name in ("p50_ms", "scan_ms"))]
        for case in report["scarce"]
    ]
    head = ["where", "page, p50 ms", "exact scan, p50 ms"]
    console.print(table("Readers for whom little is left", head, rows))
    if faiss := report["faiss"]:
        columns = {"ef": 0, "recall": 3, "p50_ms": 2, "p99_ms": 2}
        rows = [
            [str(k), *(f"{f[name]:.{digits}f}" for name, digits in columns.items())]
            for k, f in faiss["interests"].items()
        ]
        head = ["interests", "ef", "recall@50", "p50 ms", "p99 ms"]
        title = "FAISS HNSW in memory, as a reference: no filter, no transaction, no update"
        console.print(table(title, head, rows))
    show_budgets(console, report)
    facts = {
        "build": f"{report['build']['seconds']:.0f} s",
        "index": f"{report['build']['index_bytes'] / 2**20:.0f} MB",
    }
    if faiss:
        facts["FAISS build"] = f"{faiss['build_s']:.0f} s"
        facts["FAISS index"] = f"{faiss['index_bytes'] / 2**20:.0f} MB"
    if "worn" in report:
        facts["likes/s with a worker beside"] = (
            f"{report['engagements'] / report['engaging_s']:,.0f}"
        )
        facts["copies replaced"] = f"{report['index']['replaced']:,}"
        facts["builds"] = str(report["builds"])
        facts["recall after a fresh build"] = ", ".join(
            f"{recall:.3f}" for recall in report["rebuilt_recall"].values()
        )
    show_facts(console, {**facts, **report["versions"]})


def show_sources(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    rows = []
    for name, cases in report["groups"].items():
        for number, case in enumerate(cases):
            figures = [f"{case['p50_ms']:.2f}", f"{case['cpu_us']:,.0f}"]
            if number:
                figures += [f"{case['p50_ratio']:.2f}", f"{case['cpu_ratio']:.2f}"]
                figures += [f"{case['more_cpu_us_per_row']:,.1f}"]
            rows.append(["" if number else name, case["case"], *figures])
    head = ["", "", "p50 ms", "CPU us", "p50 ratio", "CPU ratio", "CPU us more a row"]
    console.print(table("Attached tables, against the first of each group", head, rows))
    show_budgets(console, report)
    show_facts(console, report["versions"])


def show_towers(report: dict[str, Any]) -> None:
    """Tables for people."""
    console = wide_console()
    columns = {
        "posts": "posts", "candidate tower s": "candidate_s", "CPU": "candidate_cpu_s",
        "peak MB": "candidate_mb", "user tower s": "user_s", "CPU ": "user_cpu_s",
        "peak MB ": "user_mb", "refresh s": "refresh_s",
        "peak MB  ": "refresh_mb", "read p99 ms": "read_p99_ms", "during": "read_p99_during_ms",
        "slowest write ms": "slowest_write_ms", "during ": "slowest_write_during_ms",
        "new post s": "new_post_s", "beside training": "new_post_training_s",
    }  # fmt: skip
    rows = [
        ["-" if row[key] is None else f"{row[key]:,.{0 if 'mb' in key or key == 'posts' else 1}f}"
         for key in columns.values()]
        for row in report["rows"]
    ]  # fmt: skip
    console.print(table("Training, by number of posts", columns, rows))
    show_budgets(console, report, "Budgets, at the largest number of posts")
    last = report["rows"][-1]
    facts = {
        "pairs": last["pairs"], "users trained": last["users"],
        "a process before its job": f"{last['start_mb']:.0f} MB",
        "texts/s and core": f"{report['texts_per_s_and_core']:.0f}",
    }  # fmt: skip
    show_facts(console, {**facts, **report["versions"]})


def show_budgets(console: Console, report: dict[str, Any], title: str = "Budgets") -> None:
    """Each budget, its figure, and whether it is kept."""
    rows = [
        [
            line["budget"],
            "-" if line["figure"] is None else f"{line['figure']:,.2f}",
            line["bound"],
            "kept" if line["is_kept"] else "OVER",
        ]
        for line in report["budgets"]
    ]
    console.print(table(title, ["budget", "figure", "bound", ""], rows))


def table(title: str, head: Iterable[str], rows: Iterable[Iterable[str]]) -> Table:
    """A table whose first column is text and the others numbers."""
    made = Table(title=title, title_justify="left")
    for number, name in enumerate(head):
        made.add_column(name, justify="right" if number else "left")
    for row in rows:
        made.add_row(*row)
    return made


def wide_console() -> Console:
    """Tables are not cut where the output is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def show_facts(console: Console, facts: dict[str, Any]) -> None:
    """What was measured on, in one line."""
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
