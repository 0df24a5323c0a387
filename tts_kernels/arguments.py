"""What backends do to arguments before a launch: dense copies, addresses, and the codes of kernels.h for words."""

import torch

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
RULES = {"top": 0, "softmax": 1, "systematic": 2, "multinomial": 3, "proportional": 4}
ACTIVATIONS = {"softmax": 0, "sigmoid": 1}


def dense(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` row-major; a copy where it is not."""
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def dense_all(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors row-major. Their copies live as long as the caller keeps the list."""
    return [dense(tensor) for tensor in tensors]


def dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with a dense last dim; the strides of the others are passed on."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def pointer(tensor: torch.Tensor | None) -> int:
    """The address; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def check_rows_in_place(op: str, **tensors: torch.Tensor) -> None:
    """Refuse what cannot be written in place: a copy would lose what the kernel writes."""
    for name, tensor in tensors.items():
        if tensor.stride(-1) != 1 and tensor.numel():
            raise ValueError(f"{op}: {name} is written in place and its last dim must be dense, got strides {tensor.stride()}")
