"""The models that ship with the package: tiny policies for the task chain, as ordinary transformers folders."""

from __future__ import annotations

from pathlib import Path

_WEIGHTS = Path(__file__).parent / "weights"


def names() -> list[str]:
    """The names of the shipped models, in alphabetical order."""
    return sorted(config.parent.name for config in _WEIGHTS.glob("*/config.json"))


def path(name: str) -> Path:
    """The folder of the shipped model `name`, as `from_pretrained` takes it; `ValueError` if there is none."""
    if name not in names():
        raise ValueError(f"no shipped model is called {name!r}; there are: {', '.join(names())}")
    return _WEIGHTS / name
