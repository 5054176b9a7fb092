"""NDCG@10 over time, as an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from python_jobs.errors import CommandError


def plot(report: dict[str, Any], path: Path) -> None:
    """Writes a line per system; the suffix (.png, .svg, .pdf) says which format.

    report: as `describe` gives it. Raises CommandError without matplotlib, or for another suffix.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise CommandError("A plot needs: pip install 'two-tower[eval]'.") from error
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for row in report["systems"]:
        values = row["over_time"]
        share = [100 * (k + 0.5) / len(values) for k in range(len(values))]
        axes.plot(share, values, label=row["name"], linewidth=2.5 if "mean_cosine" in row else 1.2)
    axes.set(
        title=f"{report['events']:,} events, {report['questions']:,} questions before learning",
        xlabel="questions so far (%)",
        ylabel="NDCG@10",
        xlim=(0, 100),
        ylim=(0, None),
    )
    axes.axvspan(report["tail_starts_at"], 100, alpha=0.08, color="black", label="tail")
    axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise CommandError(f"{path} can not be written: {error}") from error
