"""What the searches of search-and-learn share: their parameters, and the values by which branches are compared."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from tts.moves import Drop, Expand, Move, Node, Score, Steps, Tokens
from tts.selection import aggregate
from tts.strategies.base import AGGREGATIONS, MAX_WIDTH, parameter

SOURCE = "huggingface/search-and-learn, src/sal/search, commit 6f81cac"


@dataclass(frozen=True)
class Rules:
    """Parameters of both searches. Those that are on by default and say so keep a defect; off, it is repaired."""

    n: int = parameter(16, "answers in all", 1, MAX_WIDTH)
    expand: int = parameter(4, "M: beam search keeps n / M beams, DVTS has n / M subtrees of M candidates", 1, MAX_WIDTH)
    max_steps: int = parameter(40, "rounds; the last one writes every branch to its end", 1, 1000)
    prune_agg: str = parameter("last", "step scores -> the value a branch is kept by", choices=AGGREGATIONS)
    lookahead: int = parameter(0, "steps of the greedy rollout behind every branch", 0, 100)
    empty_step: bool = parameter(
        False, "compare unfinished branches by the score of an empty step behind them (defect with RLHFlow and Qwen PRMs)"
    )
    length_is_finished: bool = parameter(True, "a branch cut off by its length is a finished answer (defect)")

    def is_finished(self, node: Node) -> bool:
        """Whether the branch is a finished answer."""
        return node.is_done and (self.length_is_finished or node.end != "length")


@dataclass
class Reading:
    """What some branches were worth in one round."""

    values: list[float]
    tails: dict[Node, Node] = field(default_factory=dict)
    """The empty step behind an unfinished branch, where one was scored."""


def read(nodes: Sequence[Node], p: Rules, lookahead: int = 0) -> Generator[Move, Any, Reading]:
    """Score `nodes` where they end or, with `lookahead`, where a greedy rollout of so many more steps ends."""
    yield Score(nodes)
    tips = list(nodes)
    if lookahead:
        tips = yield from roll_out(nodes, lookahead)
        yield Score(tips)
    tails = {}
    if p.empty_step:
        unfinished = [tip for tip in tips if not tip.is_done]
        empty = yield Expand(unfinished, 1, Tokens(0))
        yield Score(empty)
        tails = dict(zip(unfinished, empty))
    values = [aggregate([step.scores["prm"] for step in tails.get(tip, tip).path], p.prune_agg) for tip in tips]
    return Reading(values, tails)


def roll_out(nodes: Sequence[Node], num_steps: int) -> Generator[Move, Any, list[Node]]:
    """For each node where its greedy continuation of up to `num_steps` steps ends; for one that has ended, itself."""
    unfinished = [x for x in nodes if not x.is_done]
    tips = yield Expand(unfinished, 1, Steps(num_steps), temperature=0)
    yield Drop(tips)
    ends = dict(zip(unfinished, tips))
    return [ends.get(x, x) for x in nodes]


def finite(value: float) -> float:
    """The value, or less than every other if it is none: NaN neither wins nor stands in the way."""
    return value if isfinite(value) else -float("inf")
