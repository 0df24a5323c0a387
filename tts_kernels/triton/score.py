"""score on a GPU."""

import triton
import triton.language as tl

from tts_kernels.arguments import dense, dense_rows

MAX_LABELS = 1024
TILE = 4096
"""Elements of the head that a program holds at a time."""


@triton.jit
def _score_kernel(
    hidden_ptr, head_ptr, bias_ptr, before_ptr, out_ptr, running_ptr, E, C, hidden_stride, label,
    HAS_BIAS: tl.constexpr, IS_SIGMOID: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    # One program per step: it reads E elements of hidden once and the C label rows of the head from cache, and writes 5 floats.
    # Invariant: sums[c, e] holds the products of label c at the positions e, e + BLOCK_E, ...; one tree adds them up at the end.
    n = tl.program_id(0).to(tl.int64)
    c, e = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_E)
    is_label = c < C
    sums = tl.zeros([BLOCK_C, BLOCK_E], tl.float32)
    for begin in range(0, E, BLOCK_E):
        at = begin + e
        h = tl.load(hidden_ptr + n * hidden_stride + at, mask=at < E, other=0.0).to(tl.float32)
        mask = is_label[:, None] & (at < E)[None, :]
        w = tl.load(head_ptr + c.to(tl.int64)[:, None] * E + at[None, :], mask=mask, other=0.0).to(tl.float32)
        sums += w * h[None, :]
    logits = tl.sum(sums, 1)
    if HAS_BIAS:
        logits += tl.load(bias_ptr + c, mask=is_label, other=0.0)
    chosen = tl.sum(tl.where(c == label, logits, 0.0), 0)
    if IS_SIGMOID:
        value = 1.0 / (1.0 + tl.exp(-chosen))
    else:
        logits = tl.where(is_label, logits, float("-inf"))
        most = tl.max(logits, 0)
        # A logit of NaN or +inf, or none that is finite, makes the sum NaN.
        value = tl.exp(chosen - most) / tl.sum(tl.exp(logits - most), 0)
    tl.store(out_ptr + n, value)
    before, running = before_ptr + n * 4, running_ptr + n * 4
    tl.store(running, tl.minimum(tl.load(before), value, propagate_nan=tl.PropagateNan.ALL))
    tl.store(running + 1, tl.load(before + 1) + tl.log(value))
    tl.store(running + 2, tl.load(before + 2) + value)
    tl.store(running + 3, tl.load(before + 3) + 1.0)


def score(hidden, head, bias, before, label, activation, *, out, running):
    num_steps, E = hidden.shape
    num_labels = head.shape[0]
    if num_labels > MAX_LABELS:
        raise ValueError(f"score: head must have at most {MAX_LABELS} label rows on a GPU, got {num_labels}")
    if num_steps == 0:
        return
    hidden, head, before = dense_rows(hidden), dense(head), dense(before)
    has_bias, bias = bias is not None, before if bias is None else dense(bias)
    block_c = triton.next_power_of_2(num_labels)
    block_e = min(max(TILE // block_c, 16), triton.next_power_of_2(max(E, 16)))
    sizes = {"HAS_BIAS": has_bias, "IS_SIGMOID": activation == "sigmoid", "BLOCK_C": block_c, "BLOCK_E": block_e}
    inputs = hidden, head, bias, before, out, running, E, num_labels, hidden.stride(0), label
    _score_kernel[(num_steps,)](*inputs, **sizes)
