"""The shipped model S on its natural set, a process a core: each measures its share. One line of JSON in, one out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from tts.engine.model import Model
from tts.solver import Solver
from tts.tasks.chain import natural

SEED = 977


def time_forward() -> Callable[[], float]:
    """From now on every forward pass of every model is timed, its head's too; what is given reads the CPU seconds so far."""
    total = 0.0

    def timed(inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal total
            begin = time.process_time()
            out = inner(*args)
            total += time.process_time() - begin
            return out

        return call

    Model.forward = timed(Model.forward)  # type: ignore[method-assign]
    Model.logits = timed(Model.logits)  # type: ignore[method-assign]
    return lambda: total


def measure(question: dict) -> dict:
    """Every `count`-th problem of the set: seconds, and by pass of the policy the CPU time in and beyond all forward passes.

    With `in_turn` one problem after the other: a pass then has the rows of one.
    """
    torch.set_num_threads(1)
    problems = natural(question["problems"], SEED)[question["index"] :: question["count"]]
    solver = Solver(policy="zoo:S", verifier="zoo:M")
    solver.solve_many(problems[:2], "beam", n=question["n"])  # warms
    passes_before = solver.policy.num_passes
    forward = time_forward()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    groups = [[problem] for problem in problems] if question["in_turn"] else [problems]
    results = [result for group in groups for result in solver.solve_many(group, "beam", n=question["n"], seed=SEED)]
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    passes = solver.policy.num_passes - passes_before
    return {
        "total_s": seconds,
        "problems": len(problems),
        "right": sum(result.answer == result.problem.gold for result in results),
        "tokens": sum(result.meter.policy_tokens for result in results),
        "verifier_tokens": sum(result.meter.verifier_tokens for result in results),
        "policy_passes": passes,
        "forward_ms": 1e3 * forward() / passes,
        "beyond_ms": 1e3 * (cpu_seconds - forward()) / passes,
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.stdin.readline()))), flush=True)
