"""How a variant is timed: in turn with the others, awake, on cold data, without samples that another process disturbed."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.kernels.cases import PeerError, Variant

PAUSE = 0.003
"""Seconds between variants: worker threads spin for about a millisecond after a call, and would be in the way of another's."""
SHORT = 2e-4
"""Seconds; of shorter calls so many are timed at once that they take this long."""
MIN_ROUNDS, MAX_ROUNDS = 5, 200


@dataclass(frozen=True)
class Times:
    """Microseconds of a call, ascending."""

    us: list[float]
    disturbed: float
    """The share of samples in which a thread lost its core."""
    is_clean: bool
    """Those samples were left out; False if fewer than `MIN_ROUNDS` would have remained: then the figures say little."""

    def at(self, share: float) -> float:
        """The value below which `share` of the samples lie; .5 is the median."""
        position = share * (len(self.us) - 1)
        below = self.us[int(position)]
        return below + (self.us[math.ceil(position)] - below) * (position % 1)


def times(variants: dict[str, Variant], missing: dict[str, str], seconds: float) -> dict[str, Times]:
    """All variants, round after round, each once a round. A peer that fails moves to `missing`."""
    calls = {}
    for name, variant in variants.items():
        try:
            calls[name] = _calls(variant)
        except PeerError as error:
            missing[name] = str(error)
    samples: dict[str, list[tuple[float, bool]]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() > end:
            break
        for name, found in samples.items():
            found.append(_sample(variants[name], calls[name]))
    return {name: _summary(found) for name, found in samples.items()}


def _summary(samples: list[tuple[float, bool]]) -> Times:
    clean = [seconds for seconds, is_disturbed in samples if not is_disturbed]
    is_clean = len(clean) >= MIN_ROUNDS
    kept = clean if is_clean else [seconds for seconds, _ in samples]
    return Times(sorted(1e6 * seconds for seconds in kept), 1 - len(clean) / len(samples), is_clean)


def _calls(variant: Variant) -> int:
    """How many calls a sample takes."""
    if variant.timer is not None:
        variant.timer()
        return 1
    variant.run()
    return max(1, math.ceil(SHORT / seconds_of(variant.run)))


def _sample(variant: Variant, calls: int) -> tuple[float, bool]:
    """(seconds of a call, is_disturbed), after a pause and one call that is not timed: it wakes the worker threads."""
    time.sleep(PAUSE)
    if variant.timer is not None:
        variant.timer()
        return variant.timer()
    variant.run()
    before = preemptions()
    planned = seconds_of(variant.plan) / variant.layers if variant.plan is not None else 0.0
    seconds = seconds_of(variant.run, calls) + planned
    return seconds, preemptions() > before


def preemptions() -> int:
    """How often a thread of this process lost its core to another process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def seconds_of(call: Callable[[], Any], calls: int = 1) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls
