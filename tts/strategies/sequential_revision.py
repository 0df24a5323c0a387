"""Sequential revision: chains of answers, each of which sees the last ones before it."""

from dataclasses import dataclass

from tts.moves import All, Answer, Expand, Moves, Node, Prompt, Score
from tts.strategies.base import MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class SequentialRevision:
    n: int = parameter(16, "answers in all, over all chains", 1, MAX_WIDTH)
    chains: int = parameter(4, "chains side by side: n / chains answers in each", 1, MAX_WIDTH)
    context: int = parameter(4, "most earlier answers that a revision sees", 1, 100)


@strategy(
    "sequential_revision",
    source="Snell et al. 2024, arXiv 2408.03314, section 6",
    needs_verifier=False,
    templates=("revise",),
    select="hierarchical",
)
def sequential_revision(problem: SearchProblem, p: SequentialRevision) -> Moves:
    """Parallel chains of revisions; every answer of every chain competes.

    With a verifier the best answer of each chain is found first, then the best of those; by majority all vote at once.
    """

    def chain(length):
        said: list[Node] = []
        for _ in range(length):
            source = Prompt("revise", tuple(said[-p.context :])) if said else problem.root
            said += yield Expand([source], 1, Answer())
            yield Score(said[-1:])
        return said

    chains = min(p.chains, p.n)
    said = yield All([chain(p.n // chains + (i < p.n % chains)) for i in range(chains)])
    return [answer for answers in said for answer in answers]
