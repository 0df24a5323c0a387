"""Threads pinned to cores: OpenMP reads its settings once, when it is loaded, so they must be in the environment before that."""

from __future__ import annotations

import os
import sys


def settings(threads: int) -> dict[str, str]:
    """The environment of a measured process. Unpinned runs stalled for 4 to 8 ms at a time."""
    return {"OMP_NUM_THREADS": str(threads), "OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}


def pin_threads(threads: int) -> None:
    """Return if this process runs under `settings`; else replace it by the same command that does."""
    wanted = settings(threads)
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], os.environ | wanted)
