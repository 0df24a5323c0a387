"""Accuracy against the compute spent, one panel a strategy: the honest way to compare strategies that cost unlike amounts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
INK, GREY, PALE = "#1f5fa8", "#444444", "#cfcfcf"


def check() -> None:
    """Raise `ValueError` where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError('a plot needs matplotlib: pip install "tts-kernels[plot]"') from error


def figure(found: dict[str, Any]) -> Figure:
    """The rows of a comparison: in each panel a strategy with its 95 % intervals, the baseline dashed, all others pale.

    Strategies that were run at one width only, as greedy decoding, are points in every panel.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = _lines(found["rows"])
    curves = {name: rows for name, rows in lines.items() if len(rows) > 1}
    points = {name: rows[0] for name, rows in lines.items() if len(rows) == 1}
    others = [name for name in curves if name != found["baseline"]] or list(curves) or list(points)
    height = -(-len(others) // COLUMNS)
    drawn, axes = pyplot.subplots(
        height, COLUMNS, figsize=(3.1 * COLUMNS, 2.5 * height + 0.9), sharex=True, sharey=True, squeeze=False
    )
    for axis, name in zip(axes.flat, others):
        _panel(axis, name, lines, curves, points, found["baseline"])
    for axis in axes.flat[len(others) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy")
    for column in range(COLUMNS):
        axes[(len(others) - 1 - column) // COLUMNS if column < len(others) else 0, column].tick_params(labelbottom=True)
    drawn.suptitle(f"{found['limit']} questions; dashed: {found['baseline']}; bars: 95 %", fontsize=11)
    drawn.supxlabel("MFLOP a question, policy and verifier", fontsize=10)
    drawn.tight_layout()
    return drawn


def _lines(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The rows of each strategy by what they cost."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["flops"]):
        lines.setdefault(row["strategy"], []).append(row)
    return dict(sorted(lines.items()))


def _panel(
    axis: Axes,
    name: str,
    lines: dict[str, list[dict[str, Any]]],
    curves: dict[str, list[dict[str, Any]]],
    points: dict[str, dict[str, Any]],
    baseline: str,
) -> None:
    for other in curves.values():
        axis.plot(*_curve(other), color=PALE, linewidth=0.8, zorder=1)
    for label, row in points.items():
        axis.plot(row["flops"] / 1e6, row["accuracy"], "x", color=GREY, markersize=5, zorder=2)
        axis.annotate(
            label, (row["flops"] / 1e6, row["accuracy"]), fontsize=6, color=GREY, xytext=(4, -8), textcoords="offset points"
        )
    if baseline in curves:
        axis.plot(*_curve(curves[baseline]), color=GREY, linestyle="--", linewidth=1.2, zorder=2)
    x, y = _curve(lines[name])
    reach = [[a - row["ci"][0], row["ci"][1] - a] for a, row in zip(y, lines[name])]
    axis.errorbar(x, y, list(zip(*reach)), color=INK, marker="o", markersize=4, linewidth=1.6, capsize=2, zorder=3)
    for a, b, row in zip(x, y, lines[name]):
        if row["n"] is not None:
            axis.annotate(str(row["n"]), (a, b), fontsize=7, color=INK, xytext=(3, -10), textcoords="offset points")
    axis.set_xscale("log")
    axis.set_ylim(0, 1.05)  # a mark at 1 is whole
    axis.margins(x=0.1)
    axis.set_title(name, fontsize=9, color=INK)
    axis.grid(True, color="#eeeeee", linewidth=0.6)


def _curve(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["flops"] / 1e6 for row in rows], [row["accuracy"] for row in rows]
