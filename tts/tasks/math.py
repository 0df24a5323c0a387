"""Mathematics in words and LaTeX, with the final answer in a box: MATH, GSM8K in boxed form, AIME."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tts import grading
from tts.tasks.base import Message
from tts.tasks.judging import render_judge

MAX_QUESTION_LENGTH = 100_000


@dataclass(frozen=True)
class Prompt:
    """A system prompt as its source has it: published figures hold for these very words. Another wording is another version."""

    system: str
    source: str
    version: int = 1


PROMPTS: Mapping[str, Prompt] = {
    "search-and-learn": Prompt(
        source="huggingface/search-and-learn, src/sal/config.py: Config.system_prompt (Apache-2.0)",
        system=r"""Solve the following math problem efficiently and clearly:

- For simple problems (2 steps or fewer):
Provide a concise solution with minimal explanation.

- For complex problems (3 steps or more):
Use this step-by-step format:

## Step 1: [Concise description]
[Brief explanation and calculations]

## Step 2: [Concise description]
[Brief explanation and calculations]

...

Regardless of the approach, always conclude with:

Therefore, the final answer is: $\boxed{answer}$. I hope it is correct.

Where [answer] is just the final number or expression that solves the problem.""",
    ),
    "qwen": Prompt(
        source="RyanLiu112/compute-optimal-tts, src/reason/evaluation/evaluate.py: cot_prompt_dict['qwen'] (MIT)",
        system=r"Please reason step by step, and put your final answer within \boxed{}.",
    ),
}

_TERMINAL = re.compile(
    r"""(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]                # control sequences: colours, cursor
      | (?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)  # strings: titles, links
      | [\x00-\x08\x0b-\x1f\x7f-\x9f]                   # every other control character but tab and newline""",
    re.VERBOSE,
)


class Math:
    """The task `math`: one question, a solution in steps, its answer in the last ``\\boxed``, equality by math-verify.

    `prompt` names one of `PROMPTS`; the template ``"solve"`` is that system prompt and the question, ``"judge"`` shows answers.
    """

    name = "math"
    step_stop: tuple[str, ...] = ("\n\n",)
    templates = ("solve", "judge")
    max_tokens = 2048

    def __init__(self, prompt: str = "search-and-learn") -> None:
        if prompt not in PROMPTS:
            raise ValueError(f"unknown prompt {prompt!r}: expected one of {', '.join(PROMPTS)}")
        self.prompt = PROMPTS[prompt]

    def check(self, question: str) -> None:
        """Raise `ValueError` for a question that is blank or above 100,000 characters."""
        if not question.strip():
            raise ValueError("question is empty: expected a mathematical problem in words or LaTeX")
        if len(question) > MAX_QUESTION_LENGTH:
            raise ValueError(f"question has {len(question):,} characters: expected at most {MAX_QUESTION_LENGTH:,}")

    def render(self, template: str, question: str, previous: Sequence[str], fields: Mapping[str, Any]) -> str | list[Message]:
        """The chat for `question`; ``"judge"`` shows `previous` in the way that `fields` names."""
        if template == "judge":
            return render_judge(fields.get("way", "listwise"), question, previous)
        if template not in self.templates:
            raise ValueError(f"unknown template {template!r} of task {self.name!r}: expected {', '.join(self.templates)}")
        return [{"role": "system", "content": self.prompt.system}, {"role": "user", "content": question}]

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
