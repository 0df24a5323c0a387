"""Results in the columns of huggingface/search-and-learn (`src/sal/utils/score.py`, commit 6f81cac), with ours beside them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tts import selection
from tts.strategies.base import AGGREGATIONS, parameter
from tts.tasks import Task

if TYPE_CHECKING:
    from tts.solver import Candidate, Result

SCHEMA_VERSION = 1
RULES = {"naive": "max", "weighted": "weighted", "maj": "majority"}
"""Its names of our selection rules."""


@dataclass(frozen=True)
class Scoring:
    """How the columns choose. What is on by default keeps a defect of the reference; off, it is repaired."""

    agg: str = parameter("last", "step scores -> the score by which `pred` is chosen (agg_strategy)", choices=AGGREGATIONS)
    agg_last: bool = parameter(True, "`agg_scores`, and with it every vote, takes the last step's score whatever `agg` says")
    unparsable_votes: bool = parameter(True, "texts without an answer vote as one empty answer")


def columns(result: Result, task: Task, scoring: Scoring = Scoring()) -> dict[str, Any]:
    """One row: search-and-learn's columns in its order, then ours. Scores that are not finite are None.

    `pred_*@k` are what the first k completions choose, for the powers of two up to their number. Answers are extracted, grouped
    and compared by the task. Of equals the first wins; a score that is not finite never wins.
    """
    problem, candidates = result.problem, result.candidates
    answers = [c.answer or "" if scoring.unparsable_votes else c.answer for c in candidates]
    votes = [selection.aggregate(c.scores, "last" if scoring.agg_last else scoring.agg) for c in candidates]
    chosen = {
        f"{name}@{k}": selection.select(answers[:k], votes[:k], rule, _group(task))
        for k in _powers_of_two(len(candidates))
        for name, rule in RULES.items()
    }
    return {
        "problem": problem.question,
        "answer": problem.gold,
        "unique_id": problem.id,
        "completions": [c.text for c in candidates],
        "scores": [[_finite(s) for s in c.scores] for c in candidates],
        "pred": _best_text(candidates, scoring.agg),
        "agg_scores": [_finite(v) for v in votes],
        "completion_tokens": [sum(step.num_tokens for step in c.steps) for c in candidates],
        **{f"pred_{key}": f"\\boxed{{{answers[i] or ''}}}" for key, i in chosen.items()},
        **{f"correct_{key}": is_correct(candidates[i].answer, problem.gold, task) for key, i in chosen.items()},
        "finish_reasons": [c.end for c in candidates],
        "prompt_tokens": result.meter.prompt_tokens,
        "verifier_tokens": result.meter.verifier_tokens,
        "flops": result.meter.flops,
        "wall_s": result.meter.seconds,
        "seed": result.seed,
        "config_hash": config_hash(result, scoring),
        "grader": task.name,
        "error": result.error,
        "schema_version": SCHEMA_VERSION,
    }


def is_correct(answer: str | None, gold: str | None, task: Task) -> bool:
    """Whether an answer is there and equals the gold answer."""
    return answer is not None and gold is not None and task.equal(gold, answer)


def config_hash(result: Result, scoring: Scoring) -> str:
    """The first 16 hex digits of the SHA-256 of strategy, parameters, seed and scoring: equal for rows of one run."""
    settings = [result.strategy, result.parameters, result.seed, vars(scoring)]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _best_text(candidates: Sequence[Candidate], how: str) -> str | None:
    values = [selection.aggregate(c.scores, how) for c in candidates]
    best = max(range(len(values)), key=lambda i: values[i] if math.isfinite(values[i]) else -math.inf, default=None)
    return None if best is None else candidates[best].text


def _group(task: Task) -> selection.Group:
    """The task's groups; the empty answer is a group of its own."""

    def group(answers: selection.Answers) -> list[int]:
        known = task.group([answer or None for answer in answers])
        return [len(answers) if answer == "" else number for answer, number in zip(answers, known)]

    return group


def _powers_of_two(limit: int) -> list[int]:
    return [1 << i for i in range(limit.bit_length()) if 1 << i <= limit]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
