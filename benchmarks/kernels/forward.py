"""forward: a whole transformers model without its attention, the head included: a decode step apart from attention."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache, partial

import torch
from transformers import AttentionInterface, Qwen2Config, Qwen2ForCausalLM

from benchmarks.kernels.cases import Case, Setting, Spec, Variant, allowance, error, family, nbytes
from benchmarks.kernels.floors import Work
from tts.engine.model import RaggedBatch, kv_sizes
from tts.engine.swap import swap_parts
from tts_kernels.pages import PagedKV, Plan

ROWS = (1, 4, 16, 64)
WITHOUT_ATTENTION = "without_attention"
AttentionInterface.register(WITHOUT_ATTENTION, lambda module, query, *_, **__: (torch.zeros_like(query.transpose(1, 2)), None))


@family
def forward() -> Iterator[Spec]:
    for M in ROWS:
        yield Spec("forward", f"Qwen2.5-0.5B shape, no attention, M={M}", False, partial(_case, M), ("cpu",))


def _case(M: int, setting: Setting) -> Case:
    stock, ours = _models(setting.torch_dtype)
    tokens = torch.arange(M)[None] * 7 % stock.config.vocab_size
    weights, ragged = nbytes(*stock.parameters()), _without_context(stock.config, tokens[0], setting.torch_dtype)

    def check():
        exact = copy.deepcopy(stock).float()
        expected = _run(exact, tokens)
        return error(_run(ours, tokens, ragged=ragged), expected), allowance(expected, _run(stock, tokens))

    case = Case(
        dtype=setting.dtype,
        work=Work(bytes=weights, flops=2.0 * M * sum(p.numel() for p in stock.parameters())),
        cold=f"all weights, {weights >> 20} MiB in turn",
        check=check,
        ours=Variant(lambda: _run(ours, tokens, ragged=ragged)),
        backend="native",
    )
    case.add_peer("torch", lambda: Variant(lambda: _run(stock, tokens)))
    return case


def _without_context(config, tokens: torch.Tensor, dtype: torch.dtype) -> RaggedBatch:
    """A batch whose tokens see none and are not kept: attention gives zeros, as that of the stock model does."""
    none = torch.zeros(0, 3, dtype=torch.int32)
    plan = Plan(items=none, item_indptr=torch.zeros(1, dtype=torch.int32), spans=none)
    slots = torch.full_like(tokens, -1)
    return RaggedBatch(tokens, torch.arange(len(tokens)), slots, plan, PagedKV(1, 16, *kv_sizes(config), dtype=dtype))


@torch.inference_mode()
def _run(model, tokens: torch.Tensor, **batch) -> torch.Tensor:
    mask = tokens.new_empty(1, 1, 1, 1)  # four dims: passed on untouched
    return model(input_ids=tokens, attention_mask=mask, use_cache=False, **batch).logits[0]


@cache
def _models(dtype: torch.dtype):
    """The same random weights twice: as transformers runs them, and with our parts."""
    sizes = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936}
    heads = {"num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True}
    torch.manual_seed(0)
    stock = Qwen2ForCausalLM(Qwen2Config(**sizes, **heads, attn_implementation=WITHOUT_ATTENTION)).to(dtype).eval()
    ours = copy.deepcopy(stock)
    swap_parts(ours)
    return stock, ours
