"""Grading of mathematical answers: reading them out of a text, and whether two of them are the same.

`extract` is plain text work. `equal`, `grade` and `group` ask one `Grader` per process, made when first needed, with the
default settings; make a `Grader` for others.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence

from tts.grading.boxed import extract
from tts.grading.grader import Grader, Pair, Verdict

__all__ = ["Grader", "Verdict", "equal", "extract", "grade", "group"]


def equal(a: str | None, b: str | None) -> bool:
    """`Grader.equal` of the default grader."""
    return _default_grader(os.getpid()).equal(a, b)


def grade(pairs: Sequence[Pair]) -> list[Verdict]:
    """`Grader.grade` of the default grader."""
    return _default_grader(os.getpid()).grade(pairs)


def group(answers: Sequence[str | None]) -> list[int]:
    """`Grader.group` of the default grader."""
    return _default_grader(os.getpid()).group(answers)


@functools.lru_cache(maxsize=1)
def _default_grader(pid: int) -> Grader:
    """The grader of the process `pid`: a forked child must not talk over the pipes of its parent."""
    return Grader()
