"""What the search asks of a verifier, and the two kinds that need no model: a function of the user and a rule of the task."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

from tts.meter import Meter
from tts.tree import Node


class Invalid(float):
    """A NaN that says why there is no score."""

    reason: str

    def __new__(cls, reason: str) -> Invalid:
        made = super().__new__(cls, math.nan)
        made.reason = reason
        return made


class Unreadable(ValueError):
    """A step whose input cannot be read: it gets an `Invalid` score, its problem goes on."""


class Verifier(Protocol):
    """Scores steps, each once. The search hands over nodes without a score, parents before children."""

    name: str

    @property
    def has_work(self) -> bool: ...

    @property
    def num_queued_tokens(self) -> int: ...

    @property
    def seconds(self) -> float: ...

    def check(self, question: str, num_prompt_tokens: int, max_tokens: int) -> None:
        """Raise `ValueError` where the longest branch could not be read; the prompt's tokens are the policy's."""
        ...

    def submit(self, question: str, nodes: Sequence[Node], meter: Meter) -> None:
        """Ask for the scores of the last steps of `nodes`; a chain's nodes come in one call."""
        ...

    def step(self) -> list[tuple[Node, float | Exception]]:
        """Work for one pass; gives the scores that are ready. NaN (`Invalid` says why) is recorded and never selected.

        An exception in a score's place ends the search of that node's problem, and of no other.
        """
        ...

    def close(self, nodes: Sequence[Node]) -> None:
        """A problem is over: forget its prompts and nodes, given parents before children."""
        ...


class Queued:
    """What verifiers without a model share: nodes wait until the next step, which scores them all. A subclass says `score`."""

    def __init__(self, name: str):
        self.name, self.num_queued_tokens, self.seconds = name, 0, 0.0
        self._queue: list[tuple[str, Node]] = []

    @property
    def has_work(self) -> bool:
        return bool(self._queue)

    def check(self, question: str, num_prompt_tokens: int, max_tokens: int) -> None:
        pass

    def submit(self, question: str, nodes: Sequence[Node], meter: Meter) -> None:
        self._queue += [(question, node) for node in nodes]

    def step(self) -> list[tuple[Node, float | Exception]]:
        queue, self._queue = self._queue, []
        return [(node, self.score(question, node)) for question, node in queue]

    def close(self, nodes: Sequence[Node]) -> None:
        gone = set(nodes)
        self._queue = [(question, node) for question, node in self._queue if node not in gone]

    def score(self, question: str, node: Node) -> float | Exception:
        raise NotImplementedError


class Function(Queued):
    """A user's function `(question, steps) -> one score a step` as a verifier; `steps` are the texts of a branch so far.

    A wrong number of scores, or one that is not a finite number, is recorded as `Invalid`: it is never silently 0.
    """

    def __init__(self, function: Callable[[str, list[str]], Sequence[float]], name: str = "function"):
        super().__init__(name)
        self._function = function

    def score(self, question: str, node: Node) -> float | Exception:
        steps = [step.text for step in node.path]
        try:
            scores = list(self._function(question, steps))
        except Exception as error:  # the user's mistake belongs to the problem on which it happened
            return error
        if len(scores) != len(steps):
            return Invalid(f"verifier {self.name} gave {len(scores)} scores for {len(steps)} steps")
        try:
            score = float(scores[-1])
        except (TypeError, ValueError):
            return Invalid(f"verifier {self.name} gave {scores[-1]!r}, which is not a number")
        return score if math.isfinite(score) else Invalid(f"verifier {self.name} gave {score}")


class Rule(Function):
    """A rule of the task as verifier: 1 while every step so far is right, else 0; for tasks whose steps have an exact truth."""

    def __init__(self, step_truth: Callable[[str, str], Sequence[bool]], name: str = "rule"):
        def judge(question: str, steps: list[str]) -> list[float]:
            truth = step_truth(question, "".join(steps))
            return [float(all(truth[: i + 1])) for i in range(len(steps))]

        super().__init__(judge, name)
