"""Strategies side by side on the same questions: accuracy, cost, and what the difference between two of them is worth.

Questions are resampled, the same ones for every strategy (paired bootstrap, Efron 1979), so that what makes all strategies right
or wrong on a question does not count as noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tts import selection
from tts.evaluation import wilson
from tts.meter import context
from tts.tasks import Task

if TYPE_CHECKING:
    from tts.solver import Candidate, Result

NUM_RESAMPLES = 10_000
NUM_BINS = 5
SLACK = 1.02
"""How far outside of the baseline's range FLOPs still count as equal: searches of one N differ by a fraction of a percent."""


@dataclass(frozen=True)
class Trial:
    """One question under one method."""

    is_correct: bool
    policy_tokens: int
    verifier_tokens: int
    flops: float
    attention_flops: float
    is_unparsable: bool = False
    """No candidate had an answer that could be read: wrong, and charged all the same."""
    error: str | None = None


@dataclass(frozen=True)
class Method:
    """A strategy at a width, and the rule that chose its answers. `n` is None for strategies without a width."""

    strategy: str
    n: int | None
    select: str

    @property
    def name(self) -> str:
        return self.strategy if self.select == "" else f"{self.strategy}/{self.select}"


@dataclass(frozen=True)
class Measurement:
    """A method on all questions, in their order; `seconds` of one core a question, None where samples were shared."""

    method: Method
    trials: Sequence[Trial]
    seconds: float | None

    @property
    def correct(self) -> np.ndarray:
        """f64[Q], 1 where right."""
        return np.array([t.is_correct for t in self.trials], float)

    def mean(self, name: str) -> float:
        """The mean of a field of the trials."""
        return float(np.mean([getattr(t, name) for t in self.trials]))


def trial(result: Result, task: Task) -> Trial:
    """A result as a trial."""
    meter = result.meter
    return Trial(
        result.answer is not None and result.problem.gold is not None and task.equal(result.problem.gold, result.answer),
        meter.policy_tokens,
        meter.verifier_tokens,
        meter.flops,
        meter.attention_flops,
        result.answer is None,
        result.error,
    )


def of_first(result: Result, k: int, rule: str, task: Task) -> Trial:
    """Best-of-k out of a larger best-of-N: a draw depends on its lineage alone, so the first k are what k alone would sample.

    They are charged what they alone cost; a majority needs no verifier. The verifier's share is that of the steps which are
    new to it: equal branches are read once.
    """
    candidates, meter = result.candidates[:k], result.meter
    if not candidates:
        return trial(result, task)
    winner = selection.select([c.answer for c in candidates], [c.score for c in candidates], rule, task.group)
    answer, gold = candidates[winner].answer, result.problem.gold
    lengths = [sum(step.num_tokens for step in c.steps) for c in result.candidates]
    prompt, drawn = meter.prompt_tokens, sum(lengths[:k])
    drawn_spans = [[(0, prompt)], *([(prompt, prompt + n)] for n in lengths)]
    share, attended = _shares(drawn_spans, k + 1)
    read, read_attended = (0.0, 0.0) if rule == "majority" else _shares([[(0, prompt)], *_read(result.candidates, prompt)], k + 1)
    return Trial(
        answer is not None and gold is not None and task.equal(gold, answer),
        drawn,
        round(meter.verifier_tokens * read),
        meter.policy_flops * share + meter.verifier_flops * read,
        meter.policy_attention_flops * attended + meter.verifier_attention_flops * read_attended,
        answer is None,
    )


def _read(candidates: Sequence[Candidate], prompt: int) -> list[list[tuple[int, int]]]:
    """The positions at which each candidate's steps lie, those left out that an earlier one begins with as well."""
    known: set[tuple[str, ...]] = set()
    spans: list[list[tuple[int, int]]] = []
    for candidate in candidates:
        begin, new = prompt, []
        path: tuple[str, ...] = ()
        for step in candidate.steps:
            path = (*path, step.text)
            if path not in known:
                known.add(path)
                new.append((begin, begin + step.num_tokens))
            begin += step.num_tokens
        spans.append(new)
    return spans


def _shares(spans: Sequence[Sequence[tuple[int, int]]], count: int) -> tuple[float, float]:
    """What the first `count` of these have of all tokens, and of all their contexts."""
    tokens = [sum(end - begin for begin, end in own) for own in spans]
    contexts = [sum(context(begin, end) for begin, end in own) for own in spans]
    return sum(tokens[:count]) / sum(tokens), sum(contexts[:count]) / sum(contexts)


def resamples(num_questions: int, seed: int) -> np.ndarray:
    """f64[NUM_RESAMPLES, Q]: how often each question is in each resample, over Q; its product with values is their means."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_questions, [1 / num_questions] * num_questions, NUM_RESAMPLES) / num_questions


def interval(values: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """The mean of `values` f64[Q] with its 95 % bootstrap interval (percentiles 2.5 and 97.5)."""
    low, high = np.percentile(weights @ values, [2.5, 97.5])
    return {"mean": float(values.mean()), "ci": [float(low), float(high)]}


def at_equal_flops(flops: float, baseline: Sequence[Measurement]) -> np.ndarray | None:
    """f64[Q]: how often the baseline is right on each question if it spends `flops` a question.

    Between two of its widths it is interpolated in the logarithm of the FLOPs. None outside of what the baseline was run with.
    """
    ordered = sorted(baseline, key=lambda m: m.mean("flops"))
    spent = [m.mean("flops") for m in ordered]
    if not spent or not spent[0] / SLACK <= flops <= spent[-1] * SLACK:
        return None
    flops = min(flops, spent[-1])
    above = next(i for i, value in enumerate(spent) if value >= flops)
    if above == 0:
        return ordered[0].correct
    share = math.log(flops / spent[above - 1]) / math.log(spent[above] / spent[above - 1])
    return (1 - share) * ordered[above - 1].correct + share * ordered[above].correct


def quantile_bins(pass_rates: Sequence[float]) -> tuple[list[int], list[float]]:
    """Each question's difficulty bin, 1 (easiest) to 5, and the four edges between them.

    Oracle difficulty (Snell et al. 2024, section 3.2): quintiles of pass@1. A question is in the bin whose lower edge it
    reaches; questions of equal pass@1 are never torn apart, so bins may be of unequal size or empty.
    """
    edges = np.quantile(np.array(pass_rates), [i / NUM_BINS for i in range(1, NUM_BINS)])
    return [NUM_BINS - int(np.searchsorted(edges, rate, side="right")) for rate in pass_rates], [float(e) for e in edges]


def rows(
    measured: Sequence[Measurement], baseline: str, grid: Sequence[Measurement], bins: Sequence[int], seed: int
) -> list[dict[str, Any]]:
    """One row a measurement: accuracy, cost a question, differences from the method called `baseline`, accuracy by bin.

    `grid` is the baseline at all widths that are known. The difference at equal N is None where the baseline has no such N.
    """
    weights = resamples(len(bins), seed)
    by_width = {m.method.n: m for m in grid}
    return [_row(m, baseline, by_width, grid, np.array(bins), weights) for m in measured]


def _row(
    found: Measurement,
    baseline: str,
    by_width: dict[int | None, Measurement],
    grid: Sequence[Measurement],
    bins: np.ndarray,
    weights: np.ndarray,
) -> dict[str, Any]:
    correct, method = found.correct, found.method
    same, matched = by_width.get(method.n), at_equal_flops(found.mean("flops"), grid)
    is_baseline = method.name == baseline
    return {
        "strategy": method.name,
        "n": method.n,
        "accuracy": float(correct.mean()),
        "ci": list(wilson(int(correct.sum()), len(correct))),
        "difference": None if same is None or is_baseline else interval(correct - same.correct, weights),
        "difference_at_equal_flops": None if matched is None or is_baseline else interval(correct - matched, weights),
        "policy_tokens": found.mean("policy_tokens"),
        "verifier_tokens": found.mean("verifier_tokens"),
        "flops": found.mean("flops"),
        "attention_flops": found.mean("attention_flops"),
        "seconds": found.seconds,
        "unparsable": found.mean("is_unparsable"),
        "num_errors": sum(t.error is not None for t in found.trials),
        "by_bin": {str(b): float(correct[bins == b].mean()) for b in sorted(set(bins.tolist()))},
    }
