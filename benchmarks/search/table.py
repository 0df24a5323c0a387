"""The rows of a search benchmark as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.search.run import medians

OURS = "tts"


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("trace", "engine", "seconds", "tokens/s", "tts is faster by", "verifier tokens", "peak MB")
    for trace, engines in medians(rows).items():
        for engine, row in engines.items():
            if "total_s" not in row:
                table.add_row(trace, engine, row["error"], "", "", "", "")
                continue
            ratio = f"{row['total_s'] / engines[OURS]['total_s']:.2f} x" if engine != OURS and "total_s" in engines[OURS] else ""
            figures = f"{row['total_s']:.2f}", f"{row['tokens'] / row['total_s']:.0f}", ratio
            table.add_row(trace, engine, *figures, str(row["verifier_tokens"] or ""), f"{row['peak_mb']:.0f}")
    Console(width=150).print(table)


def save(rows: list[dict[str, Any]], path: Path) -> None:
    """A bar for each engine and trace: tokens per second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = medians(rows)
    bars = [
        (trace, engine, row["tokens"] / row["total_s"])
        for trace, es in found.items()
        for engine, row in es.items()
        if "total_s" in row
    ]
    engines = list(dict.fromkeys(engine for _, engine, _ in bars))
    colors = {engine: f"C{i}" for i, engine in enumerate(engines)}
    figure, axes = plt.subplots(figsize=(9, 0.34 * len(bars) + 1.2))
    positions = range(len(bars))[::-1]
    axes.barh(positions, [rate for *_, rate in bars], color=[colors[engine] for _, engine, _ in bars])
    axes.set_yticks(positions, [f"{trace} · {engine}" for trace, engine, _ in bars], fontsize=8)
    for at, (*_, rate) in zip(positions, bars):
        axes.annotate(f"{rate:.0f}", (rate, at), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    row = rows[0]
    axes.set_xlabel("tokens drawn per second, the verifier's time included")
    place = row.get("gpu") or f"{row['threads']} threads, {row['cpu']}"
    axes.set_title(f"{row['model']}, bf16, {place}", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
