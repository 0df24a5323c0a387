"""What becomes of the rows of a decode batch once their states are known: tokens, how a row ends, and its nodes."""

from __future__ import annotations

import numpy as np
import torch

import tts_kernels
from tts.engine.model import Model
from tts.engine.rows import Row, Rows
from tts.engine.stops import EOS, KIND_SHIFT, RUNNING, STEP, STOP, StopTable
from tts.tree import Node

DRAWN_WITH = ("key", "position", "temperature", "top_k", "top_p", "min_p", "state")
"""What `sample` reads of a row."""


class Draws:
    """Draws tokens for rows and says which of them have ended, by the stops, limits and watches of their recipes."""

    def __init__(self, model: Model, rows: Rows):
        self.model, self.rows = model, rows
        self.token_bytes = model.token_bytes()
        self.stops = StopTable(self.token_bytes, model.eos_ids)
        self._stop_table = torch.empty(0, len(self.token_bytes), dtype=torch.int32, device=model.device)

    def sample(self, states: torch.Tensor, source: np.ndarray, slots: np.ndarray) -> None:
        """Draw a token for each of `slots`, from the states T[R, E] that `source` i32[len(slots)] names, and record it."""
        rows, device = self.rows, self.model.device
        columns = source, *(getattr(rows, name)[slots] for name in DRAWN_WITH)
        wanted = bool(rows.has_statistics[slots].any())
        if len(self._stop_table) != len(self.stops.table):  # it only grows
            self._stop_table = torch.from_numpy(self.stops.table).to(device)
        drawn = tts_kernels.sample(
            self.model.logits(states),
            *[torch.from_numpy(c).to(device) for c in columns],
            self._stop_table,
            int(wanted),
            backend=self.model.backend,
        )
        rows.record(slots, *[column.cpu().numpy() for column in (drawn if wanted else drawn[:3])])

    def ended(self, slots: np.ndarray) -> list[tuple[int, str]]:
        """Those of `slots` that end with the token they have just drawn, and how; counts and cuts the steps of the others."""
        rows = self.rows
        kind = rows.state[slots] >> KIND_SHIFT
        is_limit = rows.count[slots] >= rows.limit[slots]
        is_watched = rows.has_watch[slots]
        ended = []
        for i in np.flatnonzero((kind > RUNNING) | is_limit | is_watched).tolist():
            slot = int(slots[i])
            end = self._end(slot, kind[i], is_limit[i], is_watched[i] and self._is_below(slot))
            if end is not None:
                ended.append((slot, end))
        return ended

    def nodes(self, row: Row, end: str) -> list[Node]:
        """The chain of nodes, one a step, of a row that has ended and left the batch."""
        parent, chain = row.parent, []
        bounds = [0, *row.cuts, len(row.tokens)]
        for begin, until in zip(bounds[:-1], bounds[1:]):
            is_last = until == bounds[-1]
            kept = until - (is_last and end == "stop" and not row.recipe.keep_stop)
            forced = max(0, min(until, len(row.recipe.forced)) - begin)
            parent = Node(
                parent,
                tuple(row.tokens[begin:kept]),
                b"".join(map(self.token_bytes.__getitem__, row.tokens[begin:kept])),
                end if is_last else "step",
                row.key,
                parent.prompt,
                num_forced=forced,
                cost=until - begin - forced,
                logprobs=tuple(row.logprobs[begin:kept]),
                stats={name: tuple(getattr(row, name)[begin:kept]) for name in row.recipe.stats},
                num_drawn_children=0 if is_last else 1,
            )
            chain.append(parent)
        return chain

    def _end(self, slot: int, kind: int, is_limit: bool, is_below: bool) -> str | None:
        rows, row = self.rows, self.rows.held[slot]
        if kind == STEP:
            rows.steps_left[slot] -= 1
        if kind in (EOS, STOP):
            return "stop"
        if is_limit:
            return row.limit_end
        if kind == STEP:
            if rows.steps_left[slot] == 0:
                return "step"
            row.cuts += (int(rows.count[slot]),)
        return "watch" if is_below else None

    def _is_below(self, slot: int) -> bool:
        watch, row, count = self.rows.held[slot].recipe.watch, self.rows.held[slot], int(self.rows.count[slot])
        if count - len(row.recipe.forced) < watch.window:
            return False
        return bool(self.rows.confidence[slot, count - watch.window : count].mean() < watch.below)
