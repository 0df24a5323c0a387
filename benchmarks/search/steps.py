"""What a decode step takes by rows and prompt, what is gained by problems at once, and the shipped model S on its natural set."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.record import append_line
from benchmarks.search.run import OURS, Line, Setup, ask, question_of
from benchmarks.search.traces import beam

NUM_NATURAL = 200


def run(setup: Setup) -> list[dict[str, Any]]:
    """The rows, appended to `setup.out` as they come. The natural set has the shipped models, whatever `setup.shape`."""
    rows = []
    for repeat in range(setup.repeats):
        for row in _measure(setup):
            rows.append(setup.with_machine(row | {"engine": OURS.name, "repeat": repeat}))
            if "natural" in row["trace"]:
                rows[-1] |= {"model": "zoo:S, zoo:M"}
            append_line(setup.out, rows[-1])
            print(f"{row['trace']}: {row.get('error') or row['total_s']}", file=sys.stderr, flush=True)
    return rows


def _measure(setup: Setup) -> Iterator[dict[str, Any]]:
    for n in (16, 64):
        for prompt in (512, 4096):
            trace = beam(f"step {n} x {prompt}", n, 4, 1, 32, prompt=prompt)
            yield {"trace": trace.name} | trace.shape() | ask(setup, OURS, question_of(setup, trace))
    four = beam("four", 16, 4, 4, 32, problems=4)
    for name, in_turn in (("four at once", False), ("four in turn", True)):
        yield {"trace": name} | four.shape() | ask(setup, OURS, question_of(setup, four) | {"in_turn": in_turn})
    yield {"trace": "natural set"} | _natural(setup, NUM_NATURAL, in_turn=False)
    yield {"trace": "natural set, in turn"} | _natural(setup, NUM_NATURAL // 10, in_turn=True)


def _natural(setup: Setup, problems: int, in_turn: bool) -> dict[str, Any]:
    """All shares at once, one thread each; the slowest says when the set is done."""
    cores = sorted(os.sched_getaffinity(0))[: setup.threads]

    def share(index: int) -> dict[str, Any]:
        # A core for each: OpenMP would pin them all to the first.
        command = ["taskset", "-c", str(cores[index]), sys.executable, "-m", "benchmarks.search.natural"]
        question = {"problems": problems, "n": 64, "index": index, "count": len(cores), "in_turn": in_turn}
        return ask(replace(setup, threads=1), Line(OURS.name, command), question)

    with ThreadPoolExecutor(len(cores)) as pool:
        shares = list(pool.map(share, range(len(cores))))
    failed = [share for share in shares if "error" in share]
    if failed:
        return failed[0]
    seconds = max(share["total_s"] for share in shares)
    sums = {field: sum(s[field] for s in shares) for field in ("problems", "right", "tokens", "verifier_tokens")}
    worst = {field: max(s[field] for s in shares) for field in ("policy_passes", "forward_ms", "beyond_ms")}
    return sums | worst | {"n": 64, "total_s": seconds, "problems_per_s": sums["problems"] / seconds}


def show(rows: list[dict[str, Any]]) -> None:
    found_of = figures(rows)
    table = Table("measured", "ms a decode step", "tokens/s", "problems/s", "ms beyond the forward, a step")
    for name, found in found_of.items():
        cells = (found.get(field) for field in ("step_ms", "tokens_per_s", "problems_per_s", "beyond_ms"))
        table.add_row(name, *("" if value is None else f"{value:,.2f}" for value in cells))
    console = Console(width=110)
    console.print(table)
    at_once, in_turn = (found_of.get(name, {}).get("total_s") for name in ("four at once", "four in turn"))
    if at_once and in_turn:
        console.print(f"four problems at once: {in_turn / at_once:.2f} x the throughput of one after the other")


def figures(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians over the repeats, by what was measured."""
    names = dict.fromkeys(row["trace"] for row in rows)
    return {name: _medians([row for row in rows if row["trace"] == name]) for name in names}


def _medians(rows: list[dict[str, Any]]) -> dict[str, float]:
    timed = [row | {"tokens_per_s": row["tokens"] / row["total_s"]} for row in rows if "total_s" in row]
    fields = ("total_s", "step_ms", "tokens_per_s", "problems_per_s", "beyond_ms")
    found = {field: [row[field] for row in timed if row.get(field) is not None] for field in fields}
    return {field: median(values) for field, values in found.items() if values}
