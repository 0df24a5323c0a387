"""The rows of a run as a table on the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

MIN_WIDTH = 150


def show(rows: list[dict[str, Any]]) -> None:
    """The table, as wide as it needs where the output is no terminal, and a line for each peer that some case went without."""
    table = Table(title="Medians in microseconds; in brackets, how many times as fast ours is", title_justify="left")
    for name in ("op", "case", "dtype"):
        table.add_column(name, no_wrap=True)
    for name in ("ours", "p20-p80", "floor", "of floor"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bound")
    table.add_column("peers")
    for row in rows:
        table.add_row(*_cells(row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=MIN_WIDTH)
    console.print(table)
    if not all(all(row.get("is_clean", {}).values()) for row in rows):
        console.print("~ other processes disturbed nearly every sample: measure again on a quiet machine")
    for peer, reason, cases in _missing(rows):
        console.print(f"without {peer} in {cases} cases: {reason}", markup=False, highlight=False)


def _cells(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["op"], row["case"], "", "[red]failed[/red]", "", "", "", "", escape(row["error"])]
    name = [row["op"], row["case"], row["dtype"]]
    if not row["is_correct"]:
        return [*name, "[red]wrong[/red]", "", "", "", "", f"error {row['max_error']}, allowed {row['allowed_error']:.3g}"]
    ours = row["median_us"]
    mark = {name: "" if is_clean else "~" for name, is_clean in row["is_clean"].items()}
    peers = "\n".join(f"{peer} {mark[peer]}{us(time)} ({time / ours:.2f}x)" for peer, time in row["peer_us"].items())
    spread = f"{us(row['p20_us'])}-{us(row['p80_us'])}"
    return [*name, mark["ours"] + us(ours), spread, us(row["floor_us"]), f"{row['of_floor']:.2f}", row["bound"], peers]


def us(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _missing(rows: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """(peer, reason, number of cases) for every peer that some case went without."""
    found: dict[tuple[str, str], int] = {}
    for row in rows:
        for peer, reason in row["peer_missing"].items():
            found[peer, reason] = found.get((peer, reason), 0) + 1
    return [(peer, reason, count) for (peer, reason), count in found.items()]
