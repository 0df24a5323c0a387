"""FlashAttention-3 as a peer of `attend` on a GPU, where it can be imported."""

from __future__ import annotations

import torch

from benchmarks.kernels import sdpa
from benchmarks.kernels.cases import Setting, Variant, rotate
from benchmarks.kernels.flashinfer import imported
from benchmarks.kernels.trees import Grown, Heads, Tree


def per_branch(tree: Tree, heads: Heads, q: torch.Tensor, grown: Grown, setting: Setting) -> Variant:
    """Every row with its whole context, contiguous, as an engine without shared prefixes has it. q T[queries,H,D]."""
    attention = imported("flash_attn_interface").flash_attn_with_kvcache
    pairs = [[x.transpose(1, 2).contiguous() for x in pair] for pair in sdpa.contexts(tree, heads, grown, setting)]
    next_pair, by_row = rotate(pairs), q.view(tree.rows, tree.new, heads.H, heads.D)
    lengths = torch.full((tree.rows,), tree.context, dtype=torch.int32, device=q.device)

    def run():
        return attention(by_row, *next_pair(), cache_seqlens=lengths, causal=True).view(q.shape)

    return Variant(run)
