"""Best-of-N chosen by a generative reward model's vote."""

from dataclasses import dataclass

from tts.judge import WAYS, Jury, judge
from tts.moves import Answer, Expand, Moves
from tts.strategies.base import MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class GrmBestOfN:
    n: int = parameter(4, "whole answers to sample", 1, MAX_WIDTH)
    k: int = parameter(8, "judgements to sample", 1, MAX_WIDTH)
    k_meta: int = parameter(0, "judgements that count, chosen by the meta reward model; 0: all", 0, MAX_WIDTH)
    way: str = parameter("listwise", "how the judge is asked", choices=tuple(WAYS))
    judge_temperature: float = parameter(0.5, "temperature of the judgements", 0.0, 100.0)
    shuffle: bool = parameter(True, "show the answers in another order each time")


@strategy(
    "grm_best_of_n",
    source="Liu et al. 2025, arXiv:2504.02495",
    needs_verifier=False,
    templates=("judge",),
    score="grm",
    select="max",
)
def grm_best_of_n(problem: SearchProblem, p: GrmBestOfN) -> Moves:
    """N whole answers, judged k times by a generative reward model in shuffled order; the votes are summed."""
    answers = yield Expand([problem.root], p.n, Answer())
    verdict = yield from judge(problem, answers, Jury(p.way, p.k, min(p.k_meta, p.k), p.judge_temperature, p.shuffle))
    for answer, score in zip(answers, verdict.scores):
        answer.set_score("grm", score)
    return [answers[i] for i in verdict.ranking]  # of equals the first wins
