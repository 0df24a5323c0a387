"""What a strategy is: a generator over moves, registered by name with the dataclass of its parameters."""

from __future__ import annotations

import dataclasses
import random
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tts import selection
from tts.moves import Moves, Node, Prompt

if TYPE_CHECKING:
    from tts.tasks.base import Task


@dataclass(frozen=True)
class SearchProblem:
    """What a strategy may know of its problem: never the right answer, the time, or the state of the pool."""

    question: str
    id: str
    seed: int
    task: Task

    def answers(self, nodes: Sequence[Node]) -> list[str | None]:
        """The final answer that the task finds in each branch's text; None where there is none."""
        return [self.task.extract(node.solution) for node in nodes]

    def groups(self, nodes: Sequence[Node]) -> list[list[Node]]:
        """Branches with equal answers together, the largest group first; of equals the first seen. Those without are left out."""
        answers = self.answers(nodes)
        members: dict[int, list[Node]] = {}
        for node, answer, group in zip(nodes, answers, self.task.group(answers)):
            if answer is not None:
                members.setdefault(group, []).append(node)
        return sorted(members.values(), key=len, reverse=True)

    @property
    def root(self) -> Prompt:
        """The task's own prompt for the question."""
        return Prompt()

    def rng(self, *key: Any) -> random.Random:
        """A generator of its own for each `key`: draws depend on (seed, problem, key) alone."""
        return random.Random(repr((self.seed, self.id, *key)))


def parameter(default: Any, help: str, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()) -> Any:
    """A field of a strategy's parameters with its document and its allowed values."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


MAX_WIDTH = 4096
AGGREGATIONS = tuple(selection.AGGREGATIONS)


@dataclass(frozen=True)
class Strategy:
    """One entry of the registry."""

    name: str
    source: str
    parameters: type
    run: Callable[[SearchProblem, Any], Moves]
    needs_verifier: bool = True
    templates: tuple[str, ...] = ()
    """Templates that it asks its task for, beside `solve`."""
    score: str | None = "prm"
    """The name under which its answers are scored; None if they are not: only votes choose among them."""
    select: str | None = None
    """How its answer is chosen by default; None: weighted where there are scores, else by majority."""

    def check_task(self, task: Task) -> None:
        """Raise `ValueError` where the task lacks a template."""
        missing = [name for name in self.templates if name not in task.templates]
        if missing:
            raise ValueError(
                f"strategy {self.name} needs the template {', '.join(missing)}, which task {task.name} does not have; "
                f"it has {', '.join(task.templates)}"
            )

    @property
    def summary(self) -> str:
        return (self.run.__doc__ or "").strip().splitlines()[0]

    def make_parameters(self, given: dict[str, Any]) -> Any:
        """The parameter dataclass from plain values; one `ValueError` with every unknown name and value out of range."""
        fields = {f.name: f for f in dataclasses.fields(self.parameters)}
        types = typing.get_type_hints(self.parameters)
        errors = [f"unknown parameter {name!r}; {self.name} takes {', '.join(fields)}" for name in given if name not in fields]
        for name, value in given.items():
            if name in fields:
                errors += _errors(fields[name], types[name], value)
        if errors:
            raise ValueError(f"strategy {self.name}: " + "; ".join(errors))
        return self.parameters(**given)


STRATEGIES: dict[str, Strategy] = {}


def strategy(name: str, source: str, needs_verifier: bool = True, **more: Any) -> Callable[[Callable], Callable]:
    """Register a generator function `(problem, p: Parameters)`; its parameters are those of the annotation of `p`.

    `more` are the other fields of `Strategy`.
    """

    def register(run: Callable) -> Callable:
        STRATEGIES[name] = Strategy(name, source, typing.get_type_hints(run)["p"], run, needs_verifier, **more)
        return run

    return register


def find(name: str) -> Strategy:
    """The strategy of that name; `ValueError` with all names otherwise."""
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}; there are {', '.join(sorted(STRATEGIES))}")
    return STRATEGIES[name]


def _errors(field: dataclasses.Field, kind: type, value: Any) -> list[str]:
    low, high, choices = (field.metadata[k] for k in ("low", "high", "choices"))
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        return [f"{field.name} must be {kind.__name__}, got {value!r}"]
    if choices and value not in choices:
        return [f"{field.name} must be one of {', '.join(choices)}, got {value!r}"]
    if low is not None and high is not None and not low <= value <= high:
        return [f"{field.name} must be in [{low}, {high}], got {value!r}"]
    return []
