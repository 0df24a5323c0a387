"""One ragged forward pass: decode rows of one token each, then chunks of prefills."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tts.engine.cache import Prefill
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
    return kv.pages_needed(*np.array(growing).T) if growing else 0


def forward(
    model: Model,
    kv: PagedKV,
    leaves: np.ndarray,
    tokens: np.ndarray,
    positions: np.ndarray,
    prefills: Sequence[Prefill],
    sizes: Sequence[int],
) -> torch.Tensor:
    """Append one token to each decode row's KV node and `sizes[i]` tokens to prefill i's, and run the model.

    Pages must suffice (`pages_needed`). Gives T[B + sum(sizes), E], the hidden state behind every token.
    """
    chunks = [(p, n) for p, n in zip(prefills, sizes) if n]
    slots = [kv.extend(leaves, np.ones_like(leaves))] if len(leaves) else []
    for prefill, size in chunks:
        slots.append(kv.slots(prefill.kv_node)[-1:] if prefill.is_reread else kv.extend([prefill.kv_node], [size]))
    spans = [slice(p.num_done, p.num_done + n) for p, n in chunks]
    all_tokens = np.concatenate([tokens, *(p.tokens[s] for (p, _), s in zip(chunks, spans))])
    all_positions = np.concatenate([positions, *(p.position + np.arange(s.start, s.stop) for (p, _), s in zip(chunks, spans))])
    counts = np.concatenate([np.ones(len(leaves), np.int64), [n for _, n in chunks]]).astype(np.int64)
    plan = kv.plan(np.concatenate([leaves, [p.kv_node for p, _ in chunks]]).astype(np.int32), np.concatenate([[0], counts.cumsum()]))
    for prefill, size in chunks:
        prefill.num_done += size
    on_device = (torch.from_numpy(x.astype(np.int64)).to(model.device) for x in (all_tokens, all_positions, np.concatenate(slots)))
    return model.forward(RaggedBatch(*on_device, plan=plan, kv=kv, backend=model.backend))
