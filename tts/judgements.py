"""What generative judges say, read as numbers, and how many of them are counted: pure functions on texts and lists.

Generalist reward model (GRM): Liu et al. 2025, arXiv:2504.02495.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LOW, HIGH = 1, 10
"""A judge's scores are whole numbers in this range."""

_BOX = "\\boxed{"
_SCORE = re.compile(r"(\d{1,4})(?:\.0{1,4})?(?:\s*/\s*10)?")
_VERDICT = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_MAX_BOX = 4096
"""Characters in which a box must close."""


def last_box(text: str) -> str | None:
    """The content of the last `\\boxed{...}`; None where there is none, or where the last one does not close. Linear in the text.

    A text that was cut inside its last box has no result: an earlier box may be an example or a draft.
    """
    begin = text.rfind(_BOX)
    if begin < 0:
        return None
    begin += len(_BOX)
    end = text.find("}", begin, begin + _MAX_BOX)
    return None if end < 0 else text[begin:end]


def boxed_scores(text: str, count: int) -> list[int] | None:
    """The `count` scores in the last box, whole numbers from 1 to 10; None where it does not hold exactly that.

    `8`, `8.0` and `8/10` are the same score; dollar signs, brackets and `\\,` around them are not looked at.
    """
    box = last_box(text)
    if box is None:
        return None
    parts = [part.strip(" \t\n$[](){}\\;") for part in box.replace("\\,", " ").split(",")]
    found = [_SCORE.fullmatch(part) for part in parts]
    if len(parts) != count or not all(found):
        return None
    scores = [int(match[1]) for match in found if match]
    return scores if all(LOW <= score <= HIGH for score in scores) else None


def boxed_choice(text: str) -> int | None:
    """0 or 1 for a last box that holds 1 or 2, the better of two responses; else None."""
    choice = (last_box(text) or "").strip(" $")
    return int(choice) - 1 if choice in ("1", "2") else None


def yes_or_no(text: str) -> bool | None:
    """The last `yes` or `no` in the text, in any case; None where there is none."""
    found = _VERDICT.findall(text)
    return found[-1].lower() == "yes" if found else None


@dataclass(frozen=True)
class Verdict:
    """What a judge's samples say together."""

    scores: list[float]
    """One a response: larger is better; NaN for all where no sample could be read."""
    ranking: list[int]
    """Responses from best to worst, equal ones in an order drawn from the seed."""
    num_read: int
    """Samples that could be read."""
    num_dropped: int
    """Samples that could not, or had the wrong number of scores: charged all the same."""
    num_counted: int
    """Samples that count: of those read, the ones that the meta reward model kept."""

    @property
    def is_tie(self) -> bool:
        """Whether more than one response has the best score."""
        best = max((s for s in self.scores if math.isfinite(s)), default=math.nan)
        return sum(s == best for s in self.scores) > 1


def unshuffled(scores: Sequence[float], order: Sequence[int]) -> list[float]:
    """Scores in the order of the responses, from those in the order in which they were shown: place i showed `order[i]`."""
    found = [math.nan] * len(order)
    for place, response in enumerate(order):
        found[response] = scores[place]
    return found


def best_by_meta(values: Sequence[float], k_meta: int) -> list[int]:
    """The indices of the `k_meta` best finite values, in order of index; of equals the first."""
    finite = sorted((i for i, value in enumerate(values) if math.isfinite(value)), key=lambda i: -values[i])
    return sorted(finite[:k_meta])


def total(votes: Sequence[Sequence[float]], count: int) -> list[float]:
    """The sum of each response's scores over all votes; NaN for each of `count` where there is no vote."""
    return [math.fsum(vote[i] for vote in votes) for i in range(count)] if votes else [math.nan] * count


def pairwise(wins: Mapping[tuple[int, int], Sequence[int]], count: int) -> list[float]:
    """Pairs won by majority: of each pair (i, j) the choices 0 (i) and 1 (j); an even one counts half for both."""
    if not any(wins.values()):
        return [math.nan] * count
    scores = [0.0] * count
    for (first, second), choices in wins.items():
        if choices:
            share = sum(choices) / len(choices)
            scores[first] += 1.0 if share < 0.5 else 0.5 if share == 0.5 else 0.0
            scores[second] += 1.0 if share > 0.5 else 0.5 if share == 0.5 else 0.0
    return scores


def rank(scores: Sequence[float], rng: random.Random) -> list[int]:
    """Indices from best to worst; equal scores in random order, those that are not finite last."""
    order = list(range(len(scores)))
    rng.shuffle(order)
    return sorted(order, key=lambda i: -scores[i] if math.isfinite(scores[i]) else math.inf)


def tie_rate(verdicts: Sequence[Verdict]) -> float:
    """The share of verdicts whose best score is shared; NaN without any."""
    return sum(v.is_tie for v in verdicts) / len(verdicts) if verdicts else math.nan
