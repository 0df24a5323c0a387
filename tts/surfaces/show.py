"""Results as a person reads them in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tts.evaluation import Evaluation
from tts.meter import Meter
from tts.tasks import Task

if TYPE_CHECKING:
    from tts.solver import Result, Solver


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
