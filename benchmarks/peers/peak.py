"""The memory of a measured process. Every engine's process imports it, so on the CPU it needs nothing but Python."""

from pathlib import Path


def peak_mb(device: str = "cpu") -> float:
    """Most memory that this process has held, on a GPU that torch has taken of it.

    `ru_maxrss` would say what its parent held, where that was more.
    """
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_reserved() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
