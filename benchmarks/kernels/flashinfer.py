"""FlashInfer as a peer on a GPU, where it can be imported: cascade attention, plain paged decoding, sampling."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from benchmarks.kernels.cases import PeerError, Setting, Variant, copies, nbytes, rotate
from benchmarks.kernels.trees import PAGE_SIZE, Grown, Heads, Tree

WORKSPACE_BYTES = 256 << 20


def cascade(tree: Tree, heads: Heads, q: torch.Tensor, grown: Grown, setting: Setting) -> Variant:
    """Level by level with chains as one level, merged by its own kernels. q T[queries,H,D]."""
    flashinfer = imported("flashinfer")
    pages, tables = paged(tree, grown, PAGE_SIZE)
    next_pages = rotate(_copies(pages, setting))
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(len(tables), _workspace(q), "NHD")
    columns = [list(column) for column in zip(*tables)]
    dtypes = {"q_data_type": q.dtype, "kv_data_type": q.dtype}

    def plan():
        wrapper.plan(*columns, heads.H, heads.G, heads.D, PAGE_SIZE, causal=tree.new > 1, **dtypes)

    return Variant(lambda: wrapper.run(q, next_pages()), plan, heads.layers)


def per_branch(tree: Tree, heads: Heads, q: torch.Tensor, grown: Grown, setting: Setting) -> Variant:
    """Every row reads its whole context through a page table; shared pages lie there once. q T[rows,H,D]."""
    flashinfer = imported("flashinfer")
    if tree.new > 1:
        raise PeerError("its decoding takes one query a row")
    page_size = PAGE_SIZE if all(level.tokens % PAGE_SIZE == 0 for level in tree.levels[:-1]) else 1
    pages, tables = paged(tree, grown, page_size)
    next_pages = rotate(_copies(pages, setting))
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(_workspace(q), "NHD", use_tensor_cores=True)
    table, sizes = branch_tables(tree, tables), (heads.H, heads.G, heads.D, page_size)

    def plan():
        wrapper.plan(*table, *sizes, q_data_type=q.dtype, kv_data_type=q.dtype)

    return Variant(lambda: wrapper.run(q, next_pages()), plan, heads.layers)


def sample(all_logits: list[torch.Tensor], row: torch.Tensor, temperature: float, top_p: float) -> Variant:
    """Softmax, then draws of the rows `row`; its rejection sampler where top-p filters."""
    sampling, next_logits = imported("flashinfer.sampling"), rotate(all_logits)
    indices = row.to(torch.int32)

    def run():
        p = torch.softmax(next_logits() / temperature, -1, dtype=torch.float32)
        if top_p < 1:
            return sampling.top_p_sampling_from_probs(p, top_p, indices=indices)
        return sampling.sampling_from_probs(p, indices=indices)

    return Variant(run)


def imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # a wheel for another torch or another CUDA
        raise PeerError(f"{name} cannot be imported: {str(error).splitlines()[0]}") from None


Table = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""i32: offsets of each node's queries, offsets of its pages, those pages, and the tokens in its last page."""


def paged(tree: Tree, grown: Grown, page_size: int) -> tuple[torch.Tensor, list[Table]]:
    """Pages T[P,2,S,G,D] of all nodes, and a table for each level, chains as one."""
    pages: list[torch.Tensor] = []
    tables, num_pages = [], 0
    for nodes in grown.merged_slots(tree):
        counts = []
        for slots in nodes:
            tokens = torch.stack(grown.read(slots), 0).permute(2, 0, 1, 3)  # T[tokens,2,G,D]
            counts.append(-(-len(tokens) // page_size))
            room = tokens.new_zeros(counts[-1] * page_size, *tokens.shape[1:])
            room[: len(tokens)] = tokens
            pages.append(room.unflatten(0, (counts[-1], page_size)).transpose(1, 2))
        i32 = {"dtype": torch.int32, "device": grown.kv.pool.device}
        queries = torch.arange(len(nodes) + 1, **i32) * (tree.queries // len(nodes))
        offsets = torch.tensor([0, *torch.tensor(counts, device="cpu").cumsum(0).tolist()], **i32)
        last = torch.tensor([(len(slots) - 1) % page_size + 1 for slots in nodes], **i32)
        tables.append((queries, offsets, torch.arange(num_pages, num_pages + sum(counts), **i32), last))
        num_pages += sum(counts)
    return torch.cat(pages), tables


def branch_tables(tree: Tree, tables: list[Table]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(offsets i32[rows+1], pages i32[...], tokens in the last page i32[rows]) of every row's context."""
    rows: list[list[torch.Tensor]] = [[] for _ in range(tree.rows)]
    for _, offsets, indices, _ in tables:
        bounds, nodes = offsets.tolist(), len(offsets) - 1
        for row, found in enumerate(rows):
            node = row * nodes // tree.rows
            found.append(indices[bounds[node] : bounds[node + 1]])
    paths = [torch.cat(found) for found in rows]
    offsets = torch.tensor([0, *map(len, paths)], dtype=torch.int32, device=paths[0].device).cumsum(0, dtype=torch.int32)
    return offsets, torch.cat(paths), tables[-1][3]


def _copies(pages: torch.Tensor, setting: Setting) -> list[torch.Tensor]:
    return [pages, *(pages.clone() for _ in range(copies(nbytes(pages), setting) - 1))]


def _workspace(q: torch.Tensor) -> torch.Tensor:
    return torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=q.device)
