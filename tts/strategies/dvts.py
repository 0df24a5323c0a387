"""Diverse verifier tree search: independent subtrees, each greedy in the verifier's score."""

from collections import Counter
from dataclasses import dataclass

from tts.moves import Allocate, Drop, Expand, Moves, Score, Top
from tts.strategies.base import AGGREGATIONS, MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class DVTS:
    n: int = parameter(16, "answers in all, over all subtrees", 1, MAX_WIDTH)
    expand: int = parameter(4, "next steps sampled in a subtree (M): there are N/M subtrees", 1, MAX_WIDTH)
    max_steps: int = parameter(40, "rounds after which unfinished branches are returned as they are", 1, 1000)
    prune_agg: str = parameter("last", "step scores -> the value a branch is kept by", choices=AGGREGATIONS)


@strategy("dvts", source="Beeching et al. 2024, Scaling test-time compute with open models")
def dvts(problem: SearchProblem, p: DVTS) -> Moves:
    """N/M subtrees; each round samples M next steps in each and keeps that subtree's best. Nothing is compared across subtrees.

    Finished branches count against their subtree's M, so exactly N answers come back.
    """
    live, done = (yield Expand([problem.root], p.n)), []
    tree = {x: i // p.expand for i, x in enumerate(live)}
    room = Counter(tree.values())
    for round in range(p.max_steps):
        yield Score(live)
        done += [x for x in live if x.is_done]
        room.subtract(tree[x] for x in live if x.is_done)
        live = [x for x in live if not x.is_done]
        if not live or round == p.max_steps - 1:
            break
        groups = [tree[x] for x in live]
        totals = [room[t] for t in dict.fromkeys(groups)]
        widths = yield Allocate(live, Top(1), totals, [x.value(p.prune_agg) for x in live], groups)
        grown = {t for t, w in zip(groups, widths) if w}
        done += [x for x in live if tree[x] not in grown]  # no valid value in their subtree: they are returned as they are
        yield Drop([x for x, w in zip(live, widths) if not w])
        live = yield Expand(live, widths)
        tree.update((x, tree[x.parent]) for x in live)
    return done + live
