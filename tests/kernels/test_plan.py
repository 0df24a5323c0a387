"""`plan` against what it promises, over random trees: who reads which token, how often, and in which order."""

import numpy as np
import pytest
import torch
from conformance import on_the_cpu
from hypothesis import given
from random_cases import tree_batches
from trees import Tree, dense_attention, depth_first_leaves, filled_pages

import tts_kernels
from tts_kernels import attend, plan

BACKENDS = on_the_cpu(plan)


def visible_tokens(tree, made, query):
    """Slots that a query sees, item after item."""
    items, spans = made.items.tolist(), made.spans.tolist()
    slots = []
    for (q0, q1, is_causal), begin, end in zip(items, made.item_indptr.tolist(), made.item_indptr[1:].tolist()):
        if q0 <= query < q1:
            tokens = [page * tree.page_size + first + i for page, first, count in spans[begin:end] for i in range(count)]
            slots += tokens[: len(tokens) - (q1 - 1 - query)] if is_causal else tokens
    return slots


def trimmed(made):
    items, spans = made.needed.tolist()
    return made._replace(items=made.items[:items], item_indptr=made.item_indptr[: items + 1], spans=made.spans[:spans])


@pytest.mark.parametrize("backend", BACKENDS)
@given(tree_batches())
def test_each_query_sees_the_tokens_of_its_path_once_in_order_and_causally(backend, batch):
    tree, leaves, counts = batch
    indptr = [0, *np.cumsum(counts).tolist()]
    made = trimmed(plan(*tree.plan_inputs(leaves, indptr), backend=backend))
    for row, (leaf, count) in enumerate(zip(leaves, counts)):
        context = tree.context(leaf)
        for i in range(count):
            assert visible_tokens(tree, made, indptr[row] + i) == context[: len(context) - (count - 1 - i)]
    assert all(q0 < q1 for q0, q1, _ in made.items.tolist()), "an item without queries"


@pytest.mark.parametrize("backend", BACKENDS)
@given(tree_batches())
def test_rows_in_depth_first_order_read_each_token_of_an_inner_node_once(backend, batch):
    tree, _, _ = batch
    leaves = [leaf for leaf in depth_first_leaves(tree) if tree.length[leaf]]
    made = trimmed(plan(*tree.plan_inputs(leaves, list(range(len(leaves) + 1))), backend=backend))
    read = [page * tree.page_size + first + i for page, first, count in made.spans.tolist() for i in range(count)]
    nodes = {node for leaf in leaves for node in tree.path(leaf)}
    assert sorted(read) == sorted(slot for node in nodes for slot in tree.tokens[node])


@pytest.mark.skipif("native" not in BACKENDS, reason="the C++ module is not built")
@given(tree_batches())
def test_native_and_reference_make_the_same_plan(batch):
    tree, leaves, counts = batch
    inputs = tree.plan_inputs(leaves, [0, *np.cumsum(counts).tolist()])
    for one, other in zip(*(trimmed(plan(*inputs, backend=backend)) for backend in ("native", "reference"))):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", on_the_cpu(attend))
@given(tree_batches())
def test_attend_over_a_plan_is_dense_attention_over_each_rows_own_tokens(backend, batch):
    tree, leaves, counts = batch
    indptr = [0, *np.cumsum(counts).tolist()]
    made = trimmed(plan(*tree.plan_inputs(leaves, indptr)))
    generator = torch.Generator().manual_seed(len(leaves))
    pages = filled_pages(tree, 2, 16, torch.float32, generator)
    q = torch.randn(indptr[-1], 4, 16, generator=generator)
    contexts = [
        tree.context(leaf)[: len(tree.context(leaf)) - left] for leaf, n in zip(leaves, counts) for left in range(n)[::-1]
    ]
    out, lse = attend(q, *pages, made.spans, made.item_indptr, made.items, 0.25, backend=backend)
    expected, expected_lse = dense_attention(q, *pages, contexts, 0.25)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=0, atol=2e-6)


def test_coalescing_makes_one_item_of_a_chain():
    tree = Tree(page_size=4, num_pages=20)
    chain = [tree.add(-1, 5)]
    for _ in range(11):
        chain.append(tree.add(chain[-1], 2))
    leaves = [tree.add(chain[-1], 1) for _ in range(3)]
    made = tts_kernels.plan(*tree.plan_inputs(leaves, [0, 1, 2, 3]))
    assert made.items[: made.needed[0]].tolist() == [[0, 3, 0], [0, 1, 1], [1, 2, 1], [2, 3, 1]]
