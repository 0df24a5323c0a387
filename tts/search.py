"""The scheduler: runs many strategies at once and merges the moves they yield into ragged batches.

One way: a strategy yields a move; `Expand` goes to the policy, `Score` to a verifier, all `Allocate`s that are ready make one
segmented `prune`; when a move's result is complete its strategy goes on. Problems come and go while others decode.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

from tts.allocation import Segment, allocate, segments
from tts.branches import Join, Part, Run
from tts.engine.policy import Policy
from tts.engine.session import Session, Ticket
from tts.moves import All, Allocate, Drop, Embed, Expand, Score
from tts.request import Outcome, Request
from tts.strategies import SearchProblem
from tts.tasks.base import Task
from tts.tree import Node, Prompt
from tts.verifiers.base import Verifier

VERIFIER_BATCH = 512
"""Queued tokens at which a verifier runs although the policy still has rows to decode."""


class Search:
    """Runs requests on a policy and its verifiers. Owns no state between calls of `run` but the engines' pools.

    `models` are further policies, by the names that `Prompt(model=...)` asks for.
    """

    def __init__(self, policy: Policy, verifiers: Mapping[str, Verifier], task: Task, models: Mapping[str, Policy] | None = None):
        names = [name for name, verifier in verifiers.items() if sum(verifier is other for other in verifiers.values()) > 1]
        if names:
            raise ValueError(f"verifiers {', '.join(names)} are one object: it would score each step once, for one of the names")
        self.policy, self.verifiers, self.task = policy, dict(verifiers), task
        self.policies = {"policy": policy, **(models or {})}
        self._stats = tuple(name for verifier in self.verifiers.values() for name in getattr(verifier, "stats", ()))
        """What verifiers read of the sampler, beyond what strategies ask for."""
        self._reset()

    def _reset(self) -> None:
        self._ready: deque[tuple[Run, Any]] = deque()
        self._tickets: dict[Ticket, Part] = {}
        self._allocations: list[tuple[Run, list[Segment]]] = []
        self._judging: list[Join] = []
        self._scoring: dict[tuple[str, Node], list[Run]] = {}
        self._open: dict[Session, float] = {}
        self._finished: deque[Outcome] = deque()

    def check(self, request: Request) -> None:
        """Raise `ValueError` for a request that cannot be run, before anything is allocated."""
        problem = request.problem
        self.task.check(problem.question)
        request.strategy.check_task(self.task)
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
        problem = SearchProblem(request.problem.question, request.problem.id, request.seed, self.task)
        self._ready.append((Run(request.strategy.run(problem, request.parameters), outcome, outcome.log), None))

    def _close(self, session: Session) -> None:
        session.meter.seconds = time.perf_counter() - self._open.pop(session)
        for node in (*session.roots.values(), *session.nodes):
            model = self.policies[node.prompt.model].model
            begin = node.num_path_tokens - len(node.tokens) + session.shared.get(node, 0)
            session.meter.charge_attention(model, begin, node.num_path_tokens)
        for policy in self.policies.values():
            policy.close(session)
        self._forget_scores(session.all_nodes)

    def _fail(self, outcome: Outcome, error: Exception) -> None:
        """A problem ends with an exception; the others go on."""
        outcome.error = error
        self._forget(lambda run: run.outcome is outcome)
        self._close(outcome.session)
        self._finished.append(outcome)

    def _forget(self, is_gone: Callable[[Run], bool]) -> None:
        """Drop what is under way for runs that have ended."""
        self._judging = [join for join in self._judging if not is_gone(join.run)]
        self._tickets = {t: part for t, part in self._tickets.items() if not is_gone(part.run)}
        self._allocations = [(r, x) for r, x in self._allocations if not is_gone(r)]
        self._ready = deque((r, x) for r, x in self._ready if not is_gone(r))
        self._scoring = {key: [r for r in runs if not is_gone(r)] for key, runs in self._scoring.items()}

    def _forget_scores(self, nodes: Iterable[Node]) -> None:
        """Close nodes in the verifiers, parents first."""
        ordered = sorted(nodes, key=lambda node: node.depth)
        for verifier in self.verifiers.values():
            verifier.close(ordered)
        gone = set(ordered)
        self._scoring = {key: runs for key, runs in self._scoring.items() if key[1] not in gone}

    # ---- generators

    def _advance_ready(self) -> None:
        """Let every strategy whose result has come go on to its next move."""
        while self._ready:
            run, result = self._ready.popleft()
            try:
                run.record(result)
                run.move = run.generator.send(result)
                self._dispatch(run)
            except StopIteration as stop:
                self._returned(run, stop.value)
            except Exception as error:  # a strategy's mistake is its problem's outcome, not the end of the others
                self._fail(run.outcome, error)

    def _returned(self, run: Run, value: Any) -> None:
        run.is_over, join = True, run.parent
        if join is None:
            run.outcome.leaves = list(value)
            self._close(run.outcome.session)
            self._finished.append(run.outcome)
            return
        join.results[run.index] = value
        if join.run.move.stop is None and all(branch.is_over for branch in join.branches):
            self._end_all(join, join.branches, limit=0)

    def _dispatch(self, run: Run) -> None:
        move, session = run.move, run.outcome.session
        if isinstance(move, (Expand, Embed)):
            self._decode(run, move)
        elif isinstance(move, Score):
            self._score(run, move)
        elif isinstance(move, Allocate):
            self._allocations.append((run, segments(session, move)))
        elif isinstance(move, Drop):
            for node in move.nodes:
                self._policy_of(node).drop([node])
            self._ready.append((run, None))
        elif isinstance(move, All):
            self._fan_out(run, move)
        else:
            raise TypeError(f"a strategy yields moves, got {move!r}")

    def _policy_of(self, source: Node | Prompt) -> Policy:
        name = source.model if isinstance(source, Prompt) else source.prompt.model
        if name not in self.policies:
            raise ValueError(f"Prompt(model={name!r}): there is no such policy; there are {', '.join(self.policies)}")
        return self.policies[name]

    def _decode(self, run: Run, move: Expand | Embed) -> None:
        """Submit an `Expand` or `Embed`, one ticket for each policy among its nodes."""
        widths = move.widths if isinstance(move, Expand) else [1] * len(move.nodes)
        if isinstance(move, Expand) and self._stats:
            move = replace(move, stats=tuple(dict.fromkeys((*move.stats, *self._stats))))
        begins = [0, *accumulate(widths)]
        members: dict[Policy, list[int]] = {}
        for i, source in enumerate(move.nodes):
            members.setdefault(self._policy_of(source), []).append(i)
        run.results, run.num_waiting = [None] * begins[-1], len(members)
        for policy, indices in members.items():
            nodes = [move.nodes[i] for i in indices]
            if isinstance(move, Expand):
                ticket = policy.expand(run.outcome.session, replace(move, nodes=nodes, width=[widths[i] for i in indices]))
            else:
                ticket = policy.embed(run.outcome.session, Embed(nodes))
            slots = [slot for i in indices for slot in range(begins[i], begins[i + 1])]
            self._tickets[ticket] = Part(run, slots, policy)
        if not members:
            self._ready.append((run, []))

    def _decoded(self, ticket: Ticket) -> None:
        run, slots, policy = self._tickets.pop(ticket)
        for slot, result in zip(slots, ticket.results):
            run.results[slot] = result
        run.spent.add(ticket.num_drawn, policy.flops(ticket.num_drawn), ticket.nodes)
        run.num_waiting -= 1
        if run.num_waiting == 0:
            self._ready.append((run, run.results))

    def _fan_out(self, run: Run, move: All) -> None:
        join = run.join = Join(run, [], [None] * len(move.branches))
        join.branches += [Run(branch, run.outcome, [], join, i) for i, branch in enumerate(move.branches)]
        if not move.branches:
            self._ready.append((run, []))
        elif move.stop is not None:
            self._judging.append(join)
        self._ready.extend((branch, None) for branch in join.branches)

    def _score(self, run: Run, move: Score) -> None:
        """Submit the steps of the nodes' paths that have no score and are not on their way to one."""
        if move.by not in self.verifiers:
            raise ValueError(f"Score(by={move.by!r}): there is no such verifier; there are {', '.join(self.verifiers) or 'none'}")
        unscored = dict.fromkeys(step for node in move.nodes for step in node.path if move.by not in step.scores)
        run.num_waiting = len(unscored)
        new = [node for node in unscored if (move.by, node) not in self._scoring]
        for node in unscored:
            self._scoring.setdefault((move.by, node), []).append(run)
        session, verifier = run.outcome.session, self.verifiers[move.by]
        for question, nodes in self._contexts(run, move, new).items():
            for root in dict.fromkeys(node.root for node in nodes if node.prompt.previous):  # longer than what `check` saw
                verifier.check(question, len(root.tokens), session.max_tokens)
            verifier.submit(question, nodes, session.meter)
        if not unscored:
            self._ready.append((run, [node.scores[move.by] for node in move.nodes]))

    @staticmethod
    def _contexts(run: Run, move: Score, nodes: Sequence[Node]) -> dict[str, list[Node]]:
        """The nodes by what their verifier reads before them."""
        found: dict[str, list[Node]] = {}
        for node in nodes:
            text = run.outcome.request.problem.question
            if move.context == "prompt":
                prompt = run.outcome.session.render(node.prompt)
                text = prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)
            found.setdefault(text, []).append(node)
        return found

    # ---- branches that may end before their time

    def _judge_branches(self) -> None:
        """Show each `All(stop)` the results whose place in the order (tokens decoded, index) is certain."""
        for join in [join for join in self._judging if join.has_unjudged]:
            try:
                self._judge(join)
            except Exception as error:
                self._fail(join.run.outcome, error)

    def _judge(self, join: Join) -> None:
        in_flight: Counter[Run] = Counter()
        drawn = sum((policy.num_in_flight() for policy in self.policies.values()), Counter())
        for ticket, part in self._tickets.items():
            in_flight[part.run] += ticket.num_drawn + drawn[ticket]
        while found := join.next_certain(in_flight):
            branch, num_tokens = found
            join.judged.append(branch)
            is_last = len(join.judged) == len(join.branches)
            if join.run.move.stop([join.results[b.index] for b in join.judged]) or is_last:
                self._judging.remove(join)
                self._end_all(join, join.judged, num_tokens)
                return

    def _end_all(self, join: Join, kept: Sequence[Run], limit: int) -> None:
        """Go on behind an `All`. The branches that are not kept end; up to `limit` tokens of each count as drawn."""
        join.is_kept = [branch in kept for branch in join.branches]
        for branch in join.branches:
            if branch in kept:
                join.run.spent.add(branch.spent.tokens, branch.spent.flops, branch.spent.nodes)
            else:
                join.results[branch.index] = None
                join.run.spent.add(*self._cancel(branch, limit))
        self._ready.append((join.run, join.results))

    def _cancel(self, branch: Run, limit: int) -> tuple[int, float]:
        """End a branch, give its work back, and charge `limit` tokens of it; what it drew beyond them is metered apart."""
        session, gone, spent = branch.outcome.session, branch.below(), branch.spent
        for ticket, part in [(t, p) for t, p in self._tickets.items() if p.run in gone]:
            tokens = part.policy.cancel(ticket)
            spent.add(tokens, part.policy.flops(tokens), ticket.nodes)
        for run in gone:
            run.generator.close()
            if run is not branch:
                spent.add(run.spent.tokens, run.spent.flops, run.spent.nodes)
        self._forget(gone.__contains__)
        nodes = set(spent.nodes)
        session.nodes = [node for node in session.nodes if node not in nodes]
        session.cancelled += nodes
        for policy in self.policies.values():
            policy.forget(nodes)
        self._forget_scores(nodes)
        beyond = (spent.tokens - limit) / max(spent.tokens, 1)
        session.meter.cancelled_tokens += spent.tokens - limit
        session.meter.policy_tokens -= spent.tokens - limit
        session.meter.policy_flops -= spent.flops * beyond
        return limit, spent.flops * (1 - beyond)

    # ---- one round of work

    def _work(self) -> None:
        """Serve what is ready: strategies, then one prune, then the verifiers if they have enough, then the policy."""
        self._advance_ready()
        if self._allocations:
            self._allocate()
            return
        for name, verifier in self.verifiers.items():
            is_idle = not any(policy.has_work for policy in self.policies.values())
            if verifier.has_work and (is_idle or verifier.num_queued_tokens >= VERIFIER_BATCH):
                self._enter_scores(name, verifier.step())
                return
        for policy in self.policies.values():
            if policy.has_work:
                for ticket in policy.step():
                    self._decoded(ticket)
        self._judge_branches()

    def _enter_scores(self, name: str, scores: Sequence[tuple[Node, float | Exception]]) -> None:
        # Parents come before children, so a step's aggregates can continue its parent's.
        for node, value in sorted(scores, key=lambda pair: pair[0].depth):
            waiting = self._scoring.pop((name, node), [])  # empty if those who asked have ended meanwhile
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
        widths = allocate([(run.move, parts) for run, parts in waiting])
        self._ready.extend((run, given) for (run, _), given in zip(waiting, widths))


__all__ = ["Outcome", "Request", "Search"]
