"""The prompts of generative judges: what a question's responses are judged with. They name no task."""

from __future__ import annotations

from collections.abc import Sequence

from tts.tasks.base import Message

_SCALE = "a whole number from 1 (useless) to 10 (nothing could be better)"
_INSTRUCTIONS = {
    "listwise": (
        "Several responses to one question are to be compared. First write down the principles that matter for judging a "
        "response to this very question, each with its weight. Then criticise each response by these principles: check its "
        "steps and say what is right and what is wrong. Finally give each response one score, {scale}, in the order in which the "
        r"responses are shown, on one last line: \boxed{{{example}}}."
    ),
    "pairwise": (
        "Two responses to one question are to be compared. First write down the principles that matter for this question. Then "
        r"check both responses by them. Finally say which one is better on one last line: \boxed{{1}} or \boxed{{2}}."
    ),
    "verdict": (
        "A response to a question is to be verified. Check it step by step. Finally answer on one last line whether the "
        "response is correct: Yes or No."
    ),
    "semi-scalar": (
        "A response to a question is to be criticised. Write down the principles that matter for this question, check the "
        "response by them, and say what is right and what is wrong. Give no score."
    ),
}


def render_judge(way: str, question: str, responses: Sequence[str]) -> list[Message]:
    """The conversation that asks for a judgement: instructions and question first, so that prompts differ late.

    `way` is one of `tts.judge.WAYS`: what the judge is asked for.
    """
    if way not in _INSTRUCTIONS:
        raise ValueError(f"unknown way to judge {way!r}: expected one of {', '.join(_INSTRUCTIONS)}")
    example = ", ".join(f"score {i + 1}" for i in range(len(responses)))
    parts = [_INSTRUCTIONS[way].format(scale=_SCALE, example=example), f"Question:\n{question}"]
    if len(responses) == 1:
        parts.append(f"Response:\n{responses[0]}")
    else:
        parts += [f"Response {i + 1}:\n{text}" for i, text in enumerate(responses)]
    return [{"role": "user", "content": "\n\n".join(parts)}]
