"""fork and copy_tails on a GPU."""

from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl

from tts_kernels.arguments import check_rows_in_place, dense

BLOCK_C = 128
BLOCK_R = 16


@triton.jit(do_not_specialize=["num_children"])
def _fork_kernel(
    parents_ptr, nodes_ptr, parent_ptr, refs_ptr, start_ptr, length_ptr, first_page_ptr, last_page_ptr, num_children,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    # One program per BLOCK_C children: it reads two words of each and writes six. Invariant: new nodes are distinct and none is a
    # parent, so their columns are written once; a parent's references are added up as integers, in any order the same.
    child = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = child < num_children
    above = tl.load(parents_ptr + child, mask=mask, other=0)
    node = tl.load(nodes_ptr + child, mask=mask, other=0)
    zero = tl.zeros([BLOCK_C], tl.int32)
    tl.store(parent_ptr + node, above, mask=mask)
    tl.store(refs_ptr + node, zero + 1, mask=mask)
    tl.store(start_ptr + node, zero, mask=mask)
    tl.store(length_ptr + node, zero, mask=mask)
    tl.store(first_page_ptr + node, zero - 1, mask=mask)
    tl.store(last_page_ptr + node, zero - 1, mask=mask)
    tl.atomic_add(refs_ptr + above, zero + 1, mask=mask, sem="relaxed")


def fork(parents, nodes, parent, refs, start, length, first_page, last_page):
    check_rows_in_place("fork", parent=parent, refs=refs, start=start, length=length, first_page=first_page, last_page=last_page)
    if len(nodes) == 0:
        return
    columns = parent, refs, start, length, first_page, last_page
    grid = (triton.cdiv(len(nodes), BLOCK_C),)
    _fork_kernel[grid](dense(parents), dense(nodes), *columns, len(nodes), BLOCK_C=BLOCK_C)


@triton.jit
def _copy_tails_kernel(
    cache_ptr, sources_ptr, destinations_ptr, counts_ptr, cache_stride, G, D, page_stride, head_stride, slot_stride,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    # One program per (copy, cache): it reads and writes counts[n]*G*D elements, BLOCK_R rows (slot, head) of D at a time.
    # Invariant: destinations differ and none is a source, so programs write what no other reads or writes.
    n, cache = tl.program_id(0), tl.program_id(1)
    base = cache_ptr + cache.to(tl.int64) * cache_stride
    source = base + tl.load(sources_ptr + n).to(tl.int64) * page_stride
    destination = base + tl.load(destinations_ptr + n).to(tl.int64) * page_stride
    num_rows = tl.load(counts_ptr + n) * G
    d = tl.arange(0, BLOCK_D)
    for first in range(0, num_rows, BLOCK_R):
        row = first + tl.arange(0, BLOCK_R)
        at = (row // G).to(tl.int64) * slot_stride + (row % G).to(tl.int64) * head_stride
        mask = (row < num_rows)[:, None] & (d < D)[None, :]
        tl.store(destination + at[:, None] + d[None, :], tl.load(source + at[:, None] + d[None, :], mask=mask), mask=mask)


def copy_tails(sources, destinations, counts, caches):
    check_rows_in_place("copy_tails", caches=caches[0])
    (_, G, _, D), strides = caches[0].shape, caches[0].stride()
    if any(cache.stride() != strides for cache in caches):
        raise ValueError(f"copy_tails: caches must all have the strides of the first, {strides}")
    if len(sources) == 0 or G * D == 0:
        return
    tables = dense(sources), dense(destinations), dense(counts)
    sizes = {"BLOCK_R": BLOCK_R, "BLOCK_D": triton.next_power_of_2(D)}
    for first, stride, count in _even_runs(caches):
        _copy_tails_kernel[(len(sources), count)](first, *tables, stride, G, D, *strides[:3], **sizes)


def _even_runs(caches: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, int, int]]:
    """(first cache, elements from one to the next, how many) of runs that lie evenly in memory: one for all layers of a pool."""
    begin = 0
    while begin < len(caches):
        end, step = begin + 1, 0
        while end < len(caches):
            distance = caches[end].data_ptr() - caches[end - 1].data_ptr()
            if (step and distance != step) or distance % caches[0].element_size():
                break
            step, end = distance, end + 1
        yield caches[begin], step // caches[0].element_size(), end - begin
        begin = end
