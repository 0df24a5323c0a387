"""Random search trees in a page pool, built without the code under test."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch


def i32(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


@dataclass
class Tree:
    """A node table and its pages; node i's tokens are `tokens[i]`, a list of slots."""

    page_size: int
    num_pages: int
    parent: list[int] = field(default_factory=list)
    start: list[int] = field(default_factory=list)
    length: list[int] = field(default_factory=list)
    first_page: list[int] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)

    def __post_init__(self):
        self.next_page = [-1] * self.num_pages
        self.free = list(range(self.num_pages))

    def shuffle(self, rng: np.random.Generator) -> Tree:
        rng.shuffle(self.free)
        return self

    def add(self, parent: int, length: int, start: int = 0) -> int:
        """A node of `length` tokens that begins at slot `start` of its first page."""
        pages = [self.free.pop() for _ in range(-(-(start + length) // self.page_size))] if length else []
        for page, following in zip(pages, pages[1:]):
            self.next_page[page] = following
        self.parent.append(parent)
        self.start.append(start)
        self.length.append(length)
        self.first_page.append(pages[0] if pages else -1)
        slots = [page * self.page_size + offset for page in pages for offset in range(self.page_size)]
        self.tokens.append(slots[start : start + length])
        return len(self.parent) - 1

    def path(self, node: int) -> list[int]:
        nodes = []
        while node >= 0:
            nodes.append(node)
            node = self.parent[node]
        return nodes[::-1]

    def context(self, node: int) -> list[int]:
        """Slots of all tokens from the root to the end of `node`."""
        return [slot for x in self.path(node) for slot in self.tokens[x]]

    def plan_inputs(self, leaves, indptr, max_items=256, max_spans=1024) -> tuple:
        tables = (self.parent, self.start, self.length, self.first_page, self.next_page)
        return (i32(leaves), i32(indptr), *map(i32, tables), self.page_size, max_items, max_spans)


def random_tree(rng: np.random.Generator, page_size: int, num_nodes: int, max_length: int = 9) -> Tree:
    """Up to two roots, random parents, ragged starts; some nodes are empty."""
    tree = Tree(page_size, num_pages=num_nodes * (max_length // page_size + 3)).shuffle(rng)
    for i in range(num_nodes):
        parent = int(rng.integers(-1 if i < 2 else 0, i)) if i else -1
        tree.add(parent, int(rng.integers(0, max_length + 1)), int(rng.integers(0, page_size)))
    return tree


def depth_first_leaves(tree: Tree) -> list[int]:
    """Nodes without children, in depth-first order."""
    children: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parent):
        children.setdefault(parent, []).append(node)
    leaves, stack = [], children.get(-1, [])[::-1]
    while stack:
        node = stack.pop()
        leaves += [] if node in children else [node]
        stack += children.get(node, [])[::-1]
    return leaves


def filled_pages(tree: Tree, num_kv_heads: int, head_dim: int, dtype: torch.dtype, generator) -> tuple[torch.Tensor, ...]:
    """Keys and values T[P,G,S,D], views of one pool: random in the slots of nodes, NaN in all others."""
    pool = torch.full((tree.num_pages, 2, num_kv_heads, tree.page_size, head_dim), float("nan"), dtype=dtype)
    for slot in (slot for tokens in tree.tokens for slot in tokens):
        shape = (2, num_kv_heads, head_dim)
        pool[slot // tree.page_size, ..., slot % tree.page_size, :] = torch.randn(shape, generator=generator).to(dtype)
    return pool[:, 0], pool[:, 1]


def dense_attention(q, keys, values, contexts, scale, dtype=torch.float64):
    """(out, lse) of query i over the slots `contexts[i]`, each on its own, computed in `dtype`."""
    num_heads, num_kv_heads, page_size = q.shape[1], keys.shape[1], keys.shape[2]
    out, lse = torch.zeros(q.shape, dtype=dtype), torch.full(q.shape[:2], float("-inf"), dtype=dtype)
    for i, slots in enumerate(contexts):
        if slots:
            at = torch.tensor(slots)
            key, value = (pages[at // page_size, :, at % page_size].to(dtype) for pages in (keys, values))
            key, value = (x.repeat_interleave(num_heads // num_kv_heads, 1).transpose(0, 1) for x in (key, value))
            scores = (key @ q[i].to(dtype)[:, :, None])[..., 0] * scale
            out[i] = (torch.softmax(scores, -1)[:, None] @ value)[:, 0]
            lse[i] = torch.logsumexp(scores, -1)
    return out, lse
