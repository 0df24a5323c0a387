"""`tts eval` with several strategies or widths: every one on the same questions, by one process a core."""

from __future__ import annotations

import dataclasses
import time
import typing
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import Progress

from tts import strategies
from tts.comparison import Measurement, Method, Trial, of_first, quantile_bins, rows, trial
from tts.selection import RULES
from tts.surfaces import workers
from tts.surfaces.settings import typed
from tts.tasks import chain

SHARED = "best_of_n"
"""Its samples are independent: of a wide run the first k are those of a run of k, under any rule of selection."""
GREEDY, ALONE = "greedy", "verifier as solver"
NUM_PROBES = 32
"""Samples a question that its difficulty is read from; they are no others' samples, and nobody is charged for them."""


@dataclass(frozen=True)
class Settings:
    """What all methods of a comparison share."""

    limit: int
    seed: int
    policy: str
    verifier: str | None
    temperature: float
    select: str | None
    widths: tuple[int, ...]
    baseline: str
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Each strategy takes those that it has."""
    engine: workers.Engine = workers.ON_EACH_CORE

    @property
    def rules(self) -> list[str]:
        """The rules under which shared samples are read, the one that others use last."""
        if self.select:
            return [self.select]
        return [*(rule for rule in RULES if rule != "weighted"), "weighted"] if self.verifier else ["majority"]

    @property
    def baseline_name(self) -> str:
        """The baseline's name in the table."""
        return f"{SHARED}/{self.rules[-1]}" if self.baseline == SHARED else self.baseline

    @property
    def grid(self) -> list[int]:
        """The widths at which shared samples are read: those asked for, and the powers of two below the largest."""
        largest = max(self.widths)
        return sorted({*self.widths, *(1 << i for i in range(largest.bit_length()) if 1 << i < largest)})


@dataclass(frozen=True)
class Shard:
    """One strategy at one width on every so-many-th question; what a worker does and gives back."""

    strategy: str
    n: int | None
    index: int
    count: int


@dataclass(frozen=True)
class Done:
    shard: Shard
    trials: Mapping[Method, Sequence[Trial]]
    pass_rates: Sequence[float]
    """Fractions of right samples, of a shard of `probe`."""
    seconds: float
    error: str | None


PROBE = "probe"


def chosen(names: str) -> list[str]:
    """The strategies that `--strategy` names: several with commas between, or `all`."""
    found = sorted(strategies.STRATEGIES) if names == "all" else [name.strip() for name in names.split(",")]
    for name in found:
        strategies.find(name)
    return list(dict.fromkeys(found))


def shared_parameters(names: Sequence[str], given: list[str] | None) -> dict[str, Any]:
    """NAME=VALUE texts for all strategies: each takes the names that it has. `ValueError` for a name that none has."""
    types: dict[str, Any] = {}
    for name in names:
        types |= typing.get_type_hints(strategies.find(name).parameters)
    unknown = [text for text in given or [] if text.partition("=")[0] not in types]
    if unknown:
        raise ValueError(f"--set {unknown[0]}: none of {', '.join(names)} has this parameter; they have {', '.join(types)}")
    return typed(given, types)


def run(names: Sequence[str], given: Settings, errors: Console) -> dict[str, Any]:
    """The comparison as plain values: rows, bins, what was not run and why."""
    started = time.perf_counter()
    plan, not_run = _plan(dict.fromkeys([*names, given.baseline]), given)
    with workers.pool() as pool:
        done = _work(pool, plan, given, errors)
    failed = {(d.shard.strategy, d.shard.n): d.error for d in done if d.error}
    not_run += [{"strategy": name, "n": n, "reason": reason} for (name, n), reason in failed.items()]
    found = _merge([d for d in done if (d.shard.strategy, d.shard.n) not in failed])
    bins, edges = quantile_bins(_in_order([(d.shard, d.pass_rates) for d in done if d.shard.strategy == PROBE]))
    grid = [m for m in found if m.method.name == given.baseline_name]
    asked = [m for m in found if m.method.n in (*given.widths, None) or m.method.strategy in (GREEDY, ALONE)]
    return {
        "limit": given.limit,
        "seed": given.seed,
        "baseline": given.baseline_name,
        "rows": sorted(rows(asked, given.baseline_name, grid, bins, given.seed), key=lambda r: (r["strategy"], r["n"] or 0)),
        "bins": {"edges": edges, "questions": {str(b): bins.count(b) for b in sorted(set(bins))}},
        "not_run": not_run,
        "seconds": time.perf_counter() - started,
    }


def _plan(names: Iterable[str], given: Settings) -> tuple[list[Shard], list[dict[str, Any]]]:
    """The shards, widest first so that no process is left with a long one, and what its parameters do not allow."""
    asked: list[tuple[str, int | None]] = [(PROBE, NUM_PROBES), (GREEDY, 1)]
    asked += [(ALONE, 1)] if given.verifier else []
    not_run = []
    for name in names:
        widths = [max(given.widths)] if name == SHARED else given.widths if _has_width(name) else [None]
        for n in widths:
            try:
                strategies.find(name).make_parameters(parameters(name, n, given))
                asked.append((name, n))
            except ValueError as error:
                not_run.append({"strategy": name, "n": n, "reason": str(error)})
    asked.sort(key=lambda pair: -(pair[1] or max(given.widths)))
    count = workers.count()
    return [Shard(name, n, i, count) for name, n in asked for i in range(count)], not_run


def parameters(name: str, n: int | None, given: Settings) -> dict[str, Any]:
    """The strategy's own parameters among the given ones, and its width."""
    fields = {f.name for f in dataclasses.fields(strategies.find(name).parameters)}
    taken = {key: value for key, value in given.parameters.items() if key in fields}
    return taken if n is None else taken | {"n": n}


def _has_width(name: str) -> bool:
    return any(f.name == "n" for f in dataclasses.fields(strategies.find(name).parameters))


def _work(pool: ProcessPoolExecutor, plan: Sequence[Shard], given: Settings, errors: Console) -> list[Done]:
    tasks = [pool.submit(measure, shard, given) for shard in plan]
    done = []
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        for task in progress.track(tasks, description="searching"):
            done.append(task.result())
    return done


def _merge(done: Sequence[Done]) -> list[Measurement]:
    """The shards of each method put together; seconds are those of a run, not of what was read from a wider one's samples."""
    parts: dict[Method, list[tuple[Shard, Sequence[Trial]]]] = {}
    seconds: dict[tuple[str, int | None], float] = {}
    for d in done:
        key = (d.shard.strategy, d.shard.n)
        seconds[key] = seconds.get(key, 0.0) + d.seconds
        for method, trials in d.trials.items():
            parts.setdefault(method, []).append((d.shard, trials))
    found = []
    for method, shares in parts.items():
        trials = _in_order(shares)
        spent = seconds.get((method.strategy, method.n))
        found.append(Measurement(method, trials, None if spent is None else spent / len(trials)))
    return found


def _in_order(shares: Sequence[tuple[Shard, Sequence[Any]]]) -> list[Any]:
    """What the shards of a set of questions gave, in the order of the questions."""
    values: list[Any] = [None] * sum(len(part) for _, part in shares)
    for shard, part in shares:
        values[shard.index :: shard.count] = part
    return values


# ---- in the worker processes


def measure(shard: Shard, given: Settings) -> Done:
    """Run one shard. A strategy that cannot be run on the task, or fails on every question, says so as `error`."""
    started = time.perf_counter()
    try:
        trials, pass_rates = _measure(shard, given)
        error = _common_error(trials)
    except ValueError as problem:
        trials, pass_rates, error = {}, [], str(problem)
    return Done(shard, trials, pass_rates, time.perf_counter() - started, error)


def _measure(shard: Shard, given: Settings) -> tuple[dict[Method, list[Trial]], list[float]]:
    problems = chain.natural(given.limit, given.seed)[shard.index :: shard.count]
    name, n = shard.strategy, shard.n
    if name == PROBE:
        results = workers.solver(given.policy, None, given.engine).solve_many(
            problems, SHARED, n=NUM_PROBES, temperature=given.temperature, seed=given.seed + 1
        )
        return {}, [sum(c.answer == r.problem.gold for c in r.candidates) / NUM_PROBES for r in results]
    if name in (GREEDY, ALONE):
        policy = given.policy if name == GREEDY else given.verifier
        solver = workers.solver(str(policy), None, given.engine)
        results = solver.solve_many(problems, SHARED, n=1, temperature=0.0, seed=given.seed)
        return {Method(name, 1, ""): [trial(r, solver.task) for r in results]}, []
    solver = workers.solver(given.policy, given.verifier, given.engine)
    options = parameters(name, n, given) | {"select": given.select, "temperature": given.temperature, "seed": given.seed}
    results = solver.solve_many(problems, name, **options)
    if name != SHARED or n is None:
        return {Method(name, n, ""): [trial(r, solver.task) for r in results]}, []
    return {
        Method(name, k, rule): [of_first(r, k, rule, solver.task) for r in results] for rule in given.rules for k in given.grid
    }, []


def _common_error(trials: Mapping[Method, Iterable[Trial]]) -> str | None:
    """The error of the first question, if every question has one: then the strategy does not apply."""
    errors = [t.error for part in trials.values() for t in part]
    return errors[0] if errors and all(errors) else None
