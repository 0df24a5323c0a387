"""Beam search over steps, guided by a verifier."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from math import ceil
from typing import Any

from tts.moves import Allocate, Drop, Expand, Move, Moves, Node, Score, Top
from tts.strategies.base import AGGREGATIONS, MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class Beam:
    n: int = parameter(16, "beams: answers in all", 1, MAX_WIDTH)
    expand: int = parameter(4, "children of a kept beam (M)", 1, MAX_WIDTH)
    max_steps: int = parameter(40, "rounds after which unfinished beams are returned as they are", 1, 1000)
    prune_agg: str = parameter("last", "step scores -> the value a beam is kept by", choices=AGGREGATIONS)


@strategy("beam", source="Snell et al. 2024, section 5.2; Hugging Face search-and-learn")
def beam(
    problem: SearchProblem, p: Beam, value: Callable[[list[Node]], Generator[Move, Any, list[float]]] | None = None
) -> Moves:
    """N beams; each round keeps the best N/M by the verifier and expands each into M.

    Finished beams are set aside and count against N, so exactly N answers come back. `value` is how lookahead values beams.
    """
    expand = min(p.expand, p.n)
    live, done = (yield Expand([problem.root], p.n)), []
    for round in range(p.max_steps):
        yield Score(live)
        done += [x for x in live if x.is_done]
        live = [x for x in live if not x.is_done]
        width = p.n - len(done)
        if not live or round == p.max_steps - 1:
            break
        values = (yield from value(live)) if value else [x.value(p.prune_agg) for x in live]
        widths = yield Allocate(live, Top(ceil(width / expand)), width, values)
        if not any(widths):  # no live beam has a valid value: they are returned as they are
            break
        yield Drop([x for x, w in zip(live, widths) if not w])
        live = yield Expand(live, widths)
    return done + live
