"""Beam search as search-and-learn runs it: the width is fixed, and a finished beam takes no slot."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from tts.moves import Allocate, Answer, Drop, Expand, Move, Moves, Node, Prompt, Steps, Top, Until
from tts.selection import aggregate
from tts.strategies.base import SearchProblem, parameter, strategy
from tts.strategies.search_and_learn.rules import SOURCE, Rules, finite, read, roll_out


@dataclass(frozen=True)
class BeamSearch(Rules):
    filter_duplicates: bool = parameter(False, "of beams with the same text keep the first")
    sort_completed: bool = parameter(False, "return the best n finished beams instead of the first n")
    score_lookahead: bool = parameter(False, "compare beams where their rollouts end (off, a defect: rollouts change nothing)")
    repeat_to_n: bool = parameter(True, "return finished beams again until there are n, so that they vote again (defect)")


@strategy("search_and_learn_beam", source=SOURCE)
def beam_search(problem: SearchProblem, p: BeamSearch) -> Moves:
    """N beams every round: the best N/M live ones, repeated in turn; the first N finished ones are returned.

    With N < M every live beam is kept. The last round writes each beam to its end. Of beams with equal values the first stays.
    """
    kept: Sequence[Node | Prompt] = [problem.root]
    live: list[Node] = []
    finished: list[Node] = []
    cut: list[Node] = []
    for round in range(p.max_steps):
        is_last = round == p.max_steps - 1
        grown = yield from grow(kept, p.n, Answer() if is_last else Steps(1))
        lookahead = 0 if is_last else p.lookahead
        if lookahead and not p.score_lookahead:
            yield from roll_out(grown, lookahead)
        reading = yield from read(grown, p, lookahead if p.score_lookahead else 0)
        finished += [x for x in grown if p.is_finished(x)]
        cut += [x for x in grown if x.is_done and not p.is_finished(x)]
        value = dict(zip(grown, reading.values))
        live = [x for x in grown if not x.is_done]
        if not live:
            break
        if p.filter_duplicates:
            live = distinct(live)
        keep = p.n // p.expand or len(live)
        widths = yield Allocate(live, Top(keep), keep, [value[x] for x in live])
        kept = [x for x, w in zip(live, widths) if w]
        if not kept:  # no live beam has a valid value
            break
        yield Drop([x for x, w in zip(live, widths) if not w])
    return answers(finished or cut or live, p)


def grow(kept: Sequence[Node | Prompt], n: int, until: Until) -> Generator[Move, Any, list[Node]]:
    """N beams one step further: copies of the kept ones in turn (A, B, C, A, B, ...), each with a draw of its own."""
    widths = [len(range(i, n, len(kept))) for i in range(len(kept))]
    grown = iter((yield Expand(kept, widths, until)))
    copies = [[next(grown) for _ in range(width)] for width in widths]
    return [copies[i % len(kept)][i // len(kept)] for i in range(n)]


def distinct(nodes: Sequence[Node]) -> list[Node]:
    """The first branch of every text, in order."""
    first: dict[str, Node] = {}
    for node in nodes:
        first.setdefault(node.solution, node)
    return list(first.values())


def answers(found: list[Node], p: BeamSearch) -> list[Node]:
    """N of the beams, in the order in which they ended or best first."""
    if p.sort_completed:
        values = {x: finite(aggregate([step.scores["prm"] for step in x.path], p.prune_agg)) for x in found}
        found = sorted(found, key=lambda x: -values[x])
    if p.repeat_to_n:
        found = found * -(-p.n // len(found))
    return found[: p.n]
