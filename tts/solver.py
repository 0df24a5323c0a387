"""The Python surface: a solver holds the models, a call searches one problem or many."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from tts import selection, strategies, tasks
from tts.engine.graphs import capture_on
from tts.engine.model import Model, device_memory
from tts.engine.policy import Policy
from tts.engine.sampling import Sampling, root_key
from tts.judge import GRM, META, Jury
from tts.judge import judge as judge_responses
from tts.judgements import Verdict
from tts.meter import Meter
from tts.request import Outcome, Request
from tts.search import Search
from tts.strategies import SearchProblem, Strategy
from tts.tasks import Problem, Task
from tts.tree import Node, Prompt
from tts.verifiers import Checkpoint
from tts.verifiers.base import Function, Rule, Verifier
from tts.verifiers.load import Opened
from tts.verifiers.statistics import STATISTICS, Statistic

VERIFIER = "prm"
"""The name under which strategies ask for the solver's verifier."""
SELECT = (*selection.RULES, "hierarchical")
"""Ways to choose the answer."""


VerifierLike = str | os.PathLike | Checkpoint | Verifier | Callable[[str, list[str]], Sequence[float]] | None


@dataclass(frozen=True)
class Step:
    """One step of a candidate."""

    text: str
    score: float
    end: str
    num_tokens: int
    invalid: str = ""
    """Why the score is NaN, where the verifier says so."""


@dataclass(frozen=True)
class Candidate:
    """One finished branch: an answer with its steps and their scores."""

    text: str
    answer: str | None
    """What the task extracts; None if there is nothing to extract."""
    steps: list[Step]
    score: float
    """The step scores under `answer_agg`; NaN without a verifier, or where one was invalid."""
    end: str

    @property
    def scores(self) -> list[float]:
        return [step.score for step in self.steps]


@dataclass(frozen=True)
class Result:
    """What a search found and what it cost."""

    problem: Problem
    answer: str | None
    winner: int | None
    """Index of the chosen candidate; None if there is none."""
    candidates: list[Candidate]
    meter: Meter
    tree: list[dict[str, Any]] = field(repr=False)
    """Every node that was decoded, parents first: id, parent, text, end, score, num_tokens, is_candidate."""
    strategy: str
    parameters: dict[str, Any]
    seed: int
    error: str | None = None
    """What ended the search early; the candidates are then empty."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; scores that are not finite become None. Seconds and re-read tokens are left out: equal
        requests give equal dicts."""
        candidates = [
            {
                "text": c.text,
                "answer": c.answer,
                "score": _finite(c.score),
                "end": c.end,
                "steps": [asdict(s) | {"score": _finite(s.score)} for s in c.steps],
            }
            for c in self.candidates
        ]
        return {
            "id": self.problem.id,
            "question": self.problem.question,
            "answer": self.answer,
            "winner": self.winner,
            "candidates": candidates,
            "meter": self.meter.search_cost(),
            "strategy": self.strategy,
            "parameters": self.parameters,
            "seed": self.seed,
            "error": self.error,
        }


class Solver:
    """Solves problems by searching with a policy and, for most strategies, a verifier.

    `policy` and models named as `verifier` are local folders, hub ids or `zoo:NAME`. What kind of verifier a model is, its
    config says (`tts.verifiers.families`; a plain causal model is read by its likelihood); `"FAMILY:MODEL"` or a
    `tts.verifiers.Checkpoint` overrule it. `verifier` may also be `"auto"` (for the zoo's policy the likelihood under `zoo:M`,
    else none), `None`, `"rule"` (tasks with an exact truth of steps), `"self-certainty"` or `"confidence"` (of the policy
    itself), a function `(question, steps) -> one score a step`, or an object with the methods of `tts.verifiers.base.Verifier`.

    `judge` is the model that generative judging asks (`tts.judge`), `meta` a verifier that scores its critiques.

    `max_rows`, `max_batch_tokens` and `kv_bytes` change speed and memory, never a result. Raises `ValueError` for what cannot
    be run, before any page is allocated.
    """

    def __init__(
        self,
        policy: str | os.PathLike = "zoo:S",
        verifier: VerifierLike = "auto",
        task: str | Task = "auto",
        device: str = "auto",
        dtype: str = "auto",
        backend: str | None = None,
        max_rows: int = 1024,
        max_batch_tokens: int = 2048,
        page_size: int = 16,
        kv_bytes: int | None = None,
        judge: str | os.PathLike | None = None,
        meta: VerifierLike = None,
    ):
        is_zoo = str(policy).startswith("zoo:")
        self.task = tasks.find(("chain" if is_zoo else "math") if task == "auto" else task) if isinstance(task, str) else task
        if verifier == "auto":
            verifier = "zoo:M" if is_zoo else None
        _quiet()
        model = Model.load(policy, device=device, dtype=dtype, backend=backend)
        opened, opened_meta = (
            Opened.load(Checkpoint.of(v), device, dtype, backend)
            if isinstance(v, (str, os.PathLike, Checkpoint)) and v not in ("rule", *STATISTICS)
            else None
            for v in (verifier, meta)
        )
        judging = None if judge is None else Model.load(judge, device=device, dtype=dtype, backend=backend)
        loaded = [model, judging, *(o.model for o in (opened, opened_meta) if o)]
        num_pages = _num_pages([m for m in loaded if m], page_size, kv_bytes)
        self.has_verifier = verifier is not None
        capture = capture_on(model.device)
        self.policy = Policy(model, num_pages, page_size, max_rows, max_batch_tokens, capture)
        self.verifier = self._make_verifier(verifier, opened, num_pages, page_size, max_batch_tokens)
        verifiers = {VERIFIER: self.verifier}
        if meta is not None:
            verifiers[META] = self._make_verifier(meta, opened_meta, num_pages, page_size, max_batch_tokens)
        models = {GRM: Policy(judging, num_pages, page_size, max_rows, max_batch_tokens, capture)} if judging else {}
        self.search = Search(self.policy, verifiers, self.task, models)

    def solve(self, problem: str | Problem, strategy: str = "beam", **options: Any) -> Result:
        """Search one problem. Options are those of `solve_each`; an exception inside the search is raised."""
        for _, outcome in self._run([problem], strategy, **options):
            if outcome.error is not None:
                raise outcome.error
            return self._result(outcome, options.get("select"), options.get("answer_agg", "last"))
        raise AssertionError("a search gives one outcome a request")

    def judge(
        self, question: str, responses: Sequence[str], seed: int = 0, max_tokens: int | None = None, **jury: Any
    ) -> tuple[Verdict, Meter]:
        """Judge given responses with the model `judge`, and what that cost; `jury` are the fields of `tts.judge.Jury`."""
        if not responses:
            raise ValueError("responses: there is none to judge")
        root = Node(None, (0,), b"", "prompt", 0, Prompt())
        leaves = [Node(root, (0,), text.encode(), "stop", root_key("response", text), root.prompt) for text in responses]
        found: list[Verdict] = []

        def run(problem: SearchProblem, p: Jury):
            """The judge alone."""
            found.append((yield from judge_responses(problem, leaves, p)))
            return []

        alone = Strategy("judge", "Liu et al. 2025", Jury, run, needs_verifier=False, templates=("judge",), score=None)
        request = Request(Problem(question), alone, Jury(**jury), Sampling(max_tokens=max_tokens), seed)
        self.search.check(request)
        (outcome,) = self.search.run([request])
        if outcome.error is not None:
            raise outcome.error
        return found[0], outcome.session.meter

    def solve_many(self, problems: Iterable[str | Problem], strategy: str = "beam", **options: Any) -> list[Result]:
        """Search many problems at once; results in their order. A failed one has `error` set and no answer."""
        problems = list(problems)
        results: dict[int, Result] = dict(self.solve_each(problems, strategy, **options))
        return [results[i] for i in range(len(problems))]

    def solve_each(
        self,
        problems: Iterable[str | Problem],
        strategy: str = "beam",
        *,
        select: str | None = None,
        answer_agg: str = "last",
        **options: Any,
    ) -> Iterator[tuple[int, Result]]:
        """Search many problems at once, giving `(index, result)` as each is done.

        `select` is `majority`, `max`, `weighted` or `hierarchical` (weighted in each chain of revisions, then across them); the
        default is the strategy's own, mostly weighted with a verifier and else majority. `answer_agg` makes one score of an
        answer's step scores: `last`, `min`, `prod`, `mean`. `seed`, `temperature`, `top_p`, `top_k`, `min_p` and `max_tokens`
        say how tokens are drawn. All other options are the strategy's own parameters.
        """
        for index, outcome in self._run(problems, strategy, select=select, answer_agg=answer_agg, **options):
            yield index, self._result(outcome, select, answer_agg)

    def requests(
        self,
        problems: Iterable[str | Problem],
        strategy: str,
        *,
        select: str | None = None,
        answer_agg: str = "last",
        seed: int = 0,
        temperature: float = Sampling.temperature,
        top_p: float = Sampling.top_p,
        top_k: int = Sampling.top_k,
        min_p: float = Sampling.min_p,
        max_tokens: int | None = None,
        **parameters: Any,
    ) -> list[Request]:
        """The frozen, valid requests of a call; `ValueError` with everything that is wrong with it."""
        chosen = strategies.find(strategy)
        sampling = Sampling(temperature, top_p, top_k, min_p, max_tokens)
        errors = sampling.errors() + self._errors(chosen, select, answer_agg)
        if errors:
            raise ValueError("; ".join(errors))
        values = chosen.make_parameters(parameters)
        made = [
            Request(p if isinstance(p, Problem) else Problem(p, id=str(i)), chosen, values, sampling, seed)
            for i, p in enumerate(problems)
        ]
        for request in made:
            self.search.check(request)
        return made

    def _run(self, problems: Iterable[str | Problem], strategy: str, **options: Any) -> Iterator[tuple[int, Outcome]]:
        made = self.requests(problems, strategy, **options)
        index = {id(request): i for i, request in enumerate(made)}
        for outcome in self.search.run(made):
            yield index[id(outcome.request)], outcome

    def _errors(self, strategy: Strategy, select: str | None, answer_agg: str) -> list[str]:
        found = []
        if select is not None and select not in SELECT:
            found.append(f"select must be one of {', '.join(SELECT)}, got {select!r}")
        if answer_agg not in strategies.base.AGGREGATIONS:
            found.append(f"answer_agg must be one of {', '.join(strategies.base.AGGREGATIONS)}, got {answer_agg!r}")
        if select not in (None, "majority") and strategy.score is None:
            found.append(f"select must be majority for strategy {strategy.name}, which scores no answers; got {select!r}")
        elif not self.has_verifier and (
            strategy.needs_verifier or (select in ("max", "weighted") and strategy.score == VERIFIER)
        ):
            what = f"strategy {strategy.name}" if strategy.needs_verifier else f"select={select!r}"
            found.append(f"{what} needs a verifier: give Solver(verifier=...)")
        return found

    def _result(self, outcome: Outcome, select: str | None, answer_agg: str) -> Result:
        request, leaves = outcome.request, outcome.leaves
        candidates = [_candidate(leaf, self.task, answer_agg, request.strategy.score or VERIFIER) for leaf in leaves]
        rule = select or self._default_rule(request.strategy)
        winner = None
        if candidates:
            winner = self._select(leaves, [c.answer for c in candidates], [c.score for c in candidates], rule)
        return Result(
            problem=request.problem,
            answer=None if winner is None else candidates[winner].answer,
            winner=winner,
            candidates=candidates,
            meter=outcome.session.meter,
            tree=_tree(outcome),
            strategy=request.strategy.name,
            parameters=asdict(request.parameters),
            seed=request.seed,
            error=None if outcome.error is None else f"{type(outcome.error).__name__}: {outcome.error}",
        )

    def _select(self, leaves: Sequence[Node], answers: list[str | None], scores: list[float], rule: str) -> int:
        if rule == "hierarchical":
            chains = [leaves.index(leaf.origin) if leaf.origin in leaves else -1 - i for i, leaf in enumerate(leaves)]
            return selection.hierarchical(answers, scores, chains, self.task.group)
        return selection.select(answers, scores, rule, self.task.group)

    def _default_rule(self, strategy: Strategy) -> str:
        has_scores = self.has_verifier if strategy.score == VERIFIER else strategy.score is not None
        return (strategy.select or "weighted") if has_scores else "majority"

    def _make_verifier(self, verifier: Any, opened: Opened | None, *sizes: int) -> Verifier:
        """The verifier that an argument of the solver means; `sizes` are pages, page size and tokens of a pass."""
        if opened is not None:
            return opened.make(self.policy.model, lambda question: self.task.render("solve", question, [], {}), *sizes)
        if isinstance(verifier, str) and verifier in STATISTICS:
            return Statistic(verifier)
        if verifier is None:
            return Function(lambda _, steps: [math.nan] * len(steps), "none")
        if verifier == "rule":
            if not hasattr(self.task, "step_truth"):
                raise ValueError(f"verifier 'rule': task {self.task.name} has no exact truth of steps")
            return Rule(self.task.step_truth)
        return Function(verifier) if callable(verifier) else verifier


def _quiet() -> None:
    transformers_logging.disable_progress_bar()


def _num_pages(models: Sequence[Model], page_size: int, kv_bytes: int | None) -> int:
    """Pages of each model's pool: `kv_bytes` in all, the models getting the same number of tokens."""
    if kv_bytes is None:
        device = models[0].device
        is_cuda = device.type == "cuda"
        kv_bytes = int(0.8 * torch.cuda.mem_get_info(device)[0] if is_cuda else 0.125 * device_memory(device))
    page_bytes = page_size * sum(m.kv_bytes_per_token for m in models)
    if kv_bytes < page_bytes:
        raise ValueError(f"kv_bytes must hold at least one page of each model ({page_bytes} bytes), got {kv_bytes}")
    return min(kv_bytes // page_bytes, 1 << 20)


def _candidate(leaf: Node, task: Task, answer_agg: str, by: str) -> Candidate:
    """`by` is the name under which the answer is scored; its steps show the verifier's scores."""
    steps = [_step(node) for node in leaf.path]
    text = leaf.solution
    return Candidate(text, task.extract(text), steps, leaf.value(answer_agg, by), leaf.end)


def _step(node: Node) -> Step:
    score = node.scores.get(VERIFIER, math.nan)
    return Step(node.text, score, node.end, len(node.tokens), getattr(score, "reason", ""))


def _tree(outcome: Outcome) -> list[dict[str, Any]]:
    # Completion order depends on the batch, the lineage and depth do not.
    nodes = sorted(outcome.session.nodes, key=lambda n: (n.depth, n.parent.key if n.parent else 0, n.key))
    ids: dict[Node | None, int] = {node: i for i, node in enumerate(nodes)}
    leaves = set(outcome.leaves)
    return [
        {
            "id": ids[node],
            "parent": ids.get(node.parent),
            "text": node.text,
            "end": node.end,
            "score": _finite(node.scores.get(VERIFIER, math.nan)),
            "num_tokens": len(node.tokens),
            "is_candidate": node in leaves,
        }
        for node in nodes
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
