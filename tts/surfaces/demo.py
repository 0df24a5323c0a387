"""The demonstration: one question solved aloud, then accuracy against the compute spent on thinking.

Problems are shared among one process a core (`workers`); this one hands out work and prints.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from tts.comparison import Trial, of_first, trial
from tts.evaluation import wilson
from tts.meter import Meter
from tts.surfaces import show, workers
from tts.tasks import chain

WIDTHS = (1, 4, 16, 64)
RULES = ("majority", "max", "weighted")
ALONE = "verifier used as solver"


Rows = dict[tuple[str, int], list[Trial]]
"""By method and N."""


def run(console: Console, errors: Console, limit: int, seed: int) -> list[dict[str, Any]]:
    """Print the demonstration; gives the rows of its table."""
    num_processes = workers.count()
    with workers.pool() as pool:
        aloud = pool.submit(_solve_aloud, seed)
        # The widest searches first, so that no process is left with a long one at the end.
        work = [
            ("best_of_n", WIDTHS[-1]),
            *((name, n) for n in reversed(WIDTHS) for name in ("beam", "dvts")),
            ("greedy", 1),
            (ALONE, 1),
        ]
        tasks = [pool.submit(_measure, *what, limit, seed, i, num_processes) for what in work for i in range(num_processes)]
        _print_aloud(console, *aloud.result())
        rows = _collect(tasks, errors)
    table = [_row(name, n, rows[name, n]) for name, n in _order()]
    _print_table(console, table, limit)
    return table


def _order() -> list[tuple[str, int]]:
    many = [(name, n) for name in (*RULES, "beam", "dvts") for n in WIDTHS]
    return [("greedy", 1), *many, (ALONE, 1)]


def _collect(tasks: Sequence[Future[Rows]], errors: Console) -> Rows:
    found: Rows = {}
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        for task in progress.track(tasks, description="searching"):
            for key, trials in task.result().items():
                found.setdefault(key, []).extend(trials)
    return found


# ---- in the worker processes


def _solve_aloud(seed: int) -> tuple[str, list[dict[str, Any]], str | None, Meter]:
    """One search: its question, its tree, its answer, its cost."""
    question = chain.sample(random.Random(seed), steps=4)
    result = workers.solver("zoo:S", "zoo:M").solve(question, "beam", n=8, seed=seed)
    return question, result.tree, result.answer, result.meter


def _measure(name: str, n: int, limit: int, seed: int, shard: int, num_shards: int) -> Rows:
    """One method on every `num_shards`-th problem."""
    solver = workers.solver("zoo:M", None) if name == ALONE else workers.solver("zoo:S", "zoo:M")
    problems = chain.natural(limit, seed)[shard::num_shards]
    if name in ("greedy", ALONE):
        results = solver.solve_many(problems, "best_of_n", n=1, temperature=0.0, seed=seed)
    else:
        results = solver.solve_many(problems, name, n=n, seed=seed)
    if name == "best_of_n":
        return {(rule, n): [of_first(r, n, rule, solver.task) for r in results] for rule in RULES for n in WIDTHS}
    return {(name, n): [trial(r, solver.task) for r in results]}


# ---- printing


def _print_aloud(console: Console, question: str, tree: Sequence[dict[str, Any]], answer: str | None, meter: Meter) -> None:
    """The search step by step: what was tried, how it scored, what was pruned. Equal branches share a line."""
    task = chain.Chain()
    console.print(f"[bold]Question[/bold] {escape(task.show(question))}   [dim]({escape(question)})[/dim]")
    children: dict[int | None, list[dict[str, Any]]] = {}
    for node in tree:
        children.setdefault(node["parent"], []).append(node)
    level, depth = children[None], 1
    while level:
        console.print(f"[dim]step {depth}: {len(level)} branches[/dim]")
        texts = dict.fromkeys(node["text"] for node in sorted(level, key=lambda x: -(x["score"] or 0.0)))
        for text in texts:
            _print_text(console, task.show(text), [node for node in level if node["text"] == text], children)
        level, depth = [child for node in level for child in children.get(node["id"], [])], depth + 1
    right = chain.gold(question)
    verdict = "[green]right[/green]" if answer == right else f"[red]wrong[/red], it is {right}"
    console.print(f"[bold]Answer[/bold] {answer} ({verdict})")
    console.print(show.cost(meter) + "\n", style="dim", highlight=False)


def _print_text(
    console: Console, text: str, nodes: Sequence[dict[str, Any]], children: dict[int | None, list[dict[str, Any]]]
) -> None:
    kept = sum(node["id"] in children for node in nodes)
    answers = sum(node["is_candidate"] for node in nodes)
    counts = ((kept, "kept"), (answers, "answers"), (len(nodes) - kept - answers, "pruned"))
    fate = ", ".join(f"{count} {what}" for count, what in counts if count)
    score = max((node["score"] for node in nodes if node["score"] is not None), default=float("nan"))
    console.print(f"  {show.score(score)}  {escape(text):<24} [dim]{fate}[/dim]", highlight=False)


def _row(name: str, n: int, trials: Sequence[Trial]) -> dict[str, Any]:
    count, num_right = len(trials), sum(t.is_correct for t in trials)
    return {
        "strategy": name,
        "n": n,
        "accuracy": num_right / count,
        "ci": wilson(num_right, count),
        "policy_tokens": sum(t.policy_tokens for t in trials) / count,
        "verifier_tokens": sum(t.verifier_tokens for t in trials) / count,
        "mflop": sum(t.flops for t in trials) / count / 1e6,
    }


def _print_table(console: Console, rows: Sequence[dict[str, Any]], limit: int) -> None:
    table = Table(title=f"{limit} questions; cost a question")
    for title in ("strategy", "N", "accuracy, 95 %", "drawn", "verified", "MFLOP"):
        table.add_column(title, justify="left" if title == "strategy" else "right", no_wrap=True)
    before = rows[0]["strategy"]
    for row in rows:
        if row["strategy"] != before:
            table.add_section()
            before = row["strategy"]
        low, high = row["ci"]
        accuracy = f"{row['accuracy']:.2f} ({low:.2f}-{high:.2f})"
        cost = (f"{row[name]:,.0f}" for name in ("policy_tokens", "verifier_tokens", "mflop"))
        table.add_row(row["strategy"], str(row["n"]), accuracy, *cost)
    console.print(table)
    guided = [r for r in rows if r["strategy"] in ("beam", "dvts", "max", "weighted")]
    best = max(guided, key=lambda r: (r["accuracy"], -r["mflop"]))
    console.print(_plain_sentence(rows[-1], best), highlight=False)


def _plain_sentence(alone: dict[str, Any], best: dict[str, Any]) -> str:
    """What the verifier's own accuracy means for the table."""
    relation = "more often than" if alone["accuracy"] > best["accuracy"] else "no more often than"
    return (
        f"Asked directly, the larger model that serves as verifier is right {alone['accuracy']:.0%} of the time for "
        f"{alone['mflop']:,.0f} MFLOP, {relation} the small policy under its guidance ({best['strategy']}, N={best['n']}: "
        f"{best['accuracy']:.0%} for {best['mflop']:,.0f} MFLOP): on this task search shows how a verifier lifts a weak "
        "policy, not that it is cheaper than a stronger model."
    )
