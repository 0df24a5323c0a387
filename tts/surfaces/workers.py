"""One process a core, each with its own engine on one thread: problems are independent, so they are shared among them.

The process that hands out the work imports no torch.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tts.solver import Solver

MAX_PROCESSES = 8


def count() -> int:
    """How many processes share the work: one for each core that this process may use, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MAX_PROCESSES)


def pool() -> ProcessPoolExecutor:
    """The processes, started when work comes."""
    spawn = multiprocessing.get_context("spawn")  # a forked OpenMP runtime may hang
    return ProcessPoolExecutor(count(), spawn, _use_one_thread)


def _use_one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"


@functools.lru_cache
def solver(policy: str, verifier: str | None, kv_bytes: int = 1 << 30) -> Solver:
    """In a worker: the solver with these models, loaded once a process."""
    from tts.solver import Solver

    return Solver(policy, verifier, kv_bytes=kv_bytes)
