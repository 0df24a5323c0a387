"""prune on a GPU: widths and fork plan in one launch."""

import struct

import torch
import triton
import triton.language as tl

from tts_kernels.arguments import dense
from tts_kernels.triton.philox import uniform

RULES = {"top": 0, "softmax": 1, "systematic": 2, "multinomial": 3, "proportional": 4}
BLOCK = 128
BLOCK_J = 32


@triton.jit
def _is_finite(score):
    return tl.abs(score) < float("inf")


@triton.jit
def _children_before(scores_ptr, indptr_ptr, total_ptr, r, BLOCK: tl.constexpr):
    """Children of the segments before r: `total` of each that has a finite score, which is nearly always its first."""
    children = 0
    for first in range(0, r, BLOCK):
        segment = first + tl.arange(0, BLOCK)
        row = tl.load(indptr_ptr + segment, mask=segment < r, other=0)
        end = tl.load(indptr_ptr + segment + 1, mask=segment < r, other=0)
        found = tl.zeros([BLOCK], tl.int32)
        is_open = row < end
        while tl.max(is_open.to(tl.int32), 0) > 0:
            score = tl.load(scores_ptr + row, mask=is_open, other=0.0)
            found = tl.where(is_open & _is_finite(score), 1, found)
            row += 1
            is_open = is_open & (found == 0) & (row < end)
        children += tl.sum(found * tl.load(total_ptr + segment, mask=segment < r, other=0), 0)
    return children


@triton.jit
def _rank(scores_ptr, order_ptr, widths_ptr, begin, end, BLOCK: tl.constexpr, BLOCK_J: tl.constexpr):
    """Write the rows begin..end that have a finite score to `order` by descending score, then row; give their number."""
    count = 0
    for first in range(begin, end, BLOCK):
        i = first + tl.arange(0, BLOCK)
        score = tl.load(scores_ptr + i, mask=i < end, other=float("inf"))
        rank = tl.zeros([BLOCK], tl.int32)
        for first_j in range(begin, end, BLOCK_J):
            j = first_j + tl.arange(0, BLOCK_J)
            other = tl.load(scores_ptr + j, mask=j < end, other=float("inf"))
            is_tie_before = (other[None, :] == score[:, None]) & (j[None, :] < i[:, None])
            is_before = _is_finite(other)[None, :] & ((other[None, :] > score[:, None]) | is_tie_before)
            rank += tl.sum(is_before.to(tl.int32), 1)
        is_ranked = _is_finite(score)
        tl.store(order_ptr + begin + rank, i, mask=is_ranked)
        tl.store(widths_ptr + i, tl.zeros([BLOCK], tl.int32), mask=i < end)
        count += tl.sum(is_ranked.to(tl.int32), 0)
    return count


@triton.jit
def _share_top(order_ptr, widths_ptr, count, total, keep, BLOCK: tl.constexpr):
    kept = tl.maximum(1, tl.minimum(tl.minimum(keep, total), count))
    for first in range(0, kept, BLOCK):
        k = first + tl.arange(0, BLOCK)
        row = tl.load(order_ptr + k, mask=k < kept, other=0)
        tl.store(widths_ptr + row, total // kept + (k < total % kept).to(tl.int32), mask=k < kept)


@triton.jit
def _weigh(scores_ptr, order_ptr, weights_ptr, count, temperature, BLOCK: tl.constexpr):
    """weights[rank] = e^((score - best) / temperature); gives their sum."""
    best = tl.load(scores_ptr + tl.load(order_ptr)).to(tl.float64)
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, count, BLOCK):
        k = first + tl.arange(0, BLOCK)
        score = tl.load(scores_ptr + tl.load(order_ptr + k, mask=k < count, other=0), mask=k < count, other=float("-inf"))
        weight = tl.exp((score.to(tl.float64) - best) / temperature)
        tl.store(weights_ptr + k, weight, mask=k < count)
        total += weight
    return tl.sum(total, 0)


@triton.jit
def _share_softmax(order_ptr, weights_ptr, widths_ptr, count, total, BLOCK: tl.constexpr):
    """REBASE: rank i gets ceil(left * weight_i / sum of the weights from i on)."""
    rest = tl.full([], 0.0, tl.float64)
    num_blocks = tl.cdiv(count, BLOCK)
    for b in range(num_blocks):  # from the last rank to the first
        k = (num_blocks - 1 - b) * BLOCK + tl.arange(0, BLOCK)
        weight = tl.load(weights_ptr + k, mask=k < count, other=0.0)
        tl.store(weights_ptr + k, weight / (tl.cumsum(weight, 0, reverse=True) + rest), mask=k < count)
        rest += tl.sum(weight, 0)
    tl.debug_barrier()
    left, k = total, 0
    while (left > 0) & (k < count):
        # 1e-12 keeps an exact share from being rounded up by the division's last bit.
        share = left.to(tl.float64) * tl.load(weights_ptr + k) - 1e-12
        width = share.to(tl.int32)
        width = tl.minimum(left, width + (width.to(tl.float64) < share).to(tl.int32))
        tl.store(widths_ptr + tl.load(order_ptr + k), width)
        left -= width
        k += 1


@triton.jit
def _share_proportional(order_ptr, weights_ptr, widths_ptr, count, total, normalizer):
    """DORA: rank i gets its share of the total rounded to the nearest, as far as it reaches; the best get what is left."""
    left = total
    for k in range(count):
        left -= tl.minimum(left, (total.to(tl.float64) * tl.load(weights_ptr + k) / normalizer + 0.5).to(tl.int32))
    rest = total
    for k in range(count):
        width = tl.minimum(rest, (total.to(tl.float64) * tl.load(weights_ptr + k) / normalizer + 0.5).to(tl.int32))
        tl.store(widths_ptr + tl.load(order_ptr + k), width + (k < left).to(tl.int32))
        rest -= width


@triton.jit
def _share_draws(
    order_ptr, weights_ptr, widths_ptr, count, total, key, normalizer, IS_SYSTEMATIC: tl.constexpr, BLOCK: tl.constexpr
):
    """Rank i gets the draws in [cumulative(i-1), cumulative(i)); the last one all that are left."""
    reached = tl.full([], 0.0, tl.float64)
    behind_before = total
    for k in range(count):
        reached += tl.load(weights_ptr + k) / normalizer
        behind = 0
        for first in range(0, total, BLOCK):
            i = first + tl.arange(0, BLOCK)
            if IS_SYSTEMATIC:
                draw = (i.to(tl.float64) + uniform(key, tl.zeros([BLOCK], tl.int64))) / total.to(tl.float64)
            else:
                draw = uniform(key, i.to(tl.int64))
            behind += tl.sum(((i < total) & (draw >= reached)).to(tl.int32), 0)
        behind = tl.where(k == count - 1, 0, behind)
        tl.store(widths_ptr + tl.load(order_ptr + k), behind_before - behind)
        behind_before = behind


@triton.jit
def _write_children(widths_ptr, parents_ptr, begin, end, child, capacity, BLOCK: tl.constexpr):
    """The row of each child from `child` on; nothing beyond the capacity is written."""
    for first in range(begin, end, BLOCK):
        row = first + tl.arange(0, BLOCK)
        width = tl.load(widths_ptr + row, mask=row < end, other=0)
        at = child + tl.cumsum(width, 0) - width
        for i in range(tl.max(width, 0)):
            tl.store(parents_ptr + at + i, row, mask=(i < width) & (at + i < capacity))
        child += tl.sum(width, 0)


@triton.jit(do_not_specialize=["num_rows", "num_segments", "temperature_bits", "capacity"])
def _prune_kernel(
    scores_ptr, indptr_ptr, total_ptr, keep_ptr, keys_ptr, order_ptr, weights_ptr, widths_ptr, parents_ptr, counts_ptr,
    num_rows, num_segments, temperature_bits, capacity, RULE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    # One program per segment of n rows, and one more for what lies behind the last: it reads the first score of every segment
    # before it, and its own n scores n/BLOCK times, and writes n widths and its part of the fork plan: where that begins follows
    # from the scores alone, so no program waits for another. Invariant: only rows with a finite score have a rank; all arithmetic
    # is float64.
    r = tl.program_id(0)
    child = _children_before(scores_ptr, indptr_ptr, total_ptr, r, BLOCK)
    begin = tl.load(indptr_ptr + r)
    if r == num_segments:
        for first in range(begin, num_rows, BLOCK):
            row = first + tl.arange(0, BLOCK)
            tl.store(widths_ptr + row, tl.zeros([BLOCK], tl.int32), mask=row < num_rows)
        for first in range(child, capacity, BLOCK):
            at = first + tl.arange(0, BLOCK)
            tl.store(parents_ptr + at, tl.full([BLOCK], -1, tl.int32), mask=at < capacity)
    else:
        end = tl.load(indptr_ptr + r + 1)
        total = tl.load(total_ptr + r)
        count = _rank(scores_ptr, order_ptr, widths_ptr, begin, end, BLOCK, BLOCK_J)
        total = tl.where(count > 0, total, 0)
        tl.store(counts_ptr + r, total)
        tl.debug_barrier()  # ranks are written by all threads, and read by all
        if total > 0:
            order_ptr += begin
            weights_ptr += begin
            if RULE == 0:
                _share_top(order_ptr, widths_ptr, count, total, tl.load(keep_ptr + r), BLOCK)
            else:
                temperature = temperature_bits.to(tl.float64, bitcast=True)
                normalizer = _weigh(scores_ptr, order_ptr, weights_ptr, count, temperature, BLOCK)
                tl.debug_barrier()
                if RULE == 1:
                    _share_softmax(order_ptr, weights_ptr, widths_ptr, count, total, BLOCK)
                elif RULE == 4:
                    _share_proportional(order_ptr, weights_ptr, widths_ptr, count, total, normalizer)
                else:
                    key = tl.load(keys_ptr + r)
                    _share_draws(order_ptr, weights_ptr, widths_ptr, count, total, key, normalizer, RULE == 2, BLOCK)
            tl.debug_barrier()
            _write_children(widths_ptr, parents_ptr, begin, end, child, capacity, BLOCK)


def prune(scores, indptr, total, keep, keys, rule, temperature, capacity, *, widths, parents, counts):
    """As the contract says, but nothing is counted on the host: children that exceed `capacity` are left out of `parents`, and
    `counts` tells."""
    if rule != "top" and not temperature > 0:
        raise ValueError(f"prune: temperature must be > 0, got {temperature}")
    if rule in ("systematic", "multinomial") and keys is None:
        raise ValueError("prune: rules systematic and multinomial draw and need keys")
    num_rows, num_segments = len(scores), len(total)
    order = torch.empty(num_rows, dtype=torch.int32, device=scores.device)
    weights = torch.empty(0 if rule == "top" else num_rows, dtype=torch.float64, device=scores.device)
    tables = *(dense(x) for x in (scores, indptr, total, keep, total if keys is None else keys)), order, weights
    # A float would be passed as float32.
    bits = struct.unpack("q", struct.pack("d", temperature))[0]
    sizes = {"RULE": RULES[rule], "BLOCK": BLOCK, "BLOCK_J": BLOCK_J}
    _prune_kernel[(num_segments + 1,)](*tables, widths, parents, counts, num_rows, num_segments, bits, capacity, **sizes)
