"""sample on a GPU: sums of blocks of logits in one launch, draws in another."""

import torch
import triton
import triton.language as tl

from tts_kernels.arguments import dense
from tts_kernels.triton.device import num_programs
from tts_kernels.triton.philox import uniform

BLOCK_V = 512
READERS = 8
"""Programs a multiprocessor that read logits: as many as keep its memory busy."""

_LOG2E = tl.constexpr(1.4426950408889634)
_LN2 = tl.constexpr(0.6931471805599453)
_LOWEST = tl.constexpr(-3.4028234663852886e38)
_TOP_TOKENS = tl.constexpr(20)
_STATE_MASK = tl.constexpr((1 << 24) - 1)


@triton.jit
def _sums_kernel(logits_ptr, row_ptr, temperature_ptr, sums_ptr, V, num_blocks, BLOCK_V: tl.constexpr):
    # Program (i, p) takes the blocks p, p + programs, ... of draw i's row: it reads 4*BLOCK_V bytes of each and writes its
    # largest logit, the sums of e^(logit - largest), plain and tempered, and of the logits: 16 bytes. Invariant: nothing
    # overflows, because each block has its own maximum; NaN and +inf make the plain sum NaN.
    i = tl.program_id(0)
    temperature = tl.load(temperature_ptr + i)
    factor = _LOG2E / tl.where(temperature > 0, temperature, 1.0)
    logits = logits_ptr + tl.load(row_ptr + i).to(tl.int64) * V
    for b in range(tl.program_id(1), num_blocks, tl.num_programs(1)):
        v = b * BLOCK_V + tl.arange(0, BLOCK_V)
        x = tl.load(logits + v, mask=v < V, other=float("-inf")).to(tl.float32)
        most = tl.maximum(tl.max(tl.where(x == x, x, float("-inf")), 0), _LOWEST)
        to = sums_ptr + (i.to(tl.int64) * num_blocks + b) * 4
        tl.store(to, most)
        tl.store(to + 1, tl.sum(tl.exp2((x - most) * _LOG2E), 0))
        tl.store(to + 2, tl.sum(tl.exp2((x - most) * factor), 0))
        tl.store(to + 3, tl.sum(tl.where(v < V, x, 0.0), 0))


@triton.jit
def _ordered(x):
    """i64 whose order is that of the floats."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # -0 becomes +0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@triton.jit
def _from_ordered(i):
    bits = i.to(tl.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def _at_least(values_ptr, size, least, peak, factor, BLOCK_V: tl.constexpr):
    """(number, sum of the weights 2^(factor * (x - peak)), sum) of the values x >= least."""
    number = tl.zeros([BLOCK_V], tl.int32)
    mass = tl.zeros([BLOCK_V], tl.float64)
    total = tl.zeros([BLOCK_V], tl.float64)
    for first in range(0, size, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        x = tl.load(values_ptr + v, mask=v < size, other=float("-inf"))
        is_in = (x >= least) & (v < size)
        number += is_in.to(tl.int32)
        mass += tl.where(is_in, tl.exp2((x - peak) * factor), 0.0).to(tl.float64)
        total += tl.where(is_in, x, 0.0).to(tl.float64)
    return tl.sum(number, 0), tl.sum(mass, 0), tl.sum(total, 0)


@triton.jit
def _select(values_ptr, size, low, count, mass, peak, factor, BLOCK_V: tl.constexpr):
    """The largest value t, as `_ordered`, of which the values >= t are `count` or weigh `mass`, and `_at_least` of those above t.

    `low` is known to be low enough. Halves the range in steps of the float's bits.
    """
    high = _ordered(peak) + 1
    while high - low > 1:
        middle = low + (high - low) // 2
        number, weight, _ = _at_least(values_ptr, size, _from_ordered(middle), peak, factor, BLOCK_V)
        is_low = (number >= count) | (weight >= mass)
        low = tl.where(is_low, middle, low)
        high = tl.where(is_low, high, middle)
    number, weight, total = _at_least(values_ptr, size, _from_ordered(low + 1), peak, factor, BLOCK_V)
    return low, number, weight, total


@triton.jit
def _kth_largest(most, count, BLOCK_NB: tl.constexpr):
    """A logit that `count` tokens reach, because the maxima of as many blocks do; -inf if there are too few."""
    low = _ordered(tl.full([], float("-inf"), tl.float32))
    high = _ordered(tl.max(most, 0)) + 1
    keys = _ordered(most)
    while high - low > 1:
        middle = low + (high - low) // 2
        is_low = tl.sum((keys >= middle).to(tl.int32), 0) >= count
        low = tl.where(is_low, middle, low)
        high = tl.where(is_low, high, middle)
    return _from_ordered(low)


@triton.jit
def _list_from(logits_ptr, sums_ptr, list_ptr, V, num_blocks, least, BLOCK_V: tl.constexpr):
    """Write the logits >= least to the list, and give how many there are."""
    tl.debug_barrier()  # all have read the list before
    found = 0
    for b in range(num_blocks):
        if tl.load(sums_ptr + b * 4) >= least:
            v = b * BLOCK_V + tl.arange(0, BLOCK_V)
            x = tl.load(logits_ptr + v, mask=v < V, other=float("-inf")).to(tl.float32)
            is_in = ((x >= least) & (v < V)).to(tl.int32)
            to = found + tl.cumsum(is_in, 0) - is_in
            tl.store(list_ptr + to, x, mask=is_in > 0)
            found += tl.sum(is_in, 0)
    tl.debug_barrier()  # the list is written by all threads, and read by all
    return found


@triton.jit
def _argmax_of_finite(logits_ptr, V, BLOCK_V: tl.constexpr):
    """The lowest id of the largest finite logit; 0 without one."""
    best = tl.full([], float("-inf"), tl.float32)
    token = tl.full([], 0, tl.int32)
    for first in range(0, V, BLOCK_V):
        v = first + tl.arange(0, BLOCK_V)
        x = tl.load(logits_ptr + v, mask=v < V, other=float("-inf")).to(tl.float32)
        x = tl.where(tl.abs(x) < float("inf"), x, float("-inf"))
        largest = tl.max(x, 0)
        at = tl.min(tl.where(x == largest, v, V), 0)
        token = tl.where(largest > best, at, token)
        best = tl.maximum(best, largest)
    return token


@triton.jit
def _last_tie(logits_ptr, sums_ptr, V, num_blocks, cut, ties, BLOCK_V: tl.constexpr):
    """The id of logit number `ties` among those equal to `cut`; V if there are fewer."""
    last = V
    seen = tl.full([], 0, tl.int32)
    for b in range(num_blocks):
        if (tl.load(sums_ptr + b * 4) >= cut) & (seen < ties):
            v = b * BLOCK_V + tl.arange(0, BLOCK_V)
            is_tie = ((tl.load(logits_ptr + v, mask=v < V, other=float("nan")).to(tl.float32) == cut) & (v < V)).to(tl.int32)
            number = seen + tl.cumsum(is_tie, 0)
            last = tl.minimum(last, tl.min(tl.where((is_tie > 0) & (number == ties), v, V), 0))
            seen += tl.sum(is_tie, 0)
    return last


@triton.jit
def _kept_weights(x, v, cut, last_tie, least, peak, factor):
    """Weights of the tokens that the filters keep, 0 of the others."""
    weight = tl.exp2((x - peak) * factor)
    is_kept = ((x > cut) | ((x == cut) & (v <= last_tie))) & (weight >= least)
    return tl.where(is_kept, weight, 0.0).to(tl.float64)


@triton.jit
def _statistics(logits_ptr, sums_ptr, list_ptr, most, peak, lse, V, num_blocks, BLOCK_V: tl.constexpr, BLOCK_NB: tl.constexpr):
    """(confidence, certainty) of a row: -mean of the 20 largest log-probabilities, -mean of all less that of uniform ones."""
    block = tl.arange(0, BLOCK_NB)
    logit_sum = tl.sum(tl.load(sums_ptr + block * 4 + 3, mask=block < num_blocks, other=0.0).to(tl.float64), 0)
    certainty = lse - logit_sum / V - tl.log(tl.cast(V, tl.float64))
    count = tl.minimum(_TOP_TOKENS, V)
    least = _kth_largest(most, count, BLOCK_NB)
    size = _list_from(logits_ptr, sums_ptr, list_ptr, V, num_blocks, least, BLOCK_V)
    cut, number, _, above = _select(list_ptr, size, _ordered(least), count, float("inf"), peak, _LOG2E, BLOCK_V)
    ties = (count - number).to(tl.float64) * _from_ordered(cut).to(tl.float64)
    return lse - (above + ties) / tl.cast(count, tl.float64), certainty


@triton.jit
def _last_kept(
    logits_ptr, sums_ptr, list_ptr, most, ends, top_k, has_top_k, top_p, peak, factor, V, num_blocks,
    BLOCK_V: tl.constexpr, BLOCK_NB: tl.constexpr,
):  # fmt: skip
    """(the smallest logit that top-k, then top-p keep, the last id that is kept among those equal to it)."""
    if has_top_k:
        least = _kth_largest(most, top_k, BLOCK_NB)
    else:
        # What comes after a kept token, itself included, weighs more than 1 - top_p, and none of these V is heavier.
        bound = tl.minimum(0.99 * (1 - top_p) * tl.sum(ends, 0) / V, 0.5).to(tl.float32)
        least = peak + tl.log2(bound) / factor
        least -= 1e-6 * tl.abs(least)
    size = _list_from(logits_ptr, sums_ptr, list_ptr, V, num_blocks, least, BLOCK_V)
    low = _ordered(least)
    mass = tl.sum(ends, 0)
    ties = tl.full([], 1, tl.int32) * V
    if has_top_k:
        low, number, above, _ = _select(list_ptr, size, low, top_k, float("inf"), peak, factor, BLOCK_V)
        ties = top_k - number
        mass = above + ties.to(tl.float64) * tl.exp2((_from_ordered(low) - peak) * factor).to(tl.float64)
    if top_p < 1:
        target = top_p.to(tl.float64) * mass
        cut_k = low
        low, _, above, _ = _select(list_ptr, size, low, V + 1, target, peak, factor, BLOCK_V)
        weight = tl.exp2((_from_ordered(low) - peak) * factor).to(tl.float64)
        fitting = tl.where(weight > 0, (target - above) / weight, V)
        fitting = tl.maximum(tl.minimum(tl.ceil(fitting), V), 1).to(tl.int32)
        ties = tl.where(low == cut_k, tl.minimum(ties, fitting), fitting)
    cut = _from_ordered(low)
    return cut, _last_tie(logits_ptr, sums_ptr, V, num_blocks, cut, ties, BLOCK_V)


@triton.jit
def _token_at(share, ends, logits_ptr, cut, last_tie, min_p, peak, factor, V, BLOCK_V: tl.constexpr, BLOCK_NB: tl.constexpr):
    """The first token with which the sum of kept weights exceeds `share` of them all; `ends` are the sums of the blocks.

    Where rounding leaves a sum short of it, it is the last block, or token, with a weight.
    """
    block = tl.arange(0, BLOCK_NB)
    target = share * tl.sum(ends, 0)
    hit = tl.min(tl.where((tl.cumsum(ends, 0) > target) & (ends > 0), block, BLOCK_NB), 0)
    hit = tl.minimum(hit, tl.max(tl.where(ends > 0, block, 0), 0))
    v = hit * BLOCK_V + tl.arange(0, BLOCK_V)
    x = tl.load(logits_ptr + v, mask=v < V, other=float("-inf")).to(tl.float32)
    weight = _kept_weights(x, v, cut, last_tie, min_p, peak, factor)
    within = tl.sum(tl.where(block < hit, ends, 0.0), 0) + tl.cumsum(weight, 0)
    token = tl.min(tl.where((within > target) & (weight > 0), v, V), 0)
    return tl.minimum(token, tl.max(tl.where(weight > 0, v, 0), 0))


@triton.jit(do_not_specialize=["num_draws"])
def _draw_kernel(
    logits_ptr, row_ptr, key_ptr, position_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, state_ptr, next_state_ptr,
    token_ptr, logprob_ptr, next_ptr, confidence_ptr, certainty_ptr, all_sums_ptr, list_ptr, num_draws, V, num_blocks,
    HAS_STATISTICS: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_NB: tl.constexpr,
):  # fmt: skip
    # Persistent: program p makes the draws p, p + programs, ... A plain draw reads 16 bytes a block and the 4*BLOCK_V of the
    # block that it hits; a filter lists its candidates first, halves the range of the last one it keeps, and sums what is kept:
    # two to four passes over the row. Invariant: `ends` are the kept weights of the blocks, in float64; a draw depends on its own
    # row alone.
    list_ptr += tl.program_id(0).to(tl.int64) * V
    block = tl.arange(0, BLOCK_NB)
    for i in range(tl.program_id(0), num_draws, tl.num_programs(0)):
        logits = logits_ptr + tl.load(row_ptr + i).to(tl.int64) * V
        sums = all_sums_ptr + tl.cast(i, tl.int64) * num_blocks * 4
        is_block = block < num_blocks
        most = tl.load(sums + block * 4, mask=is_block, other=float("-inf"))
        peak = tl.max(most, 0)
        plain = tl.load(sums + block * 4 + 1, mask=is_block, other=0.0)
        total = tl.sum((plain * tl.exp2((most - peak) * _LOG2E)).to(tl.float64), 0)
        lse = peak.to(tl.float64) + tl.log(total)
        is_valid = total > 0  # NaN is not
        confidence = tl.full([], float("nan"), tl.float64)
        certainty = tl.full([], float("nan"), tl.float64)
        if HAS_STATISTICS & is_valid:
            confidence, certainty = _statistics(logits, sums, list_ptr, most, peak, lse, V, num_blocks, BLOCK_V, BLOCK_NB)

        temperature = tl.load(temperature_ptr + i)
        if (temperature == 0) | (is_valid == 0):
            token = _argmax_of_finite(logits, V, BLOCK_V)
        else:
            factor = _LOG2E / temperature
            tempered = tl.load(sums + block * 4 + 2, mask=is_block, other=0.0)
            ends = (tempered * tl.exp2((most - peak) * factor)).to(tl.float64)
            top_k, top_p = tl.load(top_k_ptr + i), tl.load(top_p_ptr + i)
            min_p = tl.minimum(tl.load(min_p_ptr + i), 1.0)
            has_top_k = (top_k > 0) & (top_k < V)
            cut = tl.full([], float("-inf"), tl.float32)
            last_tie = tl.full([], -1, tl.int32)
            if has_top_k | (top_p < 1):
                cut, last_tie = _last_kept(
                    logits, sums, list_ptr, most, ends, top_k, has_top_k, top_p, peak, factor, V, num_blocks, BLOCK_V, BLOCK_NB
                )
            if has_top_k | (top_p < 1) | (min_p > 0):
                ends = tl.zeros([BLOCK_NB], tl.float64)
                for b in range(num_blocks):
                    if tl.load(sums + b * 4) >= cut:
                        v = b * BLOCK_V + tl.arange(0, BLOCK_V)
                        x = tl.load(logits + v, mask=v < V, other=float("-inf")).to(tl.float32)
                        kept = tl.sum(_kept_weights(x, v, cut, last_tie, min_p, peak, factor), 0)
                        ends = tl.where(block == b, kept, ends)
            share = uniform(tl.load(key_ptr + i), tl.load(position_ptr + i))
            token = _token_at(share, ends, logits, cut, last_tie, min_p, peak, factor, V, BLOCK_V, BLOCK_NB)

        tl.store(token_ptr + i, token.to(tl.int64))
        logprob = tl.load(logits + token).to(tl.float64) - lse
        tl.store(logprob_ptr + i, tl.where(is_valid, logprob, float("nan")).to(tl.float32))
        state = (tl.load(state_ptr + i) & _STATE_MASK).to(tl.int64)
        tl.store(next_ptr + i, tl.load(next_state_ptr + state * V + token))
        tl.store(confidence_ptr + i, confidence.to(tl.float32))
        tl.store(certainty_ptr + i, certainty.to(tl.float32))


def sample(
    logits, row, key, position, temperature, top_k, top_p, min_p, state, next_state, with_statistics,
    *, token, logprob, next, confidence, certainty,
):  # fmt: skip
    num_draws, V, device = len(row), logits.shape[1], logits.device
    if num_draws == 0:
        return
    logits, row, temperature, next_state = dense(logits), dense(row), dense(temperature), dense(next_state)
    settings = (dense(x) for x in (key, position, temperature, top_k, top_p, min_p, state))
    num_blocks, programs = triton.cdiv(V, BLOCK_V), num_programs(device)
    sums = torch.empty(num_draws, num_blocks, 4, dtype=torch.float32, device=device)
    split = min(num_blocks, triton.cdiv(READERS * programs, num_draws))
    _sums_kernel[(num_draws, split)](logits, row, temperature, sums, V, num_blocks, BLOCK_V=BLOCK_V)
    programs = min(num_draws, programs)
    lists = torch.empty(programs, V, dtype=torch.float32, device=device)
    outputs = token, logprob, next, confidence, certainty
    sizes = {"BLOCK_V": BLOCK_V, "BLOCK_NB": max(16, triton.next_power_of_2(num_blocks)), "num_warps": 8}
    inputs = logits, row, *settings, next_state, *outputs, sums, lists, num_draws, V, num_blocks
    _draw_kernel[(programs,)](*inputs, HAS_STATISTICS=bool(with_statistics), **sizes)
