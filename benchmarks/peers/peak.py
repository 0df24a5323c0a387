"""The memory of a measured process. Every engine's process imports it, so it needs nothing but Python."""

from pathlib import Path


def peak_mb() -> float:
    """Most memory that this process has held. `ru_maxrss` would say what its parent held, where that was more."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
