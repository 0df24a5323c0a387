"""The parts of a transformers model that run on our kernels, so that a row's bits do not depend on the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import tts_kernels
from tts_kernels import memory


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


class Attention(nn.Module):
    """Queries, keys and values as one product, RoPE in place on it, the registered attention on views of it, and the output."""

    def __init__(self, inner: Any, head_norms: tuple[Any, Any], backend: str | None):
        super().__init__()
        projections = inner.q_proj, inner.k_proj, inner.v_proj
        bias = None if inner.q_proj.bias is None else torch.cat([x.bias for x in projections]).detach()
        self.qkv = Linear(torch.cat([x.weight for x in projections]), bias, backend)
        self.o_proj = Linear(inner.o_proj.weight, inner.o_proj.bias, backend)
        self.q_norm, self.k_norm = (None if x is None else RMSNorm(x, backend) for x in head_norms)
        self.num_heads = [x.out_features // inner.head_dim for x in projections]
        self.backend = backend
        # What attention functions read.
        self.config, self.layer_idx, self.head_dim, self.scaling = inner.config, inner.layer_idx, inner.head_dim, inner.scaling
        self.num_key_value_groups, self.is_causal = inner.num_key_value_groups, inner.is_causal

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        cache: Any = None,
        past_key_values: Any = None,
        **more: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[B,T,E] and the cosines and sines of the positions, [B,T,D] or [1,T,D] -> [B,T,E], and the weights or None.

        `past_key_values` is what transformers called `cache` before version 5.24.
        """
        shape = hidden_states.shape[:-1]
        q, k, v = (x.transpose(1, 2) for x in self._rotated(self.qkv(hidden_states), *position_embeddings))
        if (cache := past_key_values if cache is None else cache) is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        out, weights = attend(self, q, k, v, attention_mask, scaling=self.scaling, **more)
        return self.o_proj(out.reshape(*shape, -1)), weights

    def _rotated(self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> list[torch.Tensor]:
        """The heads of queries, keys and values, [B,T,H,D] and [B,T,G,D], in the memory of their product where it has no norm."""
        B, T, _ = qkv.shape
        cos, sin = (x.expand(B, T, -1).flatten(0, 1) for x in (cos, sin))
        heads = qkv.view(B, T, -1, self.head_dim)
        q, k, v = heads.split(self.num_heads, 2)
        rotated = [heads[:, :, : -self.num_heads[2]]]
        if self.q_norm is not None and self.k_norm is not None:
            rotated = q, k = [self.q_norm(q), self.k_norm(k)]
        for x in rotated:
            tts_kernels.rope(x.view(B * T, -1, self.head_dim), cos, sin, backend=self.backend)
        return [q, k, v]


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
