"""An NVIDIA GPU as the machine that is measured: its ceilings, and the clock that times a variant on it."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.kernels.cases import PeerError, Variant
from benchmarks.kernels.timing import SHORT, Sampler, seconds_of

MAX_CALLS = 64
STREAMED = 1 << 31
"""Bytes that are read for the rate of the memory: far beyond the last cache."""
CACHED = 16 << 20
PLANS = 5


def ceilings(seconds: float, names: Sequence[str]) -> dict[str, float]:
    """What `tts_kernels.native.ceilings` says of a CPU, of this GPU, each from about `seconds` of rounds of torch's own kernels.

    `bf16_tiles` is a product of bfloat16 matrices on the tensor cores, `f32_fma` one of float32 without them; a GPU has no other
    way for bfloat16, and exponentials are not measured: 0.
    """
    makers = {
        "dram_read": lambda: _reading(STREAMED),
        "dram_copy": _copying,
        "cache_read": lambda: _reading(CACHED),
        "bf16_tiles": lambda: _multiplying(8192, torch.bfloat16),
        "f32_fma": lambda: _multiplying(4096, torch.float32),
    }
    found = {}
    for name in names:
        if name not in makers:
            found[name] = 0.0
            continue
        work, call = makers[name]()
        found[name] = work / _best(call, seconds)
    return found


def _reading(size: int) -> tuple[float, Callable[[], Any]]:
    """Bytes, and the call that reads them: the largest of as many rows as there are programs to read them."""
    x, largest = torch.zeros(1 << 12, size >> 14, device="cuda"), torch.empty(1 << 12, device="cuda")
    return float(size), lambda: torch.amax(x, 1, out=largest)


def _copying() -> tuple[float, Callable[[], Any]]:
    x, y = (torch.zeros(STREAMED // 8, device="cuda") for _ in range(2))
    return float(STREAMED), lambda: y.copy_(x)


def _multiplying(size: int, dtype: torch.dtype) -> tuple[float, Callable[[], Any]]:
    """Random operands: on equal ones a GPU runs faster than on any that are of use."""
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    return 2.0 * size**3, lambda: a @ b


def _best(call: Callable[[], Any], seconds: float) -> float:
    """Seconds of a call, the least of all rounds."""
    run, calls, _ = _repeated(call, None)
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, _elapsed(run) / calls)
    return best


class Clock:
    """Times variants by CUDA events, in a graph where they can be captured, the last cache flushed before every sample."""

    def __init__(self, cold_bytes: int):
        _, self._flush = _reading(cold_bytes)  # by reading: lines that were written would have to leave while the call runs
        self.is_graph: dict[Variant, bool] = {}
        """Of each prepared variant: replayed from a graph; else launched call by call, and its figure has the launches in it."""

    def prepare(self, variant: Variant) -> Sampler:
        """The plan is timed first, as host time up to the device's end, and not made again: a graph holds what it has written."""
        if variant.timer is not None:
            raise PeerError("it times itself on the CPU")
        planned = 0.0
        if variant.plan is not None:
            planned = statistics.median(seconds_of(lambda: (variant.plan(), torch.cuda.synchronize())) for _ in range(PLANS))
        run, calls, self.is_graph[variant] = _repeated(variant.run, variant.layers if variant.plan is not None else None)

        def sample() -> tuple[float, bool]:
            self._flush()
            return _elapsed(run) / calls + planned / variant.layers, False

        return sample


def _repeated(call: Callable[[], Any], calls: int | None) -> tuple[Callable[[], Any], int, bool]:
    """(something that runs the call some times, how many, whether as a graph). Without `calls` as many as last long enough."""
    for _ in range(3):
        call()  # compiles, loads, allocates
    if _waits(call):
        calls = calls or _enough(call)
        return lambda: [call() for _ in range(calls)], calls, False
    calls = calls or _enough(_captured(call, 1))  # a launch from Python may take longer than the call
    return _captured(call, calls), calls, True


def _waits(call: Callable[[], Any]) -> bool:
    """Whether the call waits for the device. A capture of it would fail, and no capture after that would succeed."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError:
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def _captured(call: Callable[[], Any], calls: int) -> Callable[[], Any]:
    """The replay of a graph of so many calls; it has been replayed once."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    graph.replay()
    return graph.replay


def _enough(run: Callable[[], Any]) -> int:
    """How many times one run has to be repeated to last long enough to be timed."""
    return max(1, min(MAX_CALLS, math.ceil(SHORT / _elapsed(run))))


def _elapsed(run: Callable[[], Any]) -> float:
    """Seconds between two events around what `run` puts on the current stream."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3
