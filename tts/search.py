"""The scheduler: runs many strategies at once and merges the moves they yield into ragged batches.

One way: a strategy yields a move; `Expand` goes to the policy, `Score` to a verifier, all `Allocate`s that are ready make one
segmented `prune`; when a move's result is complete its strategy goes on. Problems come and go while others decode.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import tts_kernels
from tts.engine.policy import Policy
from tts.engine.sampling import Sampling, root_key
from tts.engine.session import Session, Ticket
from tts.moves import All, Allocate, Drop, Embed, Expand, Rule, Score, Softmax, Top
from tts.strategies import SearchProblem, Strategy
from tts.tasks.base import Problem, Task
from tts.tree import Node, Prompt
from tts.verifiers.base import Verifier

VERIFIER_BATCH = 512
"""Queued tokens at which a verifier runs although the policy still has rows to decode."""


@dataclass(frozen=True)
class Request:
    """One problem to search, frozen and valid: what runs depends on nothing else."""

    problem: Problem
    strategy: Strategy
    parameters: Any
    sampling: Sampling = Sampling()
    seed: int = 0


@dataclass(eq=False)
class Outcome:
    """What a search gave: its answers' leaves in the strategy's order, or the exception that ended it."""

    request: Request
    session: Session
    leaves: list[Node] = field(default_factory=list)
    error: Exception | None = None


@dataclass(eq=False)
class _Run:
    """One generator in progress: a strategy, or a branch of an `All`."""

    generator: Generator[Any, Any, Any]
    outcome: Outcome
    parent: _Join | None = None
    index: int = 0
    move: Any = None
    """The move that it waits for."""
    num_waiting: int = 0
    """Nodes that the current `Score` still waits for."""


@dataclass(eq=False)
class _Join:
    """An `All` in progress."""

    run: _Run
    results: list
    num_left: int


class Search:
    """Runs requests on one policy and its verifiers. Owns no state between calls of `run` but the engines' pools."""

    def __init__(self, policy: Policy, verifiers: Mapping[str, Verifier], task: Task):
        self.policy, self.verifiers, self.task = policy, dict(verifiers), task
        self._stats = tuple(name for verifier in self.verifiers.values() for name in getattr(verifier, "stats", ()))
        """What verifiers read of the sampler, beyond what strategies ask for."""
        self._reset()

    def _reset(self) -> None:
        self._ready: deque[tuple[_Run, Any]] = deque()
        self._tickets: dict[Ticket, _Run] = {}
        self._allocations: list[tuple[_Run, list[_Segment]]] = []
        self._scoring: dict[tuple[str, Node], list[_Run]] = {}
        self._open: dict[Session, float] = {}
        self._finished: deque[Outcome] = deque()

    def check(self, request: Request) -> None:
        """Raise `ValueError` for a request that cannot be run, before anything is allocated."""
        problem = request.problem
        self.task.check(problem.question)
        session = self._session(request, 0)
        self.policy.check(session, Prompt())
        num_prompt_tokens = len(self.policy.model.encode(session.render(Prompt())))
        for verifier in self.verifiers.values():
            verifier.check(problem.question, num_prompt_tokens, session.max_tokens)

    def run(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        """Outcomes in order of completion. Whatever ends the iteration, every page is given back."""
        waiting = deque(enumerate(requests))
        try:
            while waiting or self._open or self._finished:
                while waiting and self.policy.num_unfinished_rows < self.policy.rows.max_rows:
                    self._start(*waiting.popleft())
                    self._advance_ready()
                while self._finished:
                    yield self._finished.popleft()
                self._work()
        finally:
            for session in list(self._open):
                self._close(session)
            self._reset()

    # ---- problems

    def _session(self, request: Request, order: int) -> Session:
        problem = request.problem

        def render(prompt: Prompt) -> Any:
            previous = [node.solution for node in prompt.previous]
            return self.task.render(prompt.template, problem.question, previous, dict(prompt.fields))

        max_tokens = request.sampling.max_tokens or self.task.max_tokens
        return Session(problem.id, request.seed, request.sampling, max_tokens, self.task.step_stop, render, order)

    def _start(self, order: int, request: Request) -> None:
        outcome = Outcome(request, self._session(request, order))
        self._open[outcome.session] = time.perf_counter()
        problem = SearchProblem(request.problem.question, request.problem.id, request.seed)
        self._ready.append((_Run(request.strategy.run(problem, request.parameters), outcome), None))

    def _close(self, session: Session) -> None:
        session.meter.seconds = time.perf_counter() - self._open.pop(session)
        nodes = [*session.roots.values(), *session.nodes]
        self.policy.close(session)
        for verifier in self.verifiers.values():
            verifier.close(nodes)

    def _fail(self, outcome: Outcome, error: Exception) -> None:
        """A problem ends with an exception; the others go on."""
        outcome.error = error
        self._tickets = {t: r for t, r in self._tickets.items() if r.outcome is not outcome}
        self._allocations = [(r, x) for r, x in self._allocations if r.outcome is not outcome]
        self._ready = deque((r, x) for r, x in self._ready if r.outcome is not outcome)
        self._scoring = {
            key: kept for key, runs in self._scoring.items() if (kept := [r for r in runs if r.outcome is not outcome])
        }
        self._close(outcome.session)
        self._finished.append(outcome)

    # ---- generators

    def _advance_ready(self) -> None:
        """Let every strategy whose result has come go on to its next move."""
        while self._ready:
            run, result = self._ready.popleft()
            try:
                run.move = run.generator.send(result)
                self._dispatch(run)
            except StopIteration as stop:
                self._returned(run, stop.value)
            except Exception as error:  # a strategy's mistake is its problem's outcome, not the end of the others
                self._fail(run.outcome, error)

    def _returned(self, run: _Run, value: Any) -> None:
        join = run.parent
        if join is None:
            run.outcome.leaves = list(value)
            self._close(run.outcome.session)
            self._finished.append(run.outcome)
            return
        join.results[run.index] = value
        join.num_left -= 1
        if join.num_left == 0:
            self._ready.append((join.run, join.results))

    def _dispatch(self, run: _Run) -> None:
        move, session = run.move, run.outcome.session
        if isinstance(move, Expand):
            wanted = replace(move, stats=tuple(dict.fromkeys((*move.stats, *self._stats)))) if self._stats else move
            self._tickets[self.policy.expand(session, wanted)] = run
        elif isinstance(move, Embed):
            self._tickets[self.policy.embed(session, move)] = run
        elif isinstance(move, Score):
            self._score(run, move)
        elif isinstance(move, Allocate):
            self._allocations.append((run, _segments(run)))
        elif isinstance(move, Drop):
            self.policy.drop(move.nodes)
            self._ready.append((run, None))
        elif isinstance(move, All):
            self._fan_out(run, move)
        else:
            raise TypeError(f"a strategy yields moves, got {move!r}")

    def _fan_out(self, run: _Run, move: All) -> None:
        join = _Join(run, [None] * len(move.branches), len(move.branches))
        if not move.branches:
            self._ready.append((run, []))
        self._ready.extend((_Run(g, run.outcome, join, i), None) for i, g in enumerate(move.branches))

    def _score(self, run: _Run, move: Score) -> None:
        """Submit the steps of the nodes' paths that have no score and are not on their way to one."""
        if move.by not in self.verifiers:
            raise ValueError(f"Score(by={move.by!r}): there is no such verifier; there are {', '.join(self.verifiers) or 'none'}")
        unscored = dict.fromkeys(step for node in move.nodes for step in node.path if move.by not in step.scores)
        run.num_waiting = len(unscored)
        new = [node for node in unscored if (move.by, node) not in self._scoring]
        for node in unscored:
            self._scoring.setdefault((move.by, node), []).append(run)
        if new:
            session = run.outcome.session
            self.verifiers[move.by].submit(run.outcome.request.problem.question, new, session.meter)
        if not unscored:
            self._ready.append((run, [node.scores[move.by] for node in move.nodes]))

    # ---- one round of work

    def _work(self) -> None:
        """Serve what is ready: strategies, then one prune, then the verifiers if they have enough, then the policy."""
        self._advance_ready()
        if self._allocations:
            self._allocate()
            return
        for name, verifier in self.verifiers.items():
            if verifier.has_work and (not self.policy.has_work or verifier.num_queued_tokens >= VERIFIER_BATCH):
                self._enter_scores(name, verifier.step())
                return
        if self.policy.has_work:
            for ticket in self.policy.step():
                run = self._tickets.pop(ticket)
                self._ready.append((run, ticket.results))

    def _enter_scores(self, name: str, scores: Sequence[tuple[Node, float | Exception]]) -> None:
        # Parents come before children, so a step's aggregates can continue its parent's.
        for node, value in sorted(scores, key=lambda pair: pair[0].depth):
            waiting = self._scoring.pop((name, node), [])  # empty if its problem has failed meanwhile
            if isinstance(value, Exception):
                for outcome in {run.outcome for run in waiting}:
                    self._fail(outcome, value)
                continue
            node.set_score(name, value)
            for run in waiting:
                run.num_waiting -= 1
                if run.num_waiting == 0:
                    self._ready.append((run, [n.scores[name] for n in run.move.nodes]))

    def _allocate(self) -> None:
        """All allocations that are ready, one `prune` for each rule among them."""
        waiting, self._allocations = self._allocations, []
        by_rule: dict[tuple[str, float], list[tuple[_Run, list[_Segment]]]] = {}
        for run, segments in waiting:
            by_rule.setdefault(_kernel_rule(run.move.rule), []).append((run, segments))
        for (rule, temperature), members in by_rule.items():
            widths = iter(_prune([segment for _, segments in members for segment in segments], rule, temperature))
            for run, segments in members:
                given = [0] * len(run.move.nodes)
                for row in (row for segment in segments for row in segment.rows):
                    given[row] = next(widths)
                self._ready.append((run, given))


def _kernel_rule(rule: Rule) -> tuple[str, float]:
    """The `prune` op's name and temperature for a rule."""
    if isinstance(rule, Top):
        return "top", 1.0
    return ("softmax", rule.temperature) if isinstance(rule, Softmax) else (rule.scheme, 1.0)


@dataclass
class _Segment:
    """One selection: the rows of one group of one `Allocate`."""

    rows: list[int]
    values: list[float]
    total: int
    keep: int
    key: int


def _segments(run: _Run) -> list[_Segment]:
    move, outcome = run.move, run.outcome
    values = [node.value() for node in move.nodes] if move.values is None else move.values
    groups = [0] * len(move.nodes) if move.groups is None else list(move.groups)
    if not len(values) == len(groups) == len(move.nodes):
        raise ValueError(f"Allocate: {len(move.nodes)} nodes, {len(values)} values, {len(groups)} groups: the numbers must agree")
    names = list(dict.fromkeys(groups))
    totals = [move.total] * len(names) if isinstance(move.total, int) else list(move.total)
    if len(totals) != len(names):
        raise ValueError(f"Allocate: {len(names)} groups, {len(totals)} totals: give one total a group, or one for all")
    keep = move.rule.k if isinstance(move.rule, Top) else 0
    made = []
    for name, total in zip(names, totals):
        rows = [i for i, group in enumerate(groups) if group == name]
        key = root_key(
            outcome.session.seed, outcome.session.id, "allocate", [(move.nodes[i].key, move.nodes[i].depth) for i in rows]
        )
        made.append(_Segment(rows, [values[i] for i in rows], total, keep, key))
    return made


def _prune(segments: list[_Segment], rule: str, temperature: float) -> list[int]:
    """Widths of all segments' rows, one segmented kernel for all problems."""
    sizes = torch.tensor([0, *(len(s.rows) for s in segments)])
    pruned = tts_kernels.prune(
        torch.tensor([v for s in segments for v in s.values], dtype=torch.float32),
        sizes.cumsum(0).int(),
        torch.tensor([s.total for s in segments], dtype=torch.int32),
        torch.tensor([s.keep for s in segments], dtype=torch.int32),
        torch.tensor([s.key for s in segments]),
        rule,
        float(temperature),
        sum(s.total for s in segments),
    )
    return pruned.widths.tolist()


__all__ = ["Outcome", "Request", "Search"]
