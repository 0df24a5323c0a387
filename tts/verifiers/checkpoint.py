"""A verifier named by its checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Checkpoint:
    """A reward model, or a language model read by its likelihood: where it lies, and how it is to be read.

    >>> Checkpoint.of("math-shepherd:/models/my-prm").family
    'math-shepherd'
    """

    model: str | os.PathLike
    """A local folder, a hub id or `zoo:NAME`."""
    family: str = "auto"
    """A name of `tts.verifiers.families.FAMILIES`, `likelihood`, or `auto`: what the checkpoint's config says."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the family, such as `{"separator": "\\n\\n"}`."""
    calibration: str | os.PathLike | None = None
    """A fit that `tts verifier check --fit FILE` stored: scores become the probabilities that it says."""
    trust_remote_code: bool = False
    """Run code that comes with this checkpoint. No family needs it; a tokenizer or a trunk that transformers lacks may."""

    @classmethod
    def of(cls, value: str | os.PathLike | Checkpoint) -> Checkpoint:
        """`FAMILY:MODEL`, or just the model."""
        if isinstance(value, Checkpoint):
            return value
        name, colon, model = os.fspath(value).partition(":")
        return cls(model, name) if colon and name != "zoo" and len(name) > 1 else cls(value)
