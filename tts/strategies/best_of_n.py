"""Best-of-N: sample N whole answers, score them once."""

from dataclasses import dataclass

from tts.moves import Answer, Expand, Moves, Score
from tts.strategies.base import MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class BestOfN:
    n: int = parameter(16, "whole answers to sample", 1, MAX_WIDTH)


@strategy("best_of_n", source="Cobbe et al. 2021; Snell et al. 2024", needs_verifier=False)
def best_of_n(problem: SearchProblem, p: BestOfN) -> Moves:
    """N independent whole answers, each step of each scored once."""
    answers = yield Expand([problem.root], p.n, Answer())
    yield Score(answers)
    return answers
