"""One process a core, each with its own engine on one thread: problems are independent, so they are shared among them.

The process that hands out the work imports no torch.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tts.solver import Solver

MAX_PROCESSES = 8


@dataclass(frozen=True)
class Engine:
    """What changes an engine's place, speed and memory, and never a result."""

    device: str = "auto"
    backend: str | None = None
    max_rows: int = 1024
    kv_bytes: int | None = None

    def options(self) -> dict[str, Any]:
        """The keyword arguments of `Solver`."""
        return asdict(self) | {"max_batch_tokens": max(2 * self.max_rows, 2048)}


ON_EACH_CORE = Engine(kv_bytes=1 << 30)
"""Processes that share a machine cannot each take the memory that one alone takes."""


def count() -> int:
    """How many processes share the work: one for each core that this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_PROCESSES)


def pool() -> ProcessPoolExecutor:
    """The processes, started when work comes."""
    spawn = multiprocessing.get_context("spawn")  # a forked OpenMP runtime may hang
    return ProcessPoolExecutor(count(), spawn, _begin)


def collect_seldom() -> None:
    """Look for garbage in cycles every 20,000 objects instead of every 700: a search makes and keeps many small ones."""
    gc.set_threshold(20_000)


def _begin() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    collect_seldom()


@functools.lru_cache
def solver(policy: str, verifier: str | None, engine: Engine = ON_EACH_CORE) -> Solver:
    """In a worker: the solver with these models, loaded once a process."""
    from tts.solver import Solver

    return Solver(policy, verifier, **engine.options())
