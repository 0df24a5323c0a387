"""What goes into the scheduler and what comes out: a problem to search, and what its search gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tts.engine.sampling import Sampling
from tts.engine.session import Session
from tts.record import Answered, dump
from tts.strategies import Strategy
from tts.tasks.base import Problem
from tts.tree import Node


@dataclass(frozen=True)
class Request:
    """One problem to search, frozen and valid: what runs depends on nothing else."""

    problem: Problem
    strategy: Strategy
    parameters: Any
    sampling: Sampling = Sampling()
    seed: int = 0


@dataclass(eq=False)
class Outcome:
    """What a search gave: its answers' leaves in the strategy's order, or the exception that ended it."""

    request: Request
    session: Session
    leaves: list[Node] = field(default_factory=list)
    error: Exception | None = None
    log: list[Answered] = field(default_factory=list)
    """Every move of the strategy with what was answered to it."""

    def record(self) -> dict[str, Any]:
        """The search as plain values, which `tts.record.replay` runs again without a model."""
        request = self.request
        return dump(request.strategy, request.parameters, request.problem.question, request.problem.id, request.seed, self.log)
