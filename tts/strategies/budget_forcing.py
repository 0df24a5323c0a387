"""Budget forcing: think no longer, or no shorter, than asked for, by forcing the end of thinking or its going on."""

from dataclasses import dataclass

from tts.moves import All, Answer, Expand, Moves, Prompt, Score
from tts.strategies.base import MAX_WIDTH, SearchProblem, parameter, strategy


@dataclass(frozen=True)
class BudgetForcing:
    n: int = parameter(1, "answers, each thought over on its own", 1, MAX_WIDTH)
    max_thinking: int = parameter(1024, "most tokens drawn before the answer is forced", 1, 1 << 20)
    waits: int = parameter(0, "times that the end of thinking is suppressed and the task's word for going on put there", 0, 100)


@strategy(
    "budget_forcing",
    source="Muennighoff et al. 2025, arXiv 2501.19393",
    needs_verifier=False,
    templates=("think",),
)
def budget_forcing(problem: SearchProblem, p: BudgetForcing) -> Moves:
    """Think until the end of thinking or the ceiling, several times if asked to; then the answer is forced to begin."""
    words = problem.task.thinking
    assert words is not None, "a task with the template think says how it is steered"
    if p.waits and not words.wait:
        raise ValueError(f"budget_forcing: waits must be 0 for task {problem.task.name}, which has no word for going on")
    until = Answer(stop=(words.end,), keep_stop=False)

    def think_on(x):
        for _ in range(p.waits):
            left = p.max_thinking - sum(step.cost for step in x.path)
            if x.end != "stop" or left <= 0:
                break
            (x,) = yield Expand([x], 1, until, prefix=words.wait, max_tokens=left)
        return x

    thoughts = yield Expand([Prompt("think")], p.n, until, max_tokens=p.max_thinking)
    thoughts = yield All([think_on(x) for x in thoughts])
    answers = yield Expand(thoughts, 1, Answer(), prefix=words.answer)
    yield Score(answers)
    return answers
