"""Flat page tables, on the pools of other engines: the same attention as on the tree of pages, bit for bit."""

import numpy as np
import pytest
import torch
from cases import UNREAD, normal
from hypothesis import given
from random_cases import flat_batches
from trees import i32

from tts_kernels import append, attend, copy_tails, plan_pages, prune
from tts_kernels.flat import fork_page_tables
from tts_kernels.pages import PagedKV

NAN = float("nan")


def planned(page_table, context, indptr, page_size, backend=None):
    made = plan_pages(i32(page_table), i32(context), i32(indptr), page_size, 64, 512, backend=backend)
    items, spans = made.needed.tolist()
    return made.spans[:spans], made.item_indptr[: items + 1], made.items[:items]


# ---- plan_pages


def tokens_of(table, count, page_size):
    return [(int(table[t // page_size]), t % page_size) for t in range(count)]


@pytest.mark.parametrize("backend", list(plan_pages.backends))
@given(flat_batches())
def test_each_query_sees_the_tokens_of_its_row_once_in_order_and_causally(backend, batch):
    tables, context, counts, page_size = batch
    indptr = [0, *np.cumsum(counts).tolist()]
    spans, item_indptr, items = planned(tables, context, indptr, page_size, backend)
    seen = [[] for _ in range(indptr[-1])]
    for (q0, q1, is_causal), begin, end in zip(items.tolist(), item_indptr.tolist(), item_indptr[1:].tolist()):
        tokens = [(page, first + i) for page, first, count in spans[begin:end].tolist() for i in range(count)]
        for query in range(q0, q1):
            seen[query] += tokens[: len(tokens) - (q1 - 1 - query)] if is_causal else tokens
    for row, count in enumerate(counts):
        for i in range(count):
            assert seen[indptr[row] + i] == tokens_of(tables[row], context[row] - (count - 1 - i), page_size)
    assert [(q0, q1) for q0, q1, is_causal in items.tolist() if is_causal] == [
        (begin, end) for begin, end in zip(indptr, indptr[1:]) if begin < end
    ]


@pytest.mark.parametrize("backend", list(plan_pages.backends))
@given(flat_batches())
def test_neighbours_read_a_full_page_that_leads_both_tables_once(backend, batch):
    tables, context, _, page_size = batch
    spans, _, _ = planned(tables, context, list(range(len(context) + 1)), page_size, backend)
    expected, before = 0, []
    for table, tokens in zip(tables.tolist(), context):
        full = table[: (tokens - 1) // page_size]
        shared = next((i for i, (a, b) in enumerate(zip(before, full)) if a != b), min(len(before), len(full)))
        expected += -(-tokens // page_size) - shared
        before = full
    assert len(spans) == expected


@pytest.mark.skipif("native" not in plan_pages.backends, reason="the C++ module is not built")
@given(flat_batches())
def test_native_and_reference_plan_the_same(batch):
    tables, context, counts, page_size = batch
    inputs = (tables, context, [0, *np.cumsum(counts).tolist()], page_size)
    for one, other in zip(planned(*inputs, "native"), planned(*inputs, "reference")):
        assert torch.equal(one, other)


# ---- fork_page_tables


def test_the_first_child_inherits_the_tail_and_the_others_get_copies():
    tables = [[4, 7, UNREAD], [4, 2, 5], [9, UNREAD, UNREAD]]
    forked = fork_page_tables(tables, [6, 9, 3], [3, 0, 2], [20, 21, 22, 23], page_size=4)
    assert forked.page_table.tolist() == [
        [4, 7, UNREAD],
        [4, 20, UNREAD],
        [4, 21, UNREAD],
        [9, UNREAD, UNREAD],
        [22, UNREAD, UNREAD],
    ]
    assert forked.context.tolist() == [6, 6, 6, 3, 3]
    assert [x.tolist() for x in forked[2:]] == [[7, 7, 9], [20, 21, 22], [2, 2, 3]]


def test_full_pages_are_shared_and_nothing_is_copied():
    forked = fork_page_tables([[4, 7], [4, 2]], [8, 4], [2, 2], [], page_size=4)
    assert forked.page_table.tolist() == [[4, 7], [4, 7], [4, 2], [4, 2]] and len(forked.sources) == 0


def test_a_fork_that_lacks_pages_says_so_and_writes_nothing():
    tables, free = np.int32([[4, 7]]), np.int32([1])
    with pytest.raises(ValueError, match="fork_page_tables: 2 tails need a page each, 1 are free"):
        fork_page_tables(tables, [5], [3], free, page_size=4)
    forked = fork_page_tables(tables, [5], [2], free, page_size=4)
    forked.page_table[:] = -1
    assert tables.tolist() == [[4, 7]] and free.tolist() == [1]


def test_a_fork_of_nothing_is_nothing():
    for tables, widths in ((np.zeros((0, 3)), []), (np.zeros((2, 3)), [0, 0])):
        forked = fork_page_tables(tables, [1] * len(widths), widths, [5], page_size=4)
        assert forked.page_table.shape == (0, 3) and len(forked.context) == len(forked.counts) == 0


# ---- a search on both kinds of pool

G, D, PAGES, MAX_PAGES = 2, 16, 200, 26
POOLS = {
    "NHD": lambda size, dtype: [x.transpose(1, 2) for x in torch.full((2, PAGES, size, G, D), NAN, dtype=dtype)],
    "HND": lambda size, dtype: list(torch.full((PAGES, 2, G, size, D), NAN, dtype=dtype).unbind(1)),
}


class FlatBranches:
    """Branches on another engine's pool of two layers. Pages come in random order and are never given back."""

    def __init__(self, layout, page_size, dtype, rng):
        self.page_size = page_size
        self.layers = [POOLS[layout](page_size, dtype) for _ in range(2)]
        self.free = rng.permutation(PAGES).tolist()
        self.page_table, self.context = np.full((1, MAX_PAGES), UNREAD, np.int32), np.zeros(1, np.int32)

    def __len__(self):
        return len(self.context)

    def extend(self, count):
        """Slots of `count` more tokens of each branch."""
        slots = []
        for table, tokens in zip(self.page_table, self.context):
            for position in range(tokens, tokens + count):
                if position % self.page_size == 0:
                    table[position // self.page_size] = self.free.pop()
                slots.append(int(table[position // self.page_size]) * self.page_size + position % self.page_size)
        self.context = self.context + np.int32(count)
        return torch.tensor(slots)

    def fork(self, widths):
        forked = fork_page_tables(self.page_table, self.context, widths, self.free, self.page_size)
        copy_tails(forked.sources, forked.destinations, forked.counts, [cache for layer in self.layers for cache in layer])
        del self.free[: len(forked.destinations)]
        self.page_table, self.context = forked.page_table, forked.context

    def plan(self, indptr):
        return planned(self.page_table, self.context, indptr, self.page_size)


class TreeBranches:
    """The same branches as nodes of a tree."""

    def __init__(self, page_size, dtype):
        self.kv = PagedKV(PAGES, page_size, 2, G, D, dtype)
        self.layers, self.leaves = self.kv.layers, self.kv.add([-1])

    def __len__(self):
        return len(self.leaves)

    def extend(self, count):
        return torch.from_numpy(self.kv.extend(self.leaves, [count] * len(self.leaves)))

    def fork(self, widths):
        self.leaves = self.kv.add(np.repeat(self.leaves, widths))

    def plan(self, indptr):
        made = self.kv.plan(self.leaves, indptr)
        return made.spans, made.item_indptr, made.items


def forward(branches, count, dtype, seed):
    """Append `count` tokens to each branch, and give what attends to them in each layer: (out, lse) of all."""
    rows, results = len(branches), []
    slots = branches.extend(count)
    plan = branches.plan([count * row for row in range(rows + 1)])
    for layer, pages in enumerate(branches.layers):
        q, k, v = (normal((count * rows, heads, D), dtype, 1000 * seed + 10 * layer + i) for i, heads in enumerate((2 * G, G, G)))
        append(k, v, *pages, slots)
        results += attend(q, *pages, *plan, 0.25)
    return results


@pytest.mark.skipif("native" not in attend.backends, reason="the C++ module is not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", POOLS)
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_a_search_over_flat_tables_has_the_bits_of_a_search_over_the_tree(page_size, layout, dtype):
    rng = np.random.default_rng(page_size)
    flat, tree = FlatBranches(layout, page_size, dtype, rng), TreeBranches(page_size, dtype)
    for step, counts in enumerate([[9], [1, 1, 1, 4], [3, 1], [1] * 5]):
        for i, count in enumerate(counts):
            for one, other in zip(*(forward(branches, count, dtype, 10 * step + i) for branches in (flat, tree)), strict=True):
                assert one.isfinite().all() and torch.equal(one, other)
        rows = len(tree)
        scores, keep = torch.from_numpy(rng.normal(size=rows).astype(np.float32)), i32([min(rows, 3)])
        widths = prune(scores, i32([0, rows]), i32([6]), keep, None, "top", 1.0, 6).widths.numpy()
        flat.fork(widths)
        tree.fork(widths)
