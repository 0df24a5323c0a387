"""Native results do not depend on the thread count, on the other rows of a batch, or on how a context is cut."""

from functools import partial

import numpy as np
import pytest
import torch
from cases import FAMILIES, normal, sample_inputs
from decoder_cases import one_by_one
from trees import Tree, depth_first_leaves, filled_pages, i32, random_tree

import tts_kernels
from tts_kernels import attend, linear, pack, plan, prune, rms_norm, rope, sample, score, silu_and_mul

pytestmark = pytest.mark.skipif("native" not in tts_kernels.linear.backends, reason="the C++ module is not built")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True, params=["amx-bf16", "avx512-bf16", "avx512", "avx2", "base"])
def isa(request):
    """Every instruction set up to the machine's."""
    from tts_kernels.native import limit_isa

    if limit_isa(request.param) != request.param:
        pytest.skip(f"the machine does not have {request.param}")
    yield
    limit_isa()


def with_threads(count, call):
    torch.set_num_threads(count)
    return call()


def same_bits(a, b):
    return all(torch.equal(x.view(torch.uint8), y.view(torch.uint8)) for x, y in zip(a, b))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "m, n, k",
    [
        (300, 130, 64),
        (64, 48, 48),
        (33, 17, 389),
        (70, 1100, 9000),
        (321, 3296, 40),
        (336, 600, 4128),
        (273, 569, 4100),
        (70, 21, 0),
    ],
)
def test_a_row_of_linear_has_the_same_bits_in_every_batch(dtype, m, n, k):
    x, weight, bias = normal((m, k), dtype), normal((n, k), dtype, 1), normal((n,), dtype, 2)
    packed = pack(weight)
    whole = with_threads(1, lambda: linear(x, n, packed, bias, backend="native"))
    assert torch.equal(whole, with_threads(2, lambda: linear(x, n, packed, bias, backend="native")))
    for first, last in ((0, 1), (m - 1, m), (1, 3), (2, 9), (m // 2, m), (5, m - 3)):
        assert torch.equal(linear(x[first:last], n, packed, bias, backend="native"), whole[first:last])
    columns = linear(x, 13, pack(weight[3:16]), bias[3:16], backend="native")
    assert torch.equal(columns, whole[:, 3:16])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, width", [(300, 112), (96, 211), (3000, 8)])
def test_a_row_of_rms_norm_and_of_silu_and_mul_has_the_same_bits_in_every_batch(dtype, rows, width):
    x, weight = normal((rows, 2 * width), dtype), normal((2 * width,), dtype, 1)
    for call in (lambda x: rms_norm(x, weight, 1e-6, backend="native"), lambda x: silu_and_mul(x, backend="native")):
        whole = with_threads(1, partial(call, x))
        assert torch.equal(whole, with_threads(2, partial(call, x)))
        for first, last in ((0, 1), (rows - 1, rows), (3, 20), (rows // 2, rows)):
            assert torch.equal(call(x[first:last]), whole[first:last])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", FAMILIES["decoder"].cases)
def test_decoder_has_the_bits_of_the_ops_that_it_is_made_of(case, dtype):
    inputs = FAMILIES["decoder"].cases[case](dtype).inputs
    expected = one_by_one(inputs, "native")
    for threads in (1, 2):
        pages = inputs[3].clone(), inputs[4].clone()
        out = with_threads(threads, partial(tts_kernels.decoder, *inputs[:3], *pages, *inputs[5:], backend="native"))
        for one, other in zip((out, *pages), expected):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens, heads, dim", [(300, 3, 64), (61, 16, 80), (700, 6, 16)])
def test_a_token_of_rope_has_the_same_bits_in_every_batch_and_those_of_torch(dtype, tokens, heads, dim):
    x, cos, sin = normal((tokens, heads, dim), dtype), normal((tokens, dim), dtype, 1), normal((tokens, dim), dtype, 2)

    def turned(first, last, backend="native"):
        part = x[first:last].clone()
        rope(part, cos[first:last], sin[first:last], backend=backend)
        return part

    whole = with_threads(1, partial(turned, 0, tokens))
    assert torch.equal(whole, with_threads(2, partial(turned, 0, tokens)))
    for first, last in ((0, 1), (tokens - 1, tokens), (3, 20), (tokens // 2, tokens)):
        assert torch.equal(turned(first, last), whole[first:last])
    assert torch.equal(turned(0, tokens, backend="reference"), whole)


def decode(tree, leaves, q, pages):
    made = plan(*tree.plan_inputs(leaves, list(range(len(leaves) + 1)), max_spans=4096), backend="reference")
    items, spans = made.needed.tolist()
    return (q, *pages, made.spans[:spans], made.item_indptr[: items + 1], made.items[:items], 0.3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "heads, kv_heads, dim, page_size, max_length",
    [(3, 3, 16, 4, 30), (7, 1, 40, 4, 30), (8, 2, 64, 4, 30), (14, 2, 64, 16, 150), (8, 2, 128, 32, 90)],
)
def test_a_query_of_attend_has_the_same_bits_in_every_batch(dtype, heads, kv_heads, dim, page_size, max_length):
    rng = np.random.default_rng(1)
    tree = random_tree(rng, page_size, 60, max_length=max_length)
    leaves = [x for x in depth_first_leaves(tree) if tree.length[x]] * 3
    q, pages = normal((len(leaves), heads, dim), dtype), filled_pages(tree, kv_heads, dim, dtype, None)
    inputs = decode(tree, leaves, q, pages)
    whole = with_threads(1, lambda: attend(*inputs, backend="native"))
    assert same_bits(whole, with_threads(2, lambda: attend(*inputs, backend="native")))
    for i in range(0, len(leaves), 5):
        alone = attend(*decode(tree, leaves[i : i + 1], q[i : i + 1], pages), backend="native")
        assert same_bits(alone, (whole.out[i : i + 1], whole.lse[i : i + 1]))
    for first, last in ((1, len(leaves)), (2, 7)):
        part = attend(*decode(tree, leaves[first:last], q[first:last], pages), backend="native")
        assert same_bits(part, (whole.out[first:last], whole.lse[first:last]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.2, 30.0, 1e6, -1e9])
@pytest.mark.parametrize("queries, dim", [(5, 48), (2, 64)])  # many and few lanes of tiles
def test_the_bits_of_attend_do_not_depend_on_how_a_context_is_cut(dtype, scale, queries, dim):
    rng = np.random.default_rng(2)
    tree = Tree(16, 16)
    tree.add(-1, 211)
    tokens = [[slot // 16, slot % 16] for slot in tree.tokens[0]]
    pages, q = filled_pages(tree, 2, dim, dtype, None), normal((queries, 4, dim), dtype)

    def cut(span_cuts, item_cuts):
        """Spans end at page ends and at `span_cuts`, items at `item_cuts`."""
        spans, items, indptr = [], [], [0]
        for i, (page, slot) in enumerate(tokens):
            if not spans or i in item_cuts or i in span_cuts or page != spans[-1][0]:
                spans.append([page, slot, 0])
            spans[-1][2] += 1
            if i + 1 in item_cuts or i + 1 == len(tokens):
                items.append([0, queries, 0])
                indptr.append(len(spans))
        return attend(q, *pages, i32(spans), i32(indptr), i32(items), scale, backend="native")

    whole = cut(set(), set())
    for _ in range(10):
        cuts = [set(rng.integers(1, 211, rng.integers(0, 40)).tolist()) for _ in range(2)]
        assert same_bits(cut(*cuts), whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_of_other_queries_do_not_enter_the_bits_of_attend(dtype):
    """Scores of about 2^22 among the first 96 tokens, and of somewhat less behind them."""
    keys, values, q = torch.ones(10, 1, 16, 64), torch.zeros(10, 1, 16, 64), torch.ones(1, 1, 64)
    rng = np.random.default_rng(47)
    low = torch.from_numpy(rng.integers(-200, 1, 160).astype(np.float32))
    low[5] = 255
    values.view(160, 64)[96:].fill_diagonal_(1)
    width = int(rng.integers(33, 64))
    keys[..., width:63] = 0
    keys.view(160, 64)[:, 63] = low.clamp(min=-int(rng.integers(100, 199))) * 2**-18
    scale = 2**22 / width / 1.4426950408889634 * (1 - float(rng.uniform(20, 100)) / 2**22)
    spans = i32([[page, 0, 16] for page in range(10)])

    def first(*queries):
        pages, items = (keys.to(dtype), values.to(dtype)), i32([[0, len(queries), 0]])
        out, lse = attend(torch.cat(queries).to(dtype), *pages, spans, i32([0, 10]), items, scale, backend="native")
        return out[:1], lse[:1]

    assert same_bits(first(q), first(q, 2 * q))
    assert same_bits(first(q), first(*[q] * 40))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("page_size, dim", [(4, 16), (16, 64)])
def test_causal_queries_of_attend_have_the_bits_of_decoding_one_by_one(dtype, page_size, dim):
    tree = Tree(page_size, 40)
    root = tree.add(-1, 21)
    leaf = tree.add(root, 90)
    pages, q = filled_pages(tree, 1, dim, dtype, None), normal((90, 4, dim), dtype)
    made = plan(*tree.plan_inputs([leaf], [0, 90]), backend="reference")
    items, spans = made.needed.tolist()
    at_once = attend(q, *pages, made.spans[:spans], made.item_indptr[: items + 1], made.items[:items], 0.25, backend="native")
    for i in range(0, 90, 7):
        tree.length[leaf] = i + 1
        alone = attend(*decode(tree, [leaf], q[i : i + 1], pages)[:-1], 0.25, backend="native")
        assert same_bits(alone, (at_once.out[i : i + 1], at_once.lse[i : i + 1]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("what", ["query", "key", "value"])
def test_a_row_that_is_not_finite_leaves_the_other_rows_of_attend_alone(dtype, what):
    tree = Tree(4, 40)
    root = tree.add(-1, 9)
    leaves = [tree.add(root, 3) for _ in range(6)]
    pages, q = filled_pages(tree, 2, 16, dtype, None), normal((6, 4, 16), dtype)
    clean = attend(*decode(tree, leaves, q, pages), backend="native")
    slot = tree.tokens[leaves[2]][1]
    written = q[2] if what == "query" else pages[what == "value"][slot // 4, :, slot % 4]
    written.fill_(float("nan"))
    bad = attend(*decode(tree, leaves, q, pages), backend="native")
    kept = [0, 1, 3, 4, 5]
    assert same_bits((clean.out[kept], clean.lse[kept]), (bad.out[kept], bad.lse[kept]))
    assert bad.out[2].isnan().all() and (what == "value" or bad.lse[2].isnan().all())


def test_score_has_the_same_bits_alone_and_for_any_thread_count():
    hidden, head, before = normal((700, 211), torch.float32), normal((2, 211), torch.float32, 1), torch.zeros(700, 4)
    whole = with_threads(1, lambda: score(hidden, head, None, before, 1, "softmax", backend="native"))
    assert same_bits(whole, with_threads(2, lambda: score(hidden, head, None, before, 1, "softmax", backend="native")))
    alone = score(hidden[13:14], head, None, before[:1], 1, "softmax", backend="native")
    assert same_bits(alone, (whole.out[13:14], whole.running[13:14]))


@pytest.mark.parametrize("rule", ["top", "softmax", "systematic", "multinomial", "proportional"])
def test_prune_gives_the_same_for_any_thread_count(rule):
    scores, keys = normal((64 * 100,), torch.float32), torch.arange(100)
    indptr, total, keep = i32(list(range(0, 6401, 64))), i32([64] * 100), i32([16] * 100)
    inputs = (scores, indptr, total, keep, keys, rule, 0.2, 6400)
    one, two = (with_threads(n, lambda: prune(*inputs, backend="native")) for n in (1, 2))
    assert same_bits(one, two)


def test_a_draw_has_the_same_bits_alone_and_for_any_thread_count():
    rng = np.random.default_rng(0)
    row = np.sort(rng.integers(0, 9, 64)).tolist()
    settings = {"temperature": rng.choice([0, 0.7, 1.0], 64).tolist(), "top_k": rng.choice([0, 7], 64).tolist()}
    settings |= {"top_p": rng.choice([1.0, 0.8], 64).tolist(), "min_p": rng.choice([0, 0.05], 64).tolist()}
    logits = 3 * normal((9, 1031), torch.float32)
    inputs = sample_inputs(logits, row, with_statistics=1, **settings)
    whole = with_threads(1, lambda: sample(*inputs, backend="native"))
    assert same_bits(whole, with_threads(2, lambda: sample(*inputs, backend="native")))
    for i in range(64):
        alone = sample(logits, *(x[i : i + 1] for x in inputs[1:9]), *inputs[9:], backend="native")
        assert same_bits(alone, [x[i : i + 1] for x in whole])
