"""Traces side by side: every engine in a process of its own, one after the other, in turns; a row as soon as it is known."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kernels import pinning
from benchmarks.record import append_line, machine
from benchmarks.search.checkpoints import SHAPES, make
from benchmarks.search.traces import Trace

PEERS = Path(__file__).parents[1] / "peers"
ROOT = Path(__file__).parents[2]
PAGE_SIZE = 16
# glibc then asks for huge pages for what a peer allocates, as this package does for weights and pages by itself.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclass(frozen=True)
class Line:
    """One engine in one setting: a command that reads a question and prints an answer, each a line of JSON."""

    name: str
    command: list[str]
    """Empty for a peer without an environment."""
    way: str = ""
    """For an engine with more than one way to follow a trace."""


@dataclass(frozen=True)
class Setup:
    """What the measurements of one command share."""

    out: Path
    shape: str
    work: Path
    """Where the checkpoints are."""
    threads: int
    repeats: int
    timeout: float
    """Seconds that one engine may take for one trace."""
    pythons: dict[str, Path | None]
    """The peers, each with the Python of its environment; None for one that has none: its rows say so."""
    device: str = "cpu"
    """On `cuda` every engine makes its random weights on the device."""

    def with_machine(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with what all rows say of where they come from; versions of the peer's own stay."""
        shared = machine(self.device) | {"threads": self.threads, "model": self.shape}
        return row | shared | {"versions": shared["versions"] | row.get("versions", {})}


OURS = Line("tts", [sys.executable, "-m", "benchmarks.search.engine"])
WAYS = {"transformers": {"cache": "", "continuous": ", continuous batching"}}
"""By peer, the ways that are measured, each with what its rows are called."""
WAYS_WITH_VERIFIER = WAYS | {
    name: {"reencode": ", PRM re-encodes", "cached": ", PRM on prefix cache"} for name in ("vllm", "llamacpp")
}


def lines(pythons: dict[str, Path | None], has_verifier: bool) -> Iterator[Line]:
    """This package and the peers."""
    yield OURS
    for name, python in pythons.items():
        command = [str(python), str(PEERS / f"search_{name}.py")] if python else []
        ways = WAYS_WITH_VERIFIER if has_verifier else WAYS
        for way, title in ways.get(name, {"": ""}).items():
            yield Line(f"{name}{title}", command, way)


def run(setup: Setup, traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """Measure the traces; all engines take turns, `repeats` times. The rows are appended to `setup.out`, too."""
    rows = []
    for trace in traces:
        question = question_of(setup, trace)
        for repeat in range(setup.repeats):
            for line in lines(setup.pythons, trace.has_verifier):
                row = {"trace": trace.name, "engine": line.name, "repeat": repeat} | trace.shape()
                row = setup.with_machine(row | ask(setup, line, question))
                if "total_s" in row:
                    row["tokens_per_s"] = row["tokens"] / row["total_s"]
                append_line(setup.out, row)
                rows.append(row)
                print(f"{trace.name} {line.name}: {_figure(row)}", file=sys.stderr, flush=True)
    return rows


def question_of(setup: Setup, trace: Trace) -> dict[str, Any]:
    policy, verifier = make(setup.shape, setup.work, has_weights=setup.device == "cpu")
    separator = SHAPES[setup.shape]["vocab_size"] - 1
    most_drawn = sum(max(max(s.lengths) for s in depth) for depth in zip(*trace.steps))
    tokens = trace.num_new_tokens + PAGE_SIZE * sum(len(step.parents) for steps in trace.steps for step in steps)
    return {
        "trace": trace.as_dict(num_ids=separator),
        "policy": str(policy),
        "verifier": str(verifier),
        "separator": separator,
        "threads": setup.threads,
        "device": setup.device,
        "max_tokens": most_drawn,
        "max_length": max(map(len, trace.prompts)) + most_drawn + 64,
        "pages": 2 * tokens // PAGE_SIZE,
    }


def ask(setup: Setup, line: Line, question: dict[str, Any]) -> dict[str, Any]:
    """The engine's answer, or as `error` the reason why there is none."""
    if not line.command:
        return {"error": "no environment: see benchmarks/peers/*.sh"}
    environment = HUGE_PAGES | os.environ | pinning.settings(setup.threads)
    asked = json.dumps(question | {"line": line.way}) + "\n"
    try:
        done = subprocess.run(
            line.command, input=asked, capture_output=True, text=True, env=environment, timeout=setup.timeout, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {setup.timeout:.0f} s"}
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
                seconds = statistics.median(r["total_s"] for r in timed)
                middle = middle | {"total_s": seconds, "tokens_per_s": middle["tokens"] / seconds}
            found.setdefault(trace, {})[engine] = middle
    return found
