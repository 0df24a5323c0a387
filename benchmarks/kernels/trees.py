"""The search trees whose attention is measured, and their KV."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

import tts_kernels
from benchmarks.kernels.cases import random
from tts_kernels.pages import PagedKV, Plan

PAGE_SIZE = 16


@dataclass(frozen=True)
class Heads:
    """The attention of a model; `layers` is how many of them share one plan."""

    name: str
    H: int
    G: int
    D: int
    layers: int


QWEN = Heads("14/2x64", 14, 2, 64, 24)
LLAMA = Heads("32/8x128", 32, 8, 128, 32)


@dataclass(frozen=True)
class Level:
    """Equal nodes at one depth: each has as many children on the level below as the counts divide."""

    nodes: int
    tokens: int


@dataclass(frozen=True)
class Tree:
    """A regular tree of nodes in depth-first order; the last level's nodes are the rows, with `new` query tokens each."""

    name: str
    levels: tuple[Level, ...]
    new: int = 1

    @property
    def rows(self) -> int:
        return self.levels[-1].nodes

    @property
    def queries(self) -> int:
        return self.rows * self.new

    @property
    def unique_tokens(self) -> int:
        return sum(level.nodes * level.tokens for level in self.levels)

    @property
    def context(self) -> int:
        """Tokens that the last query of each row sees."""
        return sum(level.tokens for level in self.levels)

    def pairs(self, level: Level) -> float:
        """Pairs of a query token and a token it sees, on one level."""
        visible = level.tokens - (self.new - 1) / 2 if level is self.levels[-1] else level.tokens
        return self.queries * visible

    def merged(self) -> list[Level]:
        """The levels with runs of the same number of nodes as one: chains cost what one node of their length costs."""
        merged: list[Level] = []
        for level in self.levels:
            if merged and merged[-1].nodes == level.nodes and level is not self.levels[-1]:
                merged[-1] = Level(level.nodes, merged[-1].tokens + level.tokens)
            else:
                merged.append(level)
        return merged


def flat(prefix: int, rows: int, private: int = 1) -> Tree:
    return Tree(f"{prefix}+{private}x{rows}", (Level(1, prefix), Level(rows, private)))


def chain(length: int, tokens: int, rows: int) -> Tree:
    return Tree(f"chain {length}x{tokens}, {rows} rows", (Level(1, tokens),) * length + (Level(rows, 1),))


TREES = (
    *(flat(prefix, rows) for prefix in (512, 2048, 8192) for rows in (4, 16, 64, 256)),
    flat(2048, 64, private=128),
    Tree("beam 16x4: 1024+16x128+64x32", (Level(1, 1024), Level(16, 128), Level(64, 32))),
    Tree("dvts 8x4: 1024+8x192+32x32", (Level(1, 1024), Level(8, 192), Level(32, 32))),
    chain(12, 64, 64),
    chain(12, 9, 64),
    chain(1, 108, 64),
    Tree("one branch of 32768", (Level(1, 32768),)),
    Tree("prefill 512 on 2048", (Level(1, 2048), Level(1, 512)), new=512),
)
QUICK = {"2048+1x64", "2048+128x64", "beam 16x4: 1024+16x128+64x32", "chain 12x9, 64 rows", "chain 1x108, 64 rows"}


@dataclass
class Grown:
    """A tree in a pool of pages."""

    kv: PagedKV
    nodes: list[np.ndarray]
    """Node ids, level by level."""

    def slots(self, depth: int, node: int) -> torch.Tensor:
        """Where the tokens of a level's node lie, by the node table: no plan is involved."""
        return torch.from_numpy(self.kv.slots(int(self.nodes[depth][node]))).to(self.kv.pool.device)

    def read(self, slots: torch.Tensor) -> list[torch.Tensor]:
        """Keys and values T[G,len(slots),D] of the first layer."""
        return [pages[slots // PAGE_SIZE, :, slots % PAGE_SIZE].transpose(0, 1) for pages in self.kv.layers[0]]

    def gather(self, tree: Tree, row: int) -> list[torch.Tensor]:
        """Keys and values T[G,context,D] of a row's whole context."""
        path = [self.slots(depth, row * level.nodes // tree.rows) for depth, level in enumerate(tree.levels)]
        return self.read(torch.cat(path))

    def merged_slots(self, tree: Tree) -> list[list[torch.Tensor]]:
        """Of each level of `tree.merged()` the slots of every node, in order."""
        found, depth = [], 0
        for level in tree.merged():
            first, tokens = depth, 0
            while tokens < level.tokens:
                tokens, depth = tokens + tree.levels[depth].tokens, depth + 1
            depths = range(first, depth)
            found.append([torch.cat([self.slots(d, node) for d in depths]) for node in range(level.nodes)])
        return found

    def plan(self, new: int) -> Plan:
        leaves = self.nodes[-1]
        return self.kv.plan(leaves, np.arange(len(leaves) + 1) * new)


def grow(tree: Tree, heads: Heads, num_layers: int, dtype: torch.dtype, device: str = "cpu") -> Grown:
    """The tree with the same random keys and values in every layer, NaN in all slots that belong to no token.

    The pages of equal trees are equal, so one plan serves all copies of a tree.
    """
    num_pages = sum(level.nodes * -(-level.tokens // PAGE_SIZE) for level in tree.levels)
    kv = PagedKV(num_pages, PAGE_SIZE, num_layers, heads.G, heads.D, dtype, device)
    for pages in kv.layers[0]:
        pages.fill_(float("nan"))
    nodes: list[np.ndarray] = []
    for level in tree.levels:
        above = np.repeat(nodes[-1], level.nodes // len(nodes[-1])) if nodes else np.full(level.nodes, -1)
        nodes.append(kv.add(above))
        slots = torch.from_numpy(kv.extend(nodes[-1], [level.tokens] * level.nodes)).to(device)
        shape = (len(slots), heads.G, heads.D)
        key, value = (random(shape, dtype, 2 * len(nodes) + i, device) for i in range(2))
        tts_kernels.append(key, value, *kv.layers[0], slots)
    for layer in kv.layers[1:]:
        for pages, first in zip(layer, kv.layers[0]):
            pages.copy_(first)
    return Grown(kv, nodes)
