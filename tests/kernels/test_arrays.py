"""Arrays of other libraries as inputs and outputs: numpy's, and whatever speaks DLPack. Nothing is copied on the way."""

import warnings

import numpy as np
import pytest
import torch
from cases import BF16, F32, FAMILIES, copies, each

import tts_kernels
from tts_kernels.op import Op


class Foreign:
    """An array of a library that shares nothing with torch but the protocol."""

    def __init__(self, tensor: torch.Tensor):
        self._tensor = tensor

    def __dlpack__(self, **options):
        return self._tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self._tensor.__dlpack_device__()


AS_ARRAY = {"numpy": lambda tensor: tensor.numpy(), "dlpack": Foreign}


def results(op, inputs, made) -> list[torch.Tensor]:
    """The outputs of a call and the inputs that it wrote."""
    made = () if made is None else (made,) if isinstance(made, torch.Tensor) else made
    written = (x if isinstance(x, list) else [x] for arg, x in zip(op.inputs, inputs) if arg.is_mutated)
    return [*made, *(x for group in written for x in group)]


@pytest.mark.parametrize("library", AS_ARRAY)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_op_takes_arrays_and_gives_what_it_gives_for_tensors(name, library):
    op, family = tts_kernels.OPS[name], FAMILIES[name]
    for make in family.cases.values():
        inputs = make(F32).inputs
        tensors, twins = copies(inputs), copies(inputs)
        arrays = [each(AS_ARRAY[library], x) for x in twins]
        expected, got = results(op, tensors, op(*tensors)), results(op, twins, op(*arrays))
        if name in ("plan", "plan_pages"):  # behind what is needed its outputs are not written
            items, spans = got[-1].tolist()
            fits = items <= len(got[0]) and spans <= len(got[2])
            ends = (items, items + 1, spans, 2) if fits else (0, 0, 0, 2)
            expected, got = ([x[:end] for x, end in zip(made, ends)] for made in (expected, got))
        for one, other in zip(expected, got, strict=True):
            assert isinstance(other, torch.Tensor) and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def test_half_precision_comes_through_dlpack():
    x, weight = torch.ones(2, 3, dtype=BF16), tts_kernels.pack(torch.ones(4, 3, dtype=BF16))
    assert tts_kernels.linear(Foreign(x), 4, Foreign(weight)).tolist() == [[3.0] * 4] * 2


def test_tensors_and_arrays_may_be_mixed():
    x, weight, bias = torch.ones(2, 3), tts_kernels.pack(torch.ones(4, 3)), np.arange(4, dtype=np.float32)
    assert tts_kernels.linear(x, 4, Foreign(weight), bias).tolist() == [[3.0, 4.0, 5.0, 6.0]] * 2


def test_outputs_given_as_arrays_are_filled_in_place_and_returned():
    scores, indptr, one = np.float32([0.1, 0.9, 0.5]), np.int32([0, 3]), np.int32([1])
    out = [np.full(3, -7, np.int32), np.full(1, -7, np.int32), Foreign(torch.full((1,), -7, dtype=torch.int32))]
    made = tts_kernels.prune(scores, indptr, one, one, None, "top", 1.0, 1, out=out)
    assert made.widths is out[0] and made.parents is out[1] and made.counts is out[2]
    assert out[0].tolist() == [0, 1, 0] and out[1].tolist() == [1] and out[2]._tensor.tolist() == [1]


def test_a_single_output_may_be_an_array():
    out = np.full((1, 4), np.nan, np.float32)
    assert tts_kernels.linear(np.ones((1, 3), np.float32), 4, tts_kernels.pack(torch.ones(4, 3)), out=out) is out
    assert out.tolist() == [[3.0] * 4]


def test_a_backend_sees_tensors_over_the_memory_of_the_arrays():
    seen = []

    def total(x, y, *, out):
        seen.extend([x, y, out])
        out.copy_(x.sum() + y.sum())

    x, y, out = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2], torch.ones(5), np.zeros((), np.float32)
    Op("x f32[N,M], y! f32[K] -> out f32[]", total)(x, Foreign(y), out=out)
    assert [t.data_ptr() for t in seen] == [x.ctypes.data, y.data_ptr(), out.ctypes.data]
    assert seen[0].stride() == (4, 2) and out == 30 + 5


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


def test_a_read_only_array_is_an_input_like_any_other():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = read_only(np.ones((2, 3), np.float32))
        assert tts_kernels.linear(x, 4, tts_kernels.pack(torch.ones(4, 3))).tolist() == [[3.0] * 4] * 2


def test_a_read_only_array_is_never_written():
    table = [np.zeros(3, np.int32) for _ in range(6)]
    table[2] = read_only(table[2])
    message = "fork: start is written in place and must be writeable, got a read-only array"
    with pytest.raises(ValueError, match=message):
        tts_kernels.fork(np.int32([0]), np.int32([1]), *table)
    assert not any(column.any() for column in table)
    out, weight = read_only(np.zeros((1, 4), np.float32)), tts_kernels.pack(torch.ones(4, 3))
    with pytest.raises(ValueError, match="linear: out is written in place and must be writeable, got a read-only array"):
        tts_kernels.linear(torch.ones(1, 3), 4, weight, out=out)


@pytest.mark.parametrize(
    "x, error, message",
    [
        (np.ones((2, 3), np.float32)[::-1], TypeError, "x cannot be used as a tensor in place: .*negative"),
        (read_only(np.ones((2, 3), np.float32))[::-1], TypeError, "x cannot be used as a tensor in place: .*negative"),
        (np.ones((2, 3), ">f4"), TypeError, "x cannot be used as a tensor in place: "),
        (np.array([["a"]]), TypeError, "x cannot be used as a tensor in place: "),
        (np.ones((2, 3)), TypeError, "x must be float32, float16 or bfloat16, got torch.float64"),
        (np.ones((2, 2), np.float32), ValueError, r"dim K/32 of weight .* must be 1, got shape \(1, 2, 16, 16, 2\)"),
        ([[1.0, 1.0, 1.0]], TypeError, "x must be a tensor 'x T.M,K.', got list"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_argument_named(x, error, message):
    weight = torch.ones(1, 2, 16, 16, 2)
    with pytest.raises(error, match=f"linear: {message}"):
        tts_kernels.linear(x, 4, weight)
