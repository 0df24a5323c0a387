"""FlexAttention as a peer of `attend`: one call over all unique tokens of the tree, with a mask that says who sees what."""

from __future__ import annotations

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.kernels.cases import PeerError, Setting, Variant, copies, nbytes, rotate
from benchmarks.kernels.trees import Grown, Heads, Tree


def attend(tree: Tree, heads: Heads, q: torch.Tensor, grown: Grown, setting: Setting) -> Variant:
    """q T[queries,H,D]. The tokens lie node after node, as a cache without pages would have them; the mask is its plan."""
    if setting.is_quick:
        raise PeerError("its compilation is too long for --quick")
    slots, seen_from, seen_to = _visibility(tree, grown)
    pair = [x[None].contiguous() for x in grown.read(slots)]
    next_pair = rotate([pair, *([x.clone() for x in pair] for _ in range(copies(nbytes(*pair), setting) - 1))])

    def sees(batch, head, query, token):
        return (query >= seen_from[token]) & (query < seen_to[token])

    def plan():
        return create_block_mask(sees, None, None, tree.queries, len(slots), device=q.device)

    mask, by_head = plan(), q.transpose(0, 1)[None].contiguous()
    attention = torch.compile(flex_attention, dynamic=False) if q.is_cuda else flex_attention

    def run():
        out = attention(by_head, *next_pair(), block_mask=mask, scale=heads.D**-0.5, enable_gqa=heads.H != heads.G)
        return out[0].transpose(0, 1)

    return Variant(run, plan, heads.layers)


def _visibility(tree: Tree, grown: Grown) -> tuple[torch.Tensor, ...]:
    """(slot, first query, last query + 1 that see it) of every token, level by level, i64 each."""
    found = []
    for depth, level in enumerate(tree.levels):
        queries = tree.queries // level.nodes
        for node in range(level.nodes):
            slots = grown.slots(depth, node)
            first = torch.full_like(slots, node * queries)
            end = first + queries
            if level is tree.levels[-1] and tree.new > 1:
                # Of a row's last token only its last query sees it, of the one before the last two, and so on.
                first = torch.maximum(first, end - torch.arange(len(slots), 0, -1, device=slots.device))
            found.append((slots, first, end))
    return tuple(torch.cat(column) for column in zip(*found))
