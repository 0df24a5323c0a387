"""The hybrid tree: step search, revision and restarts as arms of one bandit, valued per token."""

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from tts.moves import Answer, Expand, Moves, Node, Prompt, Score, Steps
from tts.strategies.base import AGGREGATIONS, MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class Hybrid:
    n: int = parameter(16, "answers after which it stops at the latest", 1, MAX_WIDTH)
    max_drawn: int = parameter(4096, "tokens drawn after which it stops at the latest", 1, 1 << 24)
    trust: float = parameter(4.0, "how many observations a score is worth", 0.01, 1e6)
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

    def cost(self, name: str) -> float:
        names = [name] if self.times[name] else list(self.times)
        return sum(self.tokens[k] for k in names) / max(1, sum(self.times[k] for k in names)) or 1.0


@strategy("hybrid", source="this project; proposed as future work in Snell et al. 2024, section 8")
def hybrid(problem: SearchProblem, p: Hybrid) -> Moves:
    """One tree; each turn plays the arm with the largest drawn gain per token, or stops where no draw beats the best answer.

    A score r is taken as `trust` observations: Beta(1 + trust r, 1 + trust (1 - r)) is what is believed of a prefix.
    """
    nodes = yield Expand([problem.root], 1, max_tokens=p.max_drawn)
    yield Score(nodes)
    ledger, spent = Ledger(), nodes[0].cost
    ledger.tokens["restart"], ledger.times["restart"] = spent, 1
    for turn in range(p.max_drawn):
        answers = [x for x in nodes if x.is_done]
        if len(answers) >= p.n or spent >= p.max_drawn:
            break
        best = max((r for x in answers if math.isfinite(r := x.value(p.value_agg))), default=0.0)
        arm = choose(problem.rng("arm", turn), arms(problem, p, nodes), best, ledger, p.trust)
        if arm is None and answers:
            break
        name, source, _ = arm or Arm("restart", problem.root, math.nan)
        until = Answer() if name == "revise answer" else Steps(1)
        (new,) = yield Expand([source], 1, until, max_tokens=p.max_drawn - spent)
        yield Score([new])
        cost = sum(step.cost for step in new.path) - (0 if isinstance(source, Prompt) else sum(x.cost for x in source.path))
        nodes.append(new)
        ledger.tokens[name] += cost
        ledger.times[name] += 1
        spent += cost
    return [x for x in nodes if x.is_done] or nodes[-1:]


def arms(problem: SearchProblem, p: Hybrid, nodes: list[Node]) -> list[Arm]:
    """All that can be done next. A restart is judged by the first steps so far, a step's revision by the prefix before it."""
    value = {x: x.value(p.value_agg) for x in nodes}
    parents = {x.parent for x in nodes}
    firsts = [r for x, r in value.items() if x.depth == 1 and math.isfinite(r)]
    found = [Arm("restart", problem.root, sum(firsts) / len(firsts) if firsts else 0.5)]
    for x in nodes:
        if not x.is_done and x not in parents:
            found.append(Arm("next step", x, value[x]))
        if x.depth > 1 and x.parent in value:
            found.append(Arm("revise step", x.parent, value[x.parent]))
        if x.is_done and "revise" in problem.task.templates:
            found.append(Arm("revise answer", Prompt("revise", (x,)), value[x]))
    return found


def choose(rng: random.Random, found: list[Arm], best: float, ledger: Ledger, trust: float) -> Arm | None:
    """The arm of the largest (drawn value - best answer's score) per token; None where no draw gains anything: stop."""
    gains = []
    for arm in found:
        if math.isfinite(arm.score):
            r = min(max(arm.score, 0.0), 1.0)
            drawn = rng.betavariate(1 + trust * r, 1 + trust * (1 - r))
            gains.append(((drawn - best) / ledger.cost(arm.name), arm))
    gain, arm = max(gains, key=lambda pair: pair[0])  # a restart is always among them
    return arm if gain > 0 else None
