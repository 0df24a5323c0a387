"""A trace on this package: the process that measures it. One line of JSON in, one out."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedTokenizerFast

from benchmarks.search.checkpoints import SEPARATOR, text_of
from tts.engine.model import Model
from tts.engine.policy import Policy
from tts.engine.sampling import Sampling
from tts.moves import All, Expand, Moves, Node, Score, Tokens
from tts.request import Request
from tts.search import Search
from tts.strategies import SearchProblem, Strategy
from tts.tasks.base import Problem
from tts.verifiers.prm import PRM, TokenClassificationPRM


class AsWritten:
    """A task whose prompt is the question itself; nothing ends a step but the trace."""

    name, step_stop, max_tokens = "as-written", (), 1 << 14

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


def measure(question: dict) -> dict:
    """Seconds, tokens and memory of one trace; the models are loaded and have run once before."""
    trace, pages = question["trace"], question["pages"]
    policy = Policy(_model(question["policy"], AutoModelForCausalLM), pages)
    verifiers = {}
    if trace["has_verifier"]:
        model = _model(question["verifier"], AutoModelForTokenClassification)
        verifiers["prm"] = PRM(model, TokenClassificationPRM(SEPARATOR), pages)
    search = Search(policy, verifiers, AsWritten())
    strategy = Strategy("trace", "a trace", Traced, follow, trace["has_verifier"])
    problems = [Problem("".join(map(text_of, prompt)), id=str(i)) for i, prompt in enumerate(trace["prompts"])]
    for num_steps in (1, None):  # the first run warms
        passes_before = policy.num_passes
        followed = Traced({str(i): steps[:num_steps] for i, steps in enumerate(trace["steps"])}, trace["has_verifier"])
        requests = [Request(problem, strategy, followed, Sampling(1.0)) for problem in problems]
        seconds, outcomes = _run(search, requests)
    drawn = sum(o.session.meter.policy_tokens for o in outcomes)
    assert drawn == trace["num_tokens"], f"drew {drawn} tokens, the trace has {trace['num_tokens']}"
    return {
        "total_s": seconds,
        "verifier_tokens": sum(o.session.meter.verifier_tokens for o in outcomes),
        "policy_passes": policy.num_passes - passes_before,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _model(folder: str, kind: Any) -> Model:
    """The tokenizer as it was saved: transformers would put the architecture's own in its place."""
    inner = kind.from_pretrained(folder, dtype="auto", attn_implementation="sdpa")
    return Model(inner, PreTrainedTokenizerFast.from_pretrained(folder), folder)


def _run(search: Search, requests: list[Request]) -> tuple[float, list]:
    begin = time.perf_counter()
    outcomes = list(search.run(requests))
    seconds = time.perf_counter() - begin
    for outcome in outcomes:
        if outcome.error is not None:
            raise outcome.error
    return seconds, outcomes


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.stdin.readline()))), flush=True)
