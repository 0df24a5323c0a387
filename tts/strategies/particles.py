"""Particle-based search: step scores as weights of a sequential Monte Carlo sampler over solutions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tts.moves import Allocate, Drop, Expand, Moves, Node, Resample, Score
from tts.strategies.base import AGGREGATIONS, MAX_WIDTH, SearchProblem, parameter, strategy

SCHEMES = ("systematic", "multinomial")
WEIGHTS = ("logit", "incremental")
SMALLEST = 1e-7
"""Scores are held within [SMALLEST, 1 - SMALLEST], so that their logits are finite."""


@dataclass(frozen=True)
class Particles:
    n: int = parameter(16, "particles of a filter: answers in all", 1, MAX_WIDTH)
    scheme: str = parameter("systematic", "how particles are resampled", choices=SCHEMES)
    weight: str = parameter("logit", "w = logit(r_t) (published), or the incremental log(r_t / r_{t-1})", choices=WEIGHTS)
    max_steps: int = parameter(40, "rounds after which unfinished particles are returned as they are", 1, 1000)
    prune_agg: str = parameter("last", "step scores -> r", choices=AGGREGATIONS)


@dataclass(frozen=True)
class Gibbs(Particles):
    iterations: int = parameter(2, "filters in a row, each but the first with a reference drawn from the one before", 1, 100)


@strategy("particle_filter", source="Puri et al. 2025, arXiv 2502.01618", select="max")
def particle_filter(problem: SearchProblem, p: Particles) -> Moves:
    """N particles; each round resamples N of them with probability softmax(w) and draws one step of each that has not ended.

    Exactly N come back. One that ended and was drawn several times comes back as often: it stands for that much of the posterior.
    """
    return (yield from run_filter(problem, p))


@strategy("particle_gibbs", source="Puri et al. 2025, arXiv 2502.01618", select="max")
def particle_gibbs(problem: SearchProblem, p: Gibbs) -> Moves:
    """Particle filters in a row; each keeps one reference trajectory of the one before, drawn with probability softmax(w).

    The N particles of the last come back.
    """
    particles = yield from run_filter(problem, p)
    for iteration in range(1, p.iterations):
        weights = softmax(log_weights(particles, p))
        reference = problem.rng("reference", iteration).choices(particles, weights)[0]
        particles = yield from run_filter(problem, p, reference=reference)
    return particles


@strategy("entropic_particle_filter", source="Giannone et al. 2025, arXiv 2510.05825 (entropic annealing)", select="max")
def entropic_particle_filter(problem: SearchProblem, p: Particles) -> Moves:
    """A particle filter that flattens its weights early on, while few particles hold most of the weight."""
    return (yield from run_filter(problem, p, is_entropic=True))


def run_filter(problem: SearchProblem, p: Particles, reference: Node | None = None, is_entropic: bool = False) -> Moves:
    """One filter; with a `reference`, that trajectory takes part in every round and is never resampled away."""
    kept = [] if reference is None else reference.path
    num_free = p.n - len(kept[:1])
    fresh = (yield Expand([problem.root], num_free)) if num_free else []
    particles = fresh + kept[:1]
    yield Score(particles)
    for t in range(1, p.max_steps):
        if all(x.is_done for x in particles):
            break
        values = log_weights(particles, p)
        if is_entropic:
            heat = temperature(softmax(values), t, p.max_steps)
            values = [value / heat for value in values]
        widths = yield Allocate(particles, Resample(p.scheme), num_free, values)
        if num_free and not any(widths):  # no particle has a valid weight: they are returned as they are
            break
        yield Drop([x for x, w in zip(particles, widths) if not w and x not in kept])
        ended = [x for x, w in zip(particles, widths) if x.is_done for _ in range(w)]
        drawn = [(x, w) for x, w in zip(particles, widths) if w and not x.is_done]
        fresh = yield Expand([x for x, _ in drawn], [w for _, w in drawn])
        particles = ended + fresh + kept[min(t, len(kept) - 1) :][:1]
        yield Score(fresh)
    return particles


def log_weights(particles: Sequence[Node], p: Particles) -> list[float]:
    """w_i, of which a softmax gives the probabilities; NaN where there is no score."""
    scores = [held(x.value(p.prune_agg)) for x in particles]
    if p.weight == "logit":
        return [math.log(r / (1 - r)) for r in scores]
    before = [held(x.path[-2].value(p.prune_agg)) if x.depth > 1 else 1.0 for x in particles]
    return [math.log(r / b) for r, b in zip(scores, before)]


def held(score: float) -> float:
    return score if math.isnan(score) else min(max(score, SMALLEST), 1 - SMALLEST)


def softmax(values: Sequence[float]) -> list[float]:
    """exp(w_i) / sum_j exp(w_j); a weight that is not finite counts nothing, and without any finite one all are equal."""
    best = max((v for v in values if math.isfinite(v)), default=math.nan)
    if math.isnan(best):
        return [1 / len(values)] * len(values)
    weights = [math.exp(v - best) if math.isfinite(v) else 0.0 for v in values]
    return [w / sum(weights) for w in weights]


def temperature(weights: Sequence[float], t: int, num_rounds: int) -> float:
    """max(1, (N / ESS)(1 - t/T)) while ESS/N < .5 and t/T < .5, else 1; ESS = 1 / sum of the squared weights."""
    n, ess, progress = len(weights), 1 / sum(w * w for w in weights), t / num_rounds
    return max(1.0, n / ess * (1 - progress)) if ess / n < 0.5 and progress < 0.5 else 1.0
