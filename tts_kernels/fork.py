"""fork: make the children of a search step, without copying a KV byte; for flat page tables, without more than their tails."""

import torch

from tts_kernels.op import op


@op(
    "parents i32[C] in 0..X, nodes i32[C] in 0..X, parent! i32[X], refs! i32[X], start! i32[X], length! i32[X],"
    " first_page! i32[X], last_page! i32[X] ->"
)
def fork(parents, nodes, parent, refs, start, length, first_page, last_page):
    """Enter the free nodes `nodes[c]` into the node table as empty children of `parents[c]`, one reference each.

    A child has no page until it holds a token: table bytes only. `nodes` are distinct; a parent may occur many times.
    """
    where = nodes.long()
    parent[where] = parents
    refs[where] = 1
    refs.index_add_(0, parents.long(), torch.ones_like(parents))
    start[where] = 0
    length[where] = 0
    first_page[where] = -1
    last_page[where] = -1


@op("sources i32[N] in 0..P, destinations i32[N] in 0..P, counts i32[N] in 0..S+1, caches! T[P,G,S,D]* ->")
def copy_tails(sources, destinations, counts, caches):
    """Copy the first `counts[n]` slots of page `sources[n]` to page `destinations[n]` in every cache: copy-on-write for branches
    that have a page table each (`tts_kernels.flat.fork_page_tables` says what to copy).

    `caches` are the keys and the values of all layers, another engine's pool in place: views with the same order and strides of
    pages, heads and slots and a dense last dim (`[P,S,G,D]` transposed, `[P,G,S,D]` as it is). Destinations are distinct and
    none is a source. Bytes moved: 2 * sum(counts) * len(caches)*G*D*s.
    """
    for source, destination, count in zip(*(table.tolist() for table in (sources, destinations, counts))):
        for cache in caches:
            cache[destination, :, :count] = cache[source, :, :count]
