"""Speculative rejection: best-of-N that gives up the worse part of its unfinished answers as it goes."""

from dataclasses import dataclass
from math import floor

from tts.moves import Allocate, Drop, Expand, Moves, Score, Tokens, Top
from tts.strategies.base import MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class SpeculativeRejection:
    n: int = parameter(64, "answers that are begun", 1, MAX_WIDTH)
    every: int = parameter(32, "tokens between two cuts (c)", 1, 1 << 20)
    rejected: float = parameter(0.5, "share of the answers that a cut drops (alpha)", 0.0, 0.99)


@strategy("speculative_rejection", source="Sun et al. 2024, arXiv 2410.20290", select="max")
def speculative_rejection(problem: SearchProblem, p: SpeculativeRejection) -> Moves:
    """N answers at once; every c tokens the verifier reads the partial texts and the worst alpha of them are dropped.

    Answers that end are kept if they survive the cut behind them. The best comes back with the others that ended: fewer than N.
    """
    live, done = (yield Expand([problem.root], p.n, Tokens(p.every))), []
    while live:
        yield Score(live)
        num_kept = len(live) - floor(p.rejected * len(live))
        kept = yield Allocate(live, Top(num_kept), num_kept)
        if not any(kept):  # no valid score says who is worse
            kept = [1] * len(live)
        yield Drop([x for x, w in zip(live, kept) if not w])
        survivors = [x for x, w in zip(live, kept) if w]
        done += [x for x in survivors if x.is_done]
        live = yield Expand([x for x in survivors if not x.is_done], 1, Tokens(p.every))
    return done
