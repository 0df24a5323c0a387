"""How published systems put a mathematical problem to a model, word for word: their figures hold for these prompts only.

Presets are named and versioned. Another wording is another version, never a change of an old one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tts.tasks.base import Message


@dataclass(frozen=True)
class Prompt:
    """A system prompt, and what follows the question, as their source has them; empty where it has none."""

    system: str
    source: str
    version: int = 1
    suffix: str = ""


@dataclass(frozen=True)
class Template:
    """How a chat is written as one text, in place of the model's own chat template; `{text}` is a message's content."""

    system: str
    user: str
    assistant: str
    opening: str
    """What opens the assistant's turn that the model is to write."""
    source: str
    version: int = 1

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt's text. Nothing is trimmed but the system prompt; braces in a message stay as they are."""
        said = []
        for message in messages:
            role, text = message["role"], message["content"]
            said.append(getattr(self, role).format(text=text.strip() if role == "system" else text))
        return "".join(said) + self.opening


_IN_A_BOX = r"Please reason step by step, and put your final answer within \boxed{}."

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
        system=_IN_A_BOX,
    ),
    "step-by-step": Prompt(
        source="volcengine/verl, examples/data_preprocess/math_dataset.py: instruction_following (Apache-2.0)",
        system="",
        suffix=r" Let's think step by step and output the final answer within \boxed{}.",
    ),
    "zero-shot-cot": Prompt(
        source="Kojima et al. 2022, arXiv 2205.11916, table 4: the best trigger sentence, as a line behind the question",
        system="",
        suffix="\nLet's think step by step.",
    ),
    "question-only": Prompt(source="no instruction at all: the baseline of the others", system=""),
}

TEMPLATES: Mapping[str, Template] = {
    # The model's own template trims every message and dates the prompt with the day of the run.
    "search-and-learn": Template(
        source="what Config.custom_chat_template of huggingface/search-and-learn makes of a chat without tools, with its fixed "
        "date; the tokenizer adds the beginning-of-text token",
        system="<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n"
        "Today Date: 26 Jul 2024\n\n{text}<|eot_id|>",
        user="<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|>",
        assistant="<|start_header_id|>assistant<|end_header_id|>\n\n{text}<|eot_id|>",
        opening="<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
}
