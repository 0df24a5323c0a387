"""What only the Triton kernels promise, and harder calls of GPU kernels than the conformance cases: on a GPU, or interpreted."""

import pytest
import torch
from cases import F32, FAMILIES, check_draws, copies, normal, sample_inputs
from conformance import run
from trees import i32

import tts_kernels

pytestmark = pytest.mark.skipif(
    "triton" not in tts_kernels.attend.backends,
    reason=f"no Triton backend: {tts_kernels.attend.missing.get('triton')}",
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RULES = ["top", "softmax", "systematic", "multinomial", "proportional"]
large = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, and too large for the interpreter")


def on_device(inputs):
    return [x.to(DEVICE) if isinstance(x, torch.Tensor) else x for x in inputs]


def gpu_backends(op):
    return [name for name in ("triton", "cuda") if name in op.backends]


@pytest.mark.parametrize("rule", RULES)
def test_prune_of_segments_of_many_blocks_is_the_reference_s(rule):
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(160, generator=generator).round(decimals=1)
    scores[torch.rand(160, generator=generator) < 0.1] = float("nan")
    keys = torch.tensor([5, -(2**60), 9, 11])
    inputs = (scores, i32([0, 4, 4, 9, 150]), i32([9, 3, 0, 40]), i32([2, 1, 1, 33]), keys, rule, 0.7, 60)
    expected = tts_kernels.prune(*copies(inputs), backend="reference")
    for got, wanted in zip(tts_kernels.prune(*on_device(inputs), backend="triton"), expected):
        assert torch.equal(got.cpu(), wanted)


def test_sample_with_every_filter_draws_from_what_it_leaves():
    """Ties, -inf and rows of several blocks, of which the last is not full."""
    logits = (4 * normal((2, 700), F32)).round() / 2
    logits[0, 3:200] = float("-inf")
    settings = {
        "temperature": [1.0, 0.3, 2.5, 1.0, 0.7, 1.0, 1.0, 0.0],
        "top_k": [0, 7, 0, 40, 0, 650, 0, 3],
        "top_p": [1.0, 1.0, 0.9, 0.5, 1.0, 0.99, 0.0, 0.5],
        "min_p": [0.0, 0.0, 0.0, 0.02, 0.05, 0.0, 0.0, 0.0],
        "key": [2**61 * i for i in range(-4, 4)],
        "position": list(range(8)),
    }
    inputs = sample_inputs(logits, [0, 0, 0, 0, 1, 1, 1, 1], with_statistics=1, **settings)
    check_draws(inputs, run(tts_kernels.sample, inputs, "triton", "dense", DEVICE))


@large
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("backend", gpu_backends(tts_kernels.prune))
def test_prune_of_a_segment_beyond_shared_memory_is_the_reference_s(backend, rule):
    scores = torch.randn(1600, generator=torch.Generator().manual_seed(7)).round(decimals=1)
    inputs = (scores, i32([0, 3, 1503]), i32([40, 300]), i32([2, 77]), torch.tensor([5, -9]), rule, 0.7, 350)
    expected = tts_kernels.prune(*copies(inputs), backend="reference")
    for got, wanted in zip(tts_kernels.prune(*on_device(inputs), backend=backend), expected):
        assert torch.equal(got.cpu(), wanted)


@large
@pytest.mark.parametrize("backend", gpu_backends(tts_kernels.sample))
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_sample_of_many_blocks_draws_what_the_reference_does(scale, backend):
    """All filters, alone and together, as siblings of one row, with the statistics."""
    settings = {
        "temperature": [1.0, 0.3, 1.0, 1.0, 1.0, 0.7, 1.0, 0.0],
        "top_k": [0, 0, 20, 0, 0, 5000, 40, 0],
        "top_p": [1.0, 1.0, 1.0, 0.95, 1.0, 0.8731, 0.913, 1.0],
        "min_p": [0.0, 0.0, 0.0, 0.0, 0.01, 0.0, 0.02, 0.0],
        "key": [5**i for i in range(8)],
        "position": list(range(8)),
    }
    inputs = sample_inputs(scale * normal((2, 3 * 4096 + 5), F32), [0] * 5 + [1] * 3, with_statistics=1, **settings)
    results = run(tts_kernels.sample, inputs, backend, "dense", DEVICE)
    check_draws(inputs, results)
    assert int((results["token"] != tts_kernels.sample(*copies(inputs), backend="reference").token).sum()) <= 1  # by rounding


def test_attend_gives_the_same_bits_again_and_sees_a_plan_that_changed():
    """The table of a plan is kept between layers; pieces of a tile are merged in order, whichever is done last."""
    case = FAMILIES["attend"].cases["long-context"](F32)
    q, keys, values, spans, item_indptr, items, scale = on_device(case.inputs)
    first = tts_kernels.attend(q, keys, values, spans, item_indptr, items, scale, backend="triton")
    again = tts_kernels.attend(q, keys, values, spans, item_indptr, items, scale, backend="triton")
    assert torch.equal(first.out, again.out) and torch.equal(first.lse, again.lse)
    spans[0, 2] -= 1  # one token less
    changed = tts_kernels.attend(q, keys, values, spans, item_indptr, items, scale, backend="triton")
    expected = tts_kernels.attend(q, keys, values, spans, item_indptr, items, scale, backend="reference")
    torch.testing.assert_close(changed.lse, expected.lse, rtol=0, atol=1e-5)
    assert not torch.equal(changed.lse, first.lse)


def test_labels_beyond_a_program_s_registers_are_refused():
    hidden, head, before = (torch.zeros(shape, device=DEVICE) for shape in ((1, 2), (1025, 2), (1, 4)))
    with pytest.raises(ValueError, match="at most 1024 label rows on a GPU, got 1025"):
        tts_kernels.score(hidden, head, None, before, 0, "softmax", backend="triton")
