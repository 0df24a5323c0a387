"""Generators in progress: a strategy, or a branch of an `All`, and which branch's result may be judged next."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tts.engine.policy import Policy
from tts.record import Answered
from tts.request import Outcome
from tts.tree import Node


@dataclass(eq=False)
class Spent:
    """What a branch has decoded, moves in progress apart."""

    tokens: int = 0
    flops: float = 0.0
    nodes: list[Node] = field(default_factory=list)

    def add(self, tokens: int, flops: float, nodes: Iterable[Node] = ()) -> None:
        self.tokens += tokens
        self.flops += flops
        self.nodes += nodes


@dataclass(eq=False)
class Run:
    """One generator in progress: a strategy, or a branch of an `All`."""

    generator: Generator[Any, Any, Any]
    outcome: Outcome
    log: list[Answered]
    parent: Join | None = None
    """The `All` whose branch it is ..."""
    index: int = 0
    """... and its place there."""
    move: Any = None
    """The move that it waits for."""
    num_waiting: int = 0
    """Tickets of the current `Expand` or `Embed`, or nodes of the current `Score`, that it waits for."""
    results: list = field(default_factory=list)
    """Of the `Expand` or `Embed` in progress."""
    join: Join | None = None
    """The `All` in progress."""
    spent: Spent = field(default_factory=Spent)
    is_over: bool = False

    def record(self, result: Any) -> None:
        """Log what is answered to the move in progress."""
        if self.move is not None:
            self.log.append(Answered(self.move, result, None if self.join is None else self.join.logs))
        self.move = self.join = None

    def below(self) -> set[Run]:
        """This run and the branches of its `All` in progress, all the way down."""
        return {self}.union(*(branch.below() for branch in (self.join.branches if self.join else ())))

    def num_decoded(self, in_flight: Mapping[Run, int]) -> int:
        """Tokens that it and its branches have drawn so far."""
        return sum(run.spent.tokens + in_flight.get(run, 0) for run in self.below())


@dataclass(eq=False)
class Join:
    """An `All` in progress."""

    run: Run
    branches: list[Run]
    results: list
    judged: list[Run] = field(default_factory=list)
    """Branches whose results `stop` has seen, in its order."""
    is_kept: list[bool] = field(default_factory=list)
    """Once it is over: which branches were not cut short."""

    @property
    def logs(self) -> list[list[Answered] | None]:
        return [branch.log if kept else None for branch, kept in zip(self.branches, self.is_kept)]

    @property
    def has_unjudged(self) -> bool:
        return any(branch.is_over for branch in self.branches if branch not in self.judged)

    def next_certain(self, in_flight: Mapping[Run, int]) -> tuple[Run, int] | None:
        """The next branch in the order (tokens decoded, index), and its tokens; None where another may yet come before it."""
        place = {b: (b.num_decoded(in_flight), b.index) for b in self.branches if b not in self.judged}
        first = min((b for b in place if b.is_over), key=place.__getitem__, default=None)
        if first is None or any(place[b] < place[first] for b in place if not b.is_over):
            return None
        return first, place[first][0]


class Part(NamedTuple):
    """A ticket's share of a move: where its results go, and who makes them."""

    run: Run
    slots: list[int]
    policy: Policy
