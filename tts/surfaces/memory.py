"""`tts info --policy A --verifier B --n 64`: what the models and their KV need, and whether that fits; no weight is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoModel, AutoModelForCausalLM

from tts.engine.model import (
    check_supported,
    device_memory,
    kv_bytes_per_token,
    read_config,
    resolve,
    resolve_device,
    resolve_dtype,
)
from tts.verifiers import Checkpoint
from tts.verifiers.load import LIKELIHOOD, family_of


@dataclass(frozen=True)
class Need:
    """One model's share of the memory, in bytes."""

    role: str
    model: str
    family: str
    num_parameters: int
    dtype: str
    weights: int
    kv_per_token: int
    kv: int
    """For `n` branches of the window `max_tokens` with nothing shared: a search, whose branches share prefixes, needs less."""


def need(role: str, source: str, is_policy: bool, n: int, max_tokens: int, device: str) -> Need:
    checkpoint = Checkpoint.of(source)
    family = "policy" if is_policy else family_of(checkpoint)
    place, path = resolve_device(device), resolve(checkpoint.model)
    config = read_config(path)
    check_supported(config.get_text_config(), path)
    with torch.device("meta"):
        inner = (AutoModelForCausalLM if is_policy or family == LIKELIHOOD else AutoModel).from_config(config)
    num_parameters = sum(p.numel() for p in inner.parameters())
    dtype, text = resolve_dtype("auto", config, place), config.get_text_config()
    per_token = kv_bytes_per_token(text, dtype)
    name = str(dtype).removeprefix("torch.")
    return Need(role, path, family, num_parameters, name, num_parameters * dtype.itemsize, per_token, per_token * n * max_tokens)


def plan(policy: str, verifier: str | None, n: int, max_tokens: int, device: str) -> dict[str, Any]:
    """The needs of both models beside the memory that there is, and the branches that fit."""
    needs = [need("policy", policy, True, n, max_tokens, device)]
    if verifier is not None:
        needs.append(need("verifier", verifier, False, n, max_tokens, device))
    total = device_memory(resolve_device(device))
    left = total - sum(x.weights for x in needs)
    per_branch = max_tokens * sum(x.kv_per_token for x in needs)
    return {
        "models": [asdict(x) for x in needs],
        "memory": total,
        "n": n,
        "max_tokens": max_tokens,
        "needed": sum(x.weights + x.kv for x in needs),
        "fits": sum(x.weights + x.kv for x in needs) <= total,
        "weights_fit": left >= 0,
        "branches_that_fit": max(0, left // per_branch),
    }


def lines(found: dict[str, Any]) -> Sequence[str]:
    """The plan in words."""
    said = [
        f"{x['role']} {x['model']} ({x['family']}): {x['num_parameters'] / 1e6:,.1f}M parameters in {x['dtype']}, "
        f"weights {_gib(x['weights'])}, KV {x['kv_per_token']:,} bytes a token, {_gib(x['kv'])} for {found['n']} branches"
        for x in found["models"]
    ]
    said.append(
        f"needed {_gib(found['needed'])} of {_gib(found['memory'])}, branches of {found['max_tokens']:,} tokens not shared"
    )
    if not found["weights_fit"]:
        said.append("the weights alone do not fit")
    elif found["fits"]:
        said.append("it fits")
    else:
        said.append(
            f"{found['branches_that_fit']} such branches fit at a time; more are preempted and read again: same results, slower"
        )
    return said


def _gib(size: int) -> str:
    return f"{size / (1 << 30):,.2f} GiB"
