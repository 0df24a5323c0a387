"""Which parts of a transformers model are replaced, and that what replaces them computes the same."""

import copy
import functools

import pytest
import torch
from tiny_models import CONFIGS
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.glm import GlmConfig
from transformers.models.glm.modeling_glm import GlmAttention
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from tts.engine.decoder import Decoder
from tts.engine.parts import Activation, Attention, GatedMLP, Linear, RMSNorm
from tts.engine.swap import swap_parts

SIZES = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}


class Holder(nn.Module):
    """The least that `swap_parts` takes for a model: one part, and no language-model head."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part

    @property
    def base_model(self):
        return self

    def get_output_embeddings(self):
        return None


def swapped(part: nn.Module) -> nn.Module:
    holder = Holder(copy.deepcopy(part))
    swap_parts(holder)
    return holder.part


def mlp(**changes) -> LlamaMLP:
    torch.manual_seed(0)
    return LlamaMLP(LlamaConfig(**SIZES | changes))


def tiny_model(architecture: str, **changes):
    torch.manual_seed(0)
    config = CONFIGS[architecture](**SIZES | {"num_key_value_heads": 2, "head_dim": 16} | changes)
    return AutoModelForCausalLM.from_config(config).eval()


def attention(**changes) -> LlamaAttention:
    torch.manual_seed(0)
    return LlamaAttention(LlamaConfig(**SIZES | changes), 0)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_parts_of_every_tested_architecture_are_replaced(architecture):
    model = tiny_model(architecture)
    norms = sum("RMSNorm" in type(x).__name__ for x in model.modules())
    swap_parts(model)
    kinds = [type(x) for x in model.modules()]
    assert kinds.count(RMSNorm) == norms == (9 if architecture == "qwen3" else 5)
    assert kinds.count(GatedMLP) == kinds.count(Attention) == 2 and nn.Linear not in kinds and Activation not in kinds
    assert len(model.base_model.layers) == 1 and type(model.base_model.layers[0]) is Decoder


def test_layers_of_which_one_computes_something_else_stay_as_they_are():
    for change in (
        lambda layer: setattr(layer, "input_layernorm", nn.LayerNorm(48)),
        lambda layer: setattr(layer.post_attention_layernorm, "variance_epsilon", 0.5),
        lambda layer: setattr(layer.self_attn, "scaling", 0.3),
        lambda layer: setattr(layer.mlp, "act_fn", nn.GELU()),
        lambda layer: setattr(layer.self_attn, "layer_idx", 0),
    ):
        model = tiny_model("llama")
        change(model.base_model.layers[1])
        swap_parts(model)
        assert len(model.base_model.layers) == 2


def test_joined_layers_hold_their_weights_once():
    model = tiny_model("qwen3", intermediate_size=6000)  # its products lie on huge pages
    swap_parts(model)
    decoder = model.base_model.layers[0]
    for i, layer in enumerate(decoder.layers):
        assert layer.mlp.down.weight.data_ptr() == decoder.weights[-2][i].data_ptr()
        assert layer.self_attn.q_norm.weight.data_ptr() == decoder.weights[3][i].data_ptr()
        for part in (layer.mlp.down, layer.mlp.gate_up):
            assert part.weight._base.untyped_storage().data_ptr() == part.weight.untyped_storage().data_ptr()


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_model_computes_the_same_with_its_parts_replaced(architecture, dtype):
    stock = tiny_model(architecture).to(dtype)
    ours, tokens = copy.deepcopy(stock), torch.arange(22).view(2, 11) * 7 % 64
    swap_parts(ours)
    expected = stock.base_model(tokens, use_cache=False).last_hidden_state
    atol = 1e-5 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(ours.base_model(tokens, use_cache=False).last_hidden_state, expected, atol=atol, rtol=0)
    cache = DynamicCache(config=stock.config)
    steps = [ours.base_model(x, past_key_values=cache).last_hidden_state for x in tokens.split((6, 1, 4), 1)]
    torch.testing.assert_close(torch.cat(steps, 1), expected, atol=atol, rtol=0)


def wrapped(function):
    """As transformers wraps a forward of which an argument was renamed."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


class WrappedMLP(LlamaMLP):
    forward = wrapped(LlamaMLP.forward)


class WrappedOtherMLP(LlamaMLP):
    @wrapped
    def forward(self, x):
        return self.down_proj(self.gate_proj(x) * self.up_proj(x))


@pytest.mark.parametrize("part, is_replaced", [(WrappedMLP, True), (WrappedOtherMLP, False)])
def test_a_wrapped_forward_is_known_by_what_it_wraps(part, is_replaced):
    assert (type(swapped(part(LlamaConfig(**SIZES)))) is GatedMLP) == is_replaced


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_norm_computes_what_it_replaces_over_any_leading_dims(dtype):
    norm, x = LlamaRMSNorm(48, eps=1e-5), torch.randn(1, 3, 5, 48, generator=torch.Generator().manual_seed(0)).to(dtype)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(1))
    ours = swapped(norm.to(dtype))
    assert type(ours) is RMSNorm and ours(x).shape == x.shape
    torch.testing.assert_close(ours(x), norm(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_gated_mlp_computes_what_it_replaces(dtype, has_bias):
    stock, x = mlp(mlp_bias=has_bias).to(dtype), torch.randn(1, 7, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours = swapped(stock)
    assert type(ours) is GatedMLP and ours(x).shape == x.shape
    torch.testing.assert_close(ours(x), stock(x), atol=1e-2 if dtype is not torch.float32 else 1e-6, rtol=1e-2)


@pytest.mark.parametrize("bias", [(), ("q",), ("q", "k"), ("q", "k", "v")], ids="".join)
def test_an_attention_whose_projections_have_one_form_is_replaced(bias):
    stock = attention()
    for name in bias:
        getattr(stock, f"{name}_proj").bias = nn.Parameter(torch.randn(48))
    assert (type(swapped(stock)) is Attention) == (len(bias) in (0, 3))


def test_an_attention_with_a_projection_that_is_not_ordinary_keeps_its_form():
    stock = attention()
    stock.v_proj = nn.Sequential(stock.v_proj)
    ours = swapped(stock)
    assert type(ours) is LlamaAttention and type(ours.q_proj) is type(ours.v_proj[0]) is Linear


def test_an_attention_of_the_same_code_with_another_rope_keeps_its_form():
    ours = swapped(GlmAttention(GlmConfig(**SIZES, head_dim=12, num_key_value_heads=4, pad_token_id=0), 0))
    assert type(ours) is GlmAttention and type(ours.q_proj) is Linear


@pytest.mark.parametrize("part", [GemmaRMSNorm(8), Olmo2RMSNorm(8), nn.LayerNorm(8)], ids=lambda x: type(x).__name__)
def test_a_norm_that_computes_something_else_is_left_alone(part):
    assert type(swapped(part)) is type(part)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_an_mlp_with_another_activation_keeps_its_form(activation):
    ours = swapped(mlp(hidden_act=activation))
    assert type(ours) is LlamaMLP and type(ours.act_fn) is Activation and type(ours.gate_proj) is Linear


def test_an_mlp_with_a_bias_on_one_of_gate_and_up_keeps_its_form():
    stock = mlp()
    stock.up_proj.bias = nn.Parameter(torch.zeros(80))
    assert type(swapped(stock)) is LlamaMLP
