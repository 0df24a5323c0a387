"""Mathematics in words and LaTeX, with the final answer in a box: MATH, GSM8K in boxed form, AIME."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tts import grading
from tts.tasks.base import Message
from tts.tasks.prompts import PROMPTS, TEMPLATES, Prompt

MAX_QUESTION_LENGTH = 100_000


_TERMINAL = re.compile(
    r"""(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]                # control sequences: colours, cursor
      | (?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)  # strings: titles, links
      | [\x00-\x08\x0b-\x1f\x7f-\x9f]                   # every other control character but tab and newline""",
    re.VERBOSE,
)


class Math:
    """The task `math`: one question, a solution in steps, its answer in the last ``\\boxed``, equality by math-verify.

    `prompt` is one of `tts.tasks.prompts.PROMPTS` by name, or a `Prompt` of your own; `template` one of its `TEMPLATES` by
    name, by default the model's own chat template. The task's one template, ``"solve"``, is that prompt and the question.
    """

    name = "math"
    step_stop: tuple[str, ...] = ("\n\n",)
    templates = ("solve",)
    max_tokens = 2048

    def __init__(self, prompt: str | Prompt = "search-and-learn", template: str | None = None) -> None:
        if isinstance(prompt, str) and prompt not in PROMPTS:
            raise ValueError(f"unknown prompt {prompt!r}: expected one of {', '.join(PROMPTS)}")
        if template is not None and template not in TEMPLATES:
            raise ValueError(f"unknown chat template {template!r}: expected one of {', '.join(TEMPLATES)}, or none")
        self.prompt = PROMPTS[prompt] if isinstance(prompt, str) else prompt
        self.template = None if template is None else TEMPLATES[template]

    def check(self, question: str) -> None:
        """Raise `ValueError` for a question that is blank or above 100,000 characters."""
        if not question.strip():
            raise ValueError("question is empty: expected a mathematical problem in words or LaTeX")
        if len(question) > MAX_QUESTION_LENGTH:
            raise ValueError(f"question has {len(question):,} characters: expected at most {MAX_QUESTION_LENGTH:,}")

    def render(self, template: str, question: str, previous: Sequence[str], fields: Mapping[str, Any]) -> str | list[Message]:
        """The chat for `question`; `previous` and `fields` do not enter the template ``"solve"``, the only one there is."""
        if template != "solve":
            raise ValueError(f"unknown template {template!r} of task {self.name!r}: expected 'solve'")
        asked = question + self.prompt.suffix
        if self.template is not None:
            return self.template.render(self.prompt.system, asked)
        system = [{"role": "system", "content": self.prompt.system}] if self.prompt.system else []
        return [*system, {"role": "user", "content": asked}]

    def extract(self, text: str) -> str | None:
        """`grading.extract`: the content of the last complete box."""
        return grading.extract(text)

    def equal(self, a: str, b: str) -> bool:
        """`grading.equal`: math-verify's verdict, within a deadline."""
        return grading.equal(a, b)

    def group(self, answers: Sequence[str | None]) -> list[int]:
        """`grading.group`: the groups that `equal` makes of many answers, with far fewer comparisons."""
        return grading.group(answers)

    def show(self, text: str) -> str:
        """`text` without what a terminal would obey: escape sequences and control characters, but for tab and newline."""
        return _TERMINAL.sub("", text)
