"""Adaptive-Consistency: sample answers until the majority is unlikely to change."""

from dataclasses import dataclass
from math import comb

from tts.moves import Answer, Expand, Moves, Node
from tts.strategies.base import MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class AdaptiveConsistency:
    n: int = parameter(40, "most answers to sample", 1, MAX_WIDTH)
    batch: int = parameter(1, "answers sampled between two looks", 1, MAX_WIDTH)
    threshold: float = parameter(0.95, "probability that the leading answer is the likelier one, at which to stop", 0.5, 1.0)


@strategy("adaptive_consistency", source="Aggarwal et al. 2023, arXiv 2305.11860", needs_verifier=False, score=None)
def adaptive_consistency(problem: SearchProblem, p: AdaptiveConsistency) -> Moves:
    """Sample until the leading answer beats the second with probability >= .95 under a beta posterior, or N are there."""
    done: list[Node] = []
    while len(done) < p.n:
        done += yield Expand([problem.root], min(p.batch, p.n - len(done)), Answer())
        first, second, *_ = [len(group) for group in problem.groups(done)] + [0, 0]
        if first and lead(first, second) >= p.threshold:
            break
    return done


def lead(a: int, b: int) -> float:
    """P(p1 > p2) after `a` votes for one answer and `b` for another: 1 - I_.5(a+1, b+1), I the regularised incomplete beta.

    For whole counts it is the chance of at most `a` heads in a + b + 1 fair tosses, summed exactly.
    """
    tosses = a + b + 1
    return sum(comb(tosses, heads) for heads in range(a + 1)) / 2**tosses
