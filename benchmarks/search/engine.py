"""A trace on this package: the process that measures it. One line of JSON in, one out."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast

from benchmarks.peers.loading import load
from benchmarks.peers.peak import peak_mb
from benchmarks.search.checkpoints import SEPARATOR, text_of
from tts.engine.graphs import capture_on
from tts.engine.model import Model
from tts.engine.policy import Policy
from tts.engine.sampling import Sampling
from tts.engine.session import Ticket
from tts.moves import All, Drop, Expand, Moves, Node, Score, Tokens
from tts.request import Request
from tts.search import Search
from tts.strategies import SearchProblem, Strategy
from tts.tasks.base import Problem
from tts.verifiers.families.trl import TRL
from tts.verifiers.prm import PRM


class AsWritten:
    """A task whose prompt is the question itself; nothing ends a step but the trace."""

    name, step_stop, max_tokens, templates, thinking = "as-written", (), 1 << 14, ("solve",), None

    def check(self, question: str) -> None:
        pass

    def render(self, template: str, question: str, previous: Sequence[str], fields: Mapping[str, Any]) -> str:
        return question

    def extract(self, text: str) -> str | None:
        return None

    def equal(self, a: str, b: str) -> bool:
        return a == b

    def group(self, answers: Sequence[str | None]) -> list[int]:
        return [-1] * len(answers)

    def show(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Traced:
    steps: Mapping[str, list[dict]]
    """The steps of each problem, by its id."""
    has_verifier: bool


def follow(problem: SearchProblem, p: Traced) -> Moves:
    """Do what the trace says."""
    live: list = [problem.root]
    for step in p.steps[problem.id]:
        parents, lengths = [live[i] for i in step["parents"]], step["lengths"]
        yield Drop([node for i, node in enumerate(live) if i not in step["parents"]])
        if len(set(lengths)) == 1:
            runs = [i for i in range(len(parents)) if i == 0 or parents[i] is not parents[i - 1]]
            widths = [end - begin for begin, end in zip(runs, [*runs[1:], len(parents)])]
            live = yield Expand([parents[i] for i in runs], widths, Tokens(lengths[0]))
        else:
            live = [node for (node,) in (yield All([_one(node, count) for node, count in zip(parents, lengths)]))]
        if p.has_verifier:
            yield Score(live)
    return live


def _one(node: Node, count: int) -> Moves:
    return (yield Expand([node], 1, Tokens(count)))


class TimedPolicy(Policy):
    """Keeps the seconds of every pass that does nothing but decode, by the number of its rows."""

    def __init__(self, model: Model, num_pages: int):
        super().__init__(model, num_pages, capture=capture_on(model.device))
        self.decode_seconds: defaultdict[int, list[float]] = defaultdict(list)

    def step(self) -> list[Ticket]:
        rows, is_decode, before = len(self.rows), not (self._groups or self._jobs), self.seconds
        finished = super().step()
        if is_decode:
            self.decode_seconds[rows].append(self.seconds - before)
        return finished


def measure(question: dict) -> dict:
    """Seconds, tokens and memory of one trace; the models are loaded and have run once before.

    `step_ms` is the median of the passes in which every beam of every problem drew one token, sampling included.
    """
    trace, pages = question["trace"], question["pages"]
    device = question["device"]
    policy = TimedPolicy(_model(question["policy"], AutoModelForCausalLM, device), pages)
    verifiers = {}
    if trace["has_verifier"]:
        model = _model(question["verifier"], AutoModel, device)  # its head is read by the family
        verifiers["prm"] = PRM(model, TRL(separator=SEPARATOR), pages)
    search = Search(policy, verifiers, AsWritten())
    strategy = Strategy("trace", "a trace", Traced, follow, trace["has_verifier"])
    problems = [Problem("".join(map(text_of, prompt)), id=str(i)) for i, prompt in enumerate(trace["prompts"])]
    for num_steps in (None if device == "cuda" else 1, None):  # the first run warms; on a GPU it captures every graph
        passes_before = policy.num_passes
        followed = Traced({str(i): steps[:num_steps] for i, steps in enumerate(trace["steps"])}, trace["has_verifier"])
        sampling = Sampling(1.0, max_tokens=question["max_tokens"])
        requests = [Request(problem, strategy, followed, sampling) for problem in problems]
        policy.decode_seconds.clear()
        groups = [[request] for request in requests] if question.get("in_turn") else [requests]
        runs = [_run(search, group) for group in groups]
    seconds, outcomes = sum(seconds for seconds, _ in runs), [outcome for _, some in runs for outcome in some]
    full = policy.decode_seconds[len(trace["steps"][0][0]["parents"]) * len(groups[0])]
    drawn = sum(o.session.meter.policy_tokens for o in outcomes)
    assert drawn == trace["num_tokens"], f"drew {drawn} tokens, the trace has {trace['num_tokens']}"
    return {
        "total_s": seconds,
        "verifier_tokens": sum(o.session.meter.verifier_tokens for o in outcomes),
        "policy_passes": policy.num_passes - passes_before,
        "step_ms": 1e3 * statistics.median(full) if full else None,
        "peak_mb": peak_mb(device),
    }


def _model(folder: str, kind: Any, device: str) -> Model:
    """The tokenizer as it was saved: transformers would put the architecture's own in its place."""
    return Model(load(kind, folder, device), PreTrainedTokenizerFast.from_pretrained(folder), folder)


def _run(search: Search, requests: list[Request]) -> tuple[float, list]:
    begin = time.perf_counter()
    outcomes = list(search.run(requests))
    seconds = time.perf_counter() - begin
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return seconds, outcomes


def greedy(question: dict) -> dict:
    """The tokens that follow each prompt, all prompts at once."""
    policy = Policy(_model(question["policy"], AutoModelForCausalLM, question["device"]), question["pages"])
    count = question["greedy"]
    strategy = Strategy("greedy", "greedy", Traced, follow, False)
    problems = [Problem("".join(map(text_of, prompt)), id=str(i)) for i, prompt in enumerate(question["trace"]["prompts"])]
    followed = Traced({problem.id: [{"parents": [0], "lengths": [count]}] for problem in problems}, False)
    sampling = Sampling(0.0, max_tokens=count)
    _, outcomes = _run(Search(policy, {}, AsWritten()), [Request(p, strategy, followed, sampling) for p in problems])
    return {"drawn": [list(o.leaves[0].tokens) for o in sorted(outcomes, key=lambda o: int(o.request.problem.id))]}


if __name__ == "__main__":
    asked = json.loads(sys.stdin.readline())
    print(json.dumps(greedy(asked) if "greedy" in asked else measure(asked)), flush=True)
