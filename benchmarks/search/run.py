"""Traces side by side: every engine in a process of its own, one after the other, in turns; a row as soon as it is known."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kernels import pinning
from benchmarks.record import append_line, machine
from benchmarks.search.checkpoints import SHAPES, make
from benchmarks.search.traces import Trace, all_traces

PEERS = Path(__file__).parents[1] / "peers"
ROOT = Path(__file__).parents[2]
PAGE_SIZE = 16


@dataclass(frozen=True)
class Line:
    """One engine in one setting: a command that reads a question and prints an answer, each a line of JSON."""

    name: str
    command: list[str]
    verifier: str = ""
    """How a trace's verifier is run, for engines with more than one way."""


def lines(pythons: dict[str, Path], has_verifier: bool) -> Iterator[Line]:
    """This package, and the peers whose Python is given."""
    yield Line("tts", [sys.executable, "-m", "benchmarks.search.engine"])
    for name, python in pythons.items():
        command = [str(python), str(PEERS / f"search_{name}.py")]
        if name == "vllm" and has_verifier:
            yield Line("vllm, PRM re-encodes", command, "reencode")
            yield Line("vllm, PRM on prefix cache", command, "cached")
        else:
            yield Line(name, command)


def run(
    out: Path, names: list[str], pythons: dict[str, Path], shape: str, work: Path, threads: int, repeats: int, timeout: float
) -> list[dict[str, Any]]:
    """Measure the traces; all engines take turns, `repeats` times. The rows are appended to `out`, too."""
    traces = all_traces()
    unknown = set(names) - set(traces)
    if unknown:
        raise SystemExit(f"no trace {', '.join(sorted(unknown))}; there are {', '.join(traces)}")
    policy, verifier = make(shape, work)
    shared = machine() | {"threads": threads, "model": shape}
    rows = []
    for name in names:
        question = _question(traces[name], policy, verifier, shape, threads)
        for repeat in range(repeats):
            for line in lines(pythons, traces[name].has_verifier):
                row = {"trace": name, "engine": line.name, "repeat": repeat, "tokens": traces[name].num_tokens}
                row |= _ask(line, question, threads, timeout) | shared
                if "total_s" in row:
                    row["tokens_per_s"] = row["tokens"] / row["total_s"]
                append_line(out, row)
                rows.append(row)
                print(f"{name} {line.name}: {_figure(row)}", file=sys.stderr, flush=True)
    return rows


def _question(trace: Trace, policy: Path, verifier: Path, shape: str, threads: int) -> dict[str, Any]:
    longest = max(map(len, trace.prompts)) + sum(max(max(s.lengths) for s in depth) for depth in zip(*trace.steps))
    tokens = trace.num_new_tokens + PAGE_SIZE * sum(len(step.parents) for steps in trace.steps for step in steps)
    return {
        "trace": trace.as_dict(),
        "policy": str(policy),
        "verifier": str(verifier),
        "separator": SHAPES[shape]["vocab_size"] - 1,
        "threads": threads,
        "max_length": longest + 64,
        "pages": 2 * tokens // PAGE_SIZE,
    }


def _ask(line: Line, question: dict[str, Any], threads: int, timeout: float) -> dict[str, Any]:
    """The engine's answer, or the reason why there is none."""
    environment = os.environ | pinning.settings(threads)
    asked = json.dumps(question | {"line": line.verifier}) + "\n"
    try:
        done = subprocess.run(
            line.command, input=asked, capture_output=True, text=True, env=environment, timeout=timeout, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {timeout:.0f} s"}
    except OSError as error:
        return {"error": f"could not be started: {error}"}
    answers = [text for text in done.stdout.splitlines() if text.startswith("{")]
    if done.returncode or not answers:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"error": f"exit code {done.returncode}: {reason[:300]}"}
    return json.loads(answers[-1])


def _figure(row: dict[str, Any]) -> str:
    return f"{row['total_s']:.2f} s, {row['tokens_per_s']:.0f} tokens/s" if "total_s" in row else row["error"]


def medians(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Per trace and engine the row with the median time; an engine without a time has its error."""
    grouped: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in rows:
        grouped.setdefault(row["trace"], {}).setdefault(row["engine"], []).append(row)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for trace, engines in grouped.items():
        for engine, several in engines.items():
            timed = sorted((r for r in several if "total_s" in r), key=lambda r: r["total_s"])
            middle = timed[(len(timed) - 1) // 2] if timed else several[-1]
            if timed:
                middle = middle | {"total_s": statistics.median(r["total_s"] for r in timed)}
            found.setdefault(trace, {})[engine] = middle
    return found
