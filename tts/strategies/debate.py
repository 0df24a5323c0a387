"""Multi-agent debate: agents answer, read each other's answers, and answer again."""

from dataclasses import dataclass

from tts.moves import Answer, Expand, Moves, Prompt
from tts.strategies.base import MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class Debate:
    n: int = parameter(3, "agents", 1, MAX_WIDTH)
    rounds: int = parameter(2, "rounds after the first answers", 1, 100)


@strategy("debate", source="Du et al. 2023, arXiv 2305.14325", needs_verifier=False, templates=("debate",), score=None)
def debate(problem: SearchProblem, p: Debate) -> Moves:
    """N agents; each round every agent sees its own and the others' last answers. The majority of the last round wins."""
    said = yield Expand([problem.root], p.n, Answer())
    for _ in range(p.rounds):
        views = [Prompt("debate", (own, *(x for x in said if x is not own))) for own in said]
        said = yield Expand(views, 1, Answer())
    return said
