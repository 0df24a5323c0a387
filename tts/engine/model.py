"""An ordinary transformers model on paged KV: loading, what is refused, and the ragged forward pass."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

import tts_kernels
from tts.engine.parts import Buffer, Linear
from tts.engine.swap import swap_parts
from tts_kernels.pages import PagedKV, Plan

ATTENTION = "tts"
"""The name under which our attention is registered with transformers."""

KINDS = {"causal-lm": AutoModelForCausalLM, "trunk": AutoModel}
"""What is loaded of a checkpoint: with its language-model head, or without any head."""


@dataclass(frozen=True)
class RaggedBatch:
    """The T tokens of one forward pass, rows one after the other; travels to the attention as a keyword argument."""

    tokens: torch.Tensor
    """i64[T] token ids."""
    positions: torch.Tensor
    """i64[T] positions in their branch."""
    slots: torch.Tensor
    """i64[T] where their keys and values go."""
    plan: Plan
    kv: PagedKV
    backend: str | None = None


def _attention(module, query, key, value, attention_mask, scaling=None, *, ragged: RaggedBatch, **_):
    """transformers' attention interface: q [1,H,T,D], k and v [1,G,T,D] after RoPE -> [1,T,H,D]."""
    pages = ragged.kv.layers[module.layer_idx]
    key, value, query = (x[0].transpose(0, 1) for x in (key, value, query))
    tts_kernels.append(key, value, *pages, ragged.slots, backend=ragged.backend)
    plan, scale = ragged.plan, module.head_dim**-0.5 if scaling is None else scaling
    out, _ = tts_kernels.attend(query, *pages, plan.spans, plan.item_indptr, plan.items, float(scale), backend=ragged.backend)
    return out[None], None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, lambda *_, **__: None)  # the plan says who sees what


class Model:
    """A loaded model: tokens in, hidden states out, KV in pages.

    `forward` gives the base model's last hidden states; `logits` applies the language-model head to chosen rows only.
    """

    inner: Any  # a transformers PreTrainedModel: its attributes are dynamic

    def __init__(self, inner: Any, tokenizer: Any, name: str, backend: str | None = None):
        self.inner, self.tokenizer, self.name, self.backend = inner.eval(), tokenizer, name, backend
        self.config = inner.config.get_text_config()
        self.num_parameters = sum(p.numel() for p in inner.parameters())
        self.num_active_parameters = active_parameters(inner)
        self.dtype, self.device = inner.dtype, inner.device
        self._logits = Buffer(inner.dtype)
        expected = self._probe_stock()
        if self.device.type == "cpu":
            swap_parts(inner, backend)
        inner.set_attn_implementation(ATTENTION)
        self._probe(expected)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike,
        kind: str = "causal-lm",
        device: str = "auto",
        dtype: str = "auto",
        backend: str | None = None,
        trust_remote_code: bool = False,
    ) -> Model:
        """Load a local folder or a hub id; safetensors only. Remote code runs only where `trust_remote_code` says so.

        Raises `ValueError` for what cannot be run rightly: a missing folder, an attention we do not have.
        """
        source = resolve(source)
        config = read_config(source, trust_remote_code)
        check_supported(config.get_text_config(), source)
        place = resolve_device(device)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        inner = KINDS[kind].from_pretrained(
            source,
            dtype=resolve_dtype(dtype, config, place),
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
        return cls(inner.to(place), tokenizer, str(source), backend)

    # ---- running

    def make_kv(self, num_pages: int, page_size: int) -> PagedKV:
        return PagedKV(num_pages, page_size, *kv_sizes(self.config), dtype=self.dtype, device=self.device)

    def check_fits(self, kv: PagedKV, num_prompt_tokens: int, max_tokens: int, what: str) -> None:
        """Raise `ValueError` where a branch of prompt and `max_tokens` does not fit the model's window or the pool."""
        length, window = num_prompt_tokens + max_tokens, self.max_length
        if length > window:
            cure = f"lower max_tokens to {window - num_prompt_tokens}" if num_prompt_tokens < window else "shorten the problem"
            raise ValueError(
                f"{what}: its prompt has {num_prompt_tokens} tokens, with max_tokens {max_tokens} that is more than the window "
                f"of {self.name}, {window}: {cure}"
            )
        needed = -(-length // kv.page_size) + 1
        if needed > kv.num_pages:
            raise ValueError(
                f"{what}: one branch of {length} tokens needs {needed} pages of {kv.page_size} tokens, the pool of {self.name} "
                f"has {kv.num_pages}: make the pool larger or lower max_tokens"
            )

    @torch.inference_mode()
    def forward(self, ragged: RaggedBatch) -> torch.Tensor:
        """T[T, E]: the hidden state behind every token of the batch, after the final norm."""
        mask = ragged.tokens.new_empty(1, 1, 1, 1)  # a mask of four dims is passed on untouched, and our attention reads none
        out = self.inner.base_model(
            input_ids=ragged.tokens[None],
            position_ids=ragged.positions[None],
            attention_mask=mask,
            use_cache=False,
            ragged=ragged,
        )
        return out.last_hidden_state[0]

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """T[R, V] of chosen rows T[R, E]; on the CPU valid until the next call."""
        head = self.inner.get_output_embeddings()
        return head(hidden, out=self._logits.take(len(hidden), head.out_features)) if isinstance(head, Linear) else head(hidden)

    # ---- facts

    def add_parameters(self, count: int) -> None:
        """Charge parameters that are held beside the model from now on: a head of one's own."""
        self.num_parameters += count
        self.num_active_parameters += count

    @property
    def flops_per_token(self) -> float:
        """Nominal, without attention over the context: 2 x active parameters."""
        return 2.0 * self.num_active_parameters

    @cached_property
    def attention_flops_per_context(self) -> float:
        """For one token and one token of its context: 4 x layers x query heads x head dim."""
        return 4.0 * self.config.num_hidden_layers * self.config.num_attention_heads * self.head_dim

    @cached_property
    def head_dim(self) -> int:
        return kv_sizes(self.config)[2]

    @property
    def kv_bytes_per_token(self) -> int:
        return kv_bytes_per_token(self.config, self.dtype)

    @cached_property
    def max_length(self) -> int:
        """Tokens of the longest branch that is read rightly: the position window, or a sliding window, which we do not slide."""
        config = self.config
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
        slides = window is not None and "sliding_attention" in kinds
        return min(config.max_position_embeddings, window) if slides else config.max_position_embeddings

    @property
    def eos_ids(self) -> list[int]:
        """Every id that ends a text and that the head can give: the generation config's list, the model's, the tokenizer's."""
        generation = getattr(self.inner, "generation_config", None)
        found: list[int] = []
        for holder in (generation, self.config, self.tokenizer):
            ids = getattr(holder, "eos_token_id", None)
            found += ids if isinstance(ids, list) else [] if ids is None else [ids]
        return sorted({i for i in found if i < self.config.vocab_size})

    def encode(self, prompt: str | Sequence[dict[str, str]]) -> list[int]:
        """Token ids of a prompt: plain text as it is, messages through the chat template with the assistant's turn opened."""
        if isinstance(prompt, str):
            return list(self.tokenizer(prompt, add_special_tokens=self.tokenizer.bos_token_id is not None)["input_ids"])
        if self.tokenizer.chat_template is None:
            raise ValueError(f"{self.name}: the tokenizer has no chat template, which this task's prompt needs")
        text = self.tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def token_bytes(self) -> list[bytes]:
        """The bytes each id adds to a text, b"" for special tokens; one entry for each row of the head."""
        return token_bytes(self.tokenizer, self.config.vocab_size)

    # ---- checks at load

    def _probe_tokens(self) -> torch.Tensor:
        return torch.arange(8, device=self.device) * 7 % self.config.vocab_size

    @torch.inference_mode()
    def _probe_stock(self) -> torch.Tensor:
        out = self.inner(input_ids=self._probe_tokens()[None], use_cache=False)
        return (out.last_hidden_state if self.inner.get_output_embeddings() is None else out.logits)[0].float()

    def _probe(self, expected: torch.Tensor) -> None:
        """Refuse a model whose output is not what its own forward gives: it does something that paged attention does not see."""
        tokens = self._probe_tokens()
        kv = self.make_kv(num_pages=2, page_size=len(tokens))
        leaf = kv.add([-1])
        slots = torch.from_numpy(kv.extend(leaf, [len(tokens)])).to(self.device)
        ragged = RaggedBatch(
            tokens, torch.arange(len(tokens), device=self.device), slots, kv.plan(leaf, [0, len(tokens)]), kv, self.backend
        )
        hidden = self.forward(ragged)
        head = self.inner.get_output_embeddings() or torch.nn.Identity()
        with torch.inference_mode():
            error = (head(hidden).float() - expected).abs().max() / expected.abs().max().clamp_min(1e-6)
        allowed = 1e-3 if self.dtype is torch.float32 else 0.1
        if not error <= allowed:
            raise ValueError(
                f"{self.name}: the model's logits through paged attention differ from its own by {float(error):.2g} "
                f"(allowed {allowed}): architecture {type(self.inner).__name__} does something beyond ordinary causal attention"
            )


def kv_sizes(config: Any) -> tuple[int, int, int]:
    """Layers, key-value heads and head dim of a text config."""
    num_kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return config.num_hidden_layers, num_kv_heads, head_dim


def kv_bytes_per_token(config: Any, dtype: torch.dtype) -> int:
    """Of keys and values, all layers."""
    return 2 * math.prod(kv_sizes(config)) * dtype.itemsize


def device_memory(device: torch.device) -> int:
    """Bytes that there are in all, free or not."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def active_parameters(inner: Any) -> int:
    """The parameters that one token meets: all, but of a mixture's experts only as many as a token is sent to."""
    config = inner.config.get_text_config()
    chosen = getattr(config, "num_experts_per_tok", None)
    total = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    experts = sum(p.numel() for name, p in inner.named_parameters() if ".experts." in name)
    everything = sum(p.numel() for p in inner.parameters())
    return everything if not (chosen and total) else everything - experts + experts * chosen // total


def resolve(source: str | os.PathLike) -> str:
    """A model's place: `zoo:NAME`, a folder, or a hub id. A path that looks local must exist."""
    text = os.path.expanduser(os.fspath(source))
    if text.startswith("zoo:"):
        from tts import zoo

        return str(zoo.path(text.removeprefix("zoo:")))
    is_local = text.startswith((".", "/")) or text.count("/") != 1
    if is_local and not Path(text).is_dir():
        raise ValueError(f"no model folder {text!r}: give a folder with config.json and safetensors, a hub id, or zoo:NAME")
    return text


def read_config(source: str, trust_remote_code: bool = False) -> Any:
    """The checkpoint's transformers config; `ValueError` where there is none or where it needs code of its own."""
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"model {source!r} cannot be read without running code that comes with it: if you have read that code and trust "
                "it, give trust_remote_code=True for this model (tts.verifiers.Checkpoint)"
            ) from error
        raise ValueError(f"model {source!r} cannot be read: {error}") from error


def resolve_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}: use auto, cpu or cuda") from error


def resolve_dtype(dtype: str, config: Any, device: torch.device) -> torch.dtype:
    """`auto`: a float32 checkpoint stays float32; a half one is bfloat16 where the machine multiplies it, else float32."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype != "auto":
        if dtype not in names:
            raise ValueError(f"unknown dtype {dtype!r}: use auto, {', '.join(names)}")
        return names[dtype]
    stored = getattr(config, "dtype", None) or torch.float32
    if stored in (torch.float32, "float32"):
        return torch.float32
    return torch.bfloat16 if device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() else torch.float32


def check_supported(config: Any, source: str) -> None:
    """Raise `ValueError` for attention that is not ordinary, before a weight is read."""
    refusals = {
        "attn_logit_softcapping": "soft-capped attention scores",
        "final_logit_softcapping": "soft-capped logits",
        "kv_lora_rank": "latent attention",
        "attention_chunk_size": "chunked attention",
        "linear_num_key_heads": "linear attention",
    }
    for field, what in refusals.items():
        if getattr(config, field, None):
            raise ValueError(f"{source}: {what} ({field}={getattr(config, field)}) is not supported")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    strange = kinds - {"full_attention", "sliding_attention"}
    if strange:
        raise ValueError(f"{source}: layers of type {', '.join(sorted(strange))} are not supported, only full attention")
    if "gpt_oss" in config.model_type:
        raise ValueError(f"{source}: attention sinks ({config.model_type}) are not supported")


def token_bytes(tokenizer: Any, vocab_size: int) -> list[bytes]:
    """What each id adds to a text, for byte-level, SentencePiece-like and plain vocabularies; b"" for special tokens."""
    decoder = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"), ensure_ascii=False)
    added = tokenizer.added_tokens_decoder
    from_unicode = {char: byte for byte, char in bytes_to_unicode().items()}

    def text(token: str) -> bytes:
        if '"ByteLevel"' in decoder and all(c in from_unicode for c in token):
            return bytes(from_unicode[c] for c in token)
        if '"ByteFallback"' in decoder and len(token) == 6 and token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        return (token.replace("\u2581", " ") if "\u2581" in decoder else token).encode()

    table = []
    for i, token in enumerate(tokenizer.convert_ids_to_tokens(range(min(vocab_size, len(tokenizer))))):
        special = i in added and added[i].special
        table.append(b"" if special or token is None else added[i].content.encode() if i in added else text(token))
    return table + [b""] * (vocab_size - len(table))
