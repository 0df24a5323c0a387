"""rms_norm, silu_and_mul and rope round where transformers rounds: what is multiplied or added is rounded before."""

import pytest
import torch
from cases import BF16, F16, F32, normal
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

import tts_kernels


def share_of_equal_bits(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one.view(torch.int16) == other.view(torch.int16)).double().mean().item()


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("backend", tts_kernels.rms_norm.backends)
def test_rms_norm_gives_the_bits_of_llama(dtype, backend):
    """But for one in a thousand, where the sum of squares in another order moves a value across the middle of two neighbours."""
    x, norm = 2 * normal((64, 500), dtype), LlamaRMSNorm(500, 1e-5).to(dtype)
    norm.weight.data = normal(500, dtype, 1)
    ours = tts_kernels.rms_norm(x, norm.weight.data, 1e-5, backend=backend)
    assert share_of_equal_bits(ours, norm(x).detach()) > 0.999
    rounded_once = (norm.weight.double() * x.double() * (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()).to(dtype)
    assert share_of_equal_bits(ours, rounded_once.detach()) < 0.9


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("backend", tts_kernels.silu_and_mul.backends)
def test_silu_and_mul_gives_the_bits_of_torch(dtype, backend):
    x = 3 * normal((64, 1000), dtype)
    ours = tts_kernels.silu_and_mul(x, backend=backend)
    assert share_of_equal_bits(ours, torch.nn.functional.silu(x[:, :500]) * x[:, 500:]) > 0.999
    gate, up = x.double().chunk(2, -1)
    assert share_of_equal_bits(ours, (gate * gate.sigmoid() * up).to(dtype)) < 0.9


@pytest.mark.parametrize("backend", tts_kernels.silu_and_mul.backends)
def test_silu_of_any_float32_is_within_four_roundings(backend):
    gate = torch.linspace(-87, 100, 100_001)
    ours = tts_kernels.silu_and_mul(torch.stack([gate, torch.ones_like(gate)], 1), backend=backend)[:, 0]
    exact = gate.double() * torch.sigmoid(gate.double())
    assert ((ours.double() - exact).abs() <= 2 * torch.finfo(torch.float32).eps * exact.abs()).all()


@pytest.mark.parametrize("dtype", [F32, BF16, F16])
@pytest.mark.parametrize("backend", tts_kernels.rope.backends)
def test_rope_gives_the_bits_of_llama_to_the_heads_of_a_product(dtype, backend):
    qkv, cos, sin = (normal(shape, dtype, i) for i, shape in enumerate(((50, 9, 40), (50, 40), (50, 40))))
    stock, kept = (
        apply_rotary_pos_emb(*(x[None].transpose(1, 2) for x in qkv[:, :7].split((5, 2), 1)), cos[None], sin[None]),
        qkv[:, 7:].clone(),
    )
    tts_kernels.rope(qkv[:, :7], cos, sin, backend=backend)
    assert torch.equal(qkv[:, :7], torch.cat(stock, 1)[0].transpose(0, 1)) and torch.equal(qkv[:, 7:], kept)
