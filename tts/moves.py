"""The moves: all that a strategy may ask for.

A strategy is a generator. It yields moves and receives their results; `tts.search` merges the moves of all running problems
into ragged batches. Strategies hold `Node` handles, never tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from tts.tree import Node, Prompt


@dataclass(frozen=True)
class Steps:
    """Until `count` steps have ended."""

    count: int = 1


@dataclass(frozen=True)
class Answer:
    """Until the answer has ended: an end-of-text id, or one of the `stop` strings.

    `keep_stop` False leaves the last token out of the node (it is charged all the same).
    """

    stop: tuple[str, ...] = ()
    keep_stop: bool = True


@dataclass(frozen=True)
class Tokens:
    """Until `count` tokens were drawn, wherever that falls; the node then ends with `cut`.

    None drawn (`count` 0) makes an empty node at no cost: a place for a verifier to read what an empty step is worth.
    """

    count: int


Until = Steps | Answer | Tokens


@dataclass(frozen=True)
class Confidence:
    """Stop a branch (end `watch`) when the mean confidence of its last `window` tokens falls below `below` (DeepConf)."""

    window: int
    below: float


@dataclass
class Expand:
    """Decode children: `width[i]` of `nodes[i]`; gives them flat, in parent order.

    An expansion over several steps makes a chain of nodes, one a step, and gives its leaf. `prefix` is forced text before the
    drawn tokens, charged as prompt; only with one may a node that has ended be expanded. `temperature` 0 is greedy and does not
    number the child among its siblings. `stats` names statistics to keep of each node: `confidence`, `certainty`. Where the
    ceiling on an answer's tokens leaves no room, the child is a node without tokens that ends with `length` and costs nothing.
    """

    nodes: Sequence[Node | Prompt]
    width: int | Sequence[int] = 1
    until: Until = Steps()
    prefix: str = ""
    temperature: float | None = None
    max_tokens: int | None = None
    watch: Confidence | None = None
    stats: tuple[str, ...] = ()

    @property
    def widths(self) -> list[int]:
        """One width a node. Raises `ValueError` where there is not one number >= 0 for each."""
        widths = [self.width] * len(self.nodes) if isinstance(self.width, int) else list(self.width)
        if len(widths) != len(self.nodes) or min(widths, default=0) < 0:
            raise ValueError(f"Expand: widths must be one number >= 0 for each of the {len(self.nodes)} nodes, got {widths}")
        return widths


@dataclass
class Score:
    """Score the last step of each node, and every step before it that has no score yet; gives floats, NaN where invalid.

    The verifier reads the problem's question before the steps, or with `context="prompt"` the prompt that they answer.
    """

    nodes: Sequence[Node]
    by: str = "prm"
    context: str = "problem"


@dataclass(frozen=True)
class Top:
    """Keep the best `k`, children spread evenly."""

    k: int


@dataclass(frozen=True)
class Softmax:
    """REBASE: children in proportion to `exp(value / temperature)`, rounded up in order of value."""

    temperature: float = 0.2


@dataclass(frozen=True)
class Resample:
    """Draw the children with probability proportional to `exp(value)`: `systematic` or `multinomial`."""

    scheme: str = "systematic"

    def __post_init__(self) -> None:
        if self.scheme not in ("systematic", "multinomial"):
            raise ValueError(f"Resample: scheme must be systematic or multinomial, got {self.scheme!r}")


@dataclass(frozen=True)
class Proportional:
    """DORA: children in proportion to `exp(value)`, rounded to the nearest; what rounding leaves goes to the best."""


Rule = Top | Softmax | Resample | Proportional


@dataclass
class Allocate:
    """Share `total` children among `nodes` by `rule`; gives one width a node.

    `values` are what is compared, by default each node's last score. With `groups` every group is a selection of its own and
    nothing is compared across groups: `total` then is one number a group, in order of first appearance, or one for all.
    """

    nodes: Sequence[Node]
    rule: Rule
    total: int | Sequence[int]
    values: Sequence[float] | None = None
    groups: Sequence[Any] | None = None


@dataclass
class Drop:
    """A hint: these nodes will not be expanded soon. Their KV may go; expanding them later is still right, only dearer."""

    nodes: Sequence[Node]


@dataclass
class All:
    """Run generators side by side; gives their results in order, None for those that `stop` cut short.

    Results are judged in the order of (tokens that the branch decoded, index), which no batch changes: `stop` gets the results
    so far in that order, and where it says True the other branches are ended, whatever they have in flight.

    Children are numbered in the order in which they are asked for: a node that several branches expand should be expanded by
    each in its first move, or the draws depend on which branch comes first.
    """

    branches: Sequence[Generator]
    stop: Callable[[list[Any]], bool] | None = None


@dataclass
class Embed:
    """The policy's last hidden state at the end of each node: a list of `float32[E]` arrays."""

    nodes: Sequence[Node | Prompt]


Move = Expand | Score | Allocate | Drop | All | Embed
Moves = Generator[Move, Any, list[Node]]
"""What a strategy is: moves out, their results in, the answers (leaf nodes) returned."""

__all__ = [
    "All",
    "Allocate",
    "Answer",
    "Confidence",
    "Drop",
    "Embed",
    "Expand",
    "Move",
    "Moves",
    "Node",
    "Prompt",
    "Proportional",
    "Resample",
    "Rule",
    "Score",
    "Softmax",
    "Steps",
    "Tokens",
    "Top",
    "Until",
]
