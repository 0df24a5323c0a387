"""linear: the projections of Qwen2.5-0.5B and its head, for batches of 1 to 64 rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

import tts_kernels
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
    nbytes,
    random,
    rotate,
)
from benchmarks.kernels.floors import Work
from tts_kernels import memory

SHAPES = {
    "qkv": (896, 1152, True),
    "o": (896, 896, False),
    "gate_up": (896, 9728, False),
    "down": (4864, 896, False),
    "lm_head": (896, 151936, False),
}
"""name -> K, N, whether there is a bias."""
ROWS = (1, 4, 16, 64)
QUICK = {("qkv", 4), ("gate_up", 1), ("gate_up", 64), ("down", 16)}


@family
def linear() -> Iterator[Spec]:
    for name, (K, N, has_bias) in SHAPES.items():
        for M in ROWS:
            yield Spec("linear", f"{name} {K}->{N} M={M}", (name, M) in QUICK, partial(_case, M, N, K, has_bias), ("cpu",))


def _case(M: int, N: int, K: int, has_bias: bool, setting: Setting) -> Case:
    dtype = setting.torch_dtype
    x, weight = random((M, K), dtype), random((N, K), dtype, 1)
    bias = random((N,), dtype, 2) if has_bias else None
    count = copies(nbytes(weight), setting)
    packed = [_pack(weight) for _ in range(count)]

    def check():
        exact = x.to(exact_dtype(dtype)) @ weight.to(exact_dtype(dtype)).T
        exact = exact if bias is None else exact + bias
        return error(tts_kernels.linear(x, N, packed[0], bias), exact), allowance(exact, F.linear(x, weight, bias))

    output = torch.empty(M, N, dtype=dtype)
    next_packed = rotate(packed)
    case = Case(
        dtype=setting.dtype,
        work=Work(bytes=nbytes(weight, x, output), flops=2.0 * M * N * K),
        cold=f"weight: {count} copies in turn, {count * nbytes(weight) >> 20} MiB",
        check=check,
        ours=Variant(lambda: tts_kernels.linear(x, N, next_packed(), bias, out=output)),
        backend=tts_kernels.linear.choose("cpu", dtype).name,
    )
    case.add_peer("torch", lambda: _torch(x, weight, bias, count))
    case.add_peer("onednn_packed", lambda: _onednn_packed(x, weight, bias, count))
    return case


def _pack(weight: torch.Tensor) -> torch.Tensor:
    """On huge pages, as the engine packs."""
    N, K = weight.shape
    return tts_kernels.pack(weight, out=memory.empty((-(-N // 16), -(-K // 32), 16, 16, 2), weight.dtype))


def _torch(x, weight, bias, count: int) -> Variant:
    next_weight = rotate(weight.clone() for _ in range(count))
    return Variant(lambda: F.linear(x, next_weight(), bias))


def _onednn_packed(x, weight, bias, count: int) -> Variant:
    """oneDNN with the weight in the order it likes best for so many rows, as `torch.compile` with frozen weights calls it."""
    try:
        reorder, product = torch.ops.mkldnn._reorder_linear_weight, torch.ops.mkldnn._linear_pointwise
        next_packed = rotate(reorder(weight, x.shape[0]) for _ in range(count))
        product(x, next_packed(), bias, "none", [], "")
    except (RuntimeError, AttributeError, NotImplementedError) as reason:
        raise PeerError(f"this torch has no packed oneDNN product: {str(reason).splitlines()[0]}") from None
    return Variant(lambda: product(x, next_packed(), bias, "none", [], ""))
