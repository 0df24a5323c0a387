"""Checkpoints with random weights in real shapes: fair for speed, and for nothing else."""

from __future__ import annotations

import copy
from pathlib import Path

SHAPES = {
    "qwen2.5-0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "zoo-s": {
        "hidden_size": 48,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "vocab_size": 27,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,  # of 32: vLLM has no smaller ones on the CPU
        "num_key_value_heads": 1,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}
LLAMAS = ("llama-3.2-1b", "llama-3.1-8b", "zoo-s")
"""The others are of the Qwen2 architecture."""
SEPARATOR = "\n"
"""Between the verifier's steps."""


def make(shape: str, folder: Path, has_weights: bool = True) -> tuple[Path, Path]:
    """(policy, verifier) folders of `shape` in bfloat16 below `folder`; made where they are not there yet.

    Without weights they have what weights are made from on the device (`peers/loading.py`), and the verifier's head.
    """
    import torch
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForTokenClassification,
        Qwen2Config,
        Qwen2ForCausalLM,
        Qwen2ForTokenClassification,
    )

    is_llama = shape in LLAMAS
    config = (LlamaConfig if is_llama else Qwen2Config)(
        **SHAPES[shape], max_position_embeddings=32768, bos_token_id=None, eos_token_id=None, num_labels=2
    )
    kinds = {
        "policy": LlamaForCausalLM if is_llama else Qwen2ForCausalLM,
        "prm": LlamaForTokenClassification if is_llama else Qwen2ForTokenClassification,
    }
    places = []
    for seed, (name, kind) in enumerate(kinds.items()):
        place = folder / f"{shape}-{name}{'' if has_weights else '-random'}"
        torch.manual_seed(seed)
        if not has_weights:
            _save_without_weights(config, kind, place)
        elif not (place / "model.safetensors").exists():
            model = kind(config).to(torch.bfloat16)
            model.save_pretrained(place)
            _tokenizer(SHAPES[shape]["vocab_size"]).save_pretrained(place)
        places.append(place)
    return places[0], places[1]


def _save_without_weights(config, kind, place: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from benchmarks.peers.loading import IS_RANDOM

    config = copy.deepcopy(config)
    config.architectures, config.dtype = [kind.__name__], "bfloat16"
    setattr(config, IS_RANDOM, True)
    config.save_pretrained(place)
    _tokenizer(config.vocab_size).save_pretrained(place)
    if place.name.endswith("prm-random"):
        weight = 0.02 * torch.randn(config.num_labels, config.hidden_size)
        save_file(
            {"score.weight": weight.bfloat16(), "score.bias": torch.zeros(config.num_labels).bfloat16()},
            place / "model.safetensors",
        )


def _tokenizer(vocab_size: int):
    """Every id is the text " t<id>", so text and ids turn into each other exactly; the last id is the separator."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {text_of(i): i for i in range(vocab_size - 1)} | {SEPARATOR: vocab_size - 1}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=text_of(0)))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r" t\d+|\n"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=made)


def text_of(token: int) -> str:
    return f" t{token}"
