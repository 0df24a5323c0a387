"""From step scores to an answer's score, and from scored answers to the answer.

Sources: majority voting is self-consistency (Wang et al. 2022, arXiv 2203.11171); weighted voting and best-of-N as in Snell et
al. 2024 (arXiv 2408.03314) and huggingface/search-and-learn; pass@k is Chen et al. 2021 (arXiv 2107.03374), equation 1.

An answer is a string, or `None` where a text holds none: `None` forms no group and wins only where every answer is `None`.
A score that is NaN or infinite never wins and adds nothing. Of equals the first sampled wins. A rule returns the index of the
winner; where a group wins, that of its first-sampled member (`hierarchical`: of its best-scored member).
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

Answers = Sequence[str | None]
Group = Callable[[Answers], list[int]]
"""Gives each answer the id of its group; what it gives to `None` is not read."""

T = TypeVar("T")
_NAN = float("nan")


def _min(scores: Sequence[float]) -> float:
    return _NAN if any(map(math.isnan, scores)) else builtins.min(scores)


AGGREGATIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "last": lambda scores: scores[-1],
    "min": _min,
    "prod": math.prod,
    "mean": lambda scores: sum(scores) / len(scores),
}


def aggregate(scores: Sequence[float], how: str = "last") -> float:
    """One score for an answer from those of its steps: `last`, `min`, `prod` or `mean`.

    No step: NaN. A NaN among the scores makes `min`, `prod` and `mean` NaN; `last` is NaN only if the last score is.
    """
    return float(_named(AGGREGATIONS, "aggregation", how)(scores)) if len(scores) else _NAN


def majority(answers: Answers, group: Group | None = None) -> int:
    """The index of the first member of the largest group; of groups of one size the one seen first. All `None`: 0."""
    groups = _groups(answers, group)
    return builtins.max(groups, key=len)[0] if groups else 0  # the builtin keeps the first of equals


def max(answers: Answers, scores: Sequence[float], group: Group | None = None) -> int:
    """The index of the best score (PRM-Max, "naive" best-of-N) among the answers that are not `None`.

    If all answers are `None`: of the best finite score. If no finite score is left: of the first candidate. The best score is
    one answer's own, so `group` changes nothing; it is here to call every rule alike.
    """
    _check(answers, scores)
    candidates = [index for index, answer in enumerate(answers) if answer is not None] or list(range(len(answers)))
    return builtins.max(candidates, key=lambda index: scores[index] if math.isfinite(scores[index]) else -math.inf)


def weighted(answers: Answers, scores: Sequence[float], group: Group | None = None) -> int:
    """The index of the first member of the group with the largest sum of scores (PRM-Vote, best-of-N weighted).

    A group without any finite score loses to every other. Sums are rounded once (`math.fsum`), so they do not depend on the
    order. All `None`: as `max`. Raises `ValueError` for a negative finite score: votes cannot be negative.
    """
    _check(answers, scores)
    for index, score in enumerate(scores):
        if math.isfinite(score) and score < 0:
            raise ValueError(f"scores[{index}] = {score}: weighted needs scores >= 0; apply a sigmoid to raw rewards")
    groups = _groups(answers, group)
    if not groups:
        return max(answers, scores)
    return builtins.max(groups, key=lambda members: _weight([scores[index] for index in members]))[0]


def hierarchical(answers: Answers, scores: Sequence[float], chains: Sequence[int], group: Group | None = None) -> int:
    """Weighted within each chain of revisions, then weighted across the chains (Snell et al. 2024, section 6).

    `chains[i]` is the chain of answer i. A chain sends the best-scored member of its winning group; the index returned is that
    of the winner among those. Where every answer is a chain of its own this is `weighted`.
    """
    _check(answers, scores)
    if len(chains) != len(answers):
        raise ValueError(f"expected one chain for each of {len(answers)} answers, got {len(chains)}")
    members: dict[int, list[int]] = {}
    for index, chain in enumerate(chains):
        members.setdefault(chain, []).append(index)
    sent = [_representative(rows, answers, scores, group) for rows in members.values()]
    return sent[weighted([answers[i] for i in sent], [scores[i] for i in sent], group)]


def _representative(rows: list[int], answers: Answers, scores: Sequence[float], group: Group | None) -> int:
    """The best-scored member of the group that wins among `rows`."""
    mine = [answers[i] for i in rows]
    winner = weighted(mine, [scores[i] for i in rows], group)
    if mine[winner] is None:
        return rows[winner]
    ids = (group or exact)(mine)
    equal = [i for i, g, answer in zip(rows, ids, mine) if answer is not None and g == ids[winner]]
    return equal[max([answers[i] for i in equal], [scores[i] for i in equal])]


RULES: dict[str, Callable[[Answers, Sequence[float], Group | None], int]] = {
    "majority": lambda answers, scores, group: majority(answers, group),
    "max": max,
    "weighted": weighted,
}
"""Every rule by its name, called alike; majority does not read the scores."""


def select(answers: Answers, scores: Sequence[float], rule: str, group: Group | None = None) -> int:
    """The index of the winner under the rule of that name in `RULES`. `ValueError` if answers and scores do not pair up."""
    _check(answers, scores)
    return _named(RULES, "rule", rule)(answers, scores, group)


def exact(answers: Answers) -> list[int]:
    """Groups of identical strings: the default. `None` gets -1."""
    ids: dict[str, int] = {}
    return [-1 if answer is None else ids.setdefault(answer, len(ids)) for answer in answers]


def group_by(equal: Callable[[str, str], bool]) -> Group:
    """Turn a pairwise equality into a grouping: an answer joins the first group whose first member equals it.

    `equal` is asked for distinct strings only. `None` gets -1. Where `equal` is not transitive the groups depend on the order.
    """

    def group(answers: Answers) -> list[int]:
        first: list[str] = []
        ids: dict[str, int] = {}
        for answer in answers:
            if answer is not None and answer not in ids:
                ids[answer] = next((index for index, other in enumerate(first) if equal(other, answer)), len(first))
                if ids[answer] == len(first):
                    first.append(answer)
        return [-1 if answer is None else ids[answer] for answer in answers]

    return group


def pass_at_k(n: int, c: int, k: int) -> float:
    """The unbiased estimate of pass@k from `n` samples of which `c` are right: ``1 - prod_{i=n-c+1..n} (1 - k/i)``.

    It is 1 where fewer than `k` samples are wrong. Raises `ValueError` unless ``0 <= c <= n`` and ``1 <= k <= n``.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass_at_k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def _groups(answers: Answers, group: Group | None) -> list[list[int]]:
    """The indices of each group's members; groups in the order of their first members."""
    _check(answers)
    ids = (group or exact)(answers)
    if len(ids) != len(answers):
        raise ValueError(f"group returned {len(ids)} ids for {len(answers)} answers")
    members: dict[int, list[int]] = {}
    for index, answer in enumerate(answers):
        if answer is not None:
            members.setdefault(ids[index], []).append(index)
    return list(members.values())


def _weight(scores: Sequence[float]) -> tuple[bool, float]:
    """What a group brings to the vote: whether any score is finite, and the sum of those that are."""
    finite = [score for score in scores if math.isfinite(score)]
    try:
        return bool(finite), math.fsum(finite)
    except OverflowError:
        return True, math.inf


def _check(answers: Answers, scores: Sequence[float] | None = None) -> None:
    if not len(answers):
        raise ValueError("answers is empty: there is nothing to select from")
    if scores is not None and len(scores) != len(answers):
        raise ValueError(f"expected one score for each of {len(answers)} answers, got {len(scores)} scores")


def _named(table: dict[str, Callable[..., T]], what: str, name: str) -> Callable[..., T]:
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}: expected one of {', '.join(table)}")
    return table[name]
