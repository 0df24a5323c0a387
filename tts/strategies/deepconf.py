"""DeepConf: keep the answers of whose every stretch the policy was confident, and vote by confidence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tts.moves import Answer, Confidence, Expand, Moves, Node
from tts.strategies.base import MAX_WIDTH, SearchProblem, parameter, strategy

SCORE = "confidence"


@dataclass(frozen=True)
class Offline:
    n: int = parameter(16, "answers to sample", 1, MAX_WIDTH)
    keep: float = parameter(10.0, "percentage of the answers, the most confident ones, that vote (eta)", 0.1, 100.0)
    window: int = parameter(2048, "tokens of a group, over which confidence is averaged", 1, 1 << 20)


@dataclass(frozen=True)
class Online(Offline):
    warmup: int = parameter(16, "answers sampled in full, which set the threshold", 1, MAX_WIDTH)


@strategy("deepconf_offline", source="Fu et al. 2025, arXiv 2508.15260", needs_verifier=False, score=SCORE)
def deepconf_offline(problem: SearchProblem, p: Offline) -> Moves:
    """N answers; those whose least confident group is among the top eta percent vote, weighted by that confidence."""
    answers = yield Expand([problem.root], p.n, Answer(), stats=("confidence",))
    return confident(answers, p)


@strategy("deepconf_online", source="Fu et al. 2025, arXiv 2508.15260", needs_verifier=False, score=SCORE)
def deepconf_online(problem: SearchProblem, p: Online) -> Moves:
    """Warm-up answers set the threshold; of the others each is ended where a group's confidence falls below it."""
    warmup = yield Expand([problem.root], min(p.warmup, p.n), Answer(), stats=("confidence",))
    bound = percentile([lowest_group(x, p.window) for x in warmup], 100 - p.keep)
    watch = None if math.isnan(bound) else Confidence(p.window, bound)
    rest = yield Expand([problem.root], p.n - len(warmup), Answer(), watch=watch, stats=("confidence",))
    finished = [x for x in rest if x.end != "watch"]
    return confident(warmup + finished, p, bound)


def confident(answers: list[Node], p: Offline, bound: float | None = None) -> list[Node]:
    """The answers at or above the bound (by default the percentile among themselves), their confidence as their score."""
    lowest = [lowest_group(x, p.window) for x in answers]
    bound = percentile(lowest, 100 - p.keep) if bound is None else bound
    for x, confidence in zip(answers, lowest):
        x.set_score(SCORE, confidence)
    return [x for x, confidence in zip(answers, lowest) if confidence >= bound] or answers


def lowest_group(answer: Node, window: int) -> float:
    """The least mean confidence of `window` tokens in a row; of all of them if there are fewer, NaN if there are none."""
    values = [v for node in answer.path for v in node.stats["confidence"]]
    window = min(window, len(values))
    if not window:
        return math.nan
    sums = [sum(values[:window])]
    for old, new in zip(values, values[window:]):
        sums.append(sums[-1] + new - old)
    return min(sums) / window


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile of the finite values, interpolated linearly between the two nearest; NaN without any."""
    ordered = sorted(v for v in values if math.isfinite(v))
    if not ordered:
        return math.nan
    place = (len(ordered) - 1) * percent / 100
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
