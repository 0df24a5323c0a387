"""The table that `attend` works by on a GPU: the tokens of a plan and who sees them, and tasks of equal length.

It is made on the device, by three launches with fixed grids and no synchronisation, once for all layers that a plan serves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from tts_kernels.arguments import dense
from tts_kernels.triton.device import num_programs

BLOCK_E = 32
BLOCK_S = 16
BLOCK_B = 16
BLOCK_T = 128
SUM_BLOCK = 1024


@triton.jit
def _count_tokens(spans_ptr, begin, end, SUM_BLOCK: tl.constexpr):
    """Tokens of the spans begin..end."""
    total = tl.zeros([SUM_BLOCK], tl.int32)
    for first in range(begin, end, SUM_BLOCK):
        span = first + tl.arange(0, SUM_BLOCK)
        total += tl.load(spans_ptr + span * 3 + 2, mask=span < end, other=0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["num_items", "num_arrivals"])
def _tokens_kernel(
    spans_ptr, item_indptr_ptr, items_ptr, tokens_ptr, num_blocks_ptr, arrivals_ptr, num_items, num_arrivals,
    BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_S: tl.constexpr, SUM_BLOCK: tl.constexpr,
):  # fmt: skip
    # One program per work item, and one more for what lies behind the last: it reads the item's spans, and the counts of all
    # before them, and writes 16 bytes a token: (page, slot in it, first query, last query + 1 that see the token). Invariant:
    # token t of all items stands at place t, so every program finds its own place without hearing from another.
    w = tl.program_id(0)
    if w == num_items:
        total = _count_tokens(spans_ptr, 0, tl.load(item_indptr_ptr + num_items), SUM_BLOCK)
        place = total + tl.arange(0, BLOCK_N)
        zero = tl.zeros([BLOCK_N], tl.int32)
        for column in tl.static_range(4):
            tl.store(tokens_ptr + place.to(tl.int64) * 4 + column, zero)
        tl.store(num_blocks_ptr, tl.cdiv(total, BLOCK_N))
        for first in range(0, num_arrivals, BLOCK_N):
            at = first + tl.arange(0, BLOCK_N)
            tl.store(arrivals_ptr + at, zero, mask=at < num_arrivals)
    else:
        begin, end = tl.load(item_indptr_ptr + w), tl.load(item_indptr_ptr + w + 1)
        q0, q1 = tl.load(items_ptr + w * 3), tl.load(items_ptr + w * 3 + 1)
        is_causal = tl.load(items_ptr + w * 3 + 2)
        first_place = _count_tokens(spans_ptr, 0, begin, SUM_BLOCK)
        num_tokens = _count_tokens(spans_ptr, begin, end, SUM_BLOCK)
        done = 0
        for first in range(begin, end, BLOCK_E):
            span = first + tl.arange(0, BLOCK_E)
            page = tl.load(spans_ptr + span * 3, mask=span < end, other=0)
            slot = tl.load(spans_ptr + span * 3 + 1, mask=span < end, other=0)
            count = tl.load(spans_ptr + span * 3 + 2, mask=span < end, other=0)
            before = done + tl.cumsum(count, 0) - count
            for skipped in range(0, tl.max(count, 0), BLOCK_S):
                i = skipped + tl.arange(0, BLOCK_S)
                mask = i[None, :] < count[:, None]
                t = before[:, None] + i[None, :]
                # Under is_causal query j sees token t of the item's num_tokens if t < num_tokens - (q1 - 1 - j).
                seen_from = tl.where(is_causal != 0, tl.maximum(q0, q1 - (num_tokens - t)), q0)
                to = tokens_ptr + (first_place + t).to(tl.int64) * 4
                tl.store(to, tl.broadcast_to(page[:, None], [BLOCK_E, BLOCK_S]), mask=mask)
                tl.store(to + 1, slot[:, None] + i[None, :], mask=mask)
                tl.store(to + 2, seen_from, mask=mask)
                tl.store(to + 3, tl.zeros([BLOCK_E, BLOCK_S], tl.int32) + q1, mask=mask)
            done += tl.sum(count, 0)


@triton.jit(do_not_specialize=["capacity", "num_queries"])
def _tiles_kernel(
    tokens_ptr, num_blocks_ptr, blocks_ptr, counts_ptr, capacity, num_queries, group,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    # One program per tile of BLOCK_M rows (query, head of a group): it reads 8 bytes of every token and writes the numbers of the
    # blocks of BLOCK_N tokens of which a query of the tile sees one, in order, and how many there are.
    tile = tl.program_id(0)
    first_query = tile * BLOCK_M // group
    end_query = tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // group + 1, num_queries)
    num_blocks = tl.load(num_blocks_ptr)
    found = 0
    for first in range(0, num_blocks, BLOCK_B):
        block = first + tl.arange(0, BLOCK_B)
        at = tokens_ptr + (block.to(tl.int64)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]) * 4
        mask = (block < num_blocks)[:, None]
        seen_from, seen_to = tl.load(at + 2, mask=mask, other=0), tl.load(at + 3, mask=mask, other=0)
        is_seen = tl.max(((seen_from < end_query) & (seen_to > first_query)).to(tl.int32), 1)
        to = found + tl.cumsum(is_seen, 0) - is_seen
        tl.store(blocks_ptr + tile.to(tl.int64) * capacity + to, block, mask=is_seen > 0)
        found += tl.sum(is_seen, 0)
    tl.store(counts_ptr + tile, found)


@triton.jit(do_not_specialize=["num_tiles", "target"])
def _tasks_kernel(
    counts_ptr, task_indptr_ptr, piece_indptr_ptr, chunk_ptr, num_tiles, target, MIN_CHUNK: tl.constexpr, BLOCK_T: tl.constexpr
):
    # One program: it reads the number of blocks of every tile and writes how they are cut: tile i's tasks are
    # task_indptr[i]:task_indptr[i+1], of `chunk` blocks each, and its partial results begin at piece_indptr[i] if it has more
    # than one. Invariant: at most 2 * target partial results, because a tile that is cut has more than `chunk` >= total / target
    # blocks.
    total = tl.zeros([BLOCK_T], tl.int32)
    for first in range(0, num_tiles, BLOCK_T):
        i = first + tl.arange(0, BLOCK_T)
        total += tl.load(counts_ptr + i, mask=i < num_tiles, other=0)
    chunk = tl.maximum(tl.cdiv(tl.sum(total, 0), target), MIN_CHUNK)
    tl.store(chunk_ptr, chunk)
    num_tasks = 0
    num_pieces = 0
    for first in range(0, num_tiles, BLOCK_T):
        i = first + tl.arange(0, BLOCK_T)
        mask = i < num_tiles
        # A tile that sees nothing has a task, too: it writes the empty result.
        tasks = tl.where(mask, tl.maximum(tl.cdiv(tl.load(counts_ptr + i, mask=mask, other=0), chunk), 1), 0)
        pieces = tl.where(tasks > 1, tasks, 0)
        tl.store(task_indptr_ptr + i, num_tasks + tl.cumsum(tasks, 0) - tasks, mask=mask)
        tl.store(piece_indptr_ptr + i, num_pieces + tl.cumsum(pieces, 0) - pieces, mask=mask)
        num_tasks += tl.sum(tasks, 0)
        num_pieces += tl.sum(pieces, 0)
    tl.store(task_indptr_ptr + num_tiles, num_tasks)


MIN_CHUNK = 2


@dataclass(frozen=True)
class Table:
    """What the tasks of `attend` read; all counts are on the device."""

    tokens: torch.Tensor
    """i32[C,4]: (page, slot in it, first query, last query + 1 that see it), C the most that the spans can hold."""
    blocks: torch.Tensor
    """i32[tiles, most blocks]: for each tile, which blocks of tokens it reads."""
    counts: torch.Tensor
    """i32[tiles]: how many."""
    task_indptr: torch.Tensor
    piece_indptr: torch.Tensor
    chunk: torch.Tensor
    arrivals: torch.Tensor
    """i32[tiles * G]: pieces that are done; zero between launches."""
    partials: torch.Tensor
    """f32[pieces, BLOCK_M, D + 2]: results that are not merged yet, each row with its maximum and its sum."""


def make_table(
    spans: torch.Tensor,
    item_indptr: torch.Tensor,
    items: torch.Tensor,
    page_size: int,
    num_queries: int,
    num_kv_heads: int,
    group: int,
    head_dim: int,
    block_m: int,
    block_n: int,
) -> Table:
    """Launch what makes the table of a plan for rows of `group` heads a query, tiles of `block_m`, blocks of `block_n` tokens."""
    spans, item_indptr, items = dense(spans), dense(item_indptr), dense(items)
    device = spans.device
    num_tiles = triton.cdiv(num_queries * group, block_m)
    max_blocks = triton.cdiv(len(spans) * page_size, block_n) + 1
    target = triton.cdiv(2 * num_programs(device), num_kv_heads)
    i32 = {"dtype": torch.int32, "device": device}
    tokens, blocks = torch.empty(max_blocks * block_n, 4, **i32), torch.empty(num_tiles, max_blocks, **i32)
    counts, task_indptr, piece_indptr = (torch.empty(num_tiles + 1, **i32) for _ in range(3))
    num_blocks, chunk = torch.empty(1, **i32), torch.empty(1, **i32)
    arrivals = torch.empty(num_tiles * num_kv_heads, **i32)
    partials = torch.empty(2 * target * num_kv_heads, block_m, head_dim + 2, dtype=torch.float32, device=device)
    inputs = spans, item_indptr, items, tokens, num_blocks, arrivals, len(items), len(arrivals)
    sizes = {"BLOCK_N": block_n, "BLOCK_E": BLOCK_E, "BLOCK_S": BLOCK_S, "SUM_BLOCK": SUM_BLOCK}
    _tokens_kernel[(len(items) + 1,)](*inputs, **sizes)
    inputs = tokens, num_blocks, blocks, counts, max_blocks, num_queries, group
    _tiles_kernel[(num_tiles,)](*inputs, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_B=BLOCK_B)
    inputs = counts, task_indptr, piece_indptr, chunk, num_tiles, target
    _tasks_kernel[(1,)](*inputs, MIN_CHUNK=MIN_CHUNK, BLOCK_T=BLOCK_T)
    return Table(tokens, blocks, counts, task_indptr, piece_indptr, chunk, arrivals, partials)
