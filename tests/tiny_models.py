"""Tiny random models of real architectures, as ordinary folders: what the loading code reads is what users have."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
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


def make_sentencepiece_like_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's and Mistral's: a blank before every text, bytes for what has no token, and `▁ки`, `▁+`, `▁-`."""
    letters = [chr(i) for i in range(33, 127)] + ["▁", "к", "и"]
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{i:02X}>": 3 + i for i in range(256)}
    vocab |= {letter: len(vocab) + i for i, letter in enumerate(letters)}
    merges = [("▁", "▁"), ("к", "и"), ("▁", "ки"), ("▁", "+"), ("▁", "-"), ("t", "h"), ("▁", "th"), ("e", "▁")]
    for pair in merges:
        vocab["".join(pair)] = len(vocab)
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>", add_bos_token=True
    )


def make_folder(
    folder: Path, architecture: str = "llama", group: int = 2, seed: int = 0, tokenizer=None, **changes: object
) -> str:
    """Write a model of 2 layers, head dim 8 and `group` query heads for each of 2 KV heads; gives the folder's path."""
    tokenizer = tokenizer or make_tokenizer()
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
    torch.manual_seed(seed)
    config = CONFIGS[architecture](**settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():  # the library's initialization is so small that all logits nearly tie
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


HEADS = {
    "ForTokenClassification": {"score.weight": (2, "E"), "score.bias": (2,)},
    "ForSequenceClassification": {"score.weight": (1, "E")},
    "ForProcessRewardModel": {
        "score.0.weight": ("E", "E"),
        "score.0.bias": ("E",),
        "score.2.weight": (2, "E"),
        "score.2.bias": (2,),
    },
    "ForPrmModel": {"v_head.summary.weight": (1, "E"), "v_head.summary.bias": (1,)},
}
"""The tensors that heads have in the checkpoints of their families, by architecture; E is the hidden size."""


def make_reward_folder(folder: Path, architecture: str, head: str, **settings: object) -> str:
    """`make_folder` with another head in place of the language model's; `head` is a key of `HEADS`."""
    path = make_folder(folder, architecture, **settings)
    file, config = Path(path) / "model.safetensors", Path(path) / "config.json"
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("lm_head")}
    width = tensors["model.embed_tokens.weight"].shape[1]
    for name, shape in HEADS[head].items():
        tensors[name] = torch.randn([width if size == "E" else size for size in shape]) * 0.3
    save_file(tensors, file, {"format": "pt"})
    facts = json.loads(config.read_text())
    facts["architectures"] = [facts["architectures"][0].replace("ForCausalLM", head)]
    config.write_text(json.dumps(facts))
    return path
