"""Decode passes as CUDA graphs: one captured for each bucket of sizes, fed by one copy to the device, replayed.

A batch is filled up to its bucket. What fills it changes nothing: its tokens have slot -1, which `append` does not write, no work
item covers them, so their attention is 0, and its work items cover no query. Launches of a captured pass cost the host nothing,
and on the device only what lies between two kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from tts.engine.model import Model, RaggedBatch
from tts_kernels.pages import PagedKV, Plan

Capture = Callable[[Callable[[], torch.Tensor]], Callable[[], torch.Tensor]]
"""Makes a replay of a pass over fixed tensors: each call computes it from what is in them then. It may run the pass before."""

LEAST_SPANS = 256


@dataclass(frozen=True)
class Bucket:
    """Sizes for which a pass is captured: batches of any smaller sizes are filled up to them."""

    rows: int
    items: int
    spans: int

    @classmethod
    def of(cls, rows: int, items: int, spans: int) -> Bucket:
        """The least that holds a batch of `rows` >= 1 rows with so many work items and spans.

        Rows are rounded up to 2^k or 3 * 2^k, which wastes less than a third. A tree of so many rows has fewer than twice as many
        items. Spans grow with the context and cost room but no time: they are doubled, so that few buckets are needed.
        """
        rows = _rounded(rows)
        return cls(rows, max(2 * rows, _rounded(items)), max(LEAST_SPANS, 1 << (spans - 1).bit_length()))


def _rounded(n: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is not below n >= 1."""
    power = 1 << (n - 1).bit_length()
    return power * 3 // 4 if power >= 4 and n <= power * 3 // 4 else power


class _Inputs:
    """The tensors that a captured pass reads: parts of one buffer on the device, and of its twin on the host."""

    def __init__(self, bucket: Bucket, device: torch.device):
        self.bucket = bucket
        words = 4 * bucket.items + 1 + 3 * bucket.spans
        size = 3 * bucket.rows + -(-words // 2)
        self._host = torch.zeros(size, dtype=torch.int64, pin_memory=device.type == "cuda")
        self._device = torch.zeros(size, dtype=torch.int64, device=device)
        self._to_write = [part.numpy() for part in self._parts(self._host)]
        self.tokens, self.positions, self.slots, *plan = self._parts(self._device)
        self.plan = Plan(*plan)

    def _parts(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """tokens, positions, slots i64[rows]; items i32[items,3], item_indptr i32[items+1], spans i32[spans,3]."""
        rows, items, spans = self.bucket.rows, self.bucket.items, self.bucket.spans
        words = buffer[3 * rows :].view(torch.int32)
        behind = 4 * items + 1
        plan = words[: 3 * items], words[3 * items : behind], words[behind : behind + 3 * spans]
        return [*buffer[: 3 * rows].view(3, rows), plan[0].view(items, 3), plan[1], plan[2].view(spans, 3)]

    def fill(self, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray, plan: Plan) -> None:
        """Enter a batch, its plan on the host. The copy before this one is done: the step that it was for has read its draws."""
        for to, values, rest in zip(self._to_write, (tokens, positions, slots), (0, 0, -1)):
            to[: len(values)], to[len(values) :] = values, rest
        items, item_indptr, spans = self._to_write[3:]
        num_items, num_spans = len(plan.items), len(plan.spans)
        items[:num_items], items[num_items:] = plan.items.numpy(), (self.bucket.rows, self.bucket.rows, 0)
        item_indptr[: num_items + 1], item_indptr[num_items + 1 :] = plan.item_indptr.numpy(), num_spans
        spans[:num_spans] = plan.spans.numpy()
        self._device.copy_(self._host, non_blocking=True)


class Graphs:
    """The captured decode passes of a model on its pages."""

    def __init__(self, model: Model, kv: PagedKV, capture: Capture, max_rows: int = 512):
        self._model, self._kv, self._capture, self.max_rows = model, kv, capture, max_rows
        self._captured: dict[Bucket, tuple[_Inputs, Callable[[], torch.Tensor]]] = {}

    @property
    def buckets(self) -> list[Bucket]:
        """Those captured so far."""
        return list(self._captured)

    def forward(self, tokens: np.ndarray, positions: np.ndarray, slots: np.ndarray, plan: Plan) -> torch.Tensor:
        """`Model.forward` for rows of one token each, at most `max_rows`, arrays and plan on the host.

        Gives T[rows, E], valid until the next call.
        """
        bucket = Bucket.of(len(tokens), len(plan.items), len(plan.spans))
        if bucket not in self._captured:
            inputs = _Inputs(bucket, self._model.device)
            inputs.fill(tokens, positions, slots, plan)
            self._captured[bucket] = inputs, self._capture(partial(self._run, inputs))
        inputs, replay = self._captured[bucket]
        inputs.fill(tokens, positions, slots, plan)
        return replay()[: len(tokens)]

    def _run(self, inputs: _Inputs) -> torch.Tensor:
        parts = inputs.tokens, inputs.positions, inputs.slots, inputs.plan
        return self._model.forward(RaggedBatch(*parts, self._kv, self._model.backend))


class CudaCapture:
    """Captures passes as CUDA graphs, which share their memory: one is replayed at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            run()  # compiles and loads what a capture may not; it writes what the replay will write again
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = run()

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay


def capture_on(device: torch.device) -> Capture | None:
    """How decode passes are captured on a device; None where they are not."""
    return CudaCapture() if device.type == "cuda" else None
