"""Which parts of a transformers model are replaced by ours: those whose code is known to compute the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    apply_rotary_pos_emb,
    rotate_half,
)
from transformers.models.mistral.modeling_mistral import MistralAttention
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

from tts.engine.decoder import Decoder, are_joinable
from tts.engine.parts import Activation, Attention, GatedMLP, Linear, RMSNorm

SILU = nn.SiLU, type(ACT2FN["silu"])
ATTENTIONS = LlamaAttention, Qwen2Attention, MistralAttention, Qwen3Attention
"""They differ in the window that they pass on, which is in the mask or refused, and in Qwen 3's norms."""


def swap_parts(inner: Any, backend: str | None = None) -> None:
    """Give a transformers model on the CPU our projections, attention, norms, gated MLPs, activations and layers.

    A part that computes anything else stays as it is. So do heads other than the language-model head: the `score` op reads them.
    """
    _swap_below(inner.base_model, backend)
    _join_layers(inner.base_model, backend)
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
    if _is_attention(module):
        return Attention(module, _head_norms(module), backend)
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


def _is_attention(module: Any) -> bool:
    """It computes Llama's attention or Qwen 3's on ordinary projections.

    GLM's, Ernie's and Helium's are the same code and mean another RoPE by the names that they call.
    """
    forward = inspect.unwrap(type(module).forward)
    if not any(_does_the_same(forward, x.forward) for x in ATTENTIONS):
        return False
    turn = forward.__globals__["apply_rotary_pos_emb"]
    if not (_does_the_same(turn, apply_rotary_pos_emb) and _does_the_same(turn.__globals__["rotate_half"], rotate_half)):
        return False
    projections = module.q_proj, module.k_proj, module.v_proj
    have_one_form = len({x.bias is None for x in projections if type(x) is nn.Linear}) == 1
    are_ordinary = all(type(x) is nn.Linear for x in (*projections, module.o_proj))
    return have_one_form and are_ordinary and all(x is None or _is_rms_norm(x) for x in _head_norms(module))


def _join_layers(trunk: Any, backend: str | None) -> None:
    """Give the model one layer, which holds all of them, if each computes Llama's and all see the same tokens."""
    layers: list[Any] = list(getattr(trunk, "layers", []))
    if not layers or not all(_is_decoder_layer(x) for x in layers):
        return
    has_one_window = len(set(getattr(trunk.config, "layer_types", None) or ["full_attention"])) == 1
    if has_one_window and [x.self_attn.layer_idx for x in layers] == list(range(len(layers))) and are_joinable(layers):
        trunk.layers = nn.ModuleList([Decoder(layers, backend)])


def _is_decoder_layer(module: Any) -> bool:
    return _does_the_same(type(module).forward, LlamaDecoderLayer.forward)


def _head_norms(attention: Any) -> tuple[Any, Any]:
    """Of queries and of keys; None where its forward calls none."""
    has_norms = _does_the_same(type(attention).forward, Qwen3Attention.forward)
    return (attention.q_norm, attention.k_norm) if has_norms else (None, None)


def _does_the_same(forward: Callable, standard: Callable) -> bool:
    """The two functions are the same code: transformers writes the parts that models share out in each model's file.

    What they are wrapped in (a renamed argument, from transformers 5.24 on) has the same code for all, and is looked through.
    """
    codes = [getattr(inspect.unwrap(x), "__code__", None) for x in (forward, standard)]
    one, other = [(c.co_code, c.co_names, c.co_consts) if c is not None else None for c in codes]
    return one is not None and one == other
