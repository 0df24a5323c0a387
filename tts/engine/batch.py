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


def pages_needed(kv: PagedKV, leaves: np.ndarray, prefills: Sequence[Prefill], sizes: Sequence[int]) -> int:
    """Pages that a pass allocates: a token for each of `leaves`, and the chunks. Where so many are free, a bound on them.

    The bound needs no look at where the nodes end.
    """
    most = len(leaves) + sum(-(-n // kv.page_size) for n in sizes)
    if most <= kv.num_free_pages:
        return most
    growing = [(p.kv_node, n) for p, n in zip(prefills, sizes) if n and not p.is_reread]
    nodes = np.concatenate([leaves, np.array([node for node, _ in growing], np.int32)])
    return kv.pages_needed(nodes, np.array([1] * len(leaves) + [n for _, n in growing], np.int64))


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
    if chunks:
        nodes, indptr, tokens, positions, slots = _mixed(kv, leaves, tokens, positions, chunks)
    else:
        nodes, indptr = leaves, np.arange(len(leaves) + 1)
        slots = kv.extend(leaves, np.ones_like(leaves))
        if graphs is not None and len(leaves) <= graphs.max_rows:
            return graphs.forward(tokens, positions, slots, kv.plan(nodes, indptr, "cpu"))
    plan = kv.plan(nodes, indptr)
    on_device = [torch.from_numpy(x).to(model.device) for x in (tokens, positions, slots)]
    return model.forward(RaggedBatch(on_device[0], on_device[1], on_device[2], plan, kv, model.backend))


def _mixed(
    kv: PagedKV, leaves: np.ndarray, tokens: np.ndarray, positions: np.ndarray, chunks: Sequence[tuple[Prefill, int]]
) -> tuple[np.ndarray, ...]:
    """KV nodes and indptr, tokens, positions and slots of decode rows with chunks of prefills behind them."""
    counts = np.array([1] * len(leaves) + [n for _, n in chunks], np.int64)
    nodes = np.concatenate([leaves, np.array([p.kv_node for p, _ in chunks], np.int32)])
    begins = np.concatenate([positions, np.array([p.position + p.num_done for p, _ in chunks], np.int64)])
    indptr = np.append(0, counts.cumsum())
    slots = _extend(kv, nodes, counts, chunks)
    tokens = np.concatenate([tokens, *(p.tokens[p.num_done : p.num_done + n] for p, n in chunks)])
    positions = np.repeat(begins - indptr[:-1], counts) + np.arange(indptr[-1])
    for prefill, size in chunks:
        prefill.num_done += size
    return nodes, indptr, tokens, positions, slots


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
