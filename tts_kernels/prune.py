"""prune: which rows survive and how many children each gets, for many problems at once."""

import math
from itertools import accumulate

import torch

from tts_kernels.op import op
from tts_kernels.philox import uniform


@op(
    "scores f32[N], indptr i32[R+1] in 0..N+1, total i32[R] in 0..capacity+1, keep i32[R], keys? i64[R],"
    " rule str in top|softmax|systematic|multinomial|proportional, temperature float, capacity int"
    " -> widths i32[N], parents i32[capacity], counts i32[R]"
)
def prune(scores, indptr, total, keep, keys, rule, temperature, capacity, *, widths, parents, counts):
    """Share `total[r]` children among the rows of segment r = `indptr[r]:indptr[r+1]`; every segment is one selection.

    top         the `keep[r]` best rows (at least 1, at most `total[r]`), `total[r]` spread evenly, the remainder to the best
    softmax     REBASE (Wu et al. 2024): in order of score, `ceil(left * e^(s_i/T) / sum_{j>=i} e^(s_j/T))`
    systematic  resampling with weights `softmax(s/T)` and one uniform draw of `keys[r]`
    multinomial `total[r]` independent draws with the same weights, numbered 0.. under `keys[r]`
    proportional DORA (arXiv 2506.15707): in order of score `total[r]` times the same weights rounded to the nearest, as far as
                they reach; what rounding leaves goes to the best, one each

    `widths` are the children of each row, `parents` the fork plan: the row of each child, in row order, segment after
    segment, -1 behind the last; `counts` the children of each segment. Ties: lowest row first. A score that is not finite
    is never selected; a segment without a finite score has counts 0. More than `capacity` children are an error.
    """
    if rule != "top" and not temperature > 0:
        raise ValueError(f"prune: temperature must be > 0, got {temperature}")
    if rule in ("systematic", "multinomial") and keys is None:
        raise ValueError("prune: rules systematic and multinomial draw and need keys")
    widths.zero_()
    for r, (begin, end) in enumerate(zip(indptr[:-1].tolist(), indptr[1:].tolist())):
        segment = scores[begin:end].double().tolist()
        order = sorted((i for i, s in enumerate(segment) if math.isfinite(s)), key=lambda i: (-segment[i], i))
        if not order or not total[r]:
            continue
        ranked = [segment[i] for i in order]
        key = None if keys is None else int(keys[r])
        share = _share(rule, ranked, int(total[r]), int(keep[r]), temperature, key)
        widths[begin + torch.tensor(order[: len(share)])] = torch.tensor(share, dtype=torch.int32)
    for r, (begin, end) in enumerate(zip(indptr[:-1].tolist(), indptr[1:].tolist())):
        counts[r] = widths[begin:end].sum()
    if counts.sum() > capacity:
        raise ValueError(f"prune: {int(counts.sum())} children do not fit the capacity of {capacity}")
    children = torch.repeat_interleave(torch.arange(len(scores), dtype=torch.int32), widths)
    parents.fill_(-1)
    parents[: len(children)] = children


def _share(rule, ranked, total, keep, temperature, key):
    """Children of each row, rows ranked by score."""
    if rule == "top":
        kept = max(1, min(keep, total, len(ranked)))
        return [total // kept + (i < total % kept) for i in range(kept)]
    weights = [math.exp((s - ranked[0]) / temperature) for s in ranked]
    if rule == "softmax":
        return _rebase(weights, total)
    if rule == "proportional":
        return _round(weights, total)
    draws = uniform(torch.full((total,), key), torch.arange(total)).tolist()
    if rule == "systematic":
        draws = [(i + draws[0]) / total for i in range(total)]
    return _resample(weights, draws)


def _rebase(weights, total):
    share, left = [], total
    rest = list(accumulate(reversed(weights)))[::-1]
    for weight, remaining in zip(weights, rest):
        if not left:
            break  # weights behind may have underflowed to 0
        # 1e-12 keeps an exact share from being rounded up by the division's last bit.
        share.append(min(left, math.ceil(left * weight / remaining - 1e-12)))
        left -= share[-1]
    return share


def _round(weights, total):
    share, left, normalizer = [], total, list(accumulate(weights))[-1]
    for weight in weights:
        share.append(min(left, math.floor(total * weight / normalizer + 0.5)))
        left -= share[-1]
    return [width + (i < left) for i, width in enumerate(share)]


def _resample(weights, draws):
    """Row i is drawn where cumulative(i-1) <= draw < cumulative(i), the weights normalised."""
    share, normalizer = [0] * len(weights), sum(weights)
    for draw in draws:
        reached = 0.0
        for i, weight in enumerate(weights):
            reached += weight / normalizer
            if draw < reached or i == len(weights) - 1:
                share[i] += 1
                break
    return share
