"""The chain task: a start number, up to eight one-digit operations modulo 100, every intermediate state written out.

A question is ``Q94a-3b+2c+4d+2;`` and its one correct solution ``a94-3=64;b64+2=84;c84+4=25;d25+2=45;A842545$``: numbers are
two digits in little-endian order (``94`` is 49), steps carry the marks a to h in the question and in the solution, and the
answer is the last three states. The truth of every single step is known, which real mathematics data sets cannot offer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from tts.selection import exact
from tts.tasks.base import Message, Problem, Thinking

EXAMPLE = "Q94a-3b+2c+4d+2;"
MODULUS = 100
MAX_STEPS = 8
MARKS = "abcdefgh"
OPERATIONS = "+-*"
OPERANDS = range(1, 10)
END = "$"
ANSWER_STATES = 3
ALPHABET = "0123456789" + MARKS + OPERATIONS + "=;QA" + END
"""Every character of a question or of a well-formed solution."""

# Training sees some facts rarely, tests ask for all alike: what is badly known then is wrong at random and systematically.
_TRAINING_OPERATIONS = tuple(accumulate((0.50, 0.33, 0.17)))
_TRAINING_OPERANDS = tuple(accumulate(k**-1.2 for k in OPERANDS))

_QUESTION = re.compile(r"Q([0-9]{2})((?:[a-h][-+*][1-9]){1,8});")
_STEP = re.compile(r"[a-h]([0-9])([0-9])([-+*][0-9])=([0-9])([0-9]);?")
_ANSWER = re.compile(r"A([0-9])([0-9])([0-9])([0-9])([0-9])([0-9])")
_SIX_DIGITS = re.compile(r"[0-9]{6}")


class Chain:
    """The chain task as a `Task`: steps end in ``;``, the text in ``$``, the answer is six digits after ``A``."""

    name = "chain"
    step_stop = (";",)
    # The models know one format: they can be made to answer early, but were never shown another answer to revise or debate.
    templates = ("solve", "think")
    thinking = Thinking(end="A", wait="", answer="A")
    max_tokens = 96  # the longest correct solution has 8 * 9 + 8 = 80 characters, one token each

    def check(self, question: str) -> None:
        """Raise `ValueError` unless `question` is one of the task's questions."""
        _parse(question)

    def render(self, template: str, question: str, previous: Sequence[str], fields: Mapping[str, Any]) -> str | list[Message]:
        """The question itself: the models of this task continue it with a solution. `think` is the same prompt."""
        if template not in self.templates:
            raise ValueError(f"task chain has no template {template!r}; it has: {', '.join(self.templates)}")
        return question

    def extract(self, text: str) -> str | None:
        """What follows the last ``A``, without the final ``$``, if that is exactly six digits; else `None`."""
        _, mark, answer = text.rpartition("A")
        answer = answer.removesuffix(END)
        return answer if mark and _SIX_DIGITS.fullmatch(answer) else None

    def equal(self, a: str, b: str) -> bool:
        """Exact equality: an answer has one way to be written."""
        return a == b

    def group(self, answers: Sequence[str | None]) -> list[int]:
        """Exact groups."""
        return exact(answers)

    def step_truth(self, question: str, solution: str) -> list[bool]:
        """`step_truth`, for the rule verifier."""
        return step_truth(question, solution)

    def show(self, text: str) -> str:
        """`text` in ordinary digits: ``a94-3=64;`` reads ``49-3=46``. What is not well formed stays as it is."""
        text = _QUESTION.sub(_show_question, text.removesuffix(END))
        text = _STEP.sub(r"\2\1\3=\5\4; ", text)
        return _ANSWER.sub(r"answer \2\1 \4\3 \6\5", text).removesuffix("; ").removesuffix(": ")


def _show_question(match: re.Match[str]) -> str:
    start, operations = match.groups()
    return ", ".join([start[::-1], *(operations[i : i + 2] for i in range(1, len(operations), 3))]) + " (mod 100): "


def _parse(question: str) -> tuple[int, list[tuple[str, int]]]:
    """The start number and the operations, or the `ValueError` that `Chain.check` promises."""
    match = _QUESTION.fullmatch(question)
    if match and match[2][::3] == MARKS[: len(match[2]) // 3]:
        return _number(match[1]), [(match[2][i], int(match[2][i + 1])) for i in range(1, len(match[2]), 3)]
    raise ValueError(
        f"not a question of the task chain: {question!r}. Expected Q, a start number of two digits written backwards, 1 to "
        f"{MAX_STEPS} operations (+ - *) with operands 1 to 9, marked a, b, c, ... in order, and a final semicolon: "
        f"49 - 3 + 2 + 4 + 2 is written {EXAMPLE!r}."
    )


def _digits(number: int) -> str:
    return f"{number:02d}"[::-1]


def _number(digits: str) -> int:
    return int(digits[::-1])


def _apply(state: int, operation: str, operand: int) -> int:
    if operation == "+":
        return (state + operand) % MODULUS
    if operation == "-":
        return (state - operand) % MODULUS
    return state * operand % MODULUS


def solve(question: str) -> str:
    """The one correct solution of `question`, its ``$`` included; problems of one step repeat the start in the answer."""
    start, operations = _parse(question)
    states, steps = [start] * ANSWER_STATES, []
    for mark, (operation, operand) in zip(MARKS, operations, strict=False):
        states.append(_apply(states[-1], operation, operand))
        steps.append(f"{mark}{_digits(states[-2])}{operation}{operand}={_digits(states[-1])};")
    return "".join(steps) + "A" + "".join(map(_digits, states[-ANSWER_STATES:])) + END


def gold(question: str) -> str:
    """The correct answer of `question`: six digits."""
    return solve(question)[-7:-1]


def split_steps(solution: str) -> list[str]:
    """The text cut after every ``;``; the answer, or an unfinished step, is the last piece. Joined they are `solution`."""
    return [piece for piece in re.split(r"(?<=;)", solution) if piece]


def step_truth(question: str, solution: str) -> list[bool]:
    """For every piece of `split_steps(solution)` whether it is, to the letter, that piece of the correct solution.

    A step that calculates rightly on from a wrong state is false, as is an unfinished step; the answer counts as a step, with
    or without its ``$``. An empty text has no steps. A text that stops early is judged as far as it goes.
    """
    truth = split_steps(solve(question).removesuffix(END))
    written = split_steps(solution.removesuffix(END))
    return [i < len(truth) and piece == truth[i] for i, piece in enumerate(written)]


def sample(rng: random.Random, steps: int, training: bool = False) -> str:
    """One question of `steps` operations: flat over operations and operands, or with the training set's skew.

    Training draws ``+ - *`` with weights .50, .33, .17 and the operand k with a weight of k^-1.2. Start numbers are flat.
    """
    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps: expected 1 to {MAX_STEPS}, got {steps}")
    operations = rng.choices(OPERATIONS, cum_weights=_TRAINING_OPERATIONS if training else None, k=steps)
    operands = rng.choices(OPERANDS, cum_weights=_TRAINING_OPERANDS if training else None, k=steps)
    body = "".join(f"{m}{o}{k}" for m, o, k in zip(MARKS, operations, operands, strict=False))
    return f"Q{_digits(rng.randrange(MODULUS))}{body};"


def natural(n: int, seed: int) -> list[Problem]:
    """The natural test set: `n` problems, lengths drawn evenly from 1 to 8 steps, flat over operations and operands.

    A longer set of the same seed begins with the shorter one. `meta` holds the number of steps.
    """
    return list(_natural(n, seed))


def _natural(n: int, seed: int) -> Iterator[Problem]:
    rng = random.Random(f"chain natural {seed}")  # seeding from text keeps the set apart from training sets of the same seed
    for i in range(n):
        length = rng.randint(1, MAX_STEPS)
        question = sample(rng, length)
        yield Problem(question, id=f"chain-natural-{seed}-{i}", gold=gold(question), meta={"steps": length})
