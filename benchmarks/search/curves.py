"""What a search costs against N, depth, prompt length and problems at once: every axis alone, from one common point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.search.run import medians
from benchmarks.search.traces import Trace, beam

POINT = {"n": 16, "steps": 4, "prompt": 512, "problems": 1}
AXES = {
    "n": (4, 16, 64, 256),
    "steps": (1, 2, 4, 8, 16),
    "prompt": (512, 1024, 2048, 4096, 8192),
    "problems": (1, 2, 4, 8),
}
LABELS = {"n": "beams", "steps": "steps of 32 tokens", "prompt": "tokens of prompt", "problems": "problems at once"}
PANELS = {"total_s": "seconds", "tokens_per_s": "tokens/s", "peak_mb": "peak MB"}


def traces() -> list[Trace]:
    """The common point once, and every axis without it; each policy-only and with a verifier."""
    points = [POINT, *(POINT | {axis: value} for axis, values in AXES.items() for value in values if value != POINT[axis])]
    return [_trace(point, has_verifier) for has_verifier in (False, True) for point in points]


def _trace(point: dict[str, int], has_verifier: bool) -> Trace:
    name = "curve " + " ".join(f"{axis}={value}" for axis, value in point.items()) + ("+prm" if has_verifier else "")
    n, steps = point["n"], point["steps"]
    return beam(name, n, 4, steps, 32, prompt=point["prompt"], problems=point["problems"], has_verifier=has_verifier)


def save(rows: list[dict[str, Any]], path: Path) -> None:
    """A column for each axis, a panel each for time, tokens per second and peak memory, a line for each engine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = [row for engines in medians(rows).values() for row in engines.values() if "total_s" in row]
    figure, panels = pyplot.subplots(len(PANELS), len(AXES), figsize=(13, 8), sharex="col", layout="constrained")
    for column, axis in enumerate(AXES):
        for line, several in _lines(found, axis).items():
            for panel, field in zip(panels[:, column], PANELS):
                panel.plot([row[axis] for row in several], [row[field] for row in several], "o-", markersize=4, label=line)
        panels[0, column].set_xscale("log", base=2)
        panels[-1, column].set_xticks(AXES[axis], [str(value) for value in AXES[axis]], minor=False)
        panels[-1, column].set_xlabel(LABELS[axis])
    for panel, label in zip(panels[:, 0], PANELS.values()):
        panel.set_ylabel(label)
    for panel in panels.flat:
        if panel in panels[0]:
            panel.set_yscale("log", base=2)  # as x is: a straight line of slope 1 is a cost in proportion
            panel.yaxis.set_major_formatter("{x:g}")
        else:
            panel.set_ylim(0, 1.05 * panel.get_ylim()[1])
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(fontsize=8)
    row = rows[0]
    fixed = f"what is not on the axis: {', '.join(f'{value} {LABELS[axis]}' for axis, value in POINT.items())}"
    where = f"{row['model']}, bf16, {row['threads']} threads, {row['cpu']}, commit {row['commit']}"
    figure.suptitle(f"{where}\n{fixed}", fontsize=9)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _lines(rows: list[dict[str, Any]], axis: str) -> dict[str, list[dict[str, Any]]]:
    """The rows that differ from the common point in this axis alone, in its order, by engine and verifier."""
    others = [(other, value) for other, value in POINT.items() if other != axis]
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row[axis]):
        if all(row[other] == value for other, value in others):
            what = "with a PRM at every step" if row["has_verifier"] else "policy only"
            lines.setdefault(f"{row['engine']}, {what}", []).append(row)
    return lines
