"""The command line: `tts demo`, `tts solve`, `tts eval`, `tts judge`, `tts verifier`, `tts strategies`, `tts info`."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tts.surfaces import workers

if TYPE_CHECKING:
    from tts.presets.recipe import Recipe
    from tts.surfaces import compare

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_show_locals=False)
out, err = Console(), Console(stderr=True)

PolicyOption = Annotated[str | None, typer.Option(help="A model folder, a hub id or zoo:NAME; default zoo:S or the recipe's.")]
VerifierOption = Annotated[str | None, typer.Option(help="The same, or auto, none, rule.")]
TaskOption = Annotated[str, typer.Option(help="chain, math or auto.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the strategy; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on stdout.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
BackendOption = Annotated[str | None, typer.Option(help="One backend for all kernels; the default is the best of each.")]
SelectOption = Annotated[str | None, typer.Option(help="majority, max, weighted or hierarchical.")]
MaxRowsOption = Annotated[int, typer.Option(help="Branches decoded at a time; changes speed, never a result.")]
KvBytesOption = Annotated[int | None, typer.Option(help="Memory for all KV pools; changes speed, never a result.")]
ThreadsOption = Annotated[
    int | None, typer.Option(help="CPU threads; default 1 for the zoo, whose steps are too small to share.")
]
TemperatureOption = Annotated[float | None, typer.Option(help="0 is greedy; default 0.8.")]
RecipeOption = Annotated[str | None, typer.Option(metavar="FILE.yaml", help="A recipe of search-and-learn, as it is.")]
PromptOption = Annotated[str | None, typer.Option(help="A prompt preset of the task math: see tts/tasks/prompts.py.")]


@app.command()
def solve(
    problem: str,
    strategy: Annotated[str | None, typer.Option(help="See `tts strategies`; default beam.")] = None,
    n: Annotated[int | None, typer.Option("--n", help="Total width: answers sampled; default 16.")] = None,
    policy: PolicyOption = None,
    verifier: VerifierOption = None,
    task: TaskOption = "auto",
    select: SelectOption = None,
    temperature: TemperatureOption = None,
    max_tokens: int | None = None,
    seed: int | None = None,
    device: DeviceOption = "auto",
    backend: BackendOption = None,
    max_rows: MaxRowsOption = 1024,
    kv_bytes: KvBytesOption = None,
    threads: ThreadsOption = None,
    set_: SetOption = None,
    recipe: RecipeOption = None,
    prompt: PromptOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search one problem and print its answer."""
    from tts.surfaces import settings, show

    given = settings.read_recipe(recipe)
    name = strategy or (given.strategy if given else "beam")
    parameters = settings.parameters(name, set_, n, given)
    solver = _solver(policy, verifier, task, workers.Engine(device, backend, max_rows, kv_bytes), threads, given, prompt)
    _say_without_effect(given, solver.task.name)
    drawn = {"select": select, "temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    options = settings.search_options(given, name, solver.task.name == "chain", **drawn)
    result = solver.solve(problem, name, **options, **parameters)
    if as_json:
        _print_json(result.as_dict())
    else:
        show.result(out, result, solver.task)


@app.command("eval")
def evaluate(
    task: Annotated[str, typer.Argument(help="chain: its natural test set, drawn from --seed; math with --data.")],
    strategy: Annotated[
        str | None, typer.Option(help="One, several with commas between, or all; see `tts strategies`. Default beam.")
    ] = None,
    n: Annotated[str | None, typer.Option("--n", help="Total width: answers sampled; several with commas between.")] = None,
    limit: Annotated[int | None, typer.Option(help="Questions; default 100, or what the recipe says.")] = None,
    policy: PolicyOption = None,
    verifier: VerifierOption = None,
    select: SelectOption = None,
    temperature: TemperatureOption = None,
    seed: Annotated[int | None, typer.Option(help="Of the questions and of the draws; default 0.")] = None,
    device: DeviceOption = "auto",
    backend: BackendOption = None,
    max_rows: MaxRowsOption = 1024,
    kv_bytes: KvBytesOption = None,
    threads: ThreadsOption = None,
    set_: SetOption = None,
    recipe: RecipeOption = None,
    prompt: PromptOption = None,
    data: Annotated[str | None, typer.Option(help="JSON lines with problem, answer, unique_id.")] = None,
    format: Annotated[str, typer.Option(help="table, or search-and-learn: JSON lines with its columns.")] = "table",
    baseline: Annotated[str, typer.Option(help="The strategy that several are compared with.")] = "best_of_n",
    plot: Annotated[str | None, typer.Option(metavar="FILE.png", help="Accuracy against FLOPs, one panel a strategy.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy on a task with its confidence interval and its cost: of one strategy, or of several side by side."""
    from tts.evaluation import evaluate as grade
    from tts.presets.columns import columns
    from tts.surfaces import compare, settings, show

    if format not in ("table", "search-and-learn"):
        raise ValueError(f"--format must be table or search-and-learn, got {format!r}")
    given = settings.read_recipe(recipe)
    names = compare.chosen(strategy or (given.strategy if given else "beam"))
    widths = settings.widths(n)
    if len(names) > 1 or len(widths) > 1 or plot:
        without = {"--recipe": given, "--data": data, "--format": format != "table", "--prompt": prompt, "--threads": threads}
        if task != "chain" or any(without.values()):
            raise ValueError(f"several strategies or widths, and --plot, are for task chain, without {', '.join(without)}")
        settings.check_limit(limit)
        judge = "zoo:M" if verifier in (None, "auto") else None if verifier == "none" else verifier
        engine = workers.Engine(device, backend, max_rows, kv_bytes or workers.ON_EACH_CORE.kv_bytes)
        asked = compare.Settings(
            limit=limit or 100,
            seed=seed or 0,
            policy=policy or "zoo:S",
            verifier=judge,
            temperature=0.8 if temperature is None else temperature,
            select=select,
            widths=tuple(widths or [16]),
            baseline=baseline,
            parameters=compare.shared_parameters(names, set_),
            engine=engine,
        )
        _compare(names, asked, plot, as_json)
        return
    name = names[0]
    scoring, own = settings.scoring(set_, given)
    parameters = settings.parameters(name, own, widths[0] if widths else None, given)
    options = settings.search_options(given, name, task == "chain", select=select, temperature=temperature, seed=seed)
    problems = settings.problems(task, data, limit, options.get("seed", 0), given)
    solver = _solver(policy, verifier, task, workers.Engine(device, backend, max_rows, kv_bytes), threads, given, prompt)
    _say_without_effect(given, task)
    each = solver.solve_each(problems, name, **options, **parameters)
    results: dict[int, Any] = {}
    with Progress(console=err, transient=True, disable=not err.is_terminal) as progress:
        for index, result in progress.track(each, total=len(problems), description=f"{name} n={parameters['n']}"):
            results[index] = result
    evaluation = grade([results[i] for i in range(len(problems))], solver.task)
    show.machine_cost(err, solver, evaluation)
    if format == "search-and-learn":
        for result in evaluation.results:
            _print_json(columns(result, solver.task, scoring))
    elif as_json:
        _print_json(evaluation.as_dict())
    else:
        show.evaluation(out, evaluation, f"{name} n={parameters['n']}")


def _compare(names: list[str], asked: compare.Settings, plot: str | None, as_json: bool) -> None:
    """Several strategies or widths on the same questions."""
    from tts.report import matched_flops
    from tts.surfaces import compare, show

    if plot:
        matched_flops.check()
    compare.chosen(asked.baseline)
    found = compare.run(names, asked, err)
    if plot:
        matched_flops.figure(found).savefig(plot, dpi=150)
    if as_json:
        _print_json(found)
    else:
        show.comparison(out, found)


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
    from tts.surfaces import check, settings

    settings.check_limit(limit)
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
    from tts.surfaces import settings

    settings.check_limit(limit)
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
    policy: str | None,
    verifier: str | None,
    task: str,
    engine: workers.Engine,
    threads: int | None,
    recipe: Recipe | None,
    prompt: str | None,
):
    import torch

    from tts.solver import Solver

    if threads is not None and threads < 1:
        raise ValueError(f"--threads must be >= 1, got {threads}")
    if recipe is not None and task != "chain" and not (policy or "").startswith("zoo:"):
        policy, verifier = policy or recipe.model_path, verifier or recipe.prm_path
    policy, verifier = policy or "zoo:S", verifier or "auto"
    if threads or policy.startswith("zoo:"):
        torch.set_num_threads(threads or 1)
    chosen = None if verifier == "none" else verifier
    return Solver(policy, chosen, _task(task, policy, recipe, prompt), **engine.options())


def _task(task: str, policy: str, recipe: Recipe | None, prompt: str | None) -> Any:
    """The task by its name, or with the prompt that the command line or the recipe names."""
    is_math = task == "math" or (task == "auto" and not policy.startswith("zoo:"))
    if prompt is not None and not is_math:
        raise ValueError(f"--prompt is for the task math, not for {task}")
    if not is_math:
        return task
    from tts.tasks.math import Math

    if recipe is None:
        return Math(prompt) if prompt else Math()
    return Math(prompt or recipe.prompt, recipe.template)


def _say_without_effect(recipe: Recipe | None, task: str) -> None:
    from tts.surfaces import settings

    if recipe is not None and (line := settings.without_effect(recipe, task)):
        err.print(f"[dim]recipe: without effect here: {line}[/dim]", highlight=False)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")


def main() -> None:
    """Run the command line; what a user can mend ends with one line on stderr and exit code 2."""
    workers.collect_seldom()
    try:
        app(standalone_mode=True)
    except ValueError as error:
        err.print(f"[red]error:[/red] {error}", highlight=False, markup=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
