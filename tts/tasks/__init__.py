"""Tasks: how problems are put to a model, and how answers are read and compared."""

from __future__ import annotations

from tts.tasks.base import Message, Problem, Task

NAMES = ("chain", "math")


def find(name: str) -> Task:
    """The task of that name; `ValueError` with all names otherwise."""
    if name == "chain":
        from tts.tasks.chain import Chain

        return Chain()
    if name == "math":
        from tts.tasks.math import Math

        return Math()
    raise ValueError(f"unknown task {name!r}; there are {', '.join(NAMES)}")


__all__ = ["NAMES", "Message", "Problem", "Task", "find"]
