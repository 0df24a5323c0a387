"""The hybrid tree: step search, revision and restarts as arms of one bandit, valued per token."""

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from tts.moves import All, Answer, Expand, Moves, Node, Prompt, Score, Steps
from tts.strategies.base import AGGREGATIONS, MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class Hybrid:
    n: int = parameter(16, "most answers, and the budget: the tokens of n answers of the greatest length", 1, MAX_WIDTH)
    width: int = parameter(4, "arms played at a time", 1, MAX_WIDTH)
    trust: float = parameter(4.0, "how many observations a score is worth", 0.01, 1e6)
    price: float = parameter(0.002, "gain in the best score that a token must promise, or it is not drawn", 0.0, 1.0)
    value_agg: str = parameter("last", "step scores -> the value of a prefix or an answer", choices=AGGREGATIONS)


class Arm(NamedTuple):
    """Something to do next, and the score by which its outcome is judged beforehand."""

    name: str
    source: Node | Prompt
    score: float


@dataclass
class Ledger:
    """What each kind of arm has cost so far; one that was never tried is taken to cost what the others do."""

    tokens: Counter = field(default_factory=Counter)
    times: Counter = field(default_factory=Counter)

    @property
    def spent(self) -> int:
        return sum(self.tokens.values())

    def enter(self, arm: Arm, new: Node) -> None:
        before = 0 if isinstance(arm.source, Prompt) else sum(step.cost for step in arm.source.path)
        self.tokens[arm.name] += sum(step.cost for step in new.path) - before
        self.times[arm.name] += 1

    def cost(self, name: str) -> float:
        names = [name] if self.times[name] else list(self.times)
        return sum(self.tokens[k] for k in names) / max(1, sum(self.times[k] for k in names)) or 1.0


@strategy("hybrid", source="this project; proposed as future work in Snell et al. 2024, section 8")
def hybrid(problem: SearchProblem, p: Hybrid) -> Moves:
    """One tree; each turn plays the arms with the largest drawn gain per token, or stops where no gain is worth its tokens.

    A score r is taken as `trust` observations: Beta(1 + trust r, 1 + trust (1 - r)) is what is believed of a prefix.
    """
    nodes: list[Node] = []
    ledger, budget = Ledger(), p.n * problem.task.max_tokens
    chosen = [Arm("restart", problem.root, math.nan)] * min(p.width, p.n)
    for turn in range(budget):
        room = (budget - ledger.spent) // len(chosen)
        if not room:
            break
        new = yield All([play(arm, room) for arm in chosen])
        nodes += new
        for arm, x in zip(chosen, new):
            ledger.enter(arm, x)
        answers = [x for x in nodes if x.is_done]
        left = min(p.width, p.n - len(answers))
        best = max((r for x in answers if math.isfinite(r := x.value(p.value_agg))), default=0.0)
        found = arms(problem, p, nodes)
        drawn = [choose(problem.rng("arm", turn, i), found, best, ledger, p) for i in range(left)]
        chosen = [arm for arm in drawn if arm is not None]
        if not chosen:
            break
    return [x for x in nodes if x.is_done] or nodes[-1:]


def play(arm: Arm, room: int):
    """Draw and score what an arm asks for: a whole answer for the revision of one, else one step."""
    until = Answer() if arm.name == "revise answer" else Steps(1)
    (new,) = yield Expand([arm.source], 1, until, max_tokens=room)
    yield Score([new])
    return new


def arms(problem: SearchProblem, p: Hybrid, nodes: list[Node]) -> list[Arm]:
    """All that can be done next. A restart is judged by the first steps so far, a step's revision by the prefix before it."""
    value = {x: x.value(p.value_agg) for x in nodes}
    parents = {x.parent for x in nodes}
    firsts = [r for x, r in value.items() if x.depth == 1 and math.isfinite(r)]
    found = {Arm("restart", problem.root, sum(firsts) / len(firsts) if firsts else 0.5): None}  # each arm once, in order
    for x in nodes:
        if not x.is_done and x not in parents:
            found[Arm("next step", x, value[x])] = None
        if x.depth > 1 and x.parent in value:
            found[Arm("revise step", x.parent, value[x.parent])] = None
        if x.is_done and "revise" in problem.task.templates:
            found[Arm("revise answer", Prompt("revise", (x,)), value[x])] = None
    return list(found)


def choose(rng: random.Random, found: list[Arm], best: float, ledger: Ledger, p: Hybrid) -> Arm | None:
    """The arm of the largest (drawn value - best answer's score) per token; None where that is below the price: stop."""
    gains, cost = [], {name: ledger.cost(name) for name in {arm.name for arm in found}}
    for arm in found:
        if math.isfinite(arm.score):
            r = min(max(arm.score, 0.0), 1.0)
            drawn = rng.betavariate(1 + p.trust * r, 1 + p.trust * (1 - r))
            gains.append(((drawn - best) / cost[arm.name], arm))
    gain, arm = max(gains, key=lambda pair: pair[0])  # a restart is always among them
    return arm if gain > p.price else None
