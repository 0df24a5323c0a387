"""sample: the next tokens of 64 rows over Qwen's vocabulary, plain and with top-p, alone and as siblings of one parent."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import tts_kernels
from benchmarks.kernels import flashinfer
from benchmarks.kernels.cases import DTYPES, Case, Setting, Spec, Variant, copies, family, nbytes, random, rotate
from benchmarks.kernels.floors import Work
from tts_kernels import memory
from tts_kernels.philox import uniform

VOCABULARY = 151936
TEMPERATURE, TOP_P = 0.8, 0.95
ALLOWED = 2e-5
"""Of probability mass: float32 sums over the vocabulary."""


@family
def sample() -> Iterator[Spec]:
    for rows, siblings in ((64, 1), (16, 4), (64, 4)):
        for top_p in (1.0, TOP_P):
            name = f"{rows} rows x {siblings}" + (f", top-p {top_p}" if top_p < 1 else "")
            yield Spec("sample", name, (rows, siblings) != (64, 4), partial(_case, rows, siblings, top_p, False, "f32"))
    yield Spec("sample", "64 rows x 1, with statistics", False, partial(_case, 64, 1, 1.0, True, "f32"))
    yield Spec("sample", "64 rows x 1, as a bf16 head gives them", False, partial(_case, 64, 1, 1.0, False, "bf16"))


def _case(rows: int, siblings: int, top_p: float, with_statistics: bool, dtype: str, setting: Setting) -> Case:
    device = setting.device
    logits = 3 * random((rows, VOCABULARY), DTYPES[dtype], 0, device)
    N, i32 = rows * siblings, {"dtype": torch.int32, "device": device}
    row = torch.arange(rows, **i32).repeat_interleave(siblings)
    key, position = torch.arange(N, device=device) * 7919, torch.full((N,), 100, device=device)
    f32 = [torch.full((N,), value, device=device) for value in (TEMPERATURE, top_p, 0.0)]
    zeros, next_state = torch.zeros(N, **i32), torch.zeros(1, VOCABULARY, **i32)
    rest = row, key, position, f32[0], zeros, f32[1], f32[2], zeros, next_state, int(with_statistics)
    outputs = tts_kernels.sample(logits, *rest)
    count = copies(nbytes(logits), setting)
    # On huge pages where there are some, as the engine has them, for the peers, too.
    all_logits = [memory.empty(logits.shape, logits.dtype, device).copy_(logits) for _ in range(count)]
    next_logits, next_logits_of_torch = rotate(all_logits), rotate(all_logits)
    case = Case(
        dtype=dtype,
        work=Work(bytes=nbytes(logits)),
        cold=f"logits: {count} copies in turn, {count * nbytes(logits) >> 20} MiB",
        check=lambda: (_misplaced(tts_kernels.sample(logits, *rest), logits, row, key, position, top_p), ALLOWED),
        ours=Variant(lambda: tts_kernels.sample(next_logits(), *rest, out=outputs)),
        backend=tts_kernels.sample.choose(device).name,
    )
    multinomial = _multinomial if top_p == 1 else _multinomial_top_p
    case.add_peer("multinomial", lambda: Variant(lambda: multinomial(next_logits_of_torch(), siblings)))
    if device == "cuda":
        case.add_peer("flashinfer", lambda: flashinfer.sample(all_logits, row.long(), TEMPERATURE, top_p))
    return case


def _misplaced(result, logits: torch.Tensor, row, key, position, top_p: float) -> float:
    """How far, in probability mass, the uniforms lie outside the intervals of the tokens drawn; at least logprob's error / 10.

    The intervals are those of the filtered distribution in float64, so a draw that rounding moved to a neighbour costs no more
    than the rounding.
    """
    p = torch.softmax(logits.double() / TEMPERATURE, -1)
    if top_p < 1:
        ordered, index = p.sort(-1, descending=True)
        kept = ordered.cumsum(-1) - ordered < top_p
        p = p * torch.zeros_like(kept).scatter_(-1, index, kept)
    upper = p.cumsum(-1) / p.sum(-1, keepdim=True)
    row, token, drawn = row.long(), result.token, uniform(key, position)
    above, below = upper[row, token], torch.where(token > 0, upper[row, (token - 1).clamp(min=0)], 0.0)
    logprob = torch.log_softmax(logits.double(), -1)[row, token]
    misplaced = torch.maximum(below - drawn, drawn - above).clamp(min=0).max().item()
    return max(misplaced, (result.logprob - logprob).abs().max().item() / 10)


def _multinomial(logits: torch.Tensor, siblings: int) -> torch.Tensor:
    return _drawn(torch.softmax(logits / TEMPERATURE, -1, dtype=torch.float32), siblings)


def _multinomial_top_p(logits: torch.Tensor, siblings: int) -> torch.Tensor:
    """As transformers filters: sort, cumulative sum, scatter."""
    tempered = logits.float() / TEMPERATURE
    ordered, index = torch.sort(tempered, descending=False)
    removed = ordered.softmax(-1).cumsum(-1) <= 1 - TOP_P
    removed[:, -1] = False
    filtered = tempered.masked_fill(removed.scatter(1, index, removed), float("-inf"))
    return _drawn(torch.softmax(filtered, -1), siblings)


def _drawn(p: torch.Tensor, siblings: int) -> torch.Tensor:
    """On the CPU at least two draws: a single one takes another path in torch, noise for every logit, and 25 times as long."""
    return torch.multinomial(p, siblings if p.is_cuda else max(2, siblings), replacement=True)[:, :siblings]
