"""How tokens are drawn, and the keys that make a draw a function of its branch alone."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Sampling:
    """Names and meanings are OpenAI's; `temperature` 0 is greedy, `max_tokens` None is the task's default.

    `max_tokens` is the ceiling on the drawn tokens of one answer, over all of its steps.
    """

    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int | None = None

    def errors(self) -> list[str]:
        """What is out of range, one clear line each."""
        found = []
        if not 0 <= self.temperature <= 100:
            found.append(f"temperature must be in [0, 100] (0 is greedy), got {self.temperature}")
        if not 0 < self.top_p <= 1:
            found.append(f"top_p must be in (0, 1] (1 is off), got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            found.append(f"min_p must be in [0, 1] (0 is off), got {self.min_p}")
        if self.top_k < 0:
            found.append(f"top_k must be >= 0 (0 is off), got {self.top_k}")
        if self.max_tokens is not None and not 1 <= self.max_tokens <= 1 << 20:
            found.append(f"max_tokens must be in [1, {1 << 20}], got {self.max_tokens}")
        return found


def root_key(*parts: object) -> int:
    """The key of a lineage's start, from anything with a stable `repr`."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big", signed=True)


def child_key(key: int, position: int, index: int) -> int:
    """The key of child number `index` of a branch of `position` tokens; child 0 continues its parent's lineage.

    The mixer is SplitMix64's (Steele et al. 2014).
    """
    if index == 0:
        return key
    x = (key ^ (position * 0x9E3779B97F4A7C15) ^ (index * 0xD1B54A32D192ED03)) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    x ^= x >> 31
    return x - (1 << 64) if x >> 63 else x
