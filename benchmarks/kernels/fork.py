"""fork: 64 children in the node table, against copying the KV of 64 rows as a cache without sharing does."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

import tts_kernels
from benchmarks.kernels.cases import Case, Setting, Spec, Variant, copies, family, mismatches
from benchmarks.kernels.floors import Work
from benchmarks.kernels.trees import QWEN
from tts_kernels.pages import PagedKV

CHILDREN, PARENTS, NODES = 64, 16, 512
COPIED_TOKENS = 512


@family
def fork() -> Iterator[Spec]:
    yield Spec("fork", f"{CHILDREN} children, node table", True, partial(_case, False))
    yield Spec("fork", f"{CHILDREN} children, through PagedKV", True, partial(_case, True), devices=("cpu",))


def _case(through_pages: bool, setting: Setting) -> Case:
    """The op alone, or with the bookkeeping of `PagedKV`, which also releases the children again."""
    i32 = {"dtype": torch.int32, "device": setting.device}
    parents = torch.arange(PARENTS, **i32).repeat_interleave(CHILDREN // PARENTS)
    nodes = torch.arange(NODES - CHILDREN, NODES, **i32)
    tables = [torch.full((NODES,), 7, **i32) for _ in range(6)]

    def check():
        found, expected = ([t.clone() for t in tables] for _ in range(2))
        tts_kernels.fork(parents, nodes, *found)
        tts_kernels.fork(parents, nodes, *expected, backend="reference")
        return mismatches(*zip(found, expected))

    case = Case(
        dtype="i32",
        work=Work(bytes=4.0 * CHILDREN * (2 + 7), rate="cache_read"),
        cold="nothing",
        check=check,
        ours=Variant(_forked_pages() if through_pages else lambda: tts_kernels.fork(parents, nodes, *tables)),
        backend=tts_kernels.fork.choose(setting.device).name,
    )
    case.add_peer(f"index_select_{COPIED_TOKENS}_tokens", lambda: _index_select(parents, setting))
    return case


def _forked_pages():
    kv = PagedKV(1, 16, 1, 1, 8)
    parents = np.repeat(kv.add([-1] * PARENTS), CHILDREN // PARENTS)

    def run():
        for node in kv.add(parents):
            kv.release(node)

    return run


def _index_select(parents: torch.Tensor, setting: Setting) -> Variant:
    """The rows' KV of all layers of Qwen2.5-0.5B picked by parent, as `DynamicCache.reorder_cache` does at every fork."""
    shape = (CHILDREN, QWEN.G, COPIED_TOKENS, QWEN.D)
    copies(2 * QWEN.layers * CHILDREN * QWEN.G * COPIED_TOKENS * QWEN.D * 2, setting)  # not too large
    cache = [torch.zeros(shape, dtype=torch.bfloat16, device=setting.device) for _ in range(2 * QWEN.layers)]
    index = parents.long()
    return Variant(lambda: [layer.index_select(0, index) for layer in cache])
