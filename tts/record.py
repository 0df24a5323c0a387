"""The record of a search: what was answered to each move of a strategy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Answered:
    """A move and its result; for an `All` also the records of its branches, None for those that were cut short."""

    move: Any
    result: Any
    branches: list[list[Answered] | None] | None = None
