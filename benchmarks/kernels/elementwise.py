"""rms_norm, silu_and_mul and rope: the rows between the products of a decoder layer, as they come out of the caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F

import tts_kernels
from benchmarks.kernels.cases import Case, Setting, Spec, Variant, allowance, error, exact_dtype, family, nbytes, random
from benchmarks.kernels.floors import Work
from tts_kernels.op import Op

EPS = 1e-6


@family
def rms_norm() -> Iterator[Spec]:
    for M, E in ((1, 896), (16, 896), (64, 896), (64 * 14, 64), (64, 4096)):
        yield Spec("rms_norm", f"{M} rows x {E}", (M, E) == (64, 896), partial(_norm_case, M, E), ("cpu",))


@family
def silu_and_mul() -> Iterator[Spec]:
    for M, width in ((1, 4864), (16, 4864), (64, 4864), (64, 14336)):
        yield Spec("silu_and_mul", f"{M} rows x {width}", (M, width) == (64, 4864), partial(_activation_case, M, width), ("cpu",))


@family
def rope() -> Iterator[Spec]:
    for M, H, D in ((1, 16, 64), (16, 16, 64), (64, 16, 64), (64, 40, 128)):
        yield Spec("rope", f"{M} rows x {H} heads x {D}", (M, H) == (64, 16), partial(_rope_case, M, H, D), ("cpu",))


def _norm_case(M: int, E: int, setting: Setting) -> Case:
    x, weight = random((M, E), setting.torch_dtype), random((E,), setting.torch_dtype, 1)
    case = _case(setting, tts_kernels.rms_norm, (x, weight, EPS), lambda dtype: _rms_norm(x, weight, dtype), 2 * nbytes(x))
    case.add_peer("torch", lambda: Variant(lambda: _rms_norm(x, weight, torch.float32)))
    case.add_peer("torch_one_op", lambda: Variant(lambda: F.rms_norm(x, (E,), weight, EPS)))
    return case


def _activation_case(M: int, width: int, setting: Setting) -> Case:
    x = random((M, 2 * width), setting.torch_dtype)
    gate, up = (part.contiguous() for part in x.chunk(2, -1))
    case = _case(setting, tts_kernels.silu_and_mul, (x,), lambda dtype: F.silu(gate.to(dtype)) * up.to(dtype), 3 * nbytes(gate))
    case.add_peer("torch", lambda: Variant(lambda: F.silu(gate) * up))
    return case


def _rope_case(M: int, H: int, D: int, setting: Setting) -> Case:
    """The last quarter of the heads is the values', which are not rotated: the rows have gaps."""
    dtype = setting.torch_dtype
    x, angles = random((M, H * 4 // 3, D), dtype)[:, :H], random((M, D // 2), torch.float32, 1).repeat(1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def check():
        exact, turned = _rope(x, cos, sin, exact_dtype(dtype)), x.clone()
        tts_kernels.rope(turned, cos, sin)
        return error(turned, exact), allowance(exact, _rope(x, cos, sin, dtype))

    case = Case(
        dtype=setting.dtype,
        work=Work(bytes=2 * (nbytes(cos) * H + nbytes(cos)), rate="cache_read"),
        cold="nothing: the rows were written just before",
        check=check,
        ours=Variant(lambda: tts_kernels.rope(x, cos, sin)),
        backend=tts_kernels.rope.choose("cpu", dtype).name,
    )
    case.add_peer("torch", lambda: Variant(lambda: _rope(x, cos, sin, dtype)))
    return case


def _case(setting: Setting, op: Op, inputs: tuple, plain: Callable[[torch.dtype], torch.Tensor], size: int) -> Case:
    """`plain` is torch's own composition with the arithmetic in a dtype."""
    dtype = setting.torch_dtype
    result = op(*inputs)

    def check():
        exact = plain(exact_dtype(dtype))
        return error(op(*inputs), exact), allowance(exact, plain(dtype).to(dtype))

    return Case(
        dtype=setting.dtype,
        work=Work(bytes=size, rate="cache_read"),
        cold="nothing: the rows were written just before",
        check=check,
        ours=Variant(lambda: op(*inputs, out=result)),
        backend=op.choose("cpu", dtype).name,
    )


def _rms_norm(x: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As transformers writes it, but for the dtype of the arithmetic."""
    wide = x.to(dtype)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * wide.to(x.dtype)


def _rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As transformers writes it, but for the dtype of the arithmetic."""
    x, cos, sin = x.to(dtype), cos[:, None].to(dtype), sin[:, None].to(dtype)
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin
