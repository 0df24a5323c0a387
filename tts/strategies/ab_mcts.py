"""AB-MCTS-A: a tree of whole answers that grows wider or deeper as Thompson sampling says."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tts.moves import Answer, Expand, Moves, Node, Prompt, Score
from tts.strategies.base import AGGREGATIONS, MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class ABMCTS:
    n: int = parameter(16, "answers in all, one after the other", 1, MAX_WIDTH)
    prior: str = parameter("gaussian", "of the scores: gaussian (normal-inverse-gamma) or beta", choices=("gaussian", "beta"))
    value_agg: str = parameter("last", "step scores -> the score of an answer", choices=AGGREGATIONS)


@dataclass(eq=False)
class Place:
    """An answer in the tree (None at its root), with what was seen below it."""

    answer: Node | None = None
    children: list["Place"] = field(default_factory=list)
    generated: list[float] = field(default_factory=list)
    """Scores of the answers that were generated from here: what GEN is worth."""
    continued: list[float] = field(default_factory=list)
    """Scores of the answers below those: what CONT is worth."""

    @property
    def below(self) -> list[float]:
        return self.generated + self.continued


@strategy(
    "ab_mcts",
    source="Inoue et al. 2025, arXiv 2503.04412 (AB-MCTS-A, node aggregation)",
    templates=("revise",),
    select="max",
)
def ab_mcts(problem: SearchProblem, p: ABMCTS) -> Moves:
    """N times: from the root, draw what a new answer and what going on below the children is worth, and follow the larger.

    A new answer at the root is a fresh one, elsewhere a revision of the answer there.
    """
    root, answers = Place(), []
    for i in range(p.n):
        rng, path = problem.rng("thompson", i), [root]
        while (place := path[-1]).children:
            if draw(rng, place.generated, p.prior) >= draw(rng, place.continued, p.prior):
                break  # GEN
            path.append(max(place.children, key=lambda child: draw(rng, child.below, p.prior)))
        source = problem.root if place.answer is None else Prompt("revise", (place.answer,))
        (answer,) = yield Expand([source], 1, Answer())
        yield Score([answer])
        answers.append(answer)
        place.children.append(Place(answer))
        score = answer.value(p.value_agg)
        if math.isfinite(score):  # an invalid score says nothing
            place.generated.append(score)
            for above in path[:-1]:
                above.continued.append(score)
    return answers


class Posterior(NamedTuple):
    """A normal-inverse-gamma distribution; its defaults are the prior."""

    m: float = 0.0
    kappa: float = 1.0
    nu: float = 1.0
    tau2: float = 0.1

    def given(self, scores: Sequence[float]) -> "Posterior":
        """The conjugate update (Murphy, Probabilistic Machine Learning: Advanced Topics, section 3.4.3.3)."""
        n = len(scores)
        if not n:
            return self
        mean = sum(scores) / n
        spread = sum((s - mean) ** 2 for s in scores) + n * self.kappa * (self.m - mean) ** 2 / (self.kappa + n)
        kappa, nu = self.kappa + n, self.nu + n
        return Posterior((self.kappa * self.m + n * mean) / kappa, kappa, nu, (self.nu * self.tau2 + spread) / nu)


def draw(rng: random.Random, scores: Sequence[float], prior: str) -> float:
    """One draw of the mean score from its posterior; Beta(.5, .5) takes scores as fractional successes, held within [0, 1]."""
    if prior == "beta":
        won = sum(min(max(s, 0.0), 1.0) for s in scores)
        return rng.betavariate(0.5 + won, 0.5 + len(scores) - won)
    m, kappa, nu, tau2 = Posterior().given(scores)
    variance = nu * tau2 / 2 / rng.gammavariate(nu / 2, 1.0)
    return rng.gauss(m, math.sqrt(variance / kappa))
