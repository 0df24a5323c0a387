"""How well a verifier's scores are probabilities, and in which ways they are wrong: figures on solutions with known steps.

Scores are compared with the truth of prefixes: a step's label is whether it and all steps before it are right.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

THRESHOLD = 0.5
"""A step scored below it is called wrong."""


@dataclass(frozen=True)
class Judged:
    """One solution with the verifier's scores and the truth of its prefixes."""

    question: str
    scores: Sequence[float]
    labels: Sequence[bool]
    lengths: Sequence[int]
    """Characters of each step."""

    def __post_init__(self) -> None:
        if not len(self.scores) == len(self.labels) == len(self.lengths) > 0:
            raise ValueError(
                f"question {self.question!r}: {len(self.scores)} scores, {len(self.labels)} labels, {len(self.lengths)} lengths: "
                "the numbers must agree and not be 0"
            )


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram."""

    low: float
    high: float
    count: int
    mean_score: float
    share_right: float


def reliability(scores: Sequence[float], labels: Sequence[bool], num_bins: int = 10) -> list[Bin]:
    """Bins of equal width on [0, 1]; empty ones are left out. Scores that are not finite are not looked at."""
    x, y = _finite(scores, labels)
    place = np.minimum((x.clip(0, 1) * num_bins).astype(int), num_bins - 1)
    return [
        Bin(i / num_bins, (i + 1) / num_bins, int(here.sum()), float(x[here].mean()), float(y[here].mean()))
        for i in range(num_bins)
        if (here := place == i).any()
    ]


def ece(scores: Sequence[float], labels: Sequence[bool], num_bins: int = 10) -> float:
    """Expected calibration error: the mean over all scores of |mean score - share right| of their bin (Guo et al. 2017)."""
    bins = reliability(scores, labels, num_bins)
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.mean_score - b.share_right) for b in bins) / total if total else math.nan


def auc(scores: Sequence[float], labels: Sequence[bool]) -> float:
    """The chance that a right one is scored above a wrong one, ties counting half; NaN unless there are both."""
    x, y = _finite(scores, labels)
    right, wrong = x[y == 1], x[y == 0]
    if not len(right) or not len(wrong):
        return math.nan
    below, upto = np.searchsorted(np.sort(wrong), right, "left"), np.searchsorted(np.sort(wrong), right, "right")
    return float((below + upto).sum() / (2 * len(right) * len(wrong)))


def within_question_auc(solutions: Sequence[Judged]) -> float:
    """The mean over questions, with right and wrong solutions both, of the AUC of their last scores.

    The pooled AUC mostly measures how hard questions are; a search compares solutions of one question.
    """
    by_question: dict[str, list[Judged]] = defaultdict(list)
    for solution in solutions:
        by_question[solution.question].append(solution)
    found = [auc([s.scores[-1] for s in group], [s.labels[-1] for s in group]) for group in by_question.values()]
    known = [value for value in found if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


@dataclass(frozen=True)
class Isotonic:
    """A rising step-and-line function from scores to probabilities, fitted by least squares (pool adjacent violators)."""

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    @classmethod
    def fit(cls, scores: Sequence[float], labels: Sequence[bool]) -> Isotonic:
        """Needs scipy (`pip install tts-kernels[eval]`). Raises `ValueError` without a finite score."""
        from scipy.optimize import isotonic_regression

        x, y = _finite(scores, labels)
        if not len(x):
            raise ValueError("an isotonic fit needs at least one finite score")
        values, counts = np.unique(x, return_counts=True)
        means = np.array([y[x == value].mean() for value in values])
        fitted = isotonic_regression(means, weights=counts.astype(float)).x
        return cls(tuple(values.tolist()), tuple(fitted.tolist()))

    def __call__(self, score: float) -> float:
        """The probability of a score, between those of its neighbours; NaN stays NaN."""
        return float(np.interp(score, self.scores, self.probabilities)) if not math.isnan(score) else math.nan

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"scores": self.scores, "probabilities": self.probabilities}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Isotonic:
        found = json.loads(path.read_text(encoding="utf-8"))
        return cls(tuple(found["scores"]), tuple(found["probabilities"]))


@dataclass(frozen=True)
class Report:
    """What `tts verifier check` prints. Figures are NaN where no solution shows them."""

    num_solutions: int
    num_questions: int
    num_steps: int
    num_invalid: int
    """Steps whose score is not finite."""
    within_question_auc: float
    pooled_step_auc: float
    ece: float
    """Of all steps, as scored."""
    ece_held_out: float
    """Of the questions that the fit did not see, as scored."""
    ece_calibrated: float
    """Of the same, after an isotonic fit on the others."""
    over_criticism: float
    """Share of right prefixes that are called wrong."""
    error_neglect: float
    """Share of wrong prefixes that are called right."""
    located: float
    """Share of wrong solutions whose first step called wrong is the first wrong one."""
    displacement: float
    """Mean number of steps by which the first step called wrong comes late, where one is called wrong."""
    length_bias: float
    """Rank correlation of score and step length among right prefixes."""
    bins: list[Bin]


def report(solutions: Sequence[Judged]) -> tuple[Report, Isotonic]:
    """All figures, and the isotonic fit on every solution. Questions are split in two halves, every other one held out."""
    if not solutions:
        raise ValueError("there is no solution to check the verifier on")
    scores, labels, lengths = (_joined(solutions, name) for name in ("scores", "labels", "lengths"))
    questions = sorted({s.question for s in solutions})
    held_out = set(questions[1::2])
    seen = [s for s in solutions if s.question not in held_out]
    kept = [s for s in solutions if s.question in held_out]
    x, y = _joined(kept, "scores"), _joined(kept, "labels")
    fit = Isotonic.fit(_joined(seen, "scores"), _joined(seen, "labels"))
    located, late = _locations(solutions)
    right = [i for i, label in enumerate(labels) if label]
    made = Report(
        len(solutions),
        len(questions),
        len(scores),
        sum(not math.isfinite(score) for score in scores),
        within_question_auc(solutions),
        auc(scores, labels),
        ece(scores, labels),
        ece(x, y),
        ece([fit(score) for score in x], y),
        _share([scores[i] < THRESHOLD for i in right if math.isfinite(scores[i])]),
        _share([s >= THRESHOLD for s, label in zip(scores, labels) if not label and math.isfinite(s)]),
        _share(located),
        _share(late),
        _rank_correlation([scores[i] for i in right], [lengths[i] for i in right]),
        reliability(scores, labels),
    )
    return made, Isotonic.fit(scores, labels)


def _locations(solutions: Sequence[Judged]) -> tuple[list[bool], list[float]]:
    """For each wrong solution whether its first error was found, and by how many steps the finding was late."""
    located, late = [], []
    for solution in solutions:
        if all(solution.labels):
            continue
        truth = list(solution.labels).index(False)
        called = next((i for i, score in enumerate(solution.scores) if score < THRESHOLD), None)
        located.append(called == truth)
        if called is not None:
            late.append(float(called - truth))
    return located, late


def _joined(solutions: Sequence[Judged], name: str) -> list:
    return [value for solution in solutions for value in getattr(solution, name)]


def _share(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _finite(scores: Sequence[float], labels: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(scores, np.float64), np.asarray(labels, np.float64)
    return x[np.isfinite(x)], y[np.isfinite(x)]


def _rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, with mean ranks for ties; NaN where one of both does not vary."""
    x, y = _finite(a, b)
    if len(x) < 2:
        return math.nan
    ranks = [np.searchsorted(np.sort(v), v, "left") + np.searchsorted(np.sort(v), v, "right") for v in (x, y)]
    if any(np.ptp(r) == 0 for r in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])
