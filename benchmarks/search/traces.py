"""Traces: what a search does, fixed in advance, so that every engine does the same work.

A trace says how long the prompt is, which beam of the step before each beam goes on from, and how many tokens it draws. The end
of the text is ignored, sampling is on; what is drawn does not matter. A verifier of the policy's shape scores every beam after
every step where the trace says so.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

VOCABULARY = 151643  # ids below are plain tokens in Qwen2.5's vocabulary


@dataclass(frozen=True)
class Step:
    """One step of all beams of a problem: beam i goes on from `parents[i]` of the step before and draws `lengths[i]` tokens."""

    parents: list[int]
    lengths: list[int]


@dataclass(frozen=True)
class Trace:
    name: str
    prompts: list[list[int]]
    """Token ids, one list a problem."""
    steps: list[list[Step]]
    """One list a problem."""
    has_verifier: bool

    @property
    def num_tokens(self) -> int:
        """Tokens that the policy draws."""
        return sum(sum(step.lengths) for steps in self.steps for step in steps)

    @property
    def num_new_tokens(self) -> int:
        """Tokens that a verifier must read at least: every prompt once, every drawn token once."""
        return self.num_tokens + sum(map(len, self.prompts))

    def shape(self) -> dict[str, Any]:
        """What its rows say of it."""
        return {
            "n": len(self.steps[0][0].parents),
            "steps": len(self.steps[0]),
            "prompt": len(self.prompts[0]),
            "problems": len(self.prompts),
            "has_verifier": self.has_verifier,
            "tokens": self.num_tokens,
        }

    def as_dict(self, num_ids: int = VOCABULARY) -> dict[str, Any]:
        """Plain data. Ids of prompts are folded into a vocabulary of `num_ids`."""
        counts = {"num_tokens": self.num_tokens, "num_new_tokens": self.num_new_tokens}
        prompts = [[token % num_ids for token in prompt] for prompt in self.prompts]
        return asdict(self) | counts | {"prompts": prompts}


def beam(
    name: str,
    n: int,
    expand: int,
    steps: int,
    tokens: int,
    *,
    prompt: int = 1024,
    problems: int = 1,
    subtrees: int = 1,
    spread: float = 0.0,
    has_verifier: bool = False,
) -> Trace:
    """`n` beams of which `n / expand` survive a step, drawn evenly from each of `subtrees`; each survivor gets `expand` children.

    With `spread` the lengths are log-normal with median `tokens`, at most 4 x that: stragglers.
    """
    rng = random.Random(name)

    def length() -> int:
        return min(4 * tokens, max(1, round(tokens * rng.lognormvariate(0, spread)))) if spread else tokens

    def parents() -> list[int]:
        size = n // subtrees
        kept = [sorted(rng.sample(range(size), max(1, size // expand))) for _ in range(subtrees)]
        return [t * size + p for t, beams in enumerate(kept) for p in beams for _ in range(size // len(beams))]

    made = [
        [Step([0] * n if depth == 0 else parents(), [length() for _ in range(n)]) for depth in range(steps)]
        for _ in range(problems)
    ]
    prompts = [[rng.randrange(VOCABULARY) for _ in range(prompt)] for _ in range(problems)]
    return Trace(name, prompts, made, has_verifier)


def all_traces() -> dict[str, Trace]:
    """Every trace by its name; `+prm` is the same search with a verifier."""
    found = []
    for suffix, has_verifier in (("", False), ("+prm", True)):
        found += [
            beam(f"beam{suffix}", 64, 4, 4, 32, has_verifier=has_verifier),
            beam(f"beam-4-problems{suffix}", 64, 4, 4, 32, problems=4, has_verifier=has_verifier),
            beam(f"beam-12-steps{suffix}", 64, 4, 12, 32, has_verifier=has_verifier),
            beam(f"beam-stragglers{suffix}", 64, 4, 4, 32, spread=0.6, has_verifier=has_verifier),
            beam(f"beam-prompt-4096{suffix}", 64, 4, 4, 32, prompt=4096, has_verifier=has_verifier),
            beam(f"beam-16{suffix}", 16, 4, 4, 32, has_verifier=has_verifier),
            beam(f"beam-16-4-problems{suffix}", 16, 4, 4, 32, problems=4, has_verifier=has_verifier),
            beam(f"dvts{suffix}", 64, 4, 4, 32, subtrees=16, has_verifier=has_verifier),
            beam(f"dvts-4-problems{suffix}", 64, 4, 4, 32, subtrees=16, problems=4, has_verifier=has_verifier),
            beam(f"best-of-64{suffix}", 64, 1, 1, 512, has_verifier=has_verifier),
            beam(f"best-of-64-4-problems{suffix}", 64, 1, 1, 512, problems=4, has_verifier=has_verifier),
            beam(f"quick{suffix}", 8, 4, 3, 8, prompt=64, has_verifier=has_verifier),
        ]
    return {trace.name: trace for trace in found}


def named(names: Iterable[str]) -> list[Trace]:
    """The traces of these names; `ValueError` for one that there is not."""
    traces = all_traces()
    unknown = set(names) - set(traces)
    if unknown:
        raise ValueError(f"no trace {', '.join(sorted(unknown))}; there are {', '.join(traces)}")
    return [traces[name] for name in names]
