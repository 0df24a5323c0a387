"""PagedKV: the one owner of KV memory. Pages, nodes and reference counts; a fork copies no byte.

A *page* holds all layers, K and V, of `page_size` consecutive tokens. A *node* is a run of tokens: (pages, start, length), where
`start` is the slot of its first token in its first page. A branch of a search is a node; its ancestors hold its prefix.

Who owns a page: the node that allocated it. Only `split` makes two nodes meet in one page; then the upper one owns it, and
because every node is an ancestor of what was split off it, the owner outlives the guest. A node with children is frozen: its
length never changes, so a child's context never does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from tts_kernels import memory
from tts_kernels.attend import plan
from tts_kernels.fork import fork

_COLUMNS = ("parent", "refs", "start", "length", "first_page", "last_page")


class OutOfPages(RuntimeError):
    """The pool has too few free pages. Nothing was changed."""

    def __init__(self, needed: int, free: int, total: int):
        super().__init__(f"{needed} pages are needed, {free} of {total} are free: release nodes or make the pool larger")
        self.needed, self.free, self.total = needed, free, total


@dataclass(frozen=True)
class Plan:
    """Who reads what in one forward pass: the work items of `attend`."""

    items: torch.Tensor
    item_indptr: torch.Tensor
    spans: torch.Tensor


class PagedKV:
    """A pool of pages and the tree of nodes that live in it.

    `pool` is T[L, 2, G, P, S, D]: layers, (K, V), KV heads, pages, slots, head dim: what a head reads of a prompt lies in one
    piece where its pages do. `keys` and `values` are views T[L, P, G, S, D] of it, `layers[l]` both of a layer. Node ids are
    small integers, reused after release. Every method that gives a node gives the caller one reference to it; `release` returns
    it.
    """

    _parent: np.ndarray
    _refs: np.ndarray
    _start: np.ndarray
    _length: np.ndarray
    _first_page: np.ndarray
    _last_page: np.ndarray
    _handles: np.ndarray

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        if min(num_pages, page_size, num_layers, num_kv_heads, head_dim) < 1:
            raise ValueError(
                f"all sizes of a PagedKV must be >= 1, got {num_pages=} {page_size=} {num_layers=} {num_kv_heads=} {head_dim=}"
            )
        self.pool = memory.empty((num_layers, 2, num_kv_heads, num_pages, page_size, head_dim), dtype, device)
        self.keys, self.values = self.pool.transpose(2, 3).unbind(1)
        self.layers = list(zip(self.keys, self.values))
        self.page_size, self.num_pages = page_size, num_pages
        self.peak_pages = 0
        self._free_pages = list(range(num_pages - 1, -1, -1))
        self._next_page = np.full(num_pages, -1, np.int32)
        self._free_nodes: list[int] = []
        self._tensors = {"next_page": torch.from_numpy(self._next_page)}  # views of the columns, for ops
        for name in (*_COLUMNS, "handles"):
            setattr(self, f"_{name}", np.zeros(0, np.int32))
        self._plan_capacity = (64, 256)
        self._grow_nodes(64)

    # ---- state

    @property
    def num_free_pages(self) -> int:
        return len(self._free_pages)

    @property
    def num_used_pages(self) -> int:
        return self.num_pages - len(self._free_pages)

    @property
    def num_nodes(self) -> int:
        return len(self._parent) - len(self._free_nodes)

    def length(self, node: int) -> int:
        """Tokens of the node itself."""
        return int(self._length[node])

    def parent(self, node: int) -> int:
        """The parent's id, -1 at a root."""
        return int(self._parent[node])

    def has_children(self, node: int) -> bool:
        return bool(self._refs[node] > self._handles[node])

    def path(self, node: int) -> list[int]:
        """Node ids from the root to `node`."""
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = int(self._parent[node])
        return nodes[::-1]

    def slots(self, node: int) -> np.ndarray:
        """i64[length]: where the node's tokens lie, in order."""
        pages = np.asarray(self._pages(node), np.int64)
        flat = (pages[:, None] * self.page_size + np.arange(self.page_size)).reshape(-1)
        start = int(self._start[node])
        return flat[start : start + int(self._length[node])]

    # ---- moves

    def add(self, parents: ArrayLike) -> np.ndarray:
        """Fork: one empty child for each of `parents` (-1: a new root); i32[len(parents)] node ids. No KV byte is copied."""
        parents = np.asarray(parents, np.int32)
        nodes = np.array([self._take_node() for _ in parents], np.int32)
        inner = parents >= 0
        self._fork(parents[inner], nodes[inner])
        self._enter_roots(nodes[~inner])
        self._handles[nodes] = 1
        return nodes

    def pages_needed(self, nodes: ArrayLike, counts: ArrayLike) -> int:
        """Pages that `extend(nodes, counts)` would allocate."""
        return int(self._new_pages(np.asarray(nodes), np.asarray(counts)).sum())

    def can_extend(self, nodes: ArrayLike, counts: ArrayLike) -> bool:
        return self.pages_needed(nodes, counts) <= len(self._free_pages)

    def extend(self, nodes: ArrayLike, counts: ArrayLike) -> np.ndarray:
        """Reserve `counts[i]` >= 1 more slots at the end of each (distinct, childless) node; i64[sum(counts)] slots in order.

        Raises `OutOfPages` before anything is changed.
        """
        nodes, counts = np.asarray(nodes, np.int64), np.asarray(counts, np.int64)
        assert (self._refs[nodes] == self._handles[nodes]).all(), "a node with children is frozen"
        if (counts == 1).all():
            return self._extend_by_one(nodes)
        new = self._new_pages(nodes, counts)
        self._check_free(int(new.sum()))
        end = self._start[nodes].astype(np.int64) + self._length[nodes]
        num_pages = -(-end // self.page_size)  # pages that each node reaches into already
        pages, first_new = self._link_pages(nodes, num_pages, new)
        self._length[nodes] += counts.astype(np.int32)
        which = np.repeat(np.arange(len(nodes)), counts)
        position = end[which] + np.arange(len(which)) - np.repeat(counts.cumsum() - counts, counts)
        ordinal = position // self.page_size - num_pages[which]  # -1: the last page it had, 0..: the new ones
        # `pages` holds, for each node, its last page before and then its new ones.
        return pages[first_new[which] + ordinal] * self.page_size + position % self.page_size

    def _extend_by_one(self, nodes: np.ndarray) -> np.ndarray:
        """`extend` as a step of decoding needs it: the slot of the one token is in its node's last page."""
        end = self._start[nodes] + self._length[nodes]
        offset = end % self.page_size
        is_new = offset == 0
        if is_new.any():
            growing, is_first = nodes[is_new], end[is_new] == 0
            self._check_free(len(growing))
            pages = np.array(self._take_pages(len(growing)), np.int32)
            self._next_page[self._last_page[growing[~is_first]]] = pages[~is_first]
            self._first_page[growing[is_first]] = pages[is_first]
            self._last_page[growing] = pages
        self._length[nodes] += 1
        return self._last_page[nodes].astype(np.int64) * self.page_size + offset

    def split(self, node: int, length: int) -> int:
        """Cut `node` after its first `length` tokens (0 < length < its length); gives the new upper part.

        `node` keeps its id, its references and its children, and becomes the lower part.
        """
        total = int(self._length[node])
        if not 0 < length < total:
            raise ValueError(f"a split of a node of {total} tokens must lie in [1, {total - 1}], got {length}")
        upper = self._take_node()
        pages, start = self._pages(node), int(self._start[node])
        self._parent[upper] = self._parent[node]  # the reference of `node` on its parent becomes that of `upper`
        self._handles[upper] = 1
        last, first = (start + length - 1) // self.page_size, (start + length) // self.page_size
        self._start[upper], self._length[upper] = start, length
        self._first_page[upper], self._last_page[upper] = pages[0], pages[last]
        self._parent[node], self._refs[upper] = upper, 2
        self._start[node], self._length[node] = (start + length) % self.page_size, total - length
        self._first_page[node] = pages[first]
        return upper

    def retain(self, node: int) -> None:
        """Take one more reference."""
        self._refs[node] += 1
        self._handles[node] += 1

    def release(self, node: int) -> None:
        """Return one reference. A node without references gives its pages back, and its reference on its parent."""
        assert self._handles[node] > 0, f"node {node} is released more often than it was given"
        self._handles[node] -= 1
        while node >= 0:
            self._refs[node] -= 1
            if self._refs[node]:
                return
            pages = self._pages(node)
            self._free_pages += pages[int(self._start[node] > 0) :]  # with start > 0 the first page belongs to an ancestor
            self._free_nodes.append(int(node))
            node = int(self._parent[node])

    def plan(self, leaves: ArrayLike, indptr: ArrayLike, device: torch.device | str | None = None) -> Plan:
        """The work items of rows that end in the distinct nodes `leaves`, row b adding tokens `indptr[b]:indptr[b+1]`.

        It is made on the host and given on `device`, the pool's where there is none.
        """
        while True:
            max_items, max_spans = self._plan_capacity
            made = plan(
                torch.from_numpy(np.asarray(leaves, np.int32)),
                torch.from_numpy(np.asarray(indptr, np.int32)),
                *(self._tensors[name] for name in ("parent", "start", "length", "first_page", "next_page")),
                self.page_size,
                max_items,
                max_spans,
            )
            items, spans = made.needed.tolist()
            if items <= max_items and spans <= max_spans:
                parts = (made.items[:items], made.item_indptr[: items + 1], made.spans[:spans])
                return Plan(*(x.to(device or self.pool.device) for x in parts))
            self._plan_capacity = (2 * items, 2 * spans)

    def check(self) -> None:
        """Raise `AssertionError` unless pages and references add up; meant for idle moments and tests."""
        live = sorted(set(range(len(self._parent))) - set(self._free_nodes))
        assert len(live) + len(self._free_nodes) == len(self._parent), "a node is free twice"
        owned = [p for n in live for p in self._pages(n)[int(self._start[n] > 0) :]]
        assert len(set(owned)) == len(owned), "a page has two owners"
        assert not set(owned) & set(self._free_pages), "a page is both owned and free"
        assert len(owned) + len(self._free_pages) == self.num_pages, "a page was lost"
        children = np.bincount([self._parent[n] for n in live if self._parent[n] >= 0], minlength=len(self._parent))
        for n in live:
            assert self._refs[n] == self._handles[n] + children[n] > 0, f"node {n} has a wrong reference count"
            is_own = self._start[n] == 0 or self._first_page[n] in self._pages(int(self._parent[n]))
            assert is_own, f"node {n} begins in a foreign page"

    # ---- the node table

    def _grow_nodes(self, capacity: int) -> None:
        have = len(self._parent)
        for name in (*_COLUMNS, "handles"):
            column = np.zeros(capacity, np.int32)
            column[:have] = getattr(self, f"_{name}")
            setattr(self, f"_{name}", column)
            self._tensors[name] = torch.from_numpy(column)
        self._free_nodes += range(capacity - 1, have - 1, -1)

    def _take_node(self) -> int:
        if not self._free_nodes:
            self._grow_nodes(2 * len(self._parent))
        return self._free_nodes.pop()

    def _fork(self, parents: np.ndarray, nodes: np.ndarray) -> None:
        if len(nodes):
            fork(torch.from_numpy(parents), torch.from_numpy(nodes), *(self._tensors[name] for name in _COLUMNS))

    def _enter_roots(self, nodes: np.ndarray) -> None:
        for name, value in zip(_COLUMNS, (-1, 1, 0, 0, -1, -1)):
            getattr(self, f"_{name}")[nodes] = value

    def _pages(self, node: int) -> list[int]:
        """The pages that the node's tokens lie in, the possibly shared first one included."""
        count = -(-int(self._start[node] + self._length[node]) // self.page_size)
        pages, page = [], int(self._first_page[node])
        for _ in range(count):
            pages.append(page)
            page = int(self._next_page[page])
        return pages

    def _new_pages(self, nodes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        end = self._start[nodes].astype(np.int64) + self._length[nodes]
        return -(-(end + counts) // self.page_size) - -(-end // self.page_size)

    def _check_free(self, count: int) -> None:
        if count > len(self._free_pages):
            raise OutOfPages(count, len(self._free_pages), self.num_pages)

    def _take_pages(self, count: int) -> list[int]:
        taken = self._free_pages[len(self._free_pages) - count :]
        del self._free_pages[len(self._free_pages) - count :]
        self.peak_pages = max(self.peak_pages, self.num_used_pages)
        return taken

    def _link_pages(self, nodes: np.ndarray, num_pages: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Allocate and chain `new[i]` pages behind each node's last; gives (i64 pages, index of each node's first new one)."""
        last = self._last_page[nodes]
        first_new = np.arange(1, len(nodes) + 1) + new.cumsum() - new
        pages = np.empty(len(nodes) + int(new.sum()), np.int64)
        pages[first_new - 1] = last
        is_new = np.ones(len(pages), bool)
        is_new[first_new - 1] = False
        pages[is_new] = self._take_pages(int(new.sum()))
        begins = num_pages == 0
        grows = new > 0
        chained = is_new.copy()
        chained[first_new[grows & begins]] = False  # a node's very first page follows none
        behind = np.flatnonzero(chained)
        self._next_page[pages[behind - 1]] = pages[behind]
        self._first_page[nodes[grows & begins]] = pages[first_new[grows & begins]]
        self._last_page[nodes[grows]] = pages[(first_new + new - 1)[grows]]
        return pages, first_new
