"""Lookahead search: beam search whose prefixes are valued at the end of a short greedy rollout."""

from dataclasses import dataclass, fields

from tts.moves import Drop, Expand, Moves, Score, Steps
from tts.strategies.base import SearchProblem, parameter, strategy
from tts.strategies.beam import Beam, beam


@dataclass(frozen=True)
class Lookahead(Beam):
    k: int = parameter(1, "steps that a rollout looks ahead; 0 is beam search", 0, 100)


@strategy("lookahead", source="Snell et al. 2024, section 5.2")
def lookahead(problem: SearchProblem, p: Lookahead) -> Moves:
    """Beam search that values a prefix where a greedy rollout of up to k more steps ends; the rollout is discarded."""

    def value(live):
        tips = yield Expand(live, 1, Steps(p.k), temperature=0)
        yield Score(tips)
        yield Drop(tips)
        return [tip.value(p.prune_agg) for tip in tips]

    plain = Beam(**{f.name: getattr(p, f.name) for f in fields(Beam)})
    return (yield from beam(problem, plain, value if p.k else None))
