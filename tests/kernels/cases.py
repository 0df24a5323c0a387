"""Inputs of every op with what must come out: one place, walked by the conformance test.

`expected` is computed here in float64 from the definition, never by a backend. A tolerance is absolute; 0 means the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import torch
from trees import Tree, dense_attention, depth_first_leaves, filled_pages, i32, random_tree

from tts_kernels import pack
from tts_kernels.attend import plan
from tts_kernels.philox import uniform

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
HALVES_TOO = (F32, F16, BF16)


@dataclass
class Case:
    inputs: tuple
    expected: dict[str, tuple[torch.Tensor, float]]
    """Per output, or input that is written: the value and the largest error."""
    error_of_weights: dict[str, float] = field(default_factory=dict)
    """By how much more an output may be off where a backend rounds the weights of a sum to bfloat16."""


@dataclass(frozen=True)
class Family:
    name: str
    cases: dict[str, Callable[[torch.dtype], Case]]
    dtypes: tuple[torch.dtype, ...] = (F32,)


FAMILIES: dict[str, Family] = {}


def family(name: str, dtypes=(F32,)):
    """Register the cases that the decorated function yields as (name, maker of a Case from a dtype)."""

    def declare(make: Callable[[], Iterator[tuple[str, Callable[[torch.dtype], Case]]]]):
        FAMILIES[name] = Family(name, {case: cache(maker) for case, maker in make()}, dtypes)
        return make

    return declare


def each(function: Callable, value):
    """`function` of a tensor, or of each tensor of a list; anything else as it is."""
    if isinstance(value, list):
        return [function(x) for x in value]
    return function(value) if isinstance(value, torch.Tensor) else value


def copies(values) -> list:
    return [each(torch.Tensor.clone, x) for x in values]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def allowance(exact: torch.Tensor, plain: torch.Tensor, magnitude: float = 0.0) -> float:
    """Twice the error of plain PyTorch of the same dtype, and one rounding of the largest value.

    `magnitude` is the largest sum of what is added, without signs: one float32 rounding of it is what the order of a sum may
    cost, and what plain PyTorch may by luck not have paid where there are few values.
    """
    finite = exact.isfinite()
    if not finite.any():
        return 0.0
    error = (plain.double() - exact)[finite].abs().max()
    largest = float(exact[finite].abs().max())
    return float(2 * error) + torch.finfo(plain.dtype).eps * largest + torch.finfo(F32).eps * magnitude


def normal(shape, dtype, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed)).to(dtype)


def linear_case(dtype, m, n, k, has_bias, seed=0) -> Case:
    x, weight, bias = (normal(shape, dtype, seed + i) for i, shape in enumerate(((m, k), (n, k), (n,))))
    bias = bias if has_bias else None
    exact = x.double() @ weight.double().T + (bias.double() if has_bias else 0)
    plain = torch.nn.functional.linear(x, weight, bias) if k else exact.to(dtype)
    packed = pack(weight, backend="reference")
    magnitude = float((x.double().abs() @ weight.double().abs().T).max()) if m and n else 0.0
    return Case((x, n, packed, bias), {"out": (exact, allowance(exact, plain, magnitude))})


@family("linear", HALVES_TOO)
def linear_cases():
    small = (0, 3, 5), (3, 0, 5), (3, 5, 0), (1, 1, 1), (1, 64, 48), (7, 13, 31), (16, 48, 129)
    for m, n, k in (*small, (131, 65, 300), (70, 100, 2100), (330, 3200, 33)):
        for has_bias in (False, True):
            yield f"{m}x{n}x{k}{'+bias' if has_bias else ''}", partial(linear_case, m=m, n=n, k=k, has_bias=has_bias)


def pack_case(dtype, n, k, seed=0) -> Case:
    weight = normal((n, k), dtype, seed)
    packed = torch.zeros(-(-n // 16), -(-k // 32), 16, 16, 2, dtype=dtype)
    row, depth = torch.arange(n)[:, None], torch.arange(k)
    packed[row // 16, depth // 32, depth % 32 // 2, row % 16, depth % 2] = weight
    return Case((weight,), {"packed": (packed, 0.0)})


@family("pack", HALVES_TOO)
def pack_cases():
    for n, k in ((0, 5), (5, 0), (1, 1), (16, 32), (17, 33), (50, 100)):
        yield f"{n}x{k}", partial(pack_case, n=n, k=k)


def rms_norm_case(dtype, rows, width, eps=1e-6, seed=0) -> Case:
    x, weight = 3 * normal((rows, width), dtype, seed), normal(width, dtype, seed + 1)
    exact, plain = (_rms_norm(x, weight, eps, d) for d in (torch.float64, F32))
    return Case((x, weight, eps), {"out": (exact, allowance(exact, plain.to(dtype)))})


def _rms_norm(x, weight, eps, dtype):
    """Rounded as Llama's, the arithmetic in `dtype`."""
    scaled = x.to(dtype) * (x.to(dtype).pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    return weight.to(dtype) * scaled.to(x.dtype).to(dtype)


@family("rms_norm", HALVES_TOO)
def rms_norm_cases():
    for rows, width in ((0, 7), (3, 0), (1, 1), (5, 16), (7, 33), (3, 63), (13, 131), (2, 896)):
        yield f"{rows}x{width}", partial(rms_norm_case, rows=rows, width=width)

    def not_finite(dtype):
        x = torch.tensor([[1.0, -1.0], [float("nan"), 1.0], [float("inf"), 1.0], [0.0, 0.0]]).to(dtype)
        nan = float("nan")
        out = torch.tensor([[1.0, -2.0], [nan, nan], [nan, 0.0], [0.0, 0.0]], dtype=torch.float64)
        return Case((x, torch.tensor([1.0, 2.0]).to(dtype), 1e-12), {"out": (out, 1e-6)})

    yield "not-finite", not_finite


def silu_and_mul_case(dtype, rows, width, scale=3.0, seed=0) -> Case:
    x = (scale * normal((rows, 2 * width), F32, seed)).to(dtype)
    gate, up = x.double().chunk(2, -1)
    exact = (gate * torch.sigmoid(gate)).to(dtype).double() * up
    plain = torch.nn.functional.silu(x[:, :width]) * x[:, width:]
    return Case((x,), {"out": (exact, allowance(exact, plain))})


@family("silu_and_mul", HALVES_TOO)
def silu_and_mul_cases():
    for rows, width in ((0, 7), (3, 0), (1, 1), (5, 16), (7, 33), (3, 63), (13, 131), (2, 896)):
        yield f"{rows}x{width}", partial(silu_and_mul_case, rows=rows, width=width)

    def extremes(dtype):
        nan, inf = float("nan"), float("inf")
        x = torch.tensor([[nan, 1.0], [inf, 1.0], [-inf, 1.0], [1.0, nan], [30000.0, 1.0], [-30000.0, 2.0], [0.0, 5.0]])
        out = torch.tensor([[nan], [inf], [nan], [nan], [float(torch.tensor(30000.0).to(dtype))], [0.0], [0.0]])
        return Case((x.to(dtype),), {"out": (out, 0.0)})

    yield "extremes", extremes


def rope_case(dtype, tokens, heads, dim, rotary, seed=0) -> Case:
    x, angles = 3 * normal((tokens, heads, dim), dtype, seed), 9 * normal((tokens, rotary), F32, seed + 1)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    exact, plain = (_rope(x, cos, sin, d) for d in (torch.float64, F32))
    return Case((x, cos, sin), {"x": (exact, allowance(exact, plain.to(dtype)))})


def _rope(x, cos, sin, dtype):
    """Rounded as Llama's, the arithmetic in `dtype`."""

    def product(a, b):
        return (a.to(dtype) * b.to(dtype)).to(x.dtype).to(dtype)

    (low, high), (cos_low, cos_high), (sin_low, sin_high) = (
        y[..., : cos.shape[1]].tensor_split(2, -1) for y in (x, cos[:, None], sin[:, None])
    )
    turned = product(low, cos_low) - product(high, sin_low), product(high, cos_high) + product(low, sin_high)
    return torch.cat([*turned, x[..., cos.shape[1] :].to(dtype)], -1)


@family("rope", HALVES_TOO)
def rope_cases():
    sizes = (
        (0, 2, 8, 8),
        (3, 0, 8, 8),
        (2, 1, 5, 0),
        (1, 1, 2, 2),
        (7, 2, 16, 16),
        (5, 3, 40, 38),
        (3, 2, 80, 32),
        (2, 7, 64, 64),
    )
    for tokens, heads, dim, rotary in (*sizes, (9, 3, 96, 96), (2, 2, 131, 130), (3, 5, 128, 64)):
        name = f"{tokens}x{heads}x{dim}-{rotary}"
        yield name, partial(rope_case, tokens=tokens, heads=heads, dim=dim, rotary=rotary)


def append_case(dtype, tokens, heads, dim, num_pages=11, page_size=7, seed=0, num_skipped=0) -> Case:
    """`num_skipped` of the tokens, anywhere, have slot -1."""
    pages = torch.full((2, num_pages, heads, page_size, dim), float("nan"), dtype=dtype)
    k, v = normal((tokens, heads, dim), dtype, seed), normal((tokens, heads, dim), dtype, seed + 1)
    slots = torch.randperm(num_pages * page_size, generator=generator(seed))[:tokens]
    slots[torch.randperm(tokens, generator=generator(seed))[:num_skipped]] = -1
    kept, after = slots >= 0, pages.clone()
    after[:, slots[kept] // page_size, :, slots[kept] % page_size] = torch.stack([k, v], 1)[kept]
    return Case((k, v, *pages, slots), {"keys": (after[0], 0.0), "values": (after[1], 0.0)})


@family("append", HALVES_TOO)
def append_cases():
    for tokens, heads, dim in ((0, 1, 16), (1, 1, 8), (7, 2, 40), (13, 3, 16), (61, 7, 80)):
        yield f"{tokens}x{heads}x{dim}", partial(append_case, tokens=tokens, heads=heads, dim=dim)
    yield "13x2x16-of-which-5-are-skipped", partial(append_case, tokens=13, heads=2, dim=16, num_skipped=5)
    yield "3x1x8-all-skipped", partial(append_case, tokens=3, heads=1, dim=8, num_skipped=3)


def attention_case(dtype, tree: Tree, leaves, counts, num_heads, num_kv_heads, dim, seed=0) -> Case:
    indptr = [0, *np.cumsum(counts).tolist()]
    pages = filled_pages(tree, num_kv_heads, dim, dtype, generator(seed))
    q = normal((indptr[-1], num_heads, dim), dtype, seed + 3)
    contexts = [
        tree.context(leaf)[: len(tree.context(leaf)) - left] for leaf, n in zip(leaves, counts) for left in range(n)[::-1]
    ]
    items, spans = plan(*tree.plan_inputs(leaves, indptr, 0, 0), backend="reference").needed.tolist()
    made = plan(*tree.plan_inputs(leaves, indptr, items, spans), backend="reference")
    scale = dim**-0.5
    exact, lse = dense_attention(q, *pages, contexts, scale)
    plain, _ = dense_attention(q, *pages, contexts, scale, dtype)
    inputs = (q, *pages, made.spans, made.item_indptr, made.items, scale)
    _, float_lse = dense_attention(q, *pages, contexts, scale, torch.float32)  # whatever the dtype is
    keys, values = pages
    summed, _ = dense_attention(q, keys, values.abs(), contexts, scale)
    # A rounding of a score is a relative error of its weight. The log-sum-exp of the scores without signs is at least their
    # largest, and hardly more.
    _, sizes = dense_attention(q.abs(), keys.abs(), values, contexts, scale)
    magnitude = float((summed * (1 + sizes.clamp(min=0)[..., None])).max()) if summed.numel() else 0.0
    expected = {"out": (exact, allowance(exact, plain, magnitude)), "lse": (lse, allowance(lse, float_lse) + 1e-6)}
    return Case(inputs, expected, {"lse": 2**-8 + 1e-4} if dtype == BF16 else {})


@family("attend", HALVES_TOO)
def attend_cases():
    heads = [(3, 3, 16), (4, 1, 16), (7, 1, 40), (14, 2, 64), (8, 1, 80), (8, 2, 96), (4, 4, 128), (8, 1, 256), (2, 2, 8)]
    for i, (num_heads, num_kv_heads, dim) in enumerate(heads):

        def make(dtype, i=i, num_heads=num_heads, num_kv_heads=num_kv_heads, dim=dim):
            rng = np.random.default_rng(i)
            tree = random_tree(rng, page_size=(1, 2, 4, 5, 16)[i % 5], num_nodes=9)
            leaves = [x for x in depth_first_leaves(tree) if tree.length[x]]
            return attention_case(dtype, tree, leaves, [1] * len(leaves), num_heads, num_kv_heads, dim)

        yield f"decode-H{num_heads}-G{num_kv_heads}-D{dim}", make

    def prefill(dtype):
        tree = Tree(4, 80)
        root = tree.add(-1, 101)
        leaves = [tree.add(root, 37), tree.add(root, 1), tree.add(root, 70, start=3)]
        return attention_case(dtype, tree, leaves, [9, 1, 66], 4, 2, 24)

    def long_context(dtype):
        tree = Tree(16, 60)
        leaves = [tree.add(tree.add(-1, 611), 3) for _ in range(1)]
        return attention_case(dtype, tree, leaves, [2], 7, 1, 64)

    def no_context(dtype):
        tree = Tree(4, 4)
        tree.add(-1, 3)
        case = attention_case(dtype, tree, [0], [1], 2, 1, 16)
        q, keys, values, spans, _, _, scale = case.inputs
        items = (spans, i32([0, 0, 1]), i32([[0, 2, 0], [1, 1, 0]]), scale)
        q = torch.cat([q, q, q])
        zero, empty = torch.zeros(q.shape, dtype=torch.float64), torch.full(q.shape[:2], float("-inf"), dtype=torch.float64)
        return Case((q, keys, values, *items), {"out": (zero, 0.0), "lse": (empty, 0.0)})

    yield "ragged-prefill", prefill
    yield "long-context", long_context
    yield "no-context", no_context
    yield (
        "no-queries",
        lambda dtype: Case(
            (
                normal((0, 2, 16), dtype),
                normal((1, 1, 4, 16), dtype),
                normal((1, 1, 4, 16), dtype, 1),
                i32([]).reshape(0, 3),
                i32([0]),
                i32([]).reshape(0, 3),
                1.0,
            ),
            {"out": (torch.zeros(0, 2, 16, dtype=torch.float64), 0.0), "lse": (torch.zeros(0, 2, dtype=torch.float64), 0.0)},
        ),
    )


@family("plan")
def plan_cases():
    """A worked example: root 0 with the children 1 (leaf) and 2, whose children 3 and 4 are leaves; node 4 begins at slot 2."""

    def worked(_):
        tree = Tree(4, 10)
        for parent, length, start in ((-1, 5, 0), (0, 3, 0), (0, 4, 0), (2, 1, 0), (2, 3, 2)):
            tree.add(parent, length, start)
        inputs = tree.plan_inputs([1, 3, 4], [0, 1, 2, 4], max_items=5, max_spans=8)
        pages = [[slots[0] // 4, slots[-1] // 4] for slots in tree.tokens]
        items = [[0, 4, 0], [0, 1, 1], [1, 4, 0], [1, 2, 1], [2, 4, 1]]
        spans = [[pages[0][0], 0, 4], [pages[0][1], 0, 1], [pages[1][0], 0, 3], [pages[2][0], 0, 4], [pages[3][0], 0, 1]]
        spans += [[pages[4][0], 2, 2], [pages[4][1], 0, 1]]
        return inputs, items, [0, 2, 3, 4, 5, 7], spans

    def exact(dtype):
        inputs, items, indptr, spans = worked(dtype)
        inputs = (*inputs[:-2], len(items), len(spans))
        values = {"items": items, "item_indptr": indptr, "spans": spans, "needed": [len(items), len(spans)]}
        return Case(inputs, {name: (i32(value), 0.0) for name, value in values.items()})

    def too_small(dtype):
        inputs, items, _, spans = worked(dtype)
        return Case((*inputs[:-2], len(items), len(spans) - 1), {"needed": (i32([len(items), len(spans)]), 0.0)})

    def no_rows(_):
        tree = Tree(4, 2)
        tree.add(-1, 3)
        inputs = tree.plan_inputs([], [0], 0, 0)
        return Case((i32([]), *inputs[1:]), {"item_indptr": (i32([0]), 0.0), "needed": (i32([0, 0]), 0.0)})

    yield "worked-example", exact
    yield "too-small", too_small
    yield "no-rows", no_rows


UNREAD = 2147480000


@family("plan_pages")
def plan_pages_cases():
    """A worked example in pages of 4: rows 0 and 1 share pages 7 and 2, rows 2 and 3 pages 7, 8 and 1; row 5 adds no token."""
    tables = [[7, 2, 5], [7, 2, 3], [7, 8, 1, 6], [7, 8, 1, 9], [0], [7, 2]]
    page_table = i32([pages + [UNREAD] * (5 - len(pages)) for pages in tables])
    inputs = (page_table, i32([11, 9, 16, 13, 2, 5]), i32([0, 1, 2, 6, 7, 9, 9]), 4)
    items = [[0, 7, 0], [0, 2, 0], [0, 1, 1], [1, 2, 1], [2, 7, 0], [2, 6, 1], [6, 7, 1], [7, 9, 1]]
    spans = [[7, 0, 4], [2, 0, 4], [5, 0, 3], [3, 0, 1], [8, 0, 4], [1, 0, 4], [6, 0, 4], [9, 0, 1], [0, 0, 2]]

    def exact(_):
        values = {"items": items, "item_indptr": [0, 1, 2, 3, 4, 6, 7, 8, 9], "spans": spans, "needed": [8, 9]}
        return Case((*inputs, len(items), len(spans)), {name: (i32(value), 0.0) for name, value in values.items()})

    def too_small(_):
        return Case((*inputs, len(items) - 1, 100), {"needed": (i32([8, 9]), 0.0)})

    def same_pages(_):
        """Rows with one table share what is full before their new token: the last page is not, though that token fills it."""
        rows = (i32([[3, 1], [3, 1]]), i32([8, 8]), i32([0, 1, 2]), 4, 3, 3)
        values = {"items": [[0, 2, 0], [0, 1, 1], [1, 2, 1]], "item_indptr": [0, 1, 2, 3]}
        values |= {"spans": [[3, 0, 4], [1, 0, 4], [1, 0, 4]], "needed": [3, 3]}
        return Case(rows, {name: (i32(value), 0.0) for name, value in values.items()})

    def no_rows(_):
        rows = (i32([]).reshape(0, 3), i32([]), i32([0]), 4, 0, 0)
        return Case(rows, {"item_indptr": (i32([0]), 0.0), "needed": (i32([0, 0]), 0.0)})

    yield "worked-example", exact
    yield "too-small", too_small
    yield "same-pages", same_pages
    yield "no-rows", no_rows


def score_case(dtype, rows, dim, labels, activation, has_bias, first=1.0, seed=0, bad_rows=()) -> Case:
    """`first` is what the aggregates of the paths begin with; `bad_rows` are (row, the value of all its hidden state)."""
    hidden, head = normal((rows, dim), dtype, seed), (normal((labels, dim), F32, seed + 1) / max(dim, 1) ** 0.5).to(dtype)
    for row, value in bad_rows:
        hidden[row] = value
    bias = normal(labels, F32, seed + 2) if has_bias else None
    before = normal((rows, 4), F32, seed + 3).abs() + first
    before[:1] = torch.tensor([float("inf"), 0, 0, 0])
    value = _score(hidden, head, bias, labels - 1, activation, torch.float64)
    plain = _score(hidden, head, bias, labels - 1, activation, F32)
    running = torch.stack(
        [torch.minimum(before[:, 0], value), before[:, 1] + value.log(), before[:, 2] + value, before[:, 3] + 1], 1
    )
    bound = allowance(value, plain) + 1e-6
    return Case(
        (hidden, head, bias, before, labels - 1, activation),
        {"out": (value, bound), "running": (running, 8 * bound)},
    )


@family("score", HALVES_TOO)
def score_cases():
    for i, (rows, dim, labels, activation) in enumerate(
        [(0, 8, 2, "softmax"), (1, 1, 1, "sigmoid"), (7, 48, 2, "softmax"), (13, 131, 3, "softmax"), (257, 896, 2, "sigmoid")]
    ):
        sizes = {"rows": rows, "dim": dim, "labels": labels, "activation": activation}
        yield f"{rows}x{dim}x{labels}-{activation}", partial(score_case, **sizes, has_bias=i % 2, first=i)

    def not_finite(dtype):
        hidden = torch.tensor([[1.0, 0], [float("nan"), 0], [float("inf"), 1], [float("-inf"), 1]]).to(dtype)
        head = torch.tensor([[1.0, 1.0], [0.5, -1.0]]).to(dtype)
        before = torch.tensor([[0.5, -1.0, 2.0, 3.0]]).repeat(4, 1)
        first = float(torch.softmax(torch.tensor([1.0, 0.5], dtype=torch.float64), 0)[1])
        nan = float("nan")
        out = torch.tensor([first, nan, nan, nan], dtype=torch.float64)
        running = torch.tensor([[first, -1 + np.log(first), 2 + first, 4]] + [[nan, nan, nan, 4]] * 3, dtype=torch.float64)
        return Case((hidden, head, None, before, 1, "softmax"), {"out": (out, 1e-6), "running": (running, 1e-6)})

    yield "not-finite", not_finite


def _score(hidden, head, bias, label, activation, dtype):
    logits = hidden.to(dtype) @ head.to(dtype).T + (0 if bias is None else bias.to(dtype))
    return torch.sigmoid(logits[:, label]) if activation == "sigmoid" else torch.softmax(logits, -1)[:, label]


@family("prune")
def prune_cases():
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([0.9, 0.1, 0.5, nan, inf, 0.5, 0.5, -inf, 0.25])

    def worked(rule, total, keep, widths, **more):
        def make(_):
            inputs = (scores, i32([0, 3, 3, 9]), i32(total), i32(keep), more.get("keys"), rule, more.get("temperature", 1.0), 12)
            parents = [row for row, width in enumerate(widths) for _ in range(width)]
            counts = [sum(widths[:3]), 0, sum(widths[3:])]
            values = {"widths": widths, "parents": parents + [-1] * (12 - len(parents)), "counts": counts}
            return Case(inputs, {name: (i32(value), 0.0) for name, value in values.items()})

        return make

    yield "top-even", worked("top", [4, 2, 4], [2, 1, 2], [2, 0, 2, 0, 0, 2, 2, 0, 0])
    yield "top-remainder-to-the-best", worked("top", [5, 0, 7], [2, 1, 3], [3, 0, 2, 0, 0, 3, 2, 0, 2])
    yield "top-keeps-at-least-one", worked("top", [3, 3, 1], [0, 0, 9], [3, 0, 0, 0, 0, 1, 0, 0, 0])
    # REBASE, .9 .5 .1: ceil(6 * .472) = 3, ceil(3 * .599) = 2, the last 1; .5 .5 .25: ceil(6 * .360) = 3, ceil(3 * .562) = 2, 1.
    yield "softmax", worked("softmax", [6, 1, 6], [0, 0, 0], [3, 1, 2, 0, 0, 3, 2, 0, 1])
    yield "softmax-cold", worked("softmax", [6, 1, 6], [0, 0, 0], [6, 0, 0, 0, 0, 3, 3, 0, 0], temperature=1e-3)
    yield (
        "nothing",
        lambda _: Case(
            (scores[:0], i32([0]), i32([]), i32([]), None, "top", 1.0, 0),
            {name: (i32([]), 0.0) for name in ("widths", "parents", "counts")},
        ),
    )
    yield (
        "not-finite-only",
        lambda _: Case(
            (torch.tensor([nan, inf, -inf]), i32([0, 3]), i32([2]), i32([2]), None, "softmax", 1.0, 2),
            {"widths": (i32([0, 0, 0]), 0.0), "parents": (i32([-1, -1]), 0.0), "counts": (i32([0]), 0.0)},
        ),
    )


def fork_case(_, parents, nodes, num_nodes=7) -> Case:
    before = [i32([-1, -1, 1] + [9] * (num_nodes - 3)) + 10 * i for i in range(6)]
    after = copies(before)
    for parent, node in zip(parents, nodes):
        for table, value in zip(after, (parent, 1, 0, 0, -1, -1)):
            table[node] = value
    for parent in parents:
        after[1][parent] += 1
    names = ("parent", "refs", "start", "length", "first_page", "last_page")
    return Case((i32(parents), i32(nodes), *before), {name: (table, 0.0) for name, table in zip(names, after)})


@family("fork")
def fork_cases():
    for parents, nodes in (([], []), ([2], [0]), ([1, 1, 1, 2], [5, 3, 6, 0])):
        yield f"{len(parents)}-children", partial(fork_case, parents=parents, nodes=nodes)


def copy_tails_case(dtype, copied, num_caches, heads, dim, num_pages=13, page_size=7, seed=0) -> Case:
    """`copied` are (source, destination, count)."""
    caches = [normal((num_pages, heads, page_size, dim), dtype, seed + i) for i in range(num_caches)]
    slots = [(source, destination, slot) for source, destination, count in copied for slot in range(count)]
    source, destination, slot = torch.tensor(slots, dtype=torch.int64).reshape(-1, 3).unbind(1)
    after = copies(caches)
    for pages in after:
        pages[destination, :, slot] = pages[source, :, slot]
    columns = i32(copied).reshape(-1, 3).unbind(1)
    return Case((*columns, caches), {"caches": (torch.stack(after), 0.0)})


@family("copy_tails", HALVES_TOO)
def copy_tails_cases():
    copied = [(12, 1, 6), (3, 2, 1), (3, 4, 7), (0, 5, 0), (12, 11, 3)]
    for count, num_caches, heads, dim in ((0, 2, 1, 8), (1, 1, 1, 16), (5, 6, 2, 40), (4, 3, 7, 24)):
        sizes = {"num_caches": num_caches, "heads": heads, "dim": dim}
        yield f"{count}x{num_caches}x{heads}x{dim}", partial(copy_tails_case, copied=copied[:count], **sizes)


def sample_inputs(logits, row, **given) -> tuple:
    """Inputs of `sample` with neutral settings where none are `given`; one stop state, which every token keeps."""
    n, vocabulary = len(row), logits.shape[1]
    f32 = lambda name, value: torch.tensor(given.get(name, [value] * n), dtype=torch.float32)  # noqa: E731
    return (
        logits,
        i32(row),
        torch.tensor(given.get("key", list(range(n))), dtype=torch.int64),
        torch.tensor(given.get("position", [0] * n), dtype=torch.int64),
        f32("temperature", 1.0),
        i32(given.get("top_k", [0] * n)),
        f32("top_p", 1.0),
        f32("min_p", 0.0),
        i32(given.get("state", [0] * n)),
        given.get("next_state", torch.zeros(1, vocabulary, dtype=torch.int32)),
        given.get("with_statistics", 0),
    )


def kept_distribution(logits: np.ndarray, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """The filtered distribution, straight from the definition in float64."""
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    kept = order[: top_k or len(p)]
    if top_p < 1:
        mass = np.cumsum(p[kept])
        kept = kept[: 1 + np.searchsorted(mass, top_p * mass[-1], side="left")]
    filtered = np.zeros_like(p)
    filtered[kept] = p[kept]
    filtered[filtered < min_p * p.max()] = 0
    return filtered / filtered.sum()


def check_draws(inputs, results) -> None:
    """Each draw inverts its distribution, moves the stop automaton and takes the statistics as `sample` says.

    Which tokens a filter keeps at its very boundary, and which of two neighbours a uniform between them draws, is a matter of
    float32's rounding; either is right.
    """
    logits, row, key, position, temperature, top_k, top_p, min_p, state, next_state, with_statistics = inputs
    logp = torch.log_softmax(logits.double(), -1)
    uniforms = uniform(key, position).tolist()
    for i, (r, token) in enumerate(zip(row.tolist(), results["token"].tolist())):
        assert results["next"][i] == next_state[state[i] & 0xFFFFFF, token]
        finite = torch.where(logits[r].isfinite(), logits[r], -np.inf)
        is_valid = bool((logits[r] < np.inf).all() and finite.max() > -np.inf)
        if not is_valid or temperature[i] == 0:
            assert token == int(finite.argmax())
        else:
            settings = (float(temperature[i]), int(top_k[i]), float(top_p[i]), float(min_p[i]))
            assert _may_be_drawn(logits[r].double().numpy(), token, uniforms[i], *settings), f"draw {i}: token {token}"
        expected = [logp[r, token], -logp[r].topk(min(20, len(finite))).values.mean(), -(logp[r] + np.log(len(finite))).mean()]
        expected = [x if is_valid else x * np.nan for x in expected]
        expected[1:] = [x if with_statistics else x * np.nan for x in expected[1:]]
        got = torch.stack([results[name][i] for name in ("logprob", "confidence", "certainty")]).double()
        torch.testing.assert_close(got, torch.stack(expected), rtol=1e-5, atol=1e-5, equal_nan=True)


def _may_be_drawn(logits, token, u, temperature, top_k, top_p, min_p, slack=1e-5) -> bool:
    for p in {top_p - slack, top_p, top_p + slack} if top_p < 1 else {1.0}:
        for m in {min_p - slack, min_p, min_p + slack} if min_p > 0 else {0.0}:
            kept = kept_distribution(logits, temperature, top_k, max(p, 0.0), min(m, 1.0))
            reached = np.cumsum(kept)[token]
            if kept[token] > 0 and reached - kept[token] - slack <= u <= reached + slack:
                return True
    return False


@family("sample", HALVES_TOO)
def sample_cases():
    nan, inf = float("nan"), float("inf")

    def outcome(inputs, token, next=None):
        logits, row = inputs[0].double(), inputs[1].long()
        token = torch.tensor(token, dtype=torch.int64)
        valid = (logits < inf).all(-1) & logits.isfinite().any(-1)
        logp = torch.where(valid[:, None], torch.log_softmax(logits, -1), nan)
        statistics = torch.full((2, len(row)), nan, dtype=torch.float64)
        if inputs[-1]:
            statistics[0] = -logp.topk(min(20, logits.shape[1]), -1).values.mean(-1)[row]
            statistics[1] = -(logp + np.log(logits.shape[1])).mean(-1)[row]
        return Case(
            inputs,
            {
                "token": (token, 0.0),
                "logprob": (logp[row, token], 1e-5),
                "next": (torch.zeros(len(row), dtype=torch.int32) if next is None else i32(next), 0.0),
                "confidence": (statistics[0], 1e-5),
                "certainty": (statistics[1], 1e-5),
            },
        )

    def greedy(dtype):
        logits = normal((3, 37), dtype)
        logits[1, 5] = logits[1, 9] = 7.0
        row = [1, 2, 0, 0, 1]
        top = logits.argmax(-1)[torch.tensor(row)].tolist()
        top[0] = top[4] = 5  # lowest id among ties
        return outcome(sample_inputs(logits, row, temperature=[0.0] * 5, with_statistics=1), top)

    def one_token(dtype):
        return outcome(sample_inputs(normal((2, 1), dtype), [0, 1, 1], with_statistics=1), [0, 0, 0])

    def filters_leave_one(dtype):
        logits = normal((1, 300), dtype)
        logits[0, 7] = 9.0
        best = int(logits.argmax())
        return outcome(
            sample_inputs(logits, [0] * 5, top_k=[1, 0, 0, 0, 1], top_p=[1, 0, 1e-6, 1, 0.5], min_p=[0, 0, 0, 2, 1]), [best] * 5
        )

    def not_finite(dtype):
        logits = torch.tensor(
            [[0, nan, 2, 1], [inf, 1, 0, 3], [-inf] * 4, [nan] * 4, [-inf, -inf, 0, -inf], [-inf, inf, -inf, nan]]
        ).to(dtype)
        return outcome(sample_inputs(logits, [0, 1, 2, 3, 4, 5], with_statistics=0), [2, 3, 0, 0, 2, 0])

    def automaton(dtype):
        next_state = (torch.arange(3 * 4, dtype=torch.int32).reshape(3, 4) % 3) | (torch.arange(4, dtype=torch.int32) << 24)
        logits = (5 * torch.eye(4)).to(dtype)
        state = [2, 1 | 3 << 24, 0, 1]
        inputs = sample_inputs(logits, [0, 1, 2, 3], temperature=[0.0] * 4, state=state, next_state=next_state)
        return outcome(inputs, [0, 1, 2, 3], [int(next_state[s & 0xFFFFFF, t]) for t, s in enumerate(state)])

    def equal_logits(dtype):
        """Equal logits make the token the uniform itself: floor(u * V), for many keys and positions."""
        size = 1 << 12
        key = torch.randint(-(2**63), 2**63 - 1, (61,), generator=generator())
        position = torch.arange(61) * 2**33 + 5
        inputs = sample_inputs(torch.zeros(1, size, dtype=dtype), [0] * 61, key=key.tolist(), position=position.tolist())
        return outcome(inputs, (uniform(key, position) * size).long().tolist())

    yield "greedy-with-ties", greedy
    yield "one-token", one_token
    yield "filters-leave-the-likeliest", filters_leave_one
    yield "not-finite", not_finite
    yield "stop-automaton", automaton
    yield "equal-logits", equal_logits
    yield "no-draws", lambda dtype: outcome(sample_inputs(normal((1, 5), dtype), []), [])
