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


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` row-major; a copy where it is not."""
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with a dense last dim; the strides of the others are passed on."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def check_in_place(op: str, **tensors: torch.Tensor) -> None:
    """Refuse what cannot be written in place: a copy would lose what the kernel writes."""
    for name, tensor in tensors.items():
        if tensor.stride(-1) != 1:
            raise ValueError(f"{op}: {name} is written in place and its last dim must be dense, got strides {tensor.stride()}")
