"""attend: attention of a ragged batch over a tree of shared prefixes, and the plan that says who reads what."""

import torch

from tts_kernels.op import op


@op(
    "q T[N,H,D], keys T[P,G,S,D], values T[P,G,S,D], spans i32[E,3], item_indptr i32[W+1], items i32[W,3],"
    " scale float in -1e38..1e38 -> out T[N,H,D], lse f32[N,H] where H%G==0"
)
def attend(q, keys, values, spans, item_indptr, items, scale, *, out, lse):
    """Softmax attention of N query tokens over the work items of a plan (`plan`).

    `keys` and `values` are the pages of one layer, views with any order of pages, heads and slots and a dense last dim.

    Work item `w` = (q0, q1, is_causal) with the spans `item_indptr[w]:item_indptr[w+1]`, each (page, first slot, count): its
    tokens in order. Queries q0..q1-1 see all tokens of the item; under `is_causal` query j does not see the last q1-1-j.
    A query's context is the items that cover it, in order; query head h reads KV head h*G//H. A query that no item covers
    gets out 0, lse -inf. lse is the natural log of the softmax denominator of the scaled scores; in bfloat16 a backend may sum
    the weights that it multiplies with the values, rounded to bfloat16: then lse is off by up to 2^-8.

    Items are nested, as `plan` makes them: sorted by q0, outer before inner, and of two that share a query one covers all of
    the other's; nothing lies inside a causal one. So all queries of an item have the same tokens before it.
    """
    total = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    total_lse = torch.full(lse.shape, float("-inf"), dtype=torch.float64, device=q.device)
    for (q0, q1, is_causal), begin, end in zip(items.tolist(), item_indptr[:-1].tolist(), item_indptr[1:].tolist()):
        key, value = (_gather(pages, spans[begin:end], q.shape[1]) for pages in (keys, values))
        part = _attention(q[q0:q1].double(), key, value, scale, bool(is_causal))
        total[q0:q1], total_lse[q0:q1] = merge(total[q0:q1], total_lse[q0:q1], *part)
    out.copy_(total)
    lse.copy_(total_lse)


def merge(out_a, lse_a, out_b, lse_b):
    """The attention over the union of two disjoint sets of tokens, from the attention over each: associative."""
    lse = torch.logaddexp(lse_a, lse_b)
    weight_a, weight_b = (torch.exp(x - lse).nan_to_num(0.0)[..., None] for x in (lse_a, lse_b))
    return out_a * weight_a + out_b * weight_b, lse


def _attention(q, key, value, scale, is_causal):
    scores = torch.einsum("nhd,htd->nht", q, key) * scale
    if is_causal:
        num_queries, num_tokens = scores.shape[0], scores.shape[2]
        visible = num_tokens - num_queries + 1 + torch.arange(num_queries, device=q.device)
        hidden = torch.arange(num_tokens, device=q.device) >= visible[:, None]
        scores = scores.masked_fill(hidden[:, None], float("-inf"))
    weights = torch.softmax(scores, -1).nan_to_num(0.0)
    return torch.einsum("nht,htd->nhd", weights, value), torch.logsumexp(scores, -1)


def _gather(pages, spans, num_heads):
    """f64[H,T,D]: the keys or values of an item's tokens in order, repeated for each query head."""
    parts = [pages[page, :, first : first + count] for page, first, count in spans.tolist()]
    tokens = torch.cat(parts, 1) if parts else pages.new_zeros(pages.shape[1], 0, pages.shape[3])
    return tokens.double().repeat_interleave(num_heads // pages.shape[1], 0)


@op(
    "leaves i32[B] in 0..X, indptr i32[B+1], parent i32[X], start i32[X], length i32[X], first_page i32[X], next_page i32[P],"
    " page_size int in 1..65537, max_items int, max_spans int"
    " -> items i32[max_items,3], item_indptr i32[max_items+1], spans i32[max_spans,3], needed i32[2]"
)
def plan(
    leaves,
    indptr,
    parent,
    start,
    length,
    first_page,
    next_page,
    page_size,
    max_items,
    max_spans,
    *,
    items,
    item_indptr,
    spans,
    needed,
):
    """The work items of `attend` for B rows, from the node table; valid for every layer until a node grows.

    Row `b` adds the tokens `indptr[b]:indptr[b+1]` of the batch to node `leaves[b]`, whose `length` counts them already; all of
    the row's ancestors (`parent`, -1 at a root) are its context. A node's tokens lie in its pages (`first_page`, then
    `next_page`) from slot `start` of the first one. Rows that stand next to each other share the work items of their common
    ancestors, so rows in depth-first order read each unique page once; nodes of a chain with the same rows are one item.
    A row's leaf may be an ancestor of other rows, but its causal item is the row's alone.
    `needed` = (items, spans); where it exceeds a capacity nothing useful was written: call again with larger outputs.
    """
    parents = parent.tolist()
    found = _items([_path(leaf, parents) for leaf in leaves.tolist()], indptr.tolist())
    table = [_node_spans(nodes, start, length, first_page, next_page, page_size) for *_, nodes in found]
    _write_plan(found, table, items, item_indptr, spans, needed)


@op(
    "page_table i32[B,M], context i32[B] in 0..M*page_size+1, indptr i32[B+1], page_size int in 1..65537, max_items int,"
    " max_spans int -> items i32[max_items,3], item_indptr i32[max_items+1], spans i32[max_spans,3], needed i32[2]"
)
def plan_pages(page_table, context, indptr, page_size, max_items, max_spans, *, items, item_indptr, spans, needed):
    """The work items of `attend` for B rows with a flat page table each, as other engines have them.

    Row `b` has `context[b]` tokens, of which the last are the tokens `indptr[b]:indptr[b+1]` of the batch, already in their
    pages: token t is in page `page_table[b, t // page_size]` at slot `t % page_size`. Entries behind the context are not read.
    Rows that stand next to each other share the work items of the full pages that lead both tables, so sorted by their tables
    they read each unique page once. The last page and the pages of new tokens are never shared; a row without new tokens is
    skipped.
    `needed` = (items, spans); where it exceeds a capacity nothing useful was written: call again with larger outputs.
    """
    rows = zip(page_table.tolist(), context.tolist(), indptr.diff().tolist())
    paths = [_row_spans(*row, page_size) for row in rows if row[-1] > 0]
    found = _items(paths, indptr.unique_consecutive().tolist())
    table = [[span for part in parts for span in part] for *_, parts in found]
    _write_plan(found, table, items, item_indptr, spans, needed)


def _row_spans(pages, num_tokens, num_new, page_size):
    """The path of a row: the spans of each full page before its new tokens, then those of all the rest."""
    spans = [(page, 0, min(page_size, num_tokens - i * page_size)) for i, page in enumerate(pages) if i * page_size < num_tokens]
    num_full = (num_tokens - num_new) // page_size
    return [[span] for span in spans[:num_full]] + [spans[num_full:]]


def _write_plan(found, table, items, item_indptr, spans, needed):
    """Write the items `found` with their spans, `table`, if there is room for them."""
    needed.copy_(torch.tensor([len(found), sum(map(len, table))]))
    if len(found) > len(items) or needed[1] > len(spans):
        return
    item_indptr.zero_()
    for i, ((q0, q1, is_leaf, _), rows) in enumerate(zip(found, table)):
        items[i] = torch.tensor([q0, q1, is_leaf])
        item_indptr[i + 1] = item_indptr[i] + len(rows)
        spans[item_indptr[i] : item_indptr[i + 1]] = torch.tensor(rows, dtype=torch.int32).reshape(-1, 3)


def _items(paths, indptr):
    """[(q0, q1, is_leaf, parts from the root side)] of rows with a path each, in the order in which a walk opens them."""
    items: list = []
    open_items: list = []  # a stack of [first query, part of a path]
    for row, path in enumerate(paths):
        # A leaf's item is causal, so it is its row's alone, even where the leaf is an ancestor of another row.
        shareable = max(0, min(len(path), len(open_items)) - 1)
        shared = next((i for i in range(shareable) if path[i] != open_items[i][1]), shareable)
        items += _close(open_items, shared, indptr[row])
        open_items += [[indptr[row], part] for part in path[shared:]]
    items += _close(open_items, 0, indptr[len(paths)])
    return sorted(reversed(items), key=lambda item: item[0])  # of two with the same first query, the outer one closed last


def _path(node, parent):
    path = []
    while node >= 0:
        path.append(node)
        node = parent[node]
    return path[::-1]


def _close(open_items, depth, q1):
    """Pop the stack down to `depth`; levels that opened together close together and become one item."""
    closed, is_leaf = [], True
    while len(open_items) > depth:
        q0, parts = open_items[-1][0], []
        while len(open_items) > depth and open_items[-1][0] == q0:
            parts.append(open_items.pop()[1])
        if q0 < q1:
            closed.append((q0, q1, int(is_leaf), parts[::-1]))
        is_leaf = False
    return closed


def _node_spans(nodes, start, length, first_page, next_page, page_size):
    """[(page, first slot, count)] of a chain of nodes."""
    spans = []
    for node in nodes:
        page, first, left = int(first_page[node]), int(start[node]), int(length[node])
        while left > 0:
            count = min(left, page_size - first)
            spans.append((page, first, count))
            page, first, left = int(next_page[page]), 0, left - count
    return spans
