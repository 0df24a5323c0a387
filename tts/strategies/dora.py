"""DORA: REBASE's shares, divided among branches that say the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tts.moves import Allocate, Drop, Embed, Expand, Moves, Proportional, Score
from tts.strategies.base import AGGREGATIONS, MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class Dora:
    n: int = parameter(16, "answers in all", 1, MAX_WIDTH)
    balance: float = parameter(0.1, "temperature of the softmax over scores (T_b)", 1e-3, 1e3)
    similarity: float = parameter(0.01, "temperature of the softmax over cosine similarities (alpha)", 1e-3, 1e3)
    max_steps: int = parameter(40, "rounds after which unfinished branches are returned as they are", 1, 1000)
    prune_agg: str = parameter("last", "step scores -> the value that a branch's children are shared by", choices=AGGREGATIONS)


@strategy("dora", source="Wang et al. 2025, arXiv 2506.15707")
def dora(problem: SearchProblem, p: Dora) -> Moves:
    """N branches; each round shares the children as round(W q_i gamma_i / sum_j q_j gamma_j).

    q is the softmax of the scores and gamma_i how unlike the others branch i is, by the policy's state at its end. A finished
    branch uses up one of the N, so exactly N answers come back.
    """
    live, done = (yield Expand([problem.root], p.n)), []
    for round in range(p.max_steps):
        yield Score(live)
        done += [x for x in live if x.is_done]
        live = [x for x in live if not x.is_done]
        if not live or round == p.max_steps - 1:
            break
        gamma = uniqueness((yield Embed(live)), p.similarity)
        weights = [x.value(p.prune_agg) / p.balance + math.log(g) for x, g in zip(live, gamma)]
        widths = yield Allocate(live, Proportional(), p.n - len(done), weights)
        if not any(widths):  # no live branch has a valid value: they are returned as they are
            break
        yield Drop([x for x, w in zip(live, widths) if not w])
        live = yield Expand(live, widths)
    return done + live


def uniqueness(states: Sequence[Any], alpha: float) -> list[float]:
    """gamma_i = softmax_j(S_ij / alpha) at j = i, S the cosine similarities of the states, float32[E] arrays.

    Among k equal states, all others unlike them, it is 1/k.
    """
    units = [x / max(math.sqrt(float(x @ x)), 1e-12) for x in states]
    return [1 / sum(math.exp((float(x @ y) - float(x @ x)) / alpha) for y in units) for x in units]
