"""Results as a person reads them in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tts.evaluation import Evaluation
from tts.meter import Meter
from tts.tasks import Task

if TYPE_CHECKING:
    from tts.solver import Result, Solver


COMPARISON_WIDTH = 150


def result(console: Console, found: Result, task: Task) -> None:
    """The winner's steps with their scores, the answer, and what it cost."""
    console.print(f"[bold]{escape(task.show(found.problem.question))}[/bold]")
    if found.winner is not None:
        for step in found.candidates[found.winner].steps:
            console.print(f"  {score(step.score)}  {escape(task.show(step.text).strip())}", highlight=False)
    console.print(f"answer [bold green]{escape(str(found.answer))}[/bold green] of {len(found.candidates)} candidates")
    console.print(cost(found.meter), style="dim", highlight=False)


def score(value: float) -> str:
    """A step score in a fixed width, colored by its size."""
    color = "green" if value >= 0.5 else "yellow" if value >= 0.05 else "red"
    return f"[{color}]{value:6.3f}[/{color}]"


def cost(meter: Meter) -> str:
    return (
        f"{meter.policy_tokens:,} tokens drawn, {meter.prompt_tokens:,} prompt, {meter.verifier_tokens:,} read by the verifier, "
        f"{meter.reused_tokens:,} taken over at forks, {meter.flops / 1e9:.3f} GFLOP, {meter.seconds:.2f} s"
    )


def evaluation(console: Console, found: Evaluation, title: str) -> None:
    """One row: accuracy with its interval, and the cost a problem."""
    meter, count = found.meter, len(found.results)
    table = Table(
        "strategy",
        "accuracy",
        "95 % interval",
        "policy tokens",
        "verifier tokens",
        "MFLOP",
        title=f"{count} questions, cost a question",
    )
    low, high = found.ci
    table.add_row(
        title,
        f"{found.accuracy:.3f}",
        f"{low:.3f} .. {high:.3f}",
        f"{meter.policy_tokens / count:,.0f}",
        f"{meter.verifier_tokens / count:,.0f}",
        f"{meter.flops / count / 1e6:,.1f}",
    )
    console.print(table)


def machine_cost(console: Console, solver: Solver, found: Evaluation) -> None:
    """What the run spent on this machine: it varies from run to run and is no part of a result."""
    verifier = solver.verifier.seconds
    console.print(
        f"policy {solver.policy.seconds:.1f} s in {solver.policy.num_passes} passes, verifier {verifier:.1f} s, "
        f"{solver.policy.num_preemptions} preemptions, {found.meter.reprefilled_tokens:,} tokens read again, "
        f"peak {solver.policy.kv.peak_pages} of {solver.policy.kv.num_pages} pages",
        style="dim",
        highlight=False,
    )


def comparison(console: Console, found: dict[str, Any]) -> None:
    """Two tables: accuracy, differences and cost of every method; accuracy by difficulty. Below, what was not run."""
    wide = Console(file=console.file, width=max(console.width, COMPARISON_WIDTH))  # cut off columns would be no table
    wide.print(_costs(found))
    wide.print(_bins(found))
    for entry in found["not_run"]:
        width = "" if entry["n"] is None else f" N={entry['n']}"
        console.print(f"not run: {entry['strategy']}{width}: {escape(entry['reason'])}", style="dim", highlight=False)
    console.print(f"{found['seconds']:.0f} s in all", style="dim", highlight=False)


def _costs(found: dict[str, Any]) -> Table:
    table = Table(
        title=f"{found['limit']} questions, seed {found['seed']}; differences from {found['baseline']}; cost a question"
    )
    table.add_column("strategy", no_wrap=True)
    for title in ("N", "accuracy, 95 %", "same N", "same FLOPs", "drawn", "verified", "MFLOP", "attention", "ms"):
        table.add_column(title, justify="right", no_wrap=True)
    before = None
    for row in found["rows"]:
        if before not in (None, row["strategy"]):
            table.add_section()
        before = row["strategy"]
        low, high = row["ci"]
        table.add_row(
            row["strategy"],
            "" if row["n"] is None else str(row["n"]),
            f"{row['accuracy']:.3f} ({low:.3f}-{high:.3f})",
            _difference(row["difference"]),
            _difference(row["difference_at_equal_flops"]),
            f"{row['policy_tokens']:,.0f}",
            f"{row['verifier_tokens']:,.0f}",
            f"{row['flops'] / 1e6:,.0f}",
            f"{row['attention_flops'] / 1e6:,.0f}",
            "shared" if row["seconds"] is None else f"{row['seconds'] * 1e3:,.0f}",
        )
    return table


def _difference(value: dict[str, Any] | None) -> str:
    """A difference with its interval, in points of a hundred; bold where the interval excludes 0."""
    if value is None:
        return ""
    low, high = value["ci"]
    text = f"{value['mean'] * 100:+.1f} ({low * 100:+.1f} {high * 100:+.1f})"
    return text if low <= 0 <= high else f"[bold]{text}[/bold]"


def _bins(found: dict[str, Any]) -> Table:
    counts = found["bins"]["questions"]
    table = Table(title="accuracy by difficulty: quintiles of the policy's pass@1 on samples of their own, 1 the easiest")
    table.add_column("strategy", no_wrap=True)
    for title in ("N", *(f"{b} ({count})" for b, count in counts.items())):
        table.add_column(title, justify="right", no_wrap=True)
    for row in found["rows"]:
        table.add_row(row["strategy"], "" if row["n"] is None else str(row["n"]), *(f"{row['by_bin'][b]:.2f}" for b in counts))
    return table
