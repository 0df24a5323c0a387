"""attend: one layer's attention over a search tree, with its share of the plan."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

import tts_kernels
from benchmarks.kernels import flash_attention, flashinfer, flex, sdpa, vllm
from benchmarks.kernels.cases import (
    Case,
    PeerError,
    Setting,
    Spec,
    Variant,
    allowance,
    copies,
    error,
    exact_dtype,
    family,
    random,
    rotate,
)
from benchmarks.kernels.floors import Work
from benchmarks.kernels.trees import LLAMA, QUICK, QWEN, TREES, Grown, Heads, Level, Tree, grow

CHECKED_ROWS = 16


@family
def attend() -> Iterator[Spec]:
    for heads in (QWEN, LLAMA):
        for tree in TREES:
            is_quick = heads is QWEN and tree.name in QUICK
            yield Spec("attend", f"{heads.name} {tree.name}", is_quick, partial(_case, tree, heads))


def _case(tree: Tree, heads: Heads, setting: Setting) -> Case:
    dtype, scale = setting.torch_dtype, heads.D**-0.5
    layer_bytes = 2 * heads.G * heads.D * dtype.itemsize * tree.unique_tokens
    count = copies(layer_bytes, setting)
    layers = min(heads.layers, count)
    device = setting.device
    grown = [grow(tree, heads, layers, dtype, device) for _ in range(-(-count // layers))]
    plan, q = grown[0].plan(tree.new), random((tree.queries, heads.H, heads.D), dtype, 0, device)
    judge = Judge(tree, q, grown[0], scale)
    out, lse = torch.empty_like(q), torch.empty(tree.queries, heads.H, device=device)
    next_pages = rotate(pages for g in grown for pages in g.kv.layers)

    def run():
        return tts_kernels.attend(q, *next_pages(), plan.spans, plan.item_indptr, plan.items, scale, out=(out, lse))

    case = Case(
        dtype=setting.dtype,
        work=_work(tree, heads, tree.levels, dtype.itemsize),
        cold=f"KV: {layers} layers of {len(grown)} pools in turn, {layers * len(grown) * layer_bytes >> 20} MiB",
        check=lambda: (judge.error(run().out), judge.allowed),
        ours=Variant(run, lambda: grown[0].plan(tree.new), heads.layers),
        backend=tts_kernels.attend.choose(device, dtype).name,
        details={"unique_tokens": tree.unique_tokens, "layers_of_a_plan": heads.layers},
        parts=(
            _work(tree, heads, tree.levels[:-1], dtype.itemsize, has_queries=False),
            _work(tree, heads, tree.levels[-1:], dtype.itemsize),
        ),
    )
    case.add_peer("sdpa_branch", lambda: judge.agreeing(sdpa.per_branch(tree, heads, q, grown[0], setting)))
    case.add_peer("sdpa_merge", lambda: judge.agreeing(sdpa.merged(tree, heads, q, grown[0], setting)))
    if device == "cpu":
        case.add_peer("vllm_cpu", lambda: vllm.attend(tree, heads, setting))
        return case
    on_gpu = {
        "flex": flex.attend,
        "flashinfer_cascade": flashinfer.cascade,
        "flashinfer_branch": flashinfer.per_branch,
        "fa3_branch": flash_attention.per_branch,
    }
    for name, peer in on_gpu.items():
        case.add_peer(name, partial(_agreeing, judge, peer, tree, heads, q, grown[0], setting))
    return case


def _work(tree: Tree, heads: Heads, levels: tuple[Level, ...], itemsize: int, has_queries: bool = True) -> Work:
    """2*G*D*s bytes a unique token, q and out once; 4*H*D FLOPs and H exponentials a pair of query and visible token."""
    tokens, pairs = sum(x.nodes * x.tokens for x in levels), sum(tree.pairs(x) for x in levels)
    elements = 2 * heads.G * heads.D * tokens + has_queries * 2 * tree.queries * heads.H * heads.D
    return Work(bytes=itemsize * elements, flops=4 * heads.H * heads.D * pairs, exps=heads.H * pairs)


def _agreeing(judge: Judge, peer, *arguments) -> Variant:
    return judge.agreeing(peer(*arguments))


class Judge:
    """Some rows, the first and the last among them, by plain attention over their gathered tokens."""

    def __init__(self, tree: Tree, q: torch.Tensor, grown: Grown, scale: float):
        self.allowed = 0.0
        self._exact: list[tuple[slice, torch.Tensor]] = []
        rows = np.linspace(0, tree.rows - 1, min(tree.rows, CHECKED_ROWS)).round().astype(int).tolist()
        for row in sorted(set(rows)):
            queries = slice(row * tree.new, (row + 1) * tree.new)
            inputs = [x.cpu() for x in (q[queries], *grown.gather(tree, row))]  # where float32 is float32
            exact = _plain(*inputs, scale, exact_dtype(q.dtype))
            self._exact.append((queries, exact))
            self.allowed = max(self.allowed, allowance(exact, _plain(*inputs, scale, q.dtype)))

    def error(self, out: torch.Tensor) -> float:
        """The largest error of those rows; infinite if there is a NaN in any row."""
        worst = max(error(out[queries].cpu(), exact) for queries, exact in self._exact)
        return float("inf") if out.isnan().any() else worst

    def agreeing(self, peer: Variant) -> Variant:
        """The peer, if it computes the same thing; it may be less precise."""
        if peer.plan is not None:
            peer.plan()
        wrong = self.error(peer.run())
        if wrong > 8 * self.allowed:
            raise PeerError(f"wrong by {wrong}: the peer is not called as it wants to be")
        return peer


def _plain(q, key, value, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """Attention of one row's queries q T[n,H,D], the last of which sees every token."""
    n, tokens = q.shape[0], key.shape[1]
    mask = torch.ones(n, tokens, dtype=torch.bool, device=q.device).tril(tokens - n)
    q, key, value = (x.to(dtype)[None] for x in (q.transpose(0, 1), key, value))
    return F.scaled_dot_product_attention(q, key, value, attn_mask=mask, scale=scale, enable_gqa=True)[0].transpose(0, 1)
