"""The least time a call can take on this machine: its work over the ceilings that were measured beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tts_kernels.native import CEILINGS

MEMORY = ("dram_read", "dram_copy", "cache_read")


@dataclass(frozen=True)
class Work:
    """What no implementation of a call can avoid."""

    bytes: float
    rate: str = "dram_read"
    """The ceiling that moves the bytes, one of `MEMORY`."""
    flops: float = 0.0
    exps: float = 0.0
    """Exponentials, where their number matters: reported, but no part of the floor, because fewer bits make them cheaper."""


@dataclass(frozen=True)
class Floor:
    us: float
    bound: str
    """`bytes` or `flops`, whichever takes longer."""


def flop_rate(found: dict[str, float], dtype: str) -> float:
    """FLOP/s of the fastest instruction for the dtype. bf16 may always be widened, so float32 is one of its choices."""
    if dtype == "bf16":
        return max(found["bf16_tiles"], found["bf16_dot"], found["f32_fma"])
    return found["f32_fma"]


def floor(work: Work, dtype: str, found: dict[str, float]) -> Floor:
    """Bytes and FLOPs at their ceilings, whichever takes longer, in microseconds."""
    bytes_us = 1e6 * work.bytes / found[work.rate]
    flops_us = 1e6 * work.flops / flop_rate(found, dtype)
    return Floor(bytes_us, "bytes") if bytes_us >= flops_us else Floor(flops_us, "flops")


class Ceilings:
    """The machine's ceilings: all at the start of a run, those of memory again beside each case.

    Memory is shared with whatever else runs on the host: on a virtual machine the DRAM rate was seen to move by a factor of
    two within minutes, so a figure of the run's start says nothing of a case five minutes later.
    """

    def __init__(self, seconds: float, measure: Callable[[float, Sequence[str]], dict[str, float]]):
        self._measure = measure
        self.at_start = measure(seconds, CEILINGS)
        self._seconds = seconds / 2

    def beside(self, rate: str) -> dict[str, float]:
        """The ceilings with that of `rate` measured now."""
        return self.at_start | self._measure(self._seconds, [rate])
