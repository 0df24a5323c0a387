"""Mathematics in words and LaTeX, with the final answer in a box: MATH, GSM8K in boxed form, AIME."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tts import grading
from tts.tasks.base import Message, Thinking
from tts.tasks.judging import render_judge
from tts.tasks.prompts import PROMPTS, TEMPLATES, Prompt

MAX_QUESTION_LENGTH = 100_000


_TERMINAL = re.compile(
    r"""(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]                # control sequences: colours, cursor
      | (?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*(?:\x07|\x1b\\|\x9c)  # strings: titles, links
      | [\x00-\x08\x0b-\x1f\x7f-\x9f]                   # every other control character but tab and newline""",
    re.VERBOSE,
)


REVISE = (
    "The attempts above may be wrong. Find what is wrong in them, if anything, and write a complete new solution that "
    "ends with the final answer in the required form."
)
CORRECT = (
    "Review your solution step by step and look for mistakes. Then write the complete solution again, corrected where "
    "that is needed, ending with the final answer in the required form."
)
DEBATE = (
    "Weigh your solution against those of the other agents, if there are any. Then write a complete solution that you "
    "stand by, ending with the final answer in the required form."
)


def _listed(what: str, texts: Sequence[str]) -> str:
    return "\n\n".join(f"{what} {i}:\n{text.strip()}" for i, text in enumerate(texts, 1))


class Math:
    """The task `math`: one question, a solution in steps, its answer in the last ``\\boxed``, equality by math-verify.

    `prompt` is one of `tts.tasks.prompts.PROMPTS` by name, or a `Prompt` of your own, for every template; `chat` is one of its
    `TEMPLATES` by name, in place of the model's own chat template.
    """

    name = "math"
    step_stop: tuple[str, ...] = ("\n\n",)
    templates = ("solve", "think", "revise", "correct", "debate", "judge")
    thinking = Thinking(end="</think>", wait="Wait", answer="</think>\n\nFinal Answer: ")
    max_tokens = 2048

    def __init__(self, prompt: str | Prompt = "search-and-learn", chat: str | None = None) -> None:
        if isinstance(prompt, str) and prompt not in PROMPTS:
            raise ValueError(f"unknown prompt {prompt!r}: expected one of {', '.join(PROMPTS)}")
        if chat is not None and chat not in TEMPLATES:
            raise ValueError(f"unknown chat template {chat!r}: expected one of {', '.join(TEMPLATES)}, or none")
        self.prompt = PROMPTS[prompt] if isinstance(prompt, str) else prompt
        self.chat = None if chat is None else TEMPLATES[chat]

    def check(self, question: str) -> None:
        """Raise `ValueError` for a question that is blank or above 100,000 characters."""
        if not question.strip():
            raise ValueError("question is empty: expected a mathematical problem in words or LaTeX")
        if len(question) > MAX_QUESTION_LENGTH:
            raise ValueError(f"question has {len(question):,} characters: expected at most {MAX_QUESTION_LENGTH:,}")

    def render(self, template: str, question: str, previous: Sequence[str], fields: Mapping[str, Any]) -> str | list[Message]:
        """The chat for `question`.

        `solve` and `think` are the question alone. `revise` shows all of `previous` and asks for a better solution, `correct`
        has the last of them as the assistant's own and asks for a review, `debate` the first as its own and the others' beside,
        `judge` shows them to a judge in the way that `fields` names.
        """
        if template not in self.templates:
            raise ValueError(f"unknown template {template!r} of task {self.name!r}: expected one of {', '.join(self.templates)}")
        if template == "judge":
            return render_judge(fields.get("way", "listwise"), question, previous)
        question += self.prompt.suffix
        if template in ("solve", "think"):
            return self._chat(question)
        if template == "revise":
            return self._chat(f"{question}\n\n{_listed('Attempt', previous)}\n\n{REVISE}")
        if template == "correct":
            return self._chat(question, previous[-1], CORRECT)
        return self._chat(question, previous[0], f"{_listed('Agent', previous[1:])}\n\n{DEBATE}".strip())

    def _chat(self, *turns: str) -> str | list[Message]:
        """The system prompt, if there is one, then user and assistant in turn."""
        roles = ("user", "assistant")
        said: list[Message] = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
        system: list[Message] = [{"role": "system", "content": self.prompt.system}] if self.prompt.system else []
        return [*system, *said] if self.chat is None else self.chat.render([*system, *said])

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
