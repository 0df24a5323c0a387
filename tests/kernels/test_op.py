"""The contract machinery: what a call checks, says, allocates and chooses."""

import itertools
import re
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from cases import FAMILIES
from torch._subclasses.fake_tensor import FakeTensorMode

import tts_kernels
from tts_kernels.op import OPS, Op, backends, op, register_backend


def segment_sum(values, indptr, weight, mode, scale, *, out):
    """Sum of each segment."""
    for r in range(len(out)):
        out[r] = values[indptr[r] : indptr[r + 1]].sum() * scale


SIGNATURE = "values T[N], indptr i32[R+1] in 0..N+1, weight? T[N], mode str in sum|mean, scale float -> out T[R]"


@pytest.fixture
def declared() -> Op:
    return Op(SIGNATURE, segment_sum)


def call(declared, **changed):
    inputs = {
        "values": torch.ones(4),
        "indptr": torch.tensor([0, 1, 4], dtype=torch.int32),
        "weight": None,
        "mode": "sum",
        "scale": 2.0,
    }
    options = {name: changed.pop(name) for name in ("out", "backend") if name in changed}
    return declared(*(inputs | changed).values(), **options)


def test_a_call_allocates_its_outputs_from_the_signature(declared):
    out = call(declared)
    assert out.tolist() == [2.0, 6.0] and out.dtype is torch.float32


def test_a_given_output_is_filled_and_returned(declared):
    out = torch.full((2,), float("nan"))
    assert call(declared, out=out) is out and out.tolist() == [2.0, 6.0]


def test_inputs_may_be_named_and_optional_ones_left_out(declared):
    indptr = torch.tensor([0, 4], dtype=torch.int32)
    assert declared(torch.ones(4), indptr, mode="sum", scale=1).tolist() == [4.0]


@pytest.mark.parametrize(
    "changed, error, message",
    [
        ({"values": None}, TypeError, "values must be a tensor 'values T[N]', got NoneType"),
        ({"values": [1.0]}, TypeError, "values must be a tensor 'values T[N]', got list"),
        (
            {"values": torch.ones(4, dtype=torch.float64)},
            TypeError,
            "values must be float32, float16 or bfloat16, got torch.float64",
        ),
        (
            {"indptr": torch.tensor([0, 1, 4])},
            TypeError,
            "indptr must be torch.int32 ('indptr i32[R+1] in 0..N+1'), got torch.int64",
        ),
        (
            {"weight": torch.ones(4, dtype=torch.float16)},
            TypeError,
            "weight must be torch.float32 ('weight? T[N]'), got torch.float16",
        ),
        ({"values": torch.ones(4, 1)}, ValueError, "values must have 1 dims ('values T[N]'), got shape (4, 1)"),
        ({"weight": torch.ones(3)}, ValueError, "dim N of weight ('weight? T[N]') must be 4, got shape (3,)"),
        (
            {"indptr": torch.zeros(0, dtype=torch.int32)},
            ValueError,
            "dim R+1 of indptr ('indptr i32[R+1] in 0..N+1') must be at least 1, got shape (0,)",
        ),
        ({"indptr": torch.tensor([0, 5], dtype=torch.int32)}, ValueError, "values of indptr must be in [0, 5), got [0, 5]"),
        ({"mode": "max"}, ValueError, "mode must be one of sum, mean, got 'max'"),
        ({"scale": "2"}, TypeError, "scale must be float, got '2'"),
        ({"scale": True}, TypeError, "scale must be float, got True"),
        ({"out": torch.ones(3)}, ValueError, "dim R of out ('out T[R]') must be 2, got shape (3,)"),
        ({"out": torch.ones(2, dtype=torch.float16)}, TypeError, "out must be torch.float32 ('out T[R]'), got torch.float16"),
        ({"out": torch.ones(2, 2)[:, 0]}, ValueError, "out= out must be contiguous, got strides (2,)"),
        ({"out": [torch.ones(2), torch.ones(2)]}, TypeError, "out= must hold 1 tensors, got 2"),
        (
            {"backend": "fast"},
            ValueError,
            "backend 'fast' does not exist here (no such backend is registered); available: ['reference']",
        ),
    ],
)
def test_a_wrong_call_is_refused_with_the_argument_named(declared, changed, error, message):
    with pytest.raises(error) as caught:
        call(declared, **changed)
    assert str(caught.value).startswith("segment_sum: ") and message in str(caught.value)


def test_missing_unknown_and_too_many_arguments_are_refused(declared):
    with pytest.raises(TypeError, match="input 'mode str in sum|mean' is missing"):
        declared(torch.ones(4), torch.tensor([0, 4], dtype=torch.int32), None)
    with pytest.raises(TypeError, match="unknown argument 'speed'"):
        declared(torch.ones(4), torch.tensor([0, 4], dtype=torch.int32), None, "sum", 1.0, speed=1)
    with pytest.raises(TypeError, match="takes 5 inputs, got 6"):
        declared(torch.ones(4), torch.tensor([0, 4], dtype=torch.int32), None, "sum", 1.0, 2.0)


def test_a_condition_on_the_dims_is_checked():
    q, pages = torch.zeros(1, 3, 8), torch.zeros(1, 2, 4, 8)
    empty = torch.zeros(0, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match="attend: H%G==0 does not hold for .*'H': 3"):
        tts_kernels.attend(q, pages, pages, empty, torch.zeros(1, dtype=torch.int32), empty, 1.0)


def halves(x, n, y, *, out):
    """Takes what the signature below says."""
    out.zero_()


def test_a_dim_may_be_an_expression_of_what_is_bound_before():
    declared = Op("x f32[N], n int, y? f32[(2*N+n)/4,(N*n)] -> out f32[(N+n)]", halves)
    x = torch.zeros(3)
    assert declared(x, 4, torch.zeros(3, 12)).shape == declared(x, 4).shape == (7,)
    with pytest.raises(ValueError, match=re.escape("dim (2*N+n)/4 of y ('y? f32[(2*N+n)/4,(N*n)]') must be 3, got")):
        declared(x, 4, torch.zeros(2, 12))
    with pytest.raises(ValueError, match=re.escape("dim (N*n) of y")):
        declared(x, 4, torch.zeros(3, 11))


def sum_all(parts, *, out):
    """Sum of tensors of one shape."""
    out.copy_(sum(parts))


@pytest.mark.parametrize(
    "parts, error, message",
    [
        (torch.ones(2, 3), TypeError, "parts must be a list of tensors 'parts T[N]*', got Tensor"),
        ([], ValueError, "parts ('parts T[N]*') must hold at least one tensor, got none"),
        ([torch.ones(3), torch.ones(2)], ValueError, "dim N of parts ('parts T[N]*') must be 3, got shape (2,)"),
        ([torch.ones(3), 1.0], TypeError, "parts must be a tensor 'parts T[N]*', got float"),
        ([torch.ones(3), torch.ones(3).half()], TypeError, "parts must be torch.float32 ('parts T[N]*'), got torch.float16"),
    ],
)
def test_a_list_of_tensors_is_checked_tensor_by_tensor(parts, error, message):
    with pytest.raises(error) as caught:
        Op("parts T[N]* -> out T[N]", sum_all)(parts)
    assert str(caught.value) == f"sum_all: {message}"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_straight_checks_bind_what_the_walk_over_the_signature_binds(family):
    declared = OPS[family.name]
    for make, dtype in itertools.product(family.cases.values(), family.dtypes):
        inputs = make(dtype).inputs
        conforming, (_, dims, *walked) = declared._conforms(inputs), declared._walk(inputs)
        if any(arg.element for arg in declared.inputs):
            assert conforming is None
            continue
        found, *rest = conforming
        assert found == {name: dims[name] for name in found} and {*dims} - {*found} <= {name for name in dims if "(" in name}
        assert [*rest[:2], [list(shape) for shape in rest[2]]] == walked


def test_a_list_of_tensors_may_hold_arrays():
    parts = (torch.ones(3), np.ones(3, np.float32), torch.ones(3))
    assert Op("parts T[N]* -> out T[N]", sum_all)(parts).tolist() == [3.0] * 3


@pytest.mark.parametrize("text", ["x", "x f32[N*2]", "x f32[N,]", "x f32[-1]"])
def test_a_bad_signature_is_a_syntax_error(text):
    with pytest.raises(SyntaxError):
        Op(f"{text} -> out f32[N]", lambda x, *, out: None)


def test_a_reference_must_take_what_the_signature_says():
    with pytest.raises(TypeError, match="the signature says"):
        Op("x f32[N] -> y f32[N]", lambda x, *, out: None)


def test_an_out_of_tree_backend_is_preferred_where_it_can_take_the_call(declared):
    calls = []

    def fast(values, indptr, weight, mode, scale, *, out):
        calls.append(values.dtype)
        out.zero_()

    register_backend(declared, "fast", fast, devices=("cpu",), dtypes=(torch.float16,))
    assert call(declared).tolist() == [2.0, 6.0] and not calls
    assert call(declared, values=torch.ones(4, dtype=torch.float16)).tolist() == [0.0, 0.0] and calls == [torch.float16]
    assert call(declared, values=torch.ones(4, dtype=torch.float16), backend="reference").tolist() == [2.0, 6.0]


def test_an_explicit_backend_never_falls_back(declared):
    register_backend(declared, "gpu", segment_sum, devices=("cuda",))
    register_backend(declared, "half", segment_sum, dtypes=(torch.float16,))
    with pytest.raises(ValueError, match="backend 'gpu' cannot take this call: it runs on cuda, the tensors are on cpu"):
        call(declared, backend="gpu")
    with pytest.raises(ValueError, match="backend 'half' cannot take this call: it takes float16, got float32"):
        call(declared, backend="half")


def test_a_backend_registered_again_replaces_the_old_one(declared):
    register_backend(declared, "mine", lambda *inputs, out: out.fill_(1))
    register_backend(declared, "other", lambda *inputs, out: out.fill_(2))
    register_backend(declared, "mine", lambda *inputs, out: out.fill_(3))
    assert call(declared).tolist() == [3.0, 3.0]


def test_a_backend_for_an_unknown_op_is_refused():
    with pytest.raises(ValueError, match="no op 'sort'; declared: "):
        register_backend("sort", "mine", segment_sum)


def test_backends_lists_every_op_with_what_would_be_used():
    rows = backends()
    assert {row["op"] for row in rows} == set(OPS)
    for name in OPS:
        assert [row["state"] for row in rows if row["op"] == name].count("used") == 1


def test_declaring_an_op_makes_it_known_and_documented():
    try:

        @op("x f32[N] -> out f32[N]")
        def twice(x, *, out):
            """Twice x."""
            out.copy_(2 * x)

        assert twice(torch.ones(2)).tolist() == [2.0, 2.0] and OPS["twice"] is twice
        assert twice.__doc__ == "twice(x f32[N] -> out f32[N])\n\nTwice x."
    finally:
        OPS.pop("twice", None)


def test_a_backend_runs_with_the_gpu_of_the_tensors_as_the_current_one(declared, monkeypatch):
    events = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: events.append(device) or nullcontext())
    register_backend(declared, "mine", lambda *inputs, out: events.append("run"))
    call(declared)
    with FakeTensorMode():
        on_gpu = {"values": torch.empty(4, device="cuda:1"), "indptr": torch.empty(3, dtype=torch.int32, device="cuda:1")}
        call(declared, **on_gpu)
    assert events == ["run", torch.device("cuda:1"), "run"]


def test_without_the_native_module_the_package_works_and_says_why():
    program = """
import sys
sys.modules["tts_kernels._native"] = None
import torch, tts_kernels
assert tts_kernels.linear(torch.ones(1, 2), 3, tts_kernels.pack(torch.ones(3, 2))).tolist() == [[2.0, 2.0, 2.0]]
states = {row["backend"]: row["state"] for row in tts_kernels.backends()}
assert states["reference"] == "used" and states["native"].startswith("the C++ module could not be imported: "), states
assert "circular" not in states["native"], states
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_kernels_import_without_transformers():
    program = "import sys, tts_kernels; assert 'transformers' not in sys.modules and 'tts' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
