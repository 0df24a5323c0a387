"""What the launchers ask of the device: how many programs fill it, and whether kernels are interpreted."""

import torch
from triton import knobs

INTERPRETED_PROGRAMS = 5
"""Programs of a persistent launch under the interpreter: few, so that small cases are cut into pieces and merged, too."""


def is_interpreted() -> bool:
    """Kernels run as NumPy on CPU tensors (`TRITON_INTERPRET=1` when Triton was imported)."""
    return bool(knobs.runtime.interpret)


def num_programs(device: torch.device) -> int:
    """Programs that a persistent launch starts: one a multiprocessor."""
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return torch.cuda.get_device_properties(device).multi_processor_count
