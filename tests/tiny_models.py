"""Tiny random models of real architectures, as ordinary folders: what the loading code reads is what users have."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

CONFIGS = {"llama": LlamaConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config, "mistral": MistralConfig}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SPECIAL = ["<|start|>", "<|end|>", "<|pad|>"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, one token a byte but for a few merges, so that stop strings straddle tokens and tokens straddle stops."""
    vocab = {char: i for i, char in enumerate(bytes_to_unicode().values())}
    merges = [("\u010a", "\u010a"), ("a", "\u010a"), ("e", "\u0120"), ("t", "h")]
    for pair in merges:
        vocab["".join(pair)] = len(vocab)
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>", additional_special_tokens=["<|start|>"]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_folder(
    folder: Path, architecture: str = "llama", group: int = 2, kind: str = "causal-lm", seed: int = 0, **changes: object
) -> str:
    """Write a model of 2 layers, head dim 8 and `group` query heads for each of 2 KV heads; gives the folder's path."""
    tokenizer = make_tokenizer()
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16 * group,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2 * group,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "pad_token_id": tokenizer.pad_token_id,
        "sliding_window": None,
    } | changes
    if architecture in ("llama", "qwen2", "qwen3"):
        settings.setdefault("sliding_window", None)
    if kind == "token-classification":
        settings["num_labels"] = 2
    torch.manual_seed(seed)
    config = CONFIGS[architecture](**settings)
    auto = AutoModelForCausalLM if kind == "causal-lm" else AutoModelForTokenClassification
    model = auto.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():  # the library's initialization is so small that all logits nearly tie
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
