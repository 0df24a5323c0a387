"""What was really multiplied: torch's own counter, on the backend where it sees everything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.utils.flop_counter import FlopCounterMode

from tts.engine.model import Model


class Counted:
    """The floating-point operations of matrix products so far, a multiplication and an addition being two."""

    def __init__(self, counter: FlopCounterMode):
        self._counter = counter

    @property
    def flops_counted(self) -> int:
        return int(self._counter.get_total_flops())


@contextmanager
def counted(*models: Model) -> Iterator[Counted]:
    """Count what `models` and all else multiply inside the block; `Counted.flops_counted` is the sum.

    `Meter.flops_nominal` charges every parameter for every token. What is multiplied differs where a table is looked up
    (embeddings), where logits are made for few tokens or for rows that share them, and by attention, which the meter states
    apart. Raises `ValueError` for a model whose kernels the counter cannot see into: load it with `backend="reference"`.
    """
    for model in models:
        if model.backend != "reference":
            raise ValueError(
                f"torch's counter sees only PyTorch: load {model.name} with backend='reference', it has {model.backend!r}"
            )
    with FlopCounterMode(display=False) as counter:
        yield Counted(counter)
