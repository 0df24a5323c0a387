"""The parts of a transformers model that run on our kernels, so that a row's bits do not depend on the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

import tts_kernels
from tts_kernels import memory

SILU = nn.SiLU, type(ACT2FN["silu"])


class Linear(nn.Module):
    """A projection through the `linear` op. The weight is kept packed only."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, backend: str | None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        packed = memory.empty((-(-self.out_features // 16), -(-self.in_features // 32), 16, 16, 2), weight.dtype)
        self.register_buffer("weight", tts_kernels.pack(weight.detach(), out=packed, backend=backend), persistent=False)
        self.bias, self.backend = bias, backend

    def forward(self, x: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        out = tts_kernels.linear(rows, self.out_features, self.weight, self.bias, out=out, backend=self.backend)
        return out.view(*x.shape[:-1], -1)


class RMSNorm(nn.Module):
    """A norm through the `rms_norm` op, over the last dim: the hidden size, or the head dim of queries and keys."""

    def __init__(self, inner: Any, backend: str | None):
        super().__init__()
        self.weight, self.eps, self.backend = inner.weight, float(inner.variance_epsilon), backend

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        return tts_kernels.rms_norm(rows, self.weight, self.eps, backend=self.backend).view(x.shape)


class GatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))` with gate and up as one product: the rows of x are read once, and one op is saved."""

    def __init__(self, inner: Any, backend: str | None):
        super().__init__()
        gate, up = inner.gate_proj, inner.up_proj
        bias = None if gate.bias is None else torch.cat([gate.bias, up.bias]).detach()
        self.gate_up = Linear(torch.cat([gate.weight, up.weight]), bias, backend)
        self.down = Linear(inner.down_proj.weight, inner.down_proj.bias, backend)
        self.backend = backend

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate_up = self.gate_up(x.reshape(-1, x.shape[-1]))
        return self.down(tts_kernels.silu_and_mul(gate_up, backend=self.backend)).view(*x.shape[:-1], -1)


class Buffer:
    """Memory for results as large as logits, given out again at every call: fresh pages would cost more than the work."""

    def __init__(self, dtype: torch.dtype):
        self._memory = torch.empty(0, dtype=dtype)

    def take(self, rows: int, columns: int) -> torch.Tensor:
        if self._memory.numel() < rows * columns:
            self._memory = memory.empty((rows * columns,), self._memory.dtype)
        return self._memory[: rows * columns].view(rows, columns)


class Activation(nn.Module):
    """An activation whose bits do not depend on the batch.

    torch's elementwise loops take whole vectors one way and the rest of each thread's share another, with other last bits.
    Here every share is whole vectors: flat input, padded if it must be.
    """

    GRAIN = 32768  # elements below which torch does not add a thread (at::internal::GRAIN_SIZE)
    VECTORS = 64  # elements: two 512-bit vectors of the narrowest dtype, one turn of the loop

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shares = min(torch.get_num_threads(), -(-x.numel() // self.GRAIN))
        excess = x.numel() % (self.VECTORS * max(shares, 1))
        if not excess:
            return self.inner(x)
        padded = nn.functional.pad(x.reshape(-1), (0, self.VECTORS * max(shares, 1) - excess))
        return self.inner(padded)[: x.numel()].view(x.shape)


def swap_parts(inner: Any, backend: str | None = None) -> None:
    """Give a transformers model on the CPU our projections, norms, gated MLPs and activations.

    A part that computes anything else stays as it is. So do heads other than the language-model head: the `score` op reads them.
    """
    _swap_below(inner.base_model, backend)
    head = inner.get_output_embeddings()
    if type(head) is nn.Linear:
        inner.set_output_embeddings(Linear(head.weight, head.bias, backend))


def _swap_below(module: nn.Module, backend: str | None) -> None:
    for name, child in module.named_children():
        if (part := _part(child, backend)) is not None:
            setattr(module, name, part)
        else:
            _swap_below(child, backend)


def _part(module: Any, backend: str | None) -> nn.Module | None:
    """Ours instead of `module`, None if there is none."""
    if type(module) is nn.Linear:
        return Linear(module.weight, module.bias, backend)
    if _is_rms_norm(module):
        return RMSNorm(module, backend)
    if _is_gated_mlp(module):
        return GatedMLP(module, backend)
    if type(module).__module__ in ("transformers.activations", "torch.nn.modules.activation"):
        return Activation(module)
    return None


def _is_rms_norm(module: nn.Module) -> bool:
    """It computes Llama's norm. Those of Gemma (1 + weight) and of OLMo 2 (weight before the rounding) do not."""
    return _does_the_same(type(module).forward, LlamaRMSNorm.forward)


def _is_gated_mlp(module: Any) -> bool:
    """It computes Llama's MLP, with SiLU, on ordinary projections."""
    if not _does_the_same(type(module).forward, LlamaMLP.forward):
        return False
    projections = module.gate_proj, module.up_proj, module.down_proj
    has_one_bias = (module.gate_proj.bias is None) != (module.up_proj.bias is None)
    return isinstance(module.act_fn, SILU) and not has_one_bias and all(type(x) is nn.Linear for x in projections)


def _does_the_same(forward: Callable, standard: Callable) -> bool:
    """The two functions are the same code: transformers writes the parts that models share out in each model's file."""
    codes = [getattr(x, "__code__", None) for x in (forward, standard)]
    one, other = [(c.co_code, c.co_names, c.co_consts) if c is not None else None for c in codes]
    return one is not None and one == other
