"""score: the label rows of a head at step ends, with the running aggregates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

import tts_kernels
from benchmarks.kernels.cases import (
    Case,
    Setting,
    Spec,
    Variant,
    allowance,
    copies,
    error,
    exact_dtype,
    family,
    nbytes,
    random,
    rotate,
)
from benchmarks.kernels.floors import Work

LABELS = 2


@family
def score() -> Iterator[Spec]:
    for steps, width in ((64, 896), (256, 1536), (2048, 4096)):
        yield Spec("score", f"{steps} steps x {width}", steps != 256, partial(_case, steps, width))


def _case(steps: int, width: int, setting: Setting) -> Case:
    dtype = setting.torch_dtype
    device = setting.device
    hidden, head = random((steps, width), dtype, 0, device), random((LABELS, width), torch.float32, 1, device)
    head = (head / width**0.5).to(dtype)
    before = torch.tensor([[0.5, -1.0, 2.0, 3.0]], device=device).repeat(steps, 1)
    count = copies(nbytes(hidden), setting)
    hiddens = [hidden.clone() for _ in range(count)]

    def check():
        result = tts_kernels.score(hidden, head, None, before, 1, "softmax")
        exact, plain = (_plain(hidden, head, d)[:, 1] for d in (exact_dtype(dtype), torch.float32))
        running = torch.stack([exact.clamp(max=0.5), exact.log() - 1, exact + 2, torch.full_like(exact, 4)], 1)
        # The running aggregates are up to 8 times as large as a score.
        return max(error(result.out, exact), error(result.running, running) / 8), allowance(exact, plain) + 1e-6

    outputs = torch.empty(steps, device=device), torch.empty(steps, 4, device=device)
    next_hidden, next_hidden_of_torch = rotate(hiddens), rotate(hiddens)
    case = Case(
        dtype=setting.dtype,
        work=Work(bytes=nbytes(hidden)),
        cold=f"hidden states: {count} copies in turn, {count * nbytes(hidden) >> 20} MiB",
        check=check,
        ours=Variant(lambda: tts_kernels.score(next_hidden(), head, None, before, 1, "softmax", out=outputs)),
        backend=tts_kernels.score.choose(device, dtype).name,
    )
    case.add_peer("torch", lambda: Variant(lambda: _with_running(_plain(next_hidden_of_torch(), head, dtype)[:, 1], before)))
    return case


def _plain(hidden: torch.Tensor, head: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.softmax(F.linear(hidden.to(dtype), head.to(dtype)), -1)


def _with_running(value: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    least, logs, total, number = before.unbind(1)
    return torch.stack([torch.minimum(least, value), logs + value.log(), total + value, number + 1], 1)
