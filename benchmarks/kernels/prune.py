"""prune: widths and fork plan of 64 problems at once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import tts_kernels
from benchmarks.kernels.cases import Case, PeerError, Setting, Spec, Variant, family, mismatches, random
from benchmarks.kernels.floors import Work

PROBLEMS, EXPAND = 64, 4


@family
def prune() -> Iterator[Spec]:
    for rows in (16, 256):
        for rule in ("top", "softmax"):
            yield Spec("prune", f"{PROBLEMS}x{rows} {rule}", True, partial(_case, rows, rule))


def _case(rows: int, rule: str, setting: Setting) -> Case:
    """Each problem keeps a quarter of its rows, four children each, or shares as many children out by softmax."""
    capacity, keep = PROBLEMS * rows, rows // EXPAND
    scores, on_device = random((capacity,), torch.float32, 0, setting.device), {"dtype": torch.int32, "device": setting.device}
    indptr = torch.arange(PROBLEMS + 1, **on_device) * rows
    totals, keeps = (torch.full((PROBLEMS,), n, **on_device) for n in (rows, keep))
    inputs = scores, indptr, totals, keeps, None, rule, 0.5, capacity
    outputs = tts_kernels.prune(*inputs)
    on_cpu = [x.cpu() if isinstance(x, torch.Tensor) else x for x in inputs]  # the reference counts on the host

    def check():
        found = [x.cpu() for x in tts_kernels.prune(*inputs)]
        return mismatches(*zip(found, tts_kernels.prune(*on_cpu, backend="reference")))

    case = Case(
        dtype="f32",
        work=Work(bytes=4.0 * (2 * capacity + capacity + 4 * PROBLEMS), rate="cache_read"),
        cold="nothing: the scores were written just before",
        check=check,
        ours=Variant(lambda: tts_kernels.prune(*inputs, out=outputs)),
        backend=tts_kernels.prune.choose(setting.device).name,
    )
    case.add_peer("topk", lambda: _topk(scores.view(PROBLEMS, rows), keep, rule))
    return case


def _topk(scores: torch.Tensor, keep: int, rule: str) -> Variant:
    """Survivors and the row of each child, for problems of one size: torch has nothing for ragged ones."""
    if rule != "top":
        raise PeerError(f"torch has no selection by {rule}")
    first = torch.arange(len(scores), device=scores.device)[:, None] * scores.shape[1]
    return Variant(lambda: (torch.topk(scores, keep, dim=1).indices + first).flatten().repeat_interleave(EXPAND))
