"""Models for a trace: from a checkpoint, or with random weights that are made on the device."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig

IS_RANDOM = "has_random_weights"
"""In a configuration: its folder has no weights, whoever loads it makes some."""


def load(kind: Any, folder: str, device: str) -> Any:
    """A model of the Auto class `kind`, as the folder's files say; in bfloat16 if its weights are made here."""
    config = AutoConfig.from_pretrained(folder)
    if not getattr(config, IS_RANDOM, False):
        return kind.from_pretrained(folder, dtype="auto", attn_implementation="sdpa").to(device).eval()
    with torch.device(device):
        model = kind.from_config(config, attn_implementation="sdpa")
    return model.to(torch.bfloat16).eval()
