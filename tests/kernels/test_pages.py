"""PagedKV against a model of dicts and lists: whatever the moves, every branch reads exactly what was written to it."""

import itertools
from collections import Counter
from dataclasses import dataclass

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tts_kernels.pages import OutOfPages, PagedKV

UNWRITTEN = -1.0


def make_kv(num_pages, page_size):
    kv = PagedKV(num_pages, page_size, num_layers=1, num_kv_heads=1, head_dim=1)
    kv.pool.fill_(UNWRITTEN)
    return kv


def cells(kv, slots):
    """(page, offset) of each slot, as an index into the keys of the only layer and head."""
    slots = torch.from_numpy(np.asarray(slots, np.int64))
    return 0, 0, 0, slots // kv.page_size, slots % kv.page_size, 0


def write(kv, slots, tokens):
    kv.pool[cells(kv, slots)] = torch.tensor(tokens, dtype=torch.float32)


def read(kv, slots):
    return kv.pool[cells(kv, slots)].int().tolist()


def state(kv):
    """All that a caller can see, but the contents of the pool."""
    nodes = range(len(kv._parent))
    table = [(kv.parent(n), kv.length(n), kv.has_children(n)) for n in nodes if n not in kv._free_nodes]
    return kv.num_free_pages, kv.num_used_pages, kv.num_nodes, kv.peak_pages, table


@dataclass
class Model:
    """What a node must be: its parent's id (None at a root), its tokens, and the references that the caller holds."""

    parent: int | None
    tokens: list[int]
    handles: int = 1


class PagedKVMachine(RuleBasedStateMachine):
    """Random moves on a small pool and, in step, on a dict of `Model`."""

    @initialize(page_size=st.integers(1, 5), num_pages=st.integers(1, 16))
    def start(self, page_size, num_pages):
        self.kv = make_kv(num_pages, page_size)
        self.nodes: dict[int, Model] = {}
        self.num_written = self.peak = 0

    # ---- what the model knows

    def parents(self):
        return {m.parent for m in self.nodes.values()}

    def path(self, node):
        above = self.nodes[node].parent
        return ([] if above is None else self.path(above)) + [node]

    def growable(self):
        return [n for n in self.nodes if n not in self.parents()]

    def splittable(self):
        return [n for n, m in self.nodes.items() if len(m.tokens) > 1]

    def held(self):
        return [n for n, m in self.nodes.items() if m.handles]

    def draw_some(self, data, nodes, max_size):
        return data.draw(st.lists(st.sampled_from(nodes), min_size=1, max_size=max_size, unique=True))

    # ---- moves

    @rule(data=st.data())
    def add(self, data):
        """Roots and forks in one call; a parent may stand there many times, a childless or a frozen one."""
        parents = data.draw(st.lists(st.sampled_from([-1, *self.nodes]), min_size=1, max_size=3))
        free_before = self.kv.num_free_pages
        added = self.kv.add(parents)
        assert len(set(added.tolist())) == len(parents) and not set(added.tolist()) & set(self.nodes)
        assert self.kv.num_free_pages == free_before, "a fork takes no page"
        for node, parent in zip(added.tolist(), parents, strict=True):
            self.nodes[node] = Model(None if parent < 0 else parent, [])

    def extend(self, nodes, counts):
        before, needed, used = state(self.kv), self.kv.pages_needed(nodes, counts), self.kv.num_used_pages
        fits = needed <= self.kv.num_free_pages
        assert self.kv.can_extend(nodes, counts) == fits
        if not fits:
            with pytest.raises(OutOfPages) as caught:
                self.kv.extend(nodes, counts)
            assert (caught.value.needed, caught.value.free, caught.value.total) == (needed, before[0], self.kv.num_pages)
            assert state(self.kv) == before
            return
        slots = self.kv.extend(nodes, counts)
        assert self.kv.num_used_pages == used + needed
        tokens = list(range(self.num_written, self.num_written + sum(counts)))
        self.num_written += len(tokens)
        assert len(slots) == len(tokens)
        write(self.kv, slots, tokens)
        for node, count in zip(nodes, counts, strict=True):
            self.nodes[node].tokens += tokens[:count]
            del tokens[:count]

    @precondition(lambda self: self.growable())
    @rule(data=st.data())
    def extend_by_one(self, data):
        nodes = self.draw_some(data, self.growable(), 8)
        self.extend(nodes, [1] * len(nodes))

    @precondition(lambda self: self.growable())
    @rule(data=st.data())
    def extend_by_mixed_counts(self, data):
        nodes = self.draw_some(data, self.growable(), 4)
        self.extend(nodes, data.draw(st.lists(st.integers(1, 9), min_size=len(nodes), max_size=len(nodes))))

    @precondition(lambda self: self.splittable())
    @rule(data=st.data())
    def split(self, data):
        node = data.draw(st.sampled_from(self.splittable()))
        model = self.nodes[node]
        boundaries = list(range(self.kv.page_size, len(model.tokens), self.kv.page_size)) or [1]
        length = data.draw(st.integers(1, len(model.tokens) - 1) | st.sampled_from(boundaries))
        free_before = self.kv.num_free_pages
        upper = self.kv.split(node, length)
        assert upper not in self.nodes and self.kv.num_free_pages == free_before
        self.nodes[upper] = Model(model.parent, model.tokens[:length])
        self.nodes[node] = Model(upper, model.tokens[length:], model.handles)
        if data.draw(st.booleans(), label="drop the lower part"):
            for _ in range(model.handles):
                self.give_back(node)

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def retain(self, data):
        node = data.draw(st.sampled_from(list(self.nodes)))
        self.kv.retain(node)
        self.nodes[node].handles += 1

    def give_back(self, node):
        self.kv.release(node)
        self.nodes[node].handles -= 1
        while node is not None and not self.nodes[node].handles and node not in self.parents():
            node = self.nodes.pop(node).parent

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def release(self, data):
        self.give_back(data.draw(st.sampled_from(self.held())))

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def abort(self, data):
        """Give everything back, in any order."""
        for node in data.draw(st.permutations([n for n in self.held() for _ in range(self.nodes[n].handles)])):
            self.give_back(node)
        assert not self.nodes and self.kv.num_used_pages == self.kv.num_nodes == 0

    # ---- what must hold after every move

    @invariant()
    def pages_and_references_add_up(self):
        kv = self.kv
        kv.check()
        assert kv.num_free_pages + kv.num_used_pages == kv.num_pages
        assert kv.num_nodes == len(self.nodes)
        self.peak = max(self.peak, kv.num_used_pages)
        assert kv.peak_pages == self.peak

    @invariant()
    def the_tree_is_the_models(self):
        parents = self.parents()
        for node, model in self.nodes.items():
            assert self.kv.path(node) == self.path(node)
            assert self.kv.parent(node) == (-1 if model.parent is None else model.parent)
            assert self.kv.length(node) == len(model.tokens)
            assert self.kv.has_children(node) == (node in parents)

    @invariant()
    def every_node_reads_its_own_tokens_and_shares_no_slot(self):
        slots = [self.kv.slots(node).tolist() for node in self.nodes]
        assert [len(s) for s in slots] == [len(m.tokens) for m in self.nodes.values()]
        flat = sum(slots, [])
        assert len(set(flat)) == len(flat), "a slot belongs to two tokens"
        assert read(self.kv, flat) == sum((m.tokens for m in self.nodes.values()), [])

    def teardown(self):
        if hasattr(self, "kv"):
            for node in [n for n in self.held() for _ in range(self.nodes[n].handles)]:
                self.give_back(node)
            self.kv.check()
            assert not self.nodes and self.kv.num_used_pages == self.kv.num_nodes == 0


TestPagedKV = PagedKVMachine.TestCase
TestPagedKV.settings = settings(max_examples=60, stateful_step_count=30, deadline=None, derandomize=True)


# ---- examples


def test_running_out_of_pages_says_what_is_needed_free_and_there():
    kv = make_kv(3, 4)
    (node,) = kv.add([-1])
    kv.extend([node], [5])
    with pytest.raises(OutOfPages, match="2 pages are needed, 1 of 3 are free"):
        kv.extend([node], [8])
    assert kv.length(node) == 5 and kv.num_free_pages == 1
    kv.extend([node], [7])
    assert kv.num_free_pages == 0


def test_of_several_nodes_none_grows_when_the_pages_do_not_suffice_for_all():
    kv = make_kv(3, 2)
    nodes = kv.add([-1] * 4)
    with pytest.raises(OutOfPages):
        kv.extend(nodes, [1, 1, 1, 1])
    assert [kv.length(n) for n in nodes] == [0] * 4 and kv.num_free_pages == 3


@pytest.mark.parametrize("count", [1, 3])
def test_a_node_with_children_is_frozen(count):
    kv = make_kv(4, 4)
    (parent,) = kv.add([-1])
    kv.extend([parent], [2])
    (child,) = kv.add([parent])
    with pytest.raises(AssertionError, match="frozen"):
        kv.extend([parent], [count])
    kv.release(child)
    kv.extend([parent], [count])
    assert kv.length(parent) == 2 + count


def test_the_node_table_grows_while_nodes_are_in_use():
    """It starts with 64 rows; every node stays what it was when it grows."""
    kv = make_kv(700, 2)
    (root,) = kv.add([-1])
    write(kv, kv.extend([root], [3]), [7, 8, 9])
    leaves = np.zeros(0, np.int64)
    for width in (60, 100, 300):
        added = kv.add([root] * width)
        write(kv, kv.extend(added, [1] * width), added)
        leaves = np.concatenate([leaves, added])
        kv.check()
        assert kv.num_nodes == 1 + len(leaves) == 1 + len(set(leaves.tolist()))
        assert read(kv, np.concatenate([kv.slots(n) for n in (root, *leaves)])) == [7, 8, 9, *leaves]
        assert all(kv.path(n) == [root, n] for n in leaves.tolist())
    for node in (root, *leaves):
        kv.release(node)
    kv.check()
    assert kv.num_nodes == kv.num_used_pages == 0


def test_pages_that_were_given_back_are_chained_anew():
    """Two nodes grow in any turn, in a pool whose pages were all in use once, one after the other."""
    for growing in itertools.product((0, 1), repeat=6):
        kv = make_kv(6, 1)
        (old,) = kv.add([-1])
        for _ in growing:
            kv.extend([old], [1])
        kv.release(old)
        nodes, tokens = kv.add([-1, -1]), [[], []]
        for token, which in enumerate(growing):
            write(kv, kv.extend([nodes[which]], [1]), [token])
            tokens[which].append(token)
            assert [read(kv, kv.slots(node)) for node in nodes] == tokens
        kv.check()


def test_a_fork_takes_no_page_until_it_holds_a_token():
    kv = make_kv(4, 4)
    (parent,) = kv.add([-1])
    kv.extend([parent], [3])
    children = kv.add([parent] * 100)
    assert kv.num_used_pages == 1
    kv.extend(children[:2], [1, 1])
    assert kv.num_used_pages == 3


@pytest.mark.parametrize("page_size", [1, 2, 3, 4])
def test_what_is_left_of_a_node_after_a_split_can_grow_again(page_size):
    """Cut at every point, once or twice, the lower parts given back: the upper part grows where they were."""
    for total, growth, one_by_one in itertools.product(range(2, 8), (1, 2, 5), (False, True)):
        for first, second in itertools.combinations_with_replacement(range(1, total), 2):
            kv = make_kv(20, page_size)
            (node,) = kv.add([-1])
            write(kv, kv.extend([node], [total]), range(total))
            lower = kv.split(node, second)
            upper = kv.split(lower, first) if first < second else lower
            for part in {node, lower} - {upper}:
                kv.release(part)
            new = range(100, 100 + growth)
            for tokens in [[t] for t in new] if one_by_one else [new]:
                write(kv, kv.extend([upper], [len(tokens)]), tokens)
            kv.check()
            assert read(kv, kv.slots(upper)) == [*range(first), *new]
            assert kv.num_used_pages == -(-(first + growth) // page_size)


@pytest.mark.parametrize("length", [-1, 0, 5, 6])
def test_a_split_outside_the_node_is_refused_with_the_allowed_range(length):
    kv = make_kv(4, 2)
    (node,) = kv.add([-1])
    kv.extend([node], [5])
    with pytest.raises(ValueError, match=rf"5 tokens must lie in \[1, 4\], got {length}"):
        kv.split(node, length)
    assert kv.num_nodes == 1


def test_releasing_more_often_than_given_asserts():
    kv = make_kv(2, 2)
    (parent,) = kv.add([-1])
    kv.add([parent])
    kv.release(parent)
    with pytest.raises(AssertionError, match="more often"):
        kv.release(parent)


def test_sizes_below_one_are_refused_by_name():
    with pytest.raises(ValueError, match="page_size=0"):
        PagedKV(1, 0, 1, 1, 1)


# ---- plans


def contexts(plan, num_queries):
    """What each query reads, straight from the meaning of work items: for each query a list of (is_causal, its slots)."""
    items, indptr, spans = plan.items.tolist(), plan.item_indptr.tolist(), plan.spans.tolist()
    assert len(indptr) == len(items) + 1 and indptr[0] == 0 and indptr[-1] == len(spans)
    reads = [[] for _ in range(num_queries)]
    for (q0, q1, is_causal), begin, end in zip(items, indptr[:-1], indptr[1:], strict=True):
        tokens = [(page, first + i) for page, first, count in spans[begin:end] for i in range(count)]
        for query in range(q0, q1):
            hidden = q1 - 1 - query if is_causal else 0
            reads[query].append((bool(is_causal), tokens[: len(tokens) - hidden]))
    return reads


def check_plan(kv, leaves, counts):
    """Each query of a row reads the row's path exactly once, up to itself; its causal item is the last and the row's alone."""
    indptr = [0, *itertools.accumulate(counts)]
    plan = kv.plan(leaves, indptr)
    reads = contexts(plan, indptr[-1])
    rows = list(zip(indptr[:-1], indptr[1:], strict=True))
    for leaf, (begin, end) in zip(leaves, rows, strict=True):
        path = np.concatenate([kv.slots(n) for n in kv.path(leaf)]).tolist()
        for query in range(begin, end):
            visible = path[: len(path) - (end - 1 - query)]
            slots = [page * kv.page_size + offset for _, tokens in reads[query] for page, offset in tokens]
            assert Counter(slots) == Counter(visible)
            assert [is_causal for is_causal, _ in reads[query]] == [False] * (len(reads[query]) - 1) + [True]
    assert [(q0, q1) for q0, q1, is_causal in plan.items.tolist() if is_causal] == rows
    return plan


@st.composite
def trees(draw):
    """A PagedKV with a random tree, some of it split, and nodes in any order that may be the rows of a batch."""
    kv = make_kv(400, draw(st.integers(1, 5)))
    nodes = []
    for _ in range(draw(st.integers(1, 12))):
        (node,) = kv.add([draw(st.sampled_from([-1, *nodes[-4:]]))]).tolist()
        if length := draw(st.integers(0, 9)):
            kv.extend([node], [length])
        nodes.append(node)
        if length > 1 and draw(st.booleans()):
            nodes.append(kv.split(node, draw(st.integers(1, length - 1))))
    filled = [n for n in nodes if kv.length(n)]
    rows = draw(st.lists(st.sampled_from(filled), max_size=8, unique=True)) if filled else []
    return kv, rows, [draw(st.integers(1, kv.length(n))) for n in rows]


@settings(max_examples=150)
@given(trees())
def test_a_plan_covers_exactly_the_path_of_each_row(tree):
    check_plan(*tree)


@settings(max_examples=50)
@given(trees())
def test_leaves_in_depth_first_order_read_each_slot_once(tree):
    kv, rows, counts = tree
    ancestors = {n for leaf in rows for n in kv.path(leaf)[:-1]}
    count = {n: c for n, c in zip(rows, counts, strict=True) if n not in ancestors}
    ordered = sorted(count, key=kv.path)
    plan = check_plan(kv, ordered, [count[n] for n in ordered])
    reads = [(page, first + i) for page, first, count in plan.spans.tolist() for i in range(count)]
    assert len(set(reads)) == len(reads)


def test_a_plan_for_more_items_and_spans_than_it_had_room_for_is_made_with_larger_buffers():
    """100 children of one root make 101 items; one token a page makes 700 spans."""
    kv = make_kv(1000, 1)
    (root,) = kv.add([-1])
    kv.extend([root], [500])
    leaves = kv.add([root] * 100)
    kv.extend(leaves, [2] * 100)
    plan = check_plan(kv, leaves.tolist(), [1] * 100)
    assert len(plan.items) == 101 and len(plan.spans) == 700
    again = check_plan(kv, leaves.tolist()[:3], [1] * 3)
    assert len(again.items) == 4 and len(again.spans) == 506


def test_a_plan_without_rows_is_empty():
    plan = check_plan(make_kv(1, 1), [], [])
    assert len(plan.items) == len(plan.spans) == 0
