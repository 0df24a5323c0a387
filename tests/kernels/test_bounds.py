"""Values at their limits. Indices out of range are refused by the C ABI as well, with the argument, its value and the range."""

import math
import re

import pytest
import torch
from cases import F32, FAMILIES, copies, sample_inputs
from conformance import on_the_cpu
from trees import i32

import tts_kernels

pytestmark = pytest.mark.skipif("native" not in tts_kernels.linear.backends, reason="the C++ module is not built")
NAN = float("nan")


def inputs_of(name: str, case: str) -> dict:
    op = tts_kernels.OPS[name]
    values = FAMILIES[name].cases[case](F32).inputs
    return {arg.name: x for arg, x in zip(op.inputs, copies(values))}


def changed(tensor: torch.Tensor, at, value) -> torch.Tensor:
    tensor = tensor.clone()
    tensor[at] = value
    return tensor


START = {
    "append": ("append", "7x2x40"),
    "attend": ("attend", "decode-H3-G3-D16"),
    "decoder": ("decoder", "llama"),
    "plan": ("plan", "worked-example"),
    "plan_pages": ("plan_pages", "worked-example"),
    "score": ("score", "7x48x2-softmax"),
    "prune": ("prune", "top-even"),
    "fork": ("fork", "4-children"),
    "copy_tails": ("copy_tails", "5x6x2x40"),
    "sample": ("sample", "stop-automaton"),
}
WRONG = [
    ("append", "slots", lambda x: changed(x, 3, 77), "values of slots must be in [-1, 77), got 77"),
    ("append", "slots", lambda x: changed(x, 0, -2), "values of slots must be in [-1, 77), got -2"),
    ("attend", "item_indptr", lambda x: changed(x, -1, 9999), "values of item_indptr must be in [36, 40), got 9999"),
    ("attend", "item_indptr", lambda x: changed(x, 0, 1), "values of item_indptr must be in [0, 1), got 1"),
    ("attend", "items", lambda x: changed(x, (1, 0), -1), "q0 of items must be in [0, 6), got -1"),
    ("attend", "items", lambda x: changed(x, (0, 1), 6), "q1 of items must be in [0, 6), got 6"),
    ("attend", "spans", lambda x: changed(x, (2, 0), 1 << 30), "page of spans must be in [0, 108), got 1073741824"),
    ("attend", "spans", lambda x: changed(x, (2, 1), 1), "first slot of spans must be in [0, 1), got 1"),
    ("attend", "spans", lambda x: changed(x, (2, 2), 2), "count of spans must be in [0, 2), got 2"),
    ("decoder", "slots", lambda x: changed(x, 0, 9999), "values of slots must be in [-1, 108), got 9999"),
    ("decoder", "H", lambda x: 3, "dim ((H+2*G)*D)/16 of qkv"),
    ("decoder", "cos", lambda x: x[:, :14], "dim R of sin ('sin T[N,R]') must be 14, got shape"),
    ("plan", "leaves", lambda x: changed(x, 0, 5), "values of leaves must be in [0, 5), got 5"),
    ("plan", "indptr", lambda x: changed(x, 1, 3), "values of indptr must be in [3, 2147483648), got 2"),
    ("plan", "parent", lambda x: changed(x, 0, 4), "parent has a cycle"),
    ("plan", "parent", lambda x: changed(x, 0, -2), "values of parent must be in [0, 5), got -2"),
    ("plan", "start", lambda x: changed(x, 4, 4), "values of start must be in [0, 4), got 4"),
    ("plan", "length", lambda x: changed(x, 2, -1), "values of length must be in [0, 2147483647), got -1"),
    ("plan", "first_page", lambda x: changed(x, 0, 10), "a page of a node must be in [0, 10), got 10"),
    ("plan", "next_page", lambda x: changed(x, slice(None), -1), "a page of a node must be in [0, 10), got -1"),
    ("plan_pages", "context", lambda x: changed(x, 1, 21), "values of context must be in [1, 21), got 21"),
    ("plan_pages", "context", lambda x: changed(x, 2, 3), "values of context must be in [4, 21), got 3"),
    ("plan_pages", "indptr", lambda x: changed(x, 1, 3), "values of indptr must be in [3, 2147483648), got 2"),
    ("plan_pages", "page_table", lambda x: changed(x, (3, 3), -1), "values of page_table must be in [0, 2147483647), got -1"),
    ("score", "label", lambda x: 2, "label must be in [0, 2), got 2"),
    ("prune", "indptr", lambda x: changed(x, 1, 8), "values of indptr must be in [8, 10), got 3"),
    ("prune", "total", lambda x: changed(x, 0, 13), "values of total must be in [0, 13), got 13"),
    ("prune", "total", lambda x: changed(x, 0, 9), "13 children do not fit the capacity of 12"),
    ("prune", "rule", lambda x: "systematic", "rules systematic and multinomial draw and need keys"),
    ("fork", "parents", lambda x: changed(x, 1, 7), "values of parents must be in [0, 7), got 7"),
    ("fork", "nodes", lambda x: changed(x, 1, -1), "values of nodes must be in [0, 7), got -1"),
    ("copy_tails", "sources", lambda x: changed(x, 1, 13), "values of sources must be in [0, 13), got 13"),
    ("copy_tails", "destinations", lambda x: changed(x, 4, -1), "values of destinations must be in [0, 13), got -1"),
    ("copy_tails", "counts", lambda x: changed(x, 0, 8), "values of counts must be in [0, 8), got 8"),
    ("copy_tails", "caches", lambda x: [x[0], x[1].mT.contiguous().mT], "caches must all have the strides of the first"),
    ("sample", "row", lambda x: changed(x, 1, 4), "values of row must be in [0, 4), got 4"),
    ("sample", "state", lambda x: changed(x, 1, 3), "the low 24 bits of state must be in [0, 3), got 3"),
    ("sample", "temperature", lambda x: changed(x, 1, NAN), "values of temperature must be >= 0, got nan"),
]


@pytest.mark.parametrize("name, argument, change, message", WRONG, ids=[f"{n}-{a}-{i}" for i, (n, a, _, _) in enumerate(WRONG)])
def test_an_index_out_of_range_is_refused_with_its_name_value_and_range(name, argument, change, message):
    inputs = inputs_of(*START[name])
    inputs[argument] = change(inputs[argument])
    with pytest.raises(ValueError, match=re.escape(f"{name}: {message}")):
        tts_kernels.OPS[name](**inputs, backend="native")


def test_softmax_rules_refuse_a_temperature_of_zero():
    inputs = inputs_of("prune", "softmax") | {"temperature": 0.0}
    for backend in on_the_cpu(tts_kernels.prune):
        with pytest.raises(ValueError, match="prune: temperature must be > 0, got 0"):
            tts_kernels.prune(**inputs, backend=backend)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
def test_a_scale_that_is_not_finite_is_refused(scale):
    pages, spans, items = torch.zeros(1, 1, 4, 8), i32([[0, 0, 1]]), i32([[0, 1, 0]])
    with pytest.raises(ValueError, match="attend: scale must be in "):
        tts_kernels.attend(torch.zeros(1, 1, 8), pages, pages, spans, i32([0, 1]), items, scale)


@pytest.mark.parametrize("dim", [4, 12, 264])
def test_a_head_dim_that_the_kernel_cannot_take_is_refused(dim):
    pages, spans, items = torch.zeros(1, 1, 4, dim), i32([[0, 0, 1]]), i32([[0, 1, 0]])
    with pytest.raises(ValueError, match=f"attend: head dim must be a multiple of 8 up to 256, got {dim}"):
        tts_kernels.attend(torch.zeros(1, 1, dim), pages, pages, spans, i32([0, 1]), items, 1.0, backend="native")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "query, key, scale", [(400, -400, 0.125), (400, 400, 0.125), (1, 1, 0.0), (3000, 5000, 0.125), (-1, 1, 1e-34)]
)
def test_equal_scores_give_the_mean_however_large_they_are(dtype, query, key, scale):
    q, keys = torch.full((1, 1, 64), query, dtype=dtype), torch.full((1, 1, 8, 64), key, dtype=dtype)
    values = torch.arange(8, dtype=dtype).repeat_interleave(64).view(1, 1, 8, 64)
    plan = i32([[0, 1, 5]]), i32([0, 1]), i32([[0, 1, 0]])
    out, lse = tts_kernels.attend(q, keys, values, *plan, scale, backend="native")
    assert torch.equal(out, torch.full_like(out, 3))
    score = scale * 64.0 * float(q[0, 0, 0]) * float(keys[0, 0, 0, 0])
    assert float(lse) == pytest.approx(score + math.log(5), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_heads_without_elements_have_equal_scores(dtype):
    pages = torch.zeros(1, 1, 8, 0, dtype=dtype)
    plan = i32([[0, 1, 5]]), i32([0, 1]), i32([[0, 1, 0]])
    _, lse = tts_kernels.attend(torch.zeros(1, 1, 0, dtype=dtype), pages, pages, *plan, 1.0, backend="native")
    assert float(lse) == pytest.approx(math.log(5), rel=1e-6)


def test_written_pages_must_have_a_dense_last_dim():
    inputs = inputs_of("append", "7x2x40")
    inputs["keys"] = inputs["keys"].transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(ValueError, match="append: keys is written in place and its last dim must be dense, got strides"):
        tts_kernels.append(**inputs, backend="native")


def test_a_failed_call_leaves_the_next_one_alone():
    good = inputs_of("append", "7x2x40")
    with pytest.raises(ValueError):
        tts_kernels.append(**good | {"slots": good["slots"] + 77}, backend="native")
    tts_kernels.append(**good, backend="native")


def test_sizes_whose_product_overflows_are_refused():
    huge = torch.empty(1).as_strided((1, 2**31, 2**31), (0, 0, 0))
    with pytest.raises(ValueError, match="append: k is too large: its bytes do not fit 64 bits"):
        tts_kernels._native.append(0, 2**31, 2**31, 8, 1, 1, huge.data_ptr(), 0, 0, huge.data_ptr(), *[0] * 11)


def test_a_matrix_that_does_not_split_into_gate_and_up_is_refused():
    for backend in tts_kernels.silu_and_mul.backends:
        with pytest.raises(ValueError, match="silu_and_mul: N%2==0 does not hold for"):
            tts_kernels.silu_and_mul(torch.zeros(2, 5), backend=backend)


@pytest.mark.parametrize("rotary, message", [(7, "R%2==0"), (10, "R<=D")])
def test_angles_that_do_not_fit_the_heads_are_refused(rotary, message):
    for backend in tts_kernels.rope.backends:
        with pytest.raises(ValueError, match=f"rope: {message} does not hold for"):
            tts_kernels.rope(torch.zeros(2, 3, 8), torch.zeros(2, rotary), torch.zeros(2, rotary), backend=backend)


def test_the_c_library_refuses_an_odd_number_of_rotary_dims():
    x = torch.zeros(1, 1, 8)
    with pytest.raises(ValueError, match="rope: R must be even, got 3"):
        tts_kernels._native.rope(0, 1, 1, 3, x.data_ptr(), 8, 8, x.data_ptr(), 8, x.data_ptr(), 8)


def test_rotated_heads_must_have_a_dense_last_dim():
    with pytest.raises(ValueError, match="rope: x is written in place and its last dim must be dense, got strides"):
        tts_kernels.rope(torch.zeros(2, 8, 3).mT, torch.zeros(2, 8), torch.zeros(2, 8), backend="native")


def test_a_draw_from_an_empty_vocabulary_is_refused():
    with pytest.raises(ValueError, match=re.escape("sample: V must be in [1, 2147483647), got 0")):
        tts_kernels.sample(*sample_inputs(torch.zeros(1, 0), [0]), backend="native")
