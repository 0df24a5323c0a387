"""A problem and a move as an engine sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tts.engine.sampling import Sampling
from tts.meter import Meter
from tts.tree import Node, Prompt


@dataclass(eq=False, slots=True)
class Session:
    """One problem as an engine sees it: how to write its prompts, how to draw, whom to charge."""

    id: str
    seed: int
    sampling: Sampling
    max_tokens: int
    step_stop: tuple[str, ...]
    render: Callable[[Prompt], str | Sequence[dict[str, str]]]
    order: int = 0
    """Its place among the problems that run."""
    meter: Meter = field(default_factory=Meter)
    roots: dict[Prompt, Node] = field(default_factory=dict)
    shared: dict[Node, int] = field(default_factory=dict)
    """By root: tokens that it begins with like a prompt before it, and that were not read for it again."""
    stems: list[Node] = field(default_factory=list)
    """What prompts have in common (`tts.engine.stems`)."""
    nodes: list[Node] = field(default_factory=list)
    """Every node that was decoded, in order of completion."""
    cancelled: list[Node] = field(default_factory=list)
    """Nodes of branches that were ended before their time; no part of the result."""

    @property
    def all_nodes(self) -> list[Node]:
        """Roots, nodes and cancelled nodes."""
        return [*self.roots.values(), *self.nodes, *self.cancelled]


@dataclass(eq=False, slots=True)
class Ticket:
    """A move in progress: `results` in order, filled as they come."""

    session: Session
    results: list
    num_left: int
    nodes: list[Node] = field(default_factory=list)
    """Every node that was decoded for it so far."""
    num_drawn: int = 0
    """Tokens drawn for those nodes."""

    def put(self, index: int, result: object) -> bool:
        """Enter one result; whether it was the last."""
        self.results[index] = result
        self.num_left -= 1
        return self.num_left == 0
