"""REBASE: reward-balanced search. Children in proportion to the softmax of the verifier's scores."""

from dataclasses import dataclass

from tts.moves import Allocate, Drop, Expand, Moves, Score, Softmax
from tts.strategies.base import AGGREGATIONS, MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class Rebase:
    n: int = parameter(16, "answers in all", 1, MAX_WIDTH)
    balance: float = parameter(0.2, "temperature of the softmax over scores (T_b): small is greedy", 1e-3, 1e3)
    max_steps: int = parameter(40, "rounds after which unfinished branches are returned as they are", 1, 1000)
    prune_agg: str = parameter("last", "step scores -> the value that a branch's children are shared by", choices=AGGREGATIONS)


@strategy("rebase", source="Wu et al. 2024, arXiv 2408.00724")
def rebase(problem: SearchProblem, p: Rebase) -> Moves:
    """N branches; each round shares the children by score: W_i = ceil(W_left e^(r_i/T_b) / sum_{j>=i} e^(r_j/T_b)).

    A finished branch uses up one of the N, so exactly N answers come back.
    """
    live, done = (yield Expand([problem.root], p.n)), []
    for round in range(p.max_steps):
        yield Score(live)
        done += [x for x in live if x.is_done]
        live = [x for x in live if not x.is_done]
        if not live or round == p.max_steps - 1:
            break
        widths = yield Allocate(live, Softmax(p.balance), p.n - len(done), [x.value(p.prune_agg) for x in live])
        if not any(widths):  # no live branch has a valid value: they are returned as they are
            break
        yield Drop([x for x, w in zip(live, widths) if not w])
        live = yield Expand(live, widths)
    return done + live
