"""Generative judges as generators over the moves: usable to choose among answers, to prune steps, and alone.

Every way asks the model `grm` for `k` samples, reads a number out of each and gives one `Verdict` for all responses. Samples
that cannot be read are dropped; what they cost is metered like any other token.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from tts.judgements import Verdict, best_by_meta, boxed_choice, boxed_scores, pairwise, rank, total, unshuffled, yes_or_no
from tts.moves import Answer, Expand, Node, Prompt, Score

if TYPE_CHECKING:
    from tts.strategies.base import SearchProblem

GRM, META = "grm", "meta"
"""The judge among the policies; the reward model that reads its judgements among the verifiers."""

Judging = Generator[Any, Any, Any]
"""Moves out, their results in."""


@dataclass(frozen=True)
class Jury:
    """How responses are judged."""

    way: str = "listwise"
    """A name of `WAYS`."""
    k: int = 8
    """Samples: in all for `listwise`, of each pair for `pairwise`, of each response for the others."""
    k_meta: int = 0
    """Samples that count, chosen by the meta reward model; 0: all of them."""
    temperature: float = 0.5
    shuffle: bool = True
    """Show the responses in another order each time; without it the position bias of the judge stays in."""

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise ValueError(f"unknown way to judge {self.way!r}; there are {', '.join(WAYS)}")
        if self.k < 1 or not 0 <= self.k_meta <= self.k or not 0 <= self.temperature <= 100:
            raise ValueError(
                f"need k >= 1, 0 <= k_meta <= k and temperature in [0, 100], got k={self.k} k_meta={self.k_meta} "
                f"temperature={self.temperature}"
            )


def judge(problem: SearchProblem, responses: Sequence[Node], jury: Jury) -> Judging:
    """The verdict on `responses`, leaves of any branches. A missing judge or meta model is an error before a token is drawn."""
    yield Expand([_prompt((), jury)], 0)
    if jury.k_meta or jury.way == "semi-scalar":
        yield Score([], by=META)
    scores, num_read, num_dropped, num_counted = yield from WAYS[jury.way](problem, responses, jury)
    ranking = rank(scores, problem.rng("ties", [node.key for node in responses]))
    return Verdict(scores, ranking, num_read, num_dropped, num_counted)


def listwise(problem: SearchProblem, responses: Sequence[Node], jury: Jury) -> Judging:
    """DeepSeek-GRM: principles, critique and one boxed score a response, all responses at once; the scores are summed."""
    count = len(responses)
    orders = [tuple(_order(problem, count, j, jury.shuffle)) for j in range(jury.k)]
    shown = [tuple(responses[i] for i in order) for order in orders]
    said = yield from _ask(shown, jury)
    votes = []
    for node, order in zip(said, orders):
        scores = boxed_scores(node.solution, count)
        if scores is not None:
            votes.append((node, unshuffled(scores, order)))
    counted = yield from _meta(votes, jury)
    return total(counted, count), len(votes), jury.k - len(votes), len(counted)


def pairs(problem: SearchProblem, responses: Sequence[Node], jury: Jury) -> Judging:
    """Every pair is judged `k` times, half of them the other way round; a response's score is the pairs that it wins."""
    asked = [
        ((i, j), jury.shuffle and sample % 2 == 1) for i, j in combinations(range(len(responses)), 2) for sample in range(jury.k)
    ]
    shown = [(responses[j], responses[i]) if is_turned else (responses[i], responses[j]) for (i, j), is_turned in asked]
    said = yield from _ask(shown, jury)
    votes = []
    for node, (pair, is_turned) in zip(said, asked):
        choice = boxed_choice(node.solution)
        if choice is not None:
            votes.append((node, (pair, choice ^ is_turned)))
    counted = yield from _meta(votes, jury)
    wins: dict[tuple[int, int], list[int]] = {pair: [] for pair, _ in asked}
    for pair, choice in counted:
        wins[pair].append(choice)
    return pairwise(wins, len(responses)), len(votes), len(asked) - len(votes), len(counted)


def verdicts(problem: SearchProblem, responses: Sequence[Node], jury: Jury) -> Judging:
    """GenRM with reasoning (Zhang et al. 2024, arXiv:2408.15240): the share of `yes` among the samples on each response alone."""
    asked = [i for i in range(len(responses)) for _ in range(jury.k)]
    said = yield from _ask([(responses[i],) for i in asked], jury)
    votes = [(node, (i, found)) for node, i in zip(said, asked) if (found := yes_or_no(node.solution)) is not None]
    counted = yield from _meta(votes, jury)
    return _means(counted, len(responses)), len(votes), len(asked) - len(votes), len(counted)


def semi_scalar(problem: SearchProblem, responses: Sequence[Node], jury: Jury) -> Judging:
    """CLoud (Ankner et al. 2024, arXiv:2408.11791): a scalar head reads each critique; the mean over a response's critiques."""
    asked = [i for i in range(len(responses)) for _ in range(jury.k)]
    said = yield from _ask([(responses[i],) for i in asked], jury)
    values = yield Score(said, by=META, context="prompt")
    votes = [(node, (i, value)) for node, i, value in zip(said, asked, values) if math.isfinite(value)]
    counted = yield from _meta(votes, jury)
    return _means(counted, len(responses)), len(votes), len(asked) - len(votes), len(counted)


WAYS = {"listwise": listwise, "pairwise": pairs, "verdict": verdicts, "semi-scalar": semi_scalar}


def _order(problem: SearchProblem, count: int, sample: int, shuffle: bool) -> list[int]:
    """The order in which sample number `sample` sees the responses."""
    return problem.rng("order", sample).sample(range(count), count) if shuffle else list(range(count))


def _prompt(shown: tuple[Node, ...], jury: Jury) -> Prompt:
    return Prompt("judge", shown, GRM, (("way", jury.way),))


def _ask(shown: Sequence[tuple[Node, ...]], jury: Jury) -> Judging:
    """One sample for each of `shown`, in that order; equal prompts are read once and sampled as often as they occur."""
    prompts = [_prompt(nodes, jury) for nodes in shown]
    counts = Counter(prompts)
    said = yield Expand(list(counts), list(counts.values()), Answer(), temperature=jury.temperature)
    by_prompt: dict[Prompt, list[Node]] = {}
    for prompt, node in zip((p for p, count in counts.items() for _ in range(count)), said):
        by_prompt.setdefault(prompt, []).append(node)
    return [by_prompt[prompt].pop(0) for prompt in prompts]


def _meta(votes: Sequence[tuple[Node, Any]], jury: Jury) -> Judging:
    """What the votes say, all of them or those whose critique the meta reward model likes best."""
    if not jury.k_meta or not votes:
        return [vote for _, vote in votes]
    values = yield Score([node for node, _ in votes], by=META, context="prompt")
    return [votes[i][1] for i in best_by_meta(values, jury.k_meta)]


def _means(counted: Sequence[tuple[int, float]], count: int) -> list[float]:
    values = [[float(value) for i, value in counted if i == response] for response in range(count)]
    return [math.fsum(v) / len(v) if v else math.nan for v in values]
