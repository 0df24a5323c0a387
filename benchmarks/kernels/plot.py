"""One picture of a run: how near each case comes to its floor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {"bytes": "#4477aa", "flops": "#cc6677"}


def save(rows: list[dict[str, Any]], path: Path) -> None:
    """A bar for each case that was timed, floor / median; the same of its best peer as a mark."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row["is_correct"]]
    figure, axes = pyplot.subplots(figsize=(9, 1.2 + 0.24 * len(rows)), layout="constrained")
    height = range(len(rows), 0, -1)
    axes.barh(height, [row["of_floor"] for row in rows], color=[COLOURS[row["bound"]] for row in rows])
    with_peer = [(y, row) for y, row in zip(height, rows) if row["peer_us"]]
    best = [row["floor_us"] / min(row["peer_us"].values()) for _, row in with_peer]
    axes.plot(best, [y for y, _ in with_peer], "k|", markersize=9, label="best peer")
    for bound, colour in COLOURS.items():
        axes.barh([0], [0], color=colour, label=f"bound by {bound}")
    axes.set_yticks(list(height), [f"{row['op']}  {row['case']}" for row in rows], fontsize=7)
    axes.set_xlim(0, 1.05)
    axes.set_ylim(0.2, len(rows) + 0.8)
    axes.set_xlabel("floor / median time (1: as fast as the machine's ceilings allow)")
    axes.legend(fontsize=7, loc="lower right")
    if rows:
        place = rows[0].get("gpu") or f"{rows[0]['cpu']}, {rows[0]['threads']} threads"
        axes.set_title(f"{place}, commit {rows[0]['commit']}", fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
