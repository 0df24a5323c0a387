"""Single tensors of a checkpoint, read from its safetensors without the rest: heads that transformers has no class for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property

import torch
from safetensors import safe_open
from transformers.utils import cached_file

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class Weights:
    """The tensors of a local folder or a hub id by name."""

    def __init__(self, source: str):
        self.source = source

    @cached_property
    def files(self) -> dict[str, str]:
        """Tensor name -> path of the file that holds it. Raises `ValueError` where there are no safetensors."""
        index = cached_file(self.source, _INDEX, _raise_exceptions_for_missing_entries=False)
        if index is not None:
            with open(index, encoding="utf-8") as file:
                parts = json.load(file)["weight_map"]
            paths = {part: str(cached_file(self.source, part)) for part in set(parts.values())}
            return {name: paths[part] for name, part in parts.items()}
        single = cached_file(self.source, _SINGLE, _raise_exceptions_for_missing_entries=False)
        if single is None:
            raise ValueError(f"{self.source}: neither {_SINGLE} nor {_INDEX}: convert the checkpoint to safetensors")
        with safe_open(single, "pt") as file:
            return dict.fromkeys(file.keys(), single)

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor on the CPU in the checkpoint's dtype."""
        with safe_open(self.files[name], "pt") as file:
            return file.get_tensor(name)

    def rows(self, name: str, rows: Sequence[int]) -> torch.Tensor:
        """Some rows of a matrix; the others are not read."""
        with safe_open(self.files[name], "pt") as file:
            part = file.get_slice(name)
            return torch.cat([part[row : row + 1] for row in rows])
