"""The ops as torch sees them: schemas, shapes without values, compiled functions."""

import pytest
import torch
from cases import F32, FAMILIES, copies, normal
from trees import Tree, filled_pages

import tts_kernels
from tts_kernels import torch_ops
from tts_kernels.op import Op

CASES = {
    "linear": "7x13x31+bias",
    "pack": "17x33",
    "rms_norm": "13x131",
    "silu_and_mul": "13x131",
    "rope": "5x3x40-38",
    "append": "7x2x40",
    "attend": "ragged-prefill",
    "decoder": "qwen2",
    "plan": "worked-example",
    "plan_pages": "worked-example",
    "score": "7x48x2-softmax",
    "prune": "softmax",
    "fork": "4-children",
    "copy_tails": "5x6x2x40",
    "sample": "greedy-with-ties",
}


def inputs_of(name):
    return copies(FAMILIES[name].cases[CASES[name]](F32).inputs)


@pytest.mark.parametrize("name", tts_kernels.OPS)
def test_torch_finds_nothing_wrong_with_an_op(name):
    """Schema, mutation, aliasing, shapes without values, and tracing with static and with symbolic sizes."""
    torch.library.opcheck(getattr(torch.ops.tts_kernels, name).default, inputs_of(name))


@pytest.mark.parametrize("name", tts_kernels.OPS)
def test_a_torch_op_gives_the_bits_of_the_op(name):
    op = tts_kernels.OPS[name]
    inputs, twins = inputs_of(name), inputs_of(name)
    expected, got = op(*inputs), getattr(torch.ops.tts_kernels, name)(*twins)
    written = [(x, y) for arg, x, y in zip(op.inputs, inputs, twins) if arg.is_mutated]
    expected, got = ((x,) if isinstance(x, torch.Tensor) else x or () for x in (expected, got))
    pairs = [pair for x, y in written for pair in (zip(x, y) if isinstance(x, list) else [(x, y)])]
    for one, other in [*zip(expected, got, strict=True), *pairs]:
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def total(x, y, n, *, out):
    """Takes what the first signature below says."""


def fill(x, t, rule):
    """Takes what the second says."""


def spread(x, pages, *, a, b):
    """Takes what the third says."""


@pytest.mark.parametrize(
    "reference, signature, schema",
    [
        (total, "x T[N], y? f32[N], n int -> out f32[N]", "(Tensor x, Tensor? y, SymInt n) -> Tensor"),
        (fill, "x! T[N], t float, rule str in a|b ->", "(Tensor(a0!) x, float t, str rule) -> ()"),
        (spread, "x f32[N], pages! T[P,S]* -> a f32[N], b i32[2]", "(Tensor x, Tensor(a1!)[] pages) -> (Tensor, Tensor)"),
    ],
)
def test_the_schema_is_the_contract_in_the_words_of_torch(reference, signature, schema):
    assert torch_ops.schema(Op(signature, reference)) == schema


def decode_step(x, n, weight, bias, slots, keys, values, spans, item_indptr, items):
    """One layer's attention: project, write the new keys and values, attend."""
    ops = torch.ops.tts_kernels
    qkv = ops.linear(x, n, weight, bias).unflatten(1, (-1, 16))
    ops.append(qkv[:, 4:6], qkv[:, 6:8], keys, values, slots)
    out, lse = ops.attend(qkv[:, :4], keys, values, spans, item_indptr, items, 0.25)
    return out * 2, lse


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_function_is_one_graph_for_any_batch_size(backend):
    compiled = torch.compile(decode_step, fullgraph=True, backend=backend, dynamic=True)
    for rows in (3, 5):
        tree = Tree(4, 40)
        root = tree.add(-1, 9)
        leaves = [tree.add(root, 1 + i) for i in range(rows)]
        made = tts_kernels.plan(*tree.plan_inputs(leaves, list(range(rows + 1))))
        items, spans = made.needed.tolist()
        plan = made.spans[:spans], made.item_indptr[: items + 1], made.items[:items]
        x, weight, bias = normal((rows, 24), F32), tts_kernels.pack(normal((128, 24), F32, 1)), normal((128,), F32, 2)
        slots = torch.tensor([tree.tokens[leaf][-1] for leaf in leaves])
        pages = filled_pages(tree, 2, 16, F32, None)
        twins = [p.clone() for p in pages]
        expected = decode_step(x, 128, weight, bias, slots, *pages, *plan)
        got = compiled(x, 128, weight, bias, slots, *twins, *plan)
        for one, other in zip((*expected, *pages), (*got, *twins), strict=True):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


def test_sizes_from_scalars_and_from_blocks_stay_symbolic():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def project(x, weight, n):
        packed = torch.ops.tts_kernels.pack(weight)
        return torch.ops.tts_kernels.linear(x, n, packed, None), packed

    for m, n, k in ((3, 50, 70), (5, 17, 33), (6, 100, 40)):
        x, weight = normal((m, k), F32), normal((n, k), F32, 1)
        out, packed = project(x, weight, n)
        assert out.shape == (m, n) and packed.shape == (-(-n // 16), -(-k // 32), 16, 16, 2)
        torch.testing.assert_close(out, x @ weight.T, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == 1
