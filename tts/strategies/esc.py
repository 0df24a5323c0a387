"""Early-stopping self-consistency: sample windows of answers until one is unanimous."""

from dataclasses import dataclass

from tts.moves import Answer, Expand, Moves, Node
from tts.strategies.base import MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class ESC:
    n: int = parameter(40, "most answers to sample", 1, MAX_WIDTH)
    window: int = parameter(5, "answers of a window (w)", 1, MAX_WIDTH)


@strategy("esc", source="Li et al. 2024, arXiv 2401.10480", needs_verifier=False, score=None)
def esc(problem: SearchProblem, p: ESC) -> Moves:
    """Sample w answers at a time; stop when all w agree, or when N are there. The majority over all of them is the answer."""
    done: list[Node] = []
    while len(done) < p.n:
        window = yield Expand([problem.root], min(p.window, p.n - len(done)), Answer())
        done += window
        groups = problem.groups(window)
        if groups and len(groups[0]) == p.window:
            break
    return done
