"""The live branches of the decode batch as columns, so that a decode step costs a few array operations and no loop over rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tts.engine.sampling import Sampling
from tts.engine.session import Ticket
from tts.moves import Confidence
from tts.tree import Node


@dataclass(frozen=True)
class Recipe:
    """How the children of one `Expand` are decoded."""

    sampling: Sampling
    start_state: int
    """State of the stop automaton before the first token."""
    num_steps: int
    """Steps after which a branch ends; very large for a whole answer."""
    max_tokens: int | None
    """Ceiling of this expansion alone; reaching it ends a node with `max_tokens_end`."""
    max_tokens_end: str
    keep_stop: bool
    forced: tuple[int, ...]
    watch: Confidence | None
    stats: tuple[str, ...]

    @property
    def wants_statistics(self) -> bool:
        return bool(self.watch or self.stats)


@dataclass(eq=False, slots=True)
class Row:
    """One child of one expansion: its place in the tree, and its tokens while it is out of the batch."""

    ticket: Ticket
    index: int
    """Its place among the ticket's leaves."""
    age: int
    """Older rows go first and are preempted last."""
    parent: Node
    key: int
    recipe: Recipe
    limit: int
    """Tokens, forced ones included, at which it ends ..."""
    limit_end: str
    """... and how: `length` or `cut`."""
    tokens: Sequence[int] = ()
    logprobs: Sequence[float] = ()
    confidence: Sequence[float] = ()
    certainty: Sequence[float] = ()
    cuts: tuple[int, ...] = ()
    """Token counts at which a step ended inside an expansion over several steps."""
    state: int = 0
    steps_left: int = 0
    slot: int = -1


_SCALARS = {
    "leaf": np.int32,  # KV node
    "position": np.int64,  # of the token to be drawn next
    "last": np.int64,  # the token drawn last, not yet forwarded
    "count": np.int64,  # tokens held, forced ones included
    "limit": np.int64,
    "steps_left": np.int64,
    "state": np.int32,
    "key": np.int64,
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "has_watch": np.bool_,
    "has_statistics": np.bool_,
}
_HISTORIES = {"tokens": np.int32, "logprobs": np.float32, "confidence": np.float32, "certainty": np.float32}


class Rows:
    """Columns over row slots; `active` lists the slots in depth-first order of the tree."""

    leaf: np.ndarray
    position: np.ndarray
    last: np.ndarray
    count: np.ndarray
    limit: np.ndarray
    steps_left: np.ndarray
    state: np.ndarray
    key: np.ndarray
    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    has_watch: np.ndarray
    has_statistics: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    confidence: np.ndarray
    certainty: np.ndarray

    def __init__(self, max_rows: int):
        self.max_rows = max_rows
        self.held: list[Any] = [None] * max_rows  # the Row in each slot, None in the free ones
        self.active = np.zeros(0, np.int64)
        self._free = list(range(max_rows - 1, -1, -1))
        for name, dtype in _SCALARS.items():
            setattr(self, name, np.zeros(max_rows, dtype))
        for name, dtype in _HISTORIES.items():
            setattr(self, name, np.zeros((max_rows, 64), dtype))

    def __len__(self) -> int:
        return len(self.active)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def enter(self, rows: list[Row], leaves: np.ndarray) -> np.ndarray:
        """Give rows slots and their KV nodes, in depth-first order with those already there; i64 slots in order of `rows`."""
        slots = np.array([self._free.pop() for _ in rows], np.int64)
        for row, slot in zip(rows, slots.tolist()):
            row.slot, self.held[slot] = slot, row
            if row.tokens:
                self._restore(row)
        sampling = [row.recipe.sampling for row in rows]
        self.leaf[slots] = leaves
        self.count[slots] = [len(row.tokens) for row in rows]
        self.position[slots] = [row.parent.num_path_tokens + len(row.tokens) for row in rows]
        self.limit[slots] = [row.limit for row in rows]
        self.steps_left[slots] = [row.steps_left for row in rows]
        self.state[slots] = [row.state for row in rows]
        self.key[slots] = [row.key for row in rows]
        self.temperature[slots] = [s.temperature for s in sampling]
        self.top_k[slots] = [s.top_k for s in sampling]
        self.top_p[slots] = [s.top_p for s in sampling]
        self.min_p[slots] = [s.min_p for s in sampling]
        self.has_watch[slots] = [row.recipe.watch is not None for row in rows]
        self.has_statistics[slots] = [row.recipe.wants_statistics for row in rows]
        active = self.active.tolist() + slots.tolist()
        active.sort(key=lambda slot: (*self.held[slot].parent.order, self.held[slot].index))
        self.active = np.array(active, np.int64)
        return slots

    def record(
        self, slots: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray, state: np.ndarray, *statistics: np.ndarray
    ) -> None:
        """Enter one drawn token a slot, with what `sample` says of it; confidence and certainty where a row wants them."""
        count = self.count[slots]
        if count.max(initial=0) >= self.tokens.shape[1]:
            self._widen()
        for name, values in zip(_HISTORIES, (tokens, logprobs, *statistics)):
            getattr(self, name)[slots, count] = values
        self.last[slots] = tokens
        self.state[slots] = state
        self.count[slots] = count + 1
        self.position[slots] += 1

    def leave(self, slots: list[int]) -> list[Row]:
        """Take rows out of the batch, their histories saved in them."""
        rows = []
        for slot in slots:
            row = self.held[slot]
            count = int(self.count[slot])
            for name in _HISTORIES if row.recipe.wants_statistics else ("tokens", "logprobs"):
                setattr(row, name, getattr(self, name)[slot, :count].tolist())
            row.state, row.steps_left, row.slot = int(self.state[slot]), int(self.steps_left[slot]), -1
            self.held[slot] = None
            self._free.append(slot)
            rows.append(row)
        gone = np.zeros(self.max_rows, bool)
        gone[slots] = True
        self.active = self.active[~gone[self.active]]
        return rows

    def _restore(self, row: Row) -> None:
        while len(row.tokens) >= self.tokens.shape[1]:
            self._widen()
        for name in _HISTORIES:
            values = getattr(row, name)
            getattr(self, name)[row.slot, : len(values)] = values

    def _widen(self) -> None:
        for name in _HISTORIES:
            column = getattr(self, name)
            setattr(self, name, np.concatenate([column, np.zeros_like(column)], axis=1))
