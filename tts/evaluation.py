"""Accuracy over a dataset, with its uncertainty and its cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tts.meter import Meter
from tts.tasks import Task

if TYPE_CHECKING:
    from tts.solver import Result

Z95 = 1.959963984540054


def wilson(num_right: int, num_total: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927): honest for small numbers and near 0 and 1. (0, 1) without data."""
    if num_total == 0:
        return 0.0, 1.0
    rate, spread = num_right / num_total, Z95**2 / num_total
    center = (rate + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(rate * (1 - rate) / num_total + spread / (4 * num_total))
    return max(0.0, center - half), min(1.0, center + half)


@dataclass(frozen=True)
class Evaluation:
    """What a strategy reached on a dataset. An answer that cannot be read out counts as wrong, and its cost counts."""

    results: Sequence[Result]
    correct: Sequence[bool]

    @property
    def accuracy(self) -> float:
        return sum(self.correct) / len(self.correct) if self.correct else math.nan

    @property
    def ci(self) -> tuple[float, float]:
        return wilson(sum(self.correct), len(self.correct))

    @property
    def meter(self) -> Meter:
        return sum((r.meter for r in self.results), Meter())

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; equal requests give equal dicts."""
        rows = [
            {
                "id": r.problem.id,
                "answer": r.answer,
                "gold": r.problem.gold,
                "correct": c,
                "num_candidates": len(r.candidates),
                "num_unparsable": sum(x.answer is None for x in r.candidates),
                "meter": r.meter.search_cost(),
                "error": r.error,
            }
            for r, c in zip(self.results, self.correct)
        ]
        return {"accuracy": self.accuracy, "ci": self.ci, "meter": self.meter.search_cost(), "per_problem": rows}


def evaluate(results: Sequence[Result], task: Task) -> Evaluation:
    """Grade results against their problems' gold answers."""
    correct = [r.answer is not None and r.problem.gold is not None and task.equal(r.problem.gold, r.answer) for r in results]
    return Evaluation(results, correct)
