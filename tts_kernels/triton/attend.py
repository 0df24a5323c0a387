"""attend on a GPU: one persistent launch over tasks of equal length."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from tts_kernels.arguments import dense_rows
from tts_kernels.triton.device import num_programs
from tts_kernels.triton.table import Table, make_table

LOG2E = 1.4426950408889634


@triton.jit
def _finish_rows(acc, most, total, rows, mask, d, D: tl.constexpr, head, num_heads, query, out_ptr, lse_ptr):
    """Write out = acc / total and lse of a tile's rows; out 0 and lse -inf where nothing was seen."""
    is_empty = total == 0.0
    result = acc / tl.where(is_empty, 1.0, total)[:, None]
    lse = tl.where(is_empty, float("-inf"), (most + tl.log2(total)) * 0.6931471805599453)
    at = query.to(tl.int64) * num_heads + head
    tl.store(lse_ptr + at, lse, mask=mask)
    to = out_ptr + at[:, None] * D + d[None, :]
    tl.store(to, result.to(out_ptr.dtype.element_ty), mask=mask[:, None] & (d < D)[None, :])


# A single tile has code of its own: searching for a task's tile costs registers.
@triton.jit(do_not_specialize=["num_queries", "max_blocks"], do_not_specialize_on_alignment=["num_tiles"])
def _attend_kernel(
    q_ptr, keys_ptr, values_ptr, out_ptr, lse_ptr, tokens_ptr, blocks_ptr, counts_ptr, task_indptr_ptr, piece_indptr_ptr,
    chunk_ptr, arrivals_ptr, partials_ptr, scale, num_queries, num_heads, group, num_kv_heads, num_tiles, max_blocks,
    q_token, q_head, keys_page, keys_head, keys_slot, values_page, values_head, values_slot,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # Persistent: program p runs the tasks p, p + programs, ... A task is (KV head, tile of BLOCK_M rows (query, head of its
    # group), chunk of the blocks of tokens that the tile sees); it reads 2*BLOCK_N*D*s bytes a block. Invariant of the loop over
    # blocks: (most, total, acc) are the softmax state of the tokens so far, in base 2. A tile with one task is written directly;
    # else the states are stored, and the task that arrives last merges all of them in order, so a run gives the same bits as the
    # one before.
    d = tl.arange(0, BLOCK_D)
    m = tl.arange(0, BLOCK_M)
    chunk = tl.load(chunk_ptr)
    num_tasks = tl.load(task_indptr_ptr + num_tiles) * num_kv_heads
    for task in range(tl.program_id(0), num_tasks, tl.num_programs(0)):
        g, piece = task % num_kv_heads, task // num_kv_heads
        tile, end = 0, num_tiles  # the last tile whose tasks begin at or before this one
        while end - tile > 1:
            middle = (tile + end) // 2
            is_right = tl.load(task_indptr_ptr + middle) <= piece
            tile = tl.where(is_right, middle, tile)
            end = tl.where(is_right, end, middle)
        first_task = tl.load(task_indptr_ptr + tile)
        num_pieces = tl.load(task_indptr_ptr + tile + 1) - first_task
        split = piece - first_task

        row = tile * BLOCK_M + m
        query, head = row // group, g * group + row % group
        is_row = query < num_queries
        first_query, end_query = tile * BLOCK_M // group, (tile * BLOCK_M + BLOCK_M - 1) // group + 1
        q_at = query.to(tl.int64) * q_token + head.to(tl.int64) * q_head
        q = tl.load(q_ptr + q_at[:, None] + d[None, :], mask=is_row[:, None] & (d < D)[None, :], other=0.0)
        keys, values = keys_ptr + tl.cast(g, tl.int64) * keys_head, values_ptr + tl.cast(g, tl.int64) * values_head

        most = tl.full([BLOCK_M], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        blocks = blocks_ptr + tl.cast(tile, tl.int64) * max_blocks
        first_block = split * chunk
        for i in range(first_block, tl.minimum(first_block + chunk, tl.load(counts_ptr + tile))):
            at = tokens_ptr + (tl.load(blocks + i).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)) * 4
            page, slot = tl.load(at).to(tl.int64), tl.load(at + 1).to(tl.int64)
            seen_from, seen_to = tl.load(at + 2), tl.load(at + 3)
            is_read = (seen_from < end_query) & (seen_to > first_query)
            k_at = page * keys_page + slot * keys_slot
            k = tl.load(keys + k_at[None, :] + d[:, None], mask=is_read[None, :] & (d < D)[:, None], other=0.0)
            s = tl.dot(q, k, input_precision="ieee") * scale
            is_seen = (query[:, None] >= seen_from[None, :]) & (query[:, None] < seen_to[None, :])
            s = tl.where(is_seen, s, float("-inf"))
            higher = tl.maximum(most, tl.max(s, 1))
            shift = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen so far: -inf - -inf is no number
            p = tl.exp2(s - shift[:, None])
            decay = tl.exp2(most - shift)
            total = total * decay + tl.sum(p, 1)
            v_at = page * values_page + slot * values_slot
            v = tl.load(values + v_at[:, None] + d[None, :], mask=is_read[:, None] & (d < D)[None, :], other=0.0)
            acc = tl.dot(p.to(v.dtype), v, acc * decay[:, None], input_precision="ieee")
            most = higher

        if num_pieces == 1:
            _finish_rows(acc, most, total, row, is_row, d, D, head, num_heads, query, out_ptr, lse_ptr)
        else:
            first_piece = tl.load(piece_indptr_ptr + tile)
            columns = (d < D)[None, :]
            to = partials_ptr + tl.cast((first_piece + split) * num_kv_heads + g, tl.int64) * BLOCK_M * (D + 2) + m * (D + 2)
            tl.store(to[:, None] + d[None, :], acc, mask=columns)
            tl.store(to + D, most)
            tl.store(to + D + 1, total)
            tl.debug_barrier()  # all stores of this program come before its arrival
            arrivals = arrivals_ptr + tile * num_kv_heads + g
            if tl.atomic_add(arrivals, 1, sem="acq_rel") == num_pieces - 1:
                most = tl.full([BLOCK_M], float("-inf"), tl.float32)
                total = tl.zeros([BLOCK_M], tl.float32)
                acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
                for j in range(num_pieces):
                    at = partials_ptr + tl.cast((first_piece + j) * num_kv_heads + g, tl.int64) * BLOCK_M * (D + 2) + m * (D + 2)
                    part_most = tl.load(at + D, cache_modifier=".cg")
                    higher = tl.maximum(most, part_most)
                    shift = tl.where(higher == float("-inf"), 0.0, higher)
                    decay, weight = tl.exp2(most - shift), tl.exp2(part_most - shift)
                    part = tl.load(at[:, None] + d[None, :], mask=columns, other=0.0, cache_modifier=".cg")
                    acc = acc * decay[:, None] + part * weight[:, None]
                    total = total * decay + tl.load(at + D + 1, cache_modifier=".cg") * weight
                    most = higher
                _finish_rows(acc, most, total, row, is_row, d, D, head, num_heads, query, out_ptr, lse_ptr)
                tl.store(arrivals, 0)


def attend(q, keys, values, spans, item_indptr, items, scale, *, out, lse):
    num_queries, num_heads, D = q.shape
    num_kv_heads, page_size = keys.shape[1:3]
    if q.numel() == 0:
        return
    group = num_heads // num_kv_heads
    block_m, block_n, launch = _tiling(num_queries * group, D, q.element_size())
    shape = page_size, num_queries, num_kv_heads, group, D, block_m, block_n
    table = _table(spans, item_indptr, items, shape)
    q, keys, values = dense_rows(q), dense_rows(keys), dense_rows(values)
    num_tiles, max_blocks = table.blocks.shape
    tables = table.tokens, table.blocks, table.counts, table.task_indptr, table.piece_indptr, table.chunk, table.arrivals
    sizes = scale * LOG2E, num_queries, num_heads, group, num_kv_heads, num_tiles, max_blocks
    strides = *q.stride()[:2], *keys.stride()[:3], *values.stride()[:3]
    tiles = {"D": D, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": max(16, triton.next_power_of_2(D))}
    grid = (num_programs(q.device),)
    _attend_kernel[grid](q, keys, values, out, lse, *tables, table.partials, *sizes, *strides, **tiles, **launch)


def _tiling(num_rows: int, head_dim: int, itemsize: int) -> tuple[int, int, dict[str, int]]:
    """(rows of a tile, tokens of a block, launch options): what fits registers and shared memory of all targets.

    float32 is multiplied without tensor cores, in code that grows with the tile: it has the smallest, and so have wide heads.
    """
    block_d = triton.next_power_of_2(head_dim)
    block_m = 16 if itemsize == 4 or block_d > 128 else min(64, max(16, triton.next_power_of_2(num_rows)))
    is_large = block_m * block_d * itemsize > 8192
    block_n = 32 if itemsize == 4 or is_large or block_d > 128 else 64
    if itemsize * block_d > 512:
        block_n = 16  # AMD has 64 KB for keys and values in two stages
    return block_m, block_n, {"num_warps": 8 if is_large else 4, "num_stages": 2}


def _table(spans: torch.Tensor, item_indptr: torch.Tensor, items: torch.Tensor, shape: tuple[int, ...]) -> Table:
    """The table of a plan, made when the first layer asks and kept on the plan's own tensor until one of its tensors changes.

    It has the room for partial results, too: one stream at a time uses a plan. While a graph is captured the table is made again,
    so that a replay reads the plan that is then in those tensors; torch does not tell captures apart, so a second graph over the
    same tensors would read the table of the first. Inference tensors do not count their changes: they are the caller's not to
    rewrite.
    """
    plan = (spans, item_indptr, items)
    capture = torch.cuda.is_current_stream_capturing() if spans.is_cuda else False
    key = (capture, shape, *((x.data_ptr(), x.shape, 0 if x.is_inference() else x._version) for x in plan))
    held = getattr(items, "_tts_attend_table", None)
    if held is None or held[0] != key:
        held = items._tts_attend_table = (key, make_table(*plan, *shape))
    return held[1]
