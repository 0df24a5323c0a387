"""The search tree: prompts, steps, and the running aggregates of their scores."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tts.selection import AGGREGATIONS

ENDS = ("prompt", "step", "cut", "stop", "length", "watch", "error")
_MAX_LOG = math.log(sys.float_info.max)


@dataclass(frozen=True)
class Prompt:
    """What a branch starts from: a template of the task, filled. A value; equal prompts of a problem share one prefix."""

    template: str = "solve"
    previous: tuple[Node, ...] = ()
    """Earlier answers that the template shows."""
    model: str = "policy"
    fields: tuple[tuple[str, Any], ...] = ()


class Running(NamedTuple):
    """Aggregates of the step scores r_1..r_t along a path, updated in O(1) a step."""

    last: float = math.nan
    min: float = math.inf
    log_prod: float = 0.0
    sum: float = 0.0
    num_steps: int = 0

    def then(self, score: float) -> Running:
        """The aggregates one step further. A NaN stays NaN in min, prod and mean."""
        log = math.nan if math.isnan(score) or score < 0 else math.log(score) if score > 0 else -math.inf
        least = math.nan if math.isnan(score) or math.isnan(self.min) else min(self.min, score)
        return Running(score, least, self.log_prod + log, self.sum + score, self.num_steps + 1)

    def value(self, how: str) -> float:
        """`last`, `min`, `prod` or `mean` of the step scores; NaN without any. A product too large for a float is inf."""
        if how not in AGGREGATIONS:
            raise ValueError(f"unknown aggregation {how!r}: there are {', '.join(AGGREGATIONS)}")
        if how == "last":
            return self.last
        if self.num_steps == 0:
            return math.nan
        prod = math.exp(self.log_prod) if not self.log_prod > _MAX_LOG else math.inf
        return {"min": self.min, "prod": prod, "mean": self.sum / self.num_steps}[how]


@dataclass(eq=False, slots=True)
class Node:
    """One step of one branch, as strategies hold it. Its tokens and text never change once it exists."""

    parent: Node | None
    tokens: Sequence[int]
    data: bytes
    """The tokens' text as bytes: a character may straddle two nodes."""
    end: str
    """`step`, `cut` (Tokens(c) reached), `stop` (the answer ended), `length` (a ceiling), `watch`, `error`; roots: `prompt`."""
    key: int
    """Lineage: the key of this branch's random draws."""
    prompt: Prompt
    num_forced: int = 0
    """Leading tokens that were forced, not drawn."""
    cost: int = 0
    """Tokens drawn for this node, including one that `keep_stop` left out."""
    logprobs: Sequence[float] = ()
    scores: dict[str, float] = field(default_factory=dict)
    running: dict[str, Running] = field(default_factory=dict)
    stats: dict[str, Sequence[float]] = field(default_factory=dict)
    """One value a token, for the statistics that the expansion asked for."""
    num_children: int = 0
    num_drawn_children: int = 0
    """Children that were drawn, not chosen greedily: they number the lineages."""
    order: tuple[int, ...] = ()
    """Child indices from the root: sorting by it is depth-first order. Given for roots, derived for the others."""
    num_path_tokens: int = 0
    """Tokens from the root's first to this node's last."""
    depth: int = 0
    """Steps from the prompt."""

    def __post_init__(self) -> None:
        above = self.parent
        self.num_path_tokens = len(self.tokens)
        if above is not None:
            self.num_path_tokens += above.num_path_tokens
            self.depth = above.depth + 1
            self.order = above.order + (above.num_children,)
            above.num_children += 1

    def __repr__(self) -> str:
        return f"Node({self.text!r}, end={self.end!r}, depth={self.depth})"

    @property
    def text(self) -> str:
        return self.data.decode("utf-8", "replace")

    @property
    def is_done(self) -> bool:
        """Whether the branch has ended: no further step may be drawn without a prefix."""
        return self.end in ("stop", "length", "watch", "error")

    @property
    def root(self) -> Node:
        node = self
        while node.parent is not None:
            node = node.parent
        return node

    @property
    def origin(self) -> Node:
        """The first answer of the chain of prompts that led here; this node itself unless its prompt shows earlier answers."""
        node = self
        while node.prompt.previous:
            node = node.prompt.previous[0]
        return node

    @property
    def path(self) -> list[Node]:
        """The steps from the first to this one; the prompt is not among them."""
        nodes, node = [], self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]

    @property
    def solution(self) -> str:
        """The text of the whole path."""
        return b"".join(n.data for n in self.path).decode("utf-8", "replace")

    def value(self, how: str = "last", by: str = "prm") -> float:
        """The step scores of the path as one number; NaN where no step was scored. `cut` segments count in `last` only."""
        return self.running[by].value(how) if by in self.running else math.nan

    def set_score(self, by: str, score: float) -> None:
        """Enter the step's score, once, and carry the aggregates on from the parent's."""
        before = self.parent.running.get(by, Running()) if self.parent else Running()
        self.scores[by] = score
        self.running[by] = before._replace(last=score) if self.end == "cut" else before.then(score)
