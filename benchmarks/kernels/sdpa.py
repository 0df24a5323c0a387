"""torch's attention as a peer of `attend`. Its KV is gathered outside the timing, contiguous and without padding: the best case.

Query heads that share a KV head are folded into the query length where no causal mask forbids it, so that KV is read once for
all of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.kernels.cases import PeerError, Setting, Variant, copies, nbytes, rotate
from benchmarks.kernels.trees import Grown, Heads, Tree


def per_branch(tree: Tree, heads: Heads, q: torch.Tensor, grown: Grown, setting: Setting) -> Variant:
    """Every row with its whole context, as an engine without shared prefixes has it. q T[queries,H,D]."""
    next_pair = rotate(contexts(tree, heads, grown, setting))
    mask = torch.ones(tree.new, tree.context, dtype=torch.bool, device=q.device).tril(tree.context - tree.new)

    def decode():
        folded = q.reshape(tree.rows, heads.G, heads.H // heads.G, heads.D)
        return F.scaled_dot_product_attention(folded, *next_pair()).reshape(q.shape)

    def prefill():
        by_head = q.reshape(tree.rows, tree.new, heads.H, heads.D).transpose(1, 2)
        key, value = next_pair()
        out = F.scaled_dot_product_attention(by_head, key, value, attn_mask=mask, enable_gqa=True)
        return out.transpose(1, 2).reshape(q.shape)

    return Variant(decode if tree.new == 1 else prefill)


def contexts(tree: Tree, heads: Heads, grown: Grown, setting: Setting) -> list[list[torch.Tensor]]:
    """Keys and values T[rows,G,context,D] of all rows, as many times as calls must rotate through."""
    size = 2 * tree.rows * tree.context * heads.G * heads.D * setting.torch_dtype.itemsize
    count = copies(size, setting)
    rows = [grown.gather(tree, row) for row in range(tree.rows)]
    pairs = [[torch.stack(x) for x in zip(*rows)]]
    return pairs + [[x.clone() for x in pairs[0]] for _ in range(count - 1)]


def merged(tree: Tree, heads: Heads, q: torch.Tensor, grown: Grown, setting: Setting) -> Variant:
    """Level by level, each node once for all of its rows, and one merge by lse. q T[queries,H,D].

    Chains are one level. All nodes of a level are one batched call.
    """
    levels = tree.merged()
    kv = [[torch.stack(x) for x in zip(*map(grown.read, nodes))] for nodes in grown.merged_slots(tree)]
    count = copies(sum(nbytes(*pair) for pair in kv), setting)
    next_kv = rotate([kv, *([[x.clone() for x in pair] for pair in kv] for _ in range(count - 1))])

    def run():
        parts = [_level(tree, heads, q, *pair, is_last=level is levels[-1]) for level, pair in zip(levels, next_kv())]
        return _merge(parts) if len(parts) > 1 else parts[0][0]

    return Variant(run)


def _level(tree: Tree, heads: Heads, q, key, value, *, is_last: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(out T[queries,H,D], lse f32[queries,H]) of all rows over their nodes of one level."""
    nodes, group = key.shape[0], heads.H // heads.G
    if is_last and tree.new > 1:
        by_head = q.reshape(nodes, -1, heads.H, heads.D).transpose(1, 2)
        out, lse = _flash(by_head, key, value, is_causal=True)
        return out.transpose(1, 2).reshape(q.shape), lse.transpose(1, 2).reshape(q.shape[:2])
    folded = q.reshape(nodes, -1, heads.G, group, heads.D).transpose(1, 2).reshape(nodes, heads.G, -1, heads.D)
    out, lse = _flash(folded, key, value)
    out = out.reshape(nodes, heads.G, -1, group, heads.D).transpose(1, 2)
    return out.reshape(q.shape), lse.reshape(nodes, heads.G, -1, group).transpose(1, 2).reshape(q.shape[:2])


def _flash(q, key, value, is_causal: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """(out, lse) of torch's flash attention on the device."""
    if not q.is_cuda:
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, key, value, 0.0, is_causal)
    if q.dtype == torch.float32:
        raise PeerError("torch has no flash attention in float32 on a GPU")
    return torch.ops.aten._scaled_dot_product_flash_attention(q, key, value, 0.0, is_causal)[:2]


def _merge(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    weights = torch.softmax(torch.stack([lse for _, lse in parts]), 0)[..., None]
    return sum(weight * out for weight, (out, _) in zip(weights, parts)).to(parts[0][0].dtype)
