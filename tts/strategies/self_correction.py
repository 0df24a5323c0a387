"""Self-correction by prompt: the policy reviews its own answer and writes another."""

from dataclasses import dataclass

from tts.moves import Answer, Expand, Moves, Prompt
from tts.strategies.base import MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class SelfCorrection:
    n: int = parameter(1, "answers, each corrected on its own", 1, MAX_WIDTH)
    rounds: int = parameter(2, "corrections of each", 1, 100)


@strategy(
    "self_correction",
    source="Huang et al. 2023, arXiv 2310.01798 (intrinsic self-correction)",
    needs_verifier=False,
    templates=("correct",),
    score=None,
)
def self_correction(problem: SearchProblem, p: SelfCorrection) -> Moves:
    """Answer, then review the last answer and write it again, several times; the last ones count."""
    said = yield Expand([problem.root], p.n, Answer())
    for _ in range(p.rounds):
        said = yield Expand([Prompt("correct", (x,)) for x in said], 1, Answer())
    return said
