"""Branches with a flat page table each, in the pool of another engine: what a fork of them copies and how their tables change.

A search step on such a pool, with the pages' reference counts left to their engine:

    forked = fork_page_tables(page_table, context, pruned.widths, free_pages, page_size)
    copy_tails(forked.sources, forked.destinations, forked.counts, [cache for layer in layers for cache in layer])
    ...  # give each child slots for its new tokens and `append` them
    made = plan_pages(forked.page_table, forked.context + new_tokens, indptr, page_size, max_items, max_spans)
    out, lse = attend(q, *layer, made.spans, made.item_indptr, made.items, scale)
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class ForkedTables(NamedTuple):
    """The children of a search step, and the inputs of `copy_tails` that make their tails."""

    page_table: np.ndarray
    """i32[C,M]: a row per child; its entries behind the context are its parent's."""
    context: np.ndarray
    """i32[C]: tokens of each child."""
    sources: np.ndarray
    """i32[N]: the page to copy from ..."""
    destinations: np.ndarray
    """i32[N]: ... to this one, the next of `free_pages` ..."""
    counts: np.ndarray
    """i32[N]: ... and how many slots of it."""


def fork_page_tables(
    page_table: ArrayLike, context: ArrayLike, widths: ArrayLike, free_pages: ArrayLike, page_size: int
) -> ForkedTables:
    """Make `widths[b]` children of each row b, in row order, from its table `page_table[b]` i32[M] and its `context[b]` tokens.

    Full pages are shared. Of a page that is partly full the first child inherits its parent's and every other child gets one of
    `free_pages`, in their order: `len(destinations)` of them are used. Rows of width 0 end. Pure: nothing is written. Raises
    `ValueError` if there are too few free pages.
    """
    page_table, context, widths = (np.asarray(x, np.int32) for x in (page_table, context, widths))
    parents = np.repeat(np.arange(len(widths)), widths)
    is_first = np.arange(len(parents)) == (widths.cumsum() - widths)[parents]
    copied = np.flatnonzero(~is_first & (context[parents] % page_size > 0))
    destinations = np.asarray(free_pages, np.int32)[: len(copied)]
    if len(destinations) < len(copied):
        raise ValueError(f"fork_page_tables: {len(copied)} tails need a page each, {len(destinations)} are free")
    tables, tokens = page_table[parents], context[parents]
    tail = tokens[copied] // page_size
    sources = tables[copied, tail]
    tables[copied, tail] = destinations
    return ForkedTables(tables, tokens, sources, destinations, tokens[copied] % page_size)
