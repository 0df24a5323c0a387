"""Diverse verifier tree search as search-and-learn runs it: every candidate of a subtree's last step is an answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from tts.moves import Allocate, Answer, Drop, Expand, Moves, Node, Prompt, Steps, Top
from tts.strategies.base import SearchProblem, parameter, strategy
from tts.strategies.search_and_learn.rules import SOURCE, Rules, read


@dataclass(frozen=True)
class DVTS(Rules):
    stop_text: str = parameter("boxed{", "a subtree is over when its chosen branch contains this; empty: only when it has ended")

    def __post_init__(self) -> None:
        if self.n % self.expand:
            raise ValueError(f"n must be a multiple of expand ({self.expand}), got {self.n}")


@strategy("search_and_learn_dvts", source=SOURCE)
def dvts(problem: SearchProblem, p: DVTS) -> Moves:
    """N/M subtrees; each round draws M next steps in each and goes on with that subtree's best, finished or not.

    A subtree is over when its best has ended. All M candidates of its last round are returned, unfinished ones too: N answers,
    subtree by subtree. The last round writes each to its end. Of equal values the first is best.
    """
    num_trees = p.n // p.expand
    best: dict[int, Node | Prompt] = {tree: problem.root for tree in range(num_trees)}
    candidates: dict[int, list[Node]] = {}
    for round in range(p.max_steps):
        is_last = round == p.max_steps - 1
        grown = yield Expand(list(best.values()), p.expand, Answer() if is_last else Steps(1))
        reading = yield from read(grown, p, 0 if is_last else p.lookahead)
        trees = [tree for tree in best for _ in range(p.expand)]
        widths = yield Allocate(grown, Top(1), 1, without_cut(grown, trees, reading.values, p), trees)
        yield Drop([x for x, w in zip(grown, widths) if not w])
        for tree in best:
            candidates[tree] = [reading.tails.get(x, x) for x, t in zip(grown, trees) if t == tree]
        best = {tree: x for x, tree, w in zip(grown, trees, widths) if w and not is_over(x, p)}
        if not best:
            break
    return [x for tree in range(num_trees) for x in candidates[tree]]


def is_over(node: Node, p: DVTS) -> bool:
    """Whether the subtree that goes on with this branch has come to its end."""
    return node.is_done or (p.stop_text != "" and p.stop_text in node.solution)


def without_cut(nodes: Sequence[Node], trees: Sequence[int], values: Sequence[float], p: DVTS) -> list[float]:
    """The values, where branches cut off by their length do not count as finished: those go below all others of their subtree."""
    if p.length_is_finished:
        return list(values)
    whole = {tree for x, tree in zip(nodes, trees) if x.end != "length"}
    return [float("-inf") if x.end == "length" and tree in whole else value for x, tree, value in zip(nodes, trees, values)]
