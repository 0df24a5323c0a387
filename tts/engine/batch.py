"""One ragged forward pass: decode rows of one token each, then chunks of prefills."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tts.engine.cache import Prefill
from tts.engine.graphs import Graphs
from tts.engine.model import Model, RaggedBatch
from tts_kernels.pages import PagedKV


def chunk_sizes(prefills: Sequence[Prefill], budget: int) -> list[int]:
    """Tokens of each prefill in this pass, first come first served, `budget` in all."""
    sizes = []
    for prefill in prefills:
        sizes.append(min(prefill.num_left, budget))
        budget -= sizes[-1]
    return sizes


def pages_needed(kv: PagedKV, prefills: Sequence[Prefill], sizes: Sequence[int]) -> int:
    """Pages that the chunks will allocate."""
    growing = [(p.kv_node, n) for p, n in zip(prefills, sizes) if n and not p.is_reread]
    return kv.pages_needed([node for node, _ in growing], [n for _, n in growing]) if growing else 0


def forward(
    model: Model,
    kv: PagedKV,
    leaves: np.ndarray,
    tokens: np.ndarray,
    positions: np.ndarray,
    prefills: Sequence[Prefill],
    sizes: Sequence[int],
    graphs: Graphs | None = None,
) -> torch.Tensor:
    """Append one token to each decode row's KV node and `sizes[i]` tokens to prefill i's, and run the model.

    Pages must suffice (`pages_needed`). Gives T[B + sum(sizes), E], the hidden state behind every token. A pass of decode rows
    alone is replayed from `graphs`, if there are any for so many; its states are valid until the next pass.
    """
    chunks = [(p, n) for p, n in zip(prefills, sizes) if n]
    counts = np.array([1] * len(leaves) + [n for _, n in chunks], np.int64)
    kv_nodes = np.concatenate([leaves, np.array([p.kv_node for p, _ in chunks], np.int32)])
    begins = np.concatenate([positions, np.array([p.position + p.num_done for p, _ in chunks], np.int64)])
    offsets = counts.cumsum() - counts
    slots = _extend(kv, kv_nodes, counts, chunks)
    ragged_tokens = np.concatenate([tokens, *(p.tokens[p.num_done : p.num_done + n] for p, n in chunks)])
    ragged_positions = np.repeat(begins - offsets, counts) + np.arange(int(counts.sum()))
    for prefill, size in chunks:
        prefill.num_done += size
    indptr = np.append(offsets, counts.sum())
    if graphs is not None and not chunks and len(leaves) <= graphs.max_rows:
        return graphs.forward(ragged_tokens, ragged_positions, slots, kv.plan(kv_nodes, indptr, "cpu"))
    plan = kv.plan(kv_nodes, indptr)
    on_device = [torch.from_numpy(x).to(model.device) for x in (ragged_tokens, ragged_positions, slots)]
    return model.forward(RaggedBatch(on_device[0], on_device[1], on_device[2], plan, kv, model.backend))


def _extend(kv: PagedKV, kv_nodes: np.ndarray, counts: np.ndarray, chunks: Sequence[tuple[Prefill, int]]) -> np.ndarray:
    """i64[T] slots of all tokens; those that are read again have theirs already."""
    is_reread = np.zeros(len(kv_nodes), bool)
    is_reread[len(kv_nodes) - len(chunks) :] = [p.is_reread for p, _ in chunks]
    if not is_reread.any():
        return kv.extend(kv_nodes, counts)
    slots = np.empty(int(counts.sum()), np.int64)
    again = np.repeat(is_reread, counts)
    if not is_reread.all():
        slots[~again] = kv.extend(kv_nodes[~is_reread], counts[~is_reread])
    slots[again] = [kv.slots(int(node))[-1] for node in kv_nodes[is_reread]]
    return slots
