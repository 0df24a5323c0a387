"""The command line: `tts demo`, `tts solve`, `tts eval`, `tts judge`, `tts verifier`, `tts strategies`, `tts info`."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import typing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_show_locals=False)
out, err = Console(), Console(stderr=True)

PolicyOption = Annotated[str, typer.Option(help="A model folder, a hub id or zoo:NAME.")]
VerifierOption = Annotated[str, typer.Option(help="The same, or auto, none, rule.")]
TaskOption = Annotated[str, typer.Option(help="chain, math or auto.")]
StrategyOption = Annotated[str, typer.Option("--strategy", help="See `tts strategies`.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the strategy; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
BackendOption = Annotated[str | None, typer.Option(help="One backend for all kernels; the default is the best of each.")]
SelectOption = Annotated[str | None, typer.Option(help="majority, max or weighted.")]
MaxRowsOption = Annotated[int, typer.Option(help="Branches decoded at a time; changes speed, never a result.")]
KvBytesOption = Annotated[int | None, typer.Option(help="Memory for all KV pools; changes speed, never a result.")]
ThreadsOption = Annotated[
    int | None, typer.Option(help="CPU threads; default 1 for the zoo, whose steps are too small to share.")
]
TemperatureOption = Annotated[float, typer.Option(help="0 is greedy.")]


@app.command()
def solve(
    problem: str,
    strategy: StrategyOption = "beam",
    n: Annotated[int, typer.Option("--n", help="Total width: answers sampled.")] = 16,
    policy: PolicyOption = "zoo:S",
    verifier: VerifierOption = "auto",
    task: TaskOption = "auto",
    select: SelectOption = None,
    temperature: TemperatureOption = 0.8,
    max_tokens: int | None = None,
    seed: int = 0,
    device: DeviceOption = "auto",
    backend: BackendOption = None,
    max_rows: MaxRowsOption = 1024,
    kv_bytes: KvBytesOption = None,
    threads: ThreadsOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search one problem and print its answer."""
    from tts.surfaces import show

    parameters = _parameters(strategy, set_, n)
    solver = _solver(policy, verifier, task, device, backend, max_rows, kv_bytes, threads)
    result = solver.solve(
        problem, strategy, select=select, temperature=temperature, max_tokens=max_tokens, seed=seed, **parameters
    )
    if as_json:
        _print_json(result.as_dict())
    else:
        show.result(out, result, solver.task)


@app.command("eval")
def evaluate(
    task: Annotated[str, typer.Argument(help="chain: its natural test set, drawn from --seed.")],
    strategy: StrategyOption = "beam",
    n: Annotated[int, typer.Option("--n", help="Total width: answers sampled.")] = 16,
    limit: Annotated[int, typer.Option(help="Questions.")] = 100,
    policy: PolicyOption = "zoo:S",
    verifier: VerifierOption = "auto",
    select: SelectOption = None,
    temperature: TemperatureOption = 0.8,
    seed: Annotated[int, typer.Option(help="Of the questions and of the draws.")] = 0,
    device: DeviceOption = "auto",
    backend: BackendOption = None,
    max_rows: MaxRowsOption = 1024,
    kv_bytes: KvBytesOption = None,
    threads: ThreadsOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy of a strategy on a task, with its confidence interval and its cost."""
    from tts.evaluation import evaluate as grade
    from tts.surfaces import show
    from tts.tasks import chain

    if task != "chain":
        raise ValueError(f"tts eval has no dataset for task {task!r}; it has chain")
    if not 1 <= limit <= 100_000:
        raise ValueError(f"--limit must be in [1, 100000], got {limit}")
    parameters = _parameters(strategy, set_, n)
    solver = _solver(policy, verifier, task, device, backend, max_rows, kv_bytes, threads)
    problems = chain.natural(limit, seed)
    each = solver.solve_each(problems, strategy, select=select, temperature=temperature, seed=seed, **parameters)
    results: dict[int, Any] = {}
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        for index, result in progress.track(each, total=limit, description=f"{strategy} n={n}"):
            results[index] = result
    evaluation = grade([results[i] for i in range(limit)], solver.task)
    show.machine_cost(err, solver, evaluation)
    if as_json:
        _print_json(evaluation.as_dict())
    else:
        show.evaluation(out, evaluation, f"{strategy} n={n}")


verifier_app = typer.Typer(no_args_is_help=True, help="What a verifier is worth.")
app.add_typer(verifier_app, name="verifier")


@verifier_app.callback()
def verifiers() -> None:
    """What a verifier is worth."""


@verifier_app.command("check")
def check_verifier(
    model: Annotated[str, typer.Argument(help="A model folder, a hub id or zoo:NAME; FAMILY:MODEL where it must be said.")],
    data: Annotated[str, typer.Option(help="chain, or a JSONL file of question, steps and labels.")] = "chain",
    task: Annotated[str, typer.Option(help="The task whose prompts a likelihood reads, for a file.")] = "math",
    limit: Annotated[int, typer.Option(help="Questions of chain, 8 solutions each.")] = 100,
    seed: int = 0,
    fit: Annotated[Path | None, typer.Option(help="Store the isotonic fit on all solutions here.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print a verifier's calibration, ranking and biases on solutions whose steps are known."""
    from tts.calibration import report
    from tts.surfaces import check

    if not 1 <= limit <= 100_000:
        raise ValueError(f"--limit must be in [1, 100000], got {limit}")
    if data != "chain" and not Path(data).is_file():
        raise ValueError(f"--data {data}: neither chain nor a file")
    solutions = check.on_chain(model, limit, seed) if data == "chain" else check.on_file(model, Path(data), task)
    found, isotonic = report(list(solutions))
    if fit:
        isotonic.save(fit)
    if as_json:
        _print_json(check.as_dict(found))
    else:
        check.show(out, found)


@app.command()
def judge(
    question: str,
    response: Annotated[list[str], typer.Option("--response", help="A response's text, or @FILE; repeatable.")],
    model: Annotated[str, typer.Option("--judge", help="A model folder or a hub id: the generative judge.")],
    meta: Annotated[str | None, typer.Option(help="A reward model that chooses among the judgements.")] = None,
    way: Annotated[str, typer.Option(help="listwise, pairwise, verdict or semi-scalar.")] = "listwise",
    k: Annotated[int, typer.Option("--k", help="Judgements to sample.")] = 8,
    k_meta: Annotated[int, typer.Option("--k-meta", help="Judgements that count, with --meta; 0: all.")] = 0,
    temperature: TemperatureOption = 0.5,
    no_shuffle: Annotated[bool, typer.Option("--no-shuffle", help="Always show the responses in the order given.")] = False,
    max_tokens: int | None = None,
    seed: int = 0,
    device: DeviceOption = "auto",
    backend: BackendOption = None,
    kv_bytes: KvBytesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge responses to a question with a generative reward model and print their scores."""
    from dataclasses import asdict

    from tts.solver import Solver

    texts = [Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text for text in response]
    solver = Solver(model, None, "math", device, backend=backend, kv_bytes=kv_bytes, judge=model, meta=meta)
    settings = {"way": way, "k": k, "k_meta": k_meta, "temperature": temperature, "shuffle": not no_shuffle}
    verdict, meter = solver.judge(question, texts, seed, max_tokens, **settings)
    if as_json:
        scores = [score if math.isfinite(score) else None for score in verdict.scores]
        _print_json(asdict(verdict) | {"scores": scores, "is_tie": verdict.is_tie, "meter": meter.search_cost()})
        return
    for place, i in enumerate(verdict.ranking):
        out.print(f"{place + 1}. response {i + 1}: {verdict.scores[i]:g}", highlight=False)
    out.print(
        f"{verdict.num_counted} of {verdict.num_read + verdict.num_dropped} judgements count, {verdict.num_dropped} could not be "
        f"read{', the best are tied' * verdict.is_tie}",
        highlight=False,
    )


@app.command()
def demo(
    limit: Annotated[int, typer.Option(help="Questions of the table.")] = 100,
    seed: int = 0,
    as_json: JsonOption = False,
) -> None:
    """Solve one question aloud, then show what more thinking buys on the embedded models."""
    from tts.surfaces import demo as demonstration

    if not 1 <= limit <= 100_000:
        raise ValueError(f"--limit must be in [1, 100000], got {limit}")
    rows = demonstration.run(err if as_json else out, err, limit, seed)
    if as_json:
        _print_json({"rows": rows})


@app.command()
def strategies(as_json: JsonOption = False) -> None:
    """Every strategy with its source and parameters."""
    from tts.strategies import STRATEGIES

    entries: list[dict[str, Any]] = [
        {
            "name": s.name,
            "summary": s.summary,
            "source": s.source,
            "parameters": {f.name: {"default": f.default, "help": f.metadata["help"]} for f in dataclasses.fields(s.parameters)},
        }
        for s in STRATEGIES.values()
    ]
    if as_json:
        _print_json({"strategies": entries})
        return
    for entry in entries:
        out.print(f"[bold]{entry['name']}[/bold]  {entry['summary']}\n  source: {entry['source']}", highlight=False)
        for name, p in entry["parameters"].items():
            out.print(f"  {name} = {p['default']}: {p['help']}", highlight=False)


@app.command()
def info(
    policy: Annotated[str | None, typer.Option(help="With a model: what it and --verifier need of the memory.")] = None,
    verifier: Annotated[str | None, typer.Option(help="A model folder or a hub id.")] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Branches of the plan.")] = 64,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a branch in the plan, its prompt included.")] = 2048,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Versions, the machine, and which backend each kernel uses and why; with --policy a memory plan."""
    from tts.surfaces import machine, memory

    if verifier is not None and policy is None:
        raise ValueError("--verifier needs --policy: the plan is for both")
    if policy is not None:
        found = memory.plan(policy, verifier, n, max_tokens, device)
        if as_json:
            _print_json(found)
        else:
            for line in memory.lines(found):
                out.print(line, highlight=False)
        return

    facts = machine.facts()
    if as_json:
        _print_json(facts)
        return
    for name, value in facts.items():
        if name != "kernels":
            out.print(f"{name:>14}  {value}", highlight=False)
    table = Table("op", "backend", "state", title="kernels")
    for row in facts["kernels"]:
        table.add_row(row["op"], row["backend"], row["state"])
    out.print(table)


def _solver(
    policy: str,
    verifier: str,
    task: str,
    device: str,
    backend: str | None,
    max_rows: int,
    kv_bytes: int | None,
    threads: int | None,
):
    import torch

    from tts.solver import Solver

    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be >= 1, got {threads}")
    if threads or policy.startswith("zoo:"):
        torch.set_num_threads(threads or 1)
    chosen = None if verifier == "none" else verifier
    tokens = max(2 * max_rows, 2048)
    return Solver(policy, chosen, task, device, backend=backend, max_rows=max_rows, max_batch_tokens=tokens, kv_bytes=kv_bytes)


def _parameters(strategy: str, given: list[str] | None, n: int) -> dict[str, Any]:
    """NAME=VALUE texts as values of the strategy's parameter dataclass; its types are the only list of parameters."""
    from tts.strategies import find

    chosen = find(strategy)
    types = typing.get_type_hints(chosen.parameters)
    values: dict[str, Any] = {"n": n}
    for text in given or []:
        name, _, value = text.partition("=")
        kind = types.get(name, str)
        try:
            values[name] = value == "true" if kind is bool else kind(value)
        except ValueError as error:
            raise ValueError(f"--set {text}: {name} must be {kind.__name__}") from error
    chosen.make_parameters(values)
    return values


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


def main() -> None:
    """Run the command line; what a user can mend ends with one line on stderr and exit code 2."""
    try:
        app(standalone_mode=True)
    except ValueError as error:
        err.print(f"[red]error:[/red] {error}", highlight=False, markup=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
