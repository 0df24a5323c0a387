"""What a task is: how a problem is put to a model, where its steps end, and how its answers are read and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

Message = Mapping[str, str]
"""One chat message: ``{"role": "system" | "user" | "assistant", "content": text}``."""


@dataclass(frozen=True)
class Problem:
    """One question as a dataset row gives it.

    Strategies see `question` and `id`; `gold` is read by grading only.
    """

    question: str
    id: str = "0"
    gold: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


class Thinking(NamedTuple):
    """How a text of the template `think` is steered (Muennighoff et al. 2025)."""

    end: str
    """Ends the thinking."""
    wait: str
    """Put in its place to make the policy go on; empty where no text does that."""
    answer: str
    """Ends the thinking, too, and begins the answer."""


class Task(Protocol):
    """The four readings of a text that a search needs. All scanners are linear in the text's length."""

    @property
    def name(self) -> str: ...

    @property
    def step_stop(self) -> tuple[str, ...]:
        """Strings that end a step; they stay in the step's text."""
        ...

    @property
    def max_tokens(self) -> int:
        """Default ceiling on the new tokens of one answer."""
        ...

    @property
    def templates(self) -> tuple[str, ...]:
        """The prompts that `render` can write; `"solve"` is one of every task's."""
        ...

    @property
    def thinking(self) -> Thinking | None:
        """None where the task has no template `think`."""
        ...

    def check(self, question: str) -> None:
        """Raise `ValueError` naming what is wrong with `question`; called before anything is allocated."""
        ...

    def render(self, template: str, question: str, previous: Sequence[str], fields: Mapping[str, Any]) -> str | list[Message]:
        """Write the prompt: plain text is tokenized as it is, messages go through the model's chat template.

        `template` names a prompt of the task (`"solve"` exists in every task); `previous` holds earlier answers' texts
        for the templates that show them. Raises `ValueError` for an unknown template.
        """
        ...

    def extract(self, text: str) -> str | None:
        """The final answer in a solution's text, or `None` where there is none."""
        ...

    def equal(self, a: str, b: str) -> bool:
        """Whether two extracted answers are the same answer."""
        ...

    def group(self, answers: Sequence[str | None]) -> list[int]:
        """A group number for each answer: equal answers share one, in order of first appearance; -1 for `None`."""
        ...

    def show(self, text: str) -> str:
        """A question or solution text as a person would want to read it."""
        ...
