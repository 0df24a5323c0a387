"""How a variant is timed: in turn with the others, awake, on cold data, without samples that another process disturbed."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.kernels.cases import Variant, reason

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


Sampler = Callable[[], tuple[float, bool]]
"""(seconds of one call, whether another process disturbed it)"""


def times(
    variants: dict[str, Variant], missing: dict[str, str], seconds: float, prepare: Callable[[Variant], Sampler]
) -> dict[str, Times]:
    """All variants, round after round, each once a round. A peer that fails moves to `missing`.

    `prepare` makes a variant's sampler: `on_the_host`, or that of a GPU's clock.
    """
    samplers: dict[str, Sampler] = {}
    for name, variant in variants.items():
        with _failing_into(missing, name):
            samplers[name] = prepare(variant)
    samples: dict[str, list[tuple[float, bool]]] = {name: [] for name in samplers}
    end = time.perf_counter() + seconds
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and time.perf_counter() > end:
            break
        for name, found in samples.items():
            if name not in missing:
                with _failing_into(missing, name):
                    found.append(samplers[name]())
    return {name: _summary(found) for name, found in samples.items() if name not in missing}


@contextmanager
def _failing_into(missing: dict[str, str], name: str) -> Iterator[None]:
    """A peer that fails becomes a missing one; without ours there is nothing to compare it with, so that is raised."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  (other people's code, which must not end the run)
        if name == "ours":
            raise
        missing[name] = reason(error)


def _summary(samples: list[tuple[float, bool]]) -> Times:
    clean = [seconds for seconds, is_disturbed in samples if not is_disturbed]
    is_clean = len(clean) >= MIN_ROUNDS
    kept = clean if is_clean else [seconds for seconds, _ in samples]
    return Times(sorted(1e6 * seconds for seconds in kept), 1 - len(clean) / len(samples), is_clean)


def on_the_host(variant: Variant) -> Sampler:
    """Samples of as many calls as last long enough to be timed."""
    if variant.timer is not None:
        variant.timer()
        return partial(_sample, variant, 1)
    variant.run()
    return partial(_sample, variant, max(1, math.ceil(SHORT / seconds_of(variant.run))))


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
