"""The layers of a transformers model as one op on paged KV."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import nn

import tts_kernels
from tts.engine.parts import Attention, GatedMLP, RMSNorm
from tts_kernels import memory

WEIGHTS = (
    "input_layernorm.weight",
    "self_attn.qkv.weight",
    "self_attn.qkv.bias",
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
    "self_attn.o_proj.weight",
    "self_attn.o_proj.bias",
    "post_attention_layernorm.weight",
    "mlp.gate_up.weight",
    "mlp.gate_up.bias",
    "mlp.down.weight",
    "mlp.down.bias",
)
"""Of a layer, in the order of the `decoder` op; what a model does not have is None."""


class Decoder(nn.Module):
    """All layers of a model, their norms, attentions and MLPs ours and alike.

    With a ragged batch they are one op: between two ops the host would run on cold caches, because the weights went through
    them. Without one they run as they are.
    """

    def __init__(self, layers: Sequence[Any], backend: str | None):
        super().__init__()
        self.layers, self.backend = nn.ModuleList(layers), backend
        attention, mlp = layers[0].self_attn, layers[0].mlp
        self.settings = attention.scaling, layers[0].input_layernorm.eps, attention.num_heads[0], mlp.down.in_features
        self.weights = [_joined(layers, name) for name in WEIGHTS]

    def forward(self, hidden_states: torch.Tensor, *args: Any, ragged: Any = None, **more: Any) -> torch.Tensor:
        """[1,T,E] -> [1,T,E] of a ragged batch, which says where keys and values go and who sees what; else [B,T,E]."""
        if ragged is None:
            for layer in self.layers:
                hidden_states = layer(hidden_states, *args, **more)
            return hidden_states
        cos, sin = more["position_embeddings"]
        kv, plan = ragged.kv, ragged.plan
        pages = kv.keys, kv.values, ragged.slots, plan.spans, plan.item_indptr, plan.items
        inputs = hidden_states[0], cos[0], sin[0], *pages, *self.settings, *self.weights
        return tts_kernels.decoder(*inputs, backend=self.backend)[None]


def are_joinable(layers: Sequence[Any]) -> bool:
    """Layers that compute Llama's layer are made of our parts, all of one form."""
    return all(_has_our_parts(layer) for layer in layers) and len({_form(layer) for layer in layers}) == 1


def _has_our_parts(layer: Any) -> bool:
    attention = layer.self_attn
    if type(attention) is not Attention or type(layer.mlp) is not GatedMLP:
        return False
    norms = [layer.input_layernorm, layer.post_attention_layernorm, attention.q_norm, attention.k_norm]
    return all(type(x) is RMSNorm for x in norms if x is not None) and len({x.eps for x in norms if x is not None}) == 1


def _form(layer: Any) -> tuple:
    attention = layer.self_attn
    shapes = tuple(None if (weight := _weight(layer, name)) is None else weight.shape for name in WEIGHTS)
    return attention.scaling, layer.input_layernorm.eps, *attention.num_heads, layer.mlp.down.in_features, shapes


def _weight(layer: Any, name: str) -> torch.Tensor | None:
    part, _, tensor = name.rpartition(".")
    module = attrgetter(part)(layer)
    return None if module is None else getattr(module, tensor)


def _set_weight(layer: Any, name: str, weight: torch.Tensor) -> None:
    """Give a part another tensor. Its `data` would not do: a view keeps the memory that it was made of."""
    part, _, tensor = name.rpartition(".")
    module = attrgetter(part)(layer)
    is_parameter = isinstance(getattr(module, tensor), nn.Parameter)
    setattr(module, tensor, nn.Parameter(weight, requires_grad=False) if is_parameter else weight)


def _joined(layers: Sequence[Any], name: str) -> torch.Tensor | None:
    """T[L,...]: a weight of all layers in one piece of memory, of which each layer holds its part from now on."""
    first = _weight(layers[0], name)
    if first is None:
        return None
    joined = memory.empty((len(layers), *first.shape), first.dtype)
    for layer, part in zip(layers, joined):
        weight: Any = _weight(layer, name)
        _set_weight(layer, name, part.copy_(weight.detach()))
    return joined
