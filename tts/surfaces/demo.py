"""The demonstration: one question solved aloud, then accuracy against the compute spent on thinking."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from tts import selection
from tts.evaluation import Evaluation, evaluate
from tts.meter import Meter
from tts.solver import Candidate, Result, Solver
from tts.surfaces import show
from tts.tasks import chain

WIDTHS = (1, 4, 16, 64)


def run(console: Console, errors: Console, limit: int, seed: int) -> list[dict[str, Any]]:
    """Print the demonstration; gives the rows of its table."""
    solver = Solver("zoo:S", "zoo:M")
    judge = Solver("zoo:M", None)
    _aloud(console, solver, seed)
    problems = chain.natural(limit, seed)
    rows: list[dict[str, Any]] = []
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:

        def collect(title: str, each: Iterable[tuple[int, Result]]) -> list[Result]:
            found = dict(progress.track(each, total=limit, description=title))
            return [found[i] for i in range(limit)]

        greedy = collect("greedy", solver.solve_each(problems, "best_of_n", n=1, temperature=0.0, seed=seed))
        rows.append(_row("greedy", 1, evaluate(greedy, solver.task)))
        sampled = collect("best of 64", solver.solve_each(problems, "best_of_n", n=WIDTHS[-1], seed=seed))
        for rule in ("majority", "max", "weighted"):
            rows += [_row(rule, n, evaluate(_first(sampled, n, rule, solver), solver.task)) for n in WIDTHS]
        for name in ("beam", "dvts"):
            for n in WIDTHS:
                rows.append(
                    _row(
                        name, n, evaluate(collect(f"{name} {n}", solver.solve_each(problems, name, n=n, seed=seed)), solver.task)
                    )
                )
        alone = collect("verifier as solver", judge.solve_each(problems, "best_of_n", n=1, temperature=0.0, seed=seed))
        rows.append(_row("verifier used as solver", 1, evaluate(alone, judge.task)))
    _print(console, rows, limit)
    return rows


def _aloud(console: Console, solver: Solver, seed: int) -> None:
    """One search, step by step: what was tried, how it scored, what was pruned."""
    question = chain.sample(random.Random(seed), steps=4)
    result = solver.solve(question, "beam", n=8, seed=seed)
    console.print(f"[bold]Question[/bold] {escape(solver.task.show(question))}   [dim]({escape(question)})[/dim]")
    children: dict[int | None, list[dict[str, Any]]] = {}
    for node in result.tree:
        children.setdefault(node["parent"], []).append(node)
    level = children[None]
    while level:
        console.print(f"[dim]step {_depth(result.tree, level[0])}: {len(level)} branches[/dim]")
        for node in sorted(level, key=lambda x: -(x["score"] or 0.0)):
            fate = (
                "answer"
                if node["is_candidate"]
                else f"kept, {len(children[node['id']])} children"
                if node["id"] in children
                else "pruned"
            )
            value = show.score(node["score"] if node["score"] is not None else float("nan"))
            console.print(f"  {value}  {escape(solver.task.show(node['text'])):<32} [dim]{fate}[/dim]", highlight=False)
        level = [child for node in level for child in children.get(node["id"], [])]
    right = chain.gold(question)
    verdict = "[green]right[/green]" if result.answer == right else f"[red]wrong[/red], it is {right}"
    console.print(f"[bold]Answer[/bold] {result.answer} ({verdict})")
    console.print(show.cost(result.meter) + "\n", style="dim", highlight=False)


def _depth(tree: Sequence[dict[str, Any]], node: dict[str, Any]) -> int:
    depth = 1
    while node["parent"] is not None:
        node, depth = tree[node["parent"]], depth + 1
    return depth


def _first(sampled: Sequence[Result], n: int, rule: str, solver: Solver) -> list[Result]:
    """Best-of-n out of best-of-64: a draw depends on its lineage alone, so the first n are what n alone would have sampled."""
    made = []
    for result in sampled:
        candidates = result.candidates[:n]
        winner = selection.select([c.answer for c in candidates], [c.score for c in candidates], rule, solver.task.group)
        answer = candidates[winner].answer
        made.append(
            replace(
                result, candidates=candidates, winner=winner, answer=answer, meter=_share(result.meter, candidates, rule, solver)
            )
        )
    return made


def _share(meter: Meter, candidates: Sequence[Candidate], rule: str, solver: Solver) -> Meter:
    """What the first candidates alone have cost; a majority needs no verifier."""
    drawn = sum(step.num_tokens for c in candidates for step in c.steps)
    read = 0 if rule == "majority" else meter.prompt_tokens + drawn
    flops = 2.0 * solver.policy.model.num_parameters * (meter.prompt_tokens + drawn)
    verifier_flops = meter.verifier_flops * read / meter.verifier_tokens
    return Meter(meter.prompt_tokens, drawn, read, policy_flops=flops, verifier_flops=verifier_flops)


def _row(name: str, n: int, found: Evaluation) -> dict[str, Any]:
    meter, count = found.meter, len(found.results)
    return {
        "strategy": name,
        "n": n,
        "accuracy": found.accuracy,
        "ci": found.ci,
        "policy_tokens": meter.policy_tokens / count,
        "verifier_tokens": meter.verifier_tokens / count,
        "mflop": meter.flops / count / 1e6,
    }


def _print(console: Console, rows: Sequence[dict[str, Any]], limit: int) -> None:
    table = Table(
        "strategy",
        "N",
        "accuracy",
        "95 % interval",
        "tokens drawn",
        "tokens verified",
        "MFLOP",
        title=f"{limit} questions, cost a question",
    )
    before = rows[0]["strategy"]
    for row in rows:
        if row["strategy"] != before:
            table.add_section()
            before = row["strategy"]
        low, high = row["ci"]
        table.add_row(
            row["strategy"],
            str(row["n"]),
            f"{row['accuracy']:.2f}",
            f"{low:.2f} .. {high:.2f}",
            f"{row['policy_tokens']:,.0f}",
            f"{row['verifier_tokens']:,.0f}",
            f"{row['mflop']:,.0f}",
        )
    console.print(table)
    best = max(
        (r for r in rows if r["strategy"] in ("beam", "dvts", "max", "weighted")), key=lambda r: (r["accuracy"], -r["mflop"])
    )
    alone = rows[-1]
    comparison = "more" if alone["accuracy"] > best["accuracy"] else "no more"
    console.print(
        f"The verifier is itself a solver: asked directly, the larger model answers {alone['accuracy']:.0%} right for "
        f"{alone['mflop']:,.0f} MFLOP, {comparison} than the small policy under its guidance ({best['strategy']}, "
        f"N={best['n']}: {best['accuracy']:.0%} for {best['mflop']:,.0f} MFLOP), so on this task the search shows how "
        "verification lifts a weak policy, not that searching is cheaper than a stronger model.",
        highlight=False,
    )
