"""fork: make the children of a search step, without copying a KV byte."""

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
