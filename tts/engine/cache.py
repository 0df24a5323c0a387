"""KV as a cache of tokens: which nodes of the search tree have their keys and values in pages, and how the others get them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tts.tree import Node
from tts_kernels.pages import PagedKV


@dataclass(eq=False)
class Prefill:
    """Tokens of a chain of nodes on their way into one KV node, in chunks; `split` at the ends when they are in."""

    kv_node: int
    tokens: np.ndarray
    position: int
    """Position in the branch of `tokens[0]`."""
    nodes: Sequence[Node] = ()
    ends: Sequence[int] = ()
    """Index behind each node's last token in `tokens`."""
    num_done: int = 0
    is_reread: bool = False
    """The one token is in its slot already: it is forwarded again for its hidden state alone."""
    last_hidden: torch.Tensor | None = None
    """T[E], the state behind the last token of the chunk before, for readers that predict across chunks."""

    @property
    def num_left(self) -> int:
        return len(self.tokens) - self.num_done


class TreeCache:
    """The KV of a forest of nodes under one model. Any entry may be evicted at any time and be filled again.

    `tokens_of` gives a node's tokens in this model's vocabulary; a node without tokens shares its parent's KV. An entry is
    *complete* when all of its node's tokens are in pages; a freshly drawn node lacks its last one, which was never forwarded.
    """

    def __init__(self, kv: PagedKV, tokens_of: Callable[[Node], Sequence[int]]):
        self.kv, self.tokens_of = kv, tokens_of
        self._entries: dict[Node, int] = {}  # in order of last use
        self._hidden: dict[Node, torch.Tensor] = {}
        self._num_read: dict[Node, int] = {}  # tokens of the node that were ever forwarded
        self._filling: set[Node] = set()

    def solid(self, node: Node | None) -> Node | None:
        """The node itself, or its nearest ancestor with tokens."""
        while node is not None and not len(self.tokens_of(node)):
            node = node.parent
        return node

    def is_complete(self, node: Node) -> bool:
        kv_node = self._entries.get(node)
        return kv_node is not None and self.kv.length(kv_node) == len(self.tokens_of(node))

    def is_ready(self, node: Node) -> bool:
        """Whether children can be drawn from `node`: its KV is complete and its last hidden state kept."""
        return node in self._hidden and self.is_complete(node)

    def hidden(self, node: Node) -> torch.Tensor:
        return self._hidden[node]

    def keep_hidden(self, node: Node, hidden: torch.Tensor) -> None:
        self._hidden[node] = hidden

    def fork(self, node: Node) -> int:
        """A new, empty KV node under a complete `node`; the caller owns it."""
        self._touch(node)
        return int(self.kv.add([self._entries[node]])[0])

    def enter(self, node: Node, kv_node: int) -> None:
        """Take over the caller's reference on `kv_node` as the KV of a node that was just decoded into it."""
        self._entries[node] = kv_node
        self._num_read[node] = self.kv.length(kv_node)

    def enter_chain(self, nodes: Sequence[Node], kv_node: int) -> None:
        """`enter` for a chain of nodes decoded into one KV node, which is split at their ends."""
        nodes = [node for node in nodes if len(self.tokens_of(node))]
        for node in nodes:
            length = len(self.tokens_of(node))
            if length >= self.kv.length(kv_node):
                self.enter(node, kv_node)
                return
            self.enter(node, self.kv.split(kv_node, length))
        self.kv.release(kv_node)

    def begin(self, node: Node) -> Prefill | None:
        """Start to fill `node` and those of its ancestors that lack tokens; None while another prefill is at one of them.

        `node` must be solid and not ready. If its KV is complete, only its last token is forwarded again, for the hidden state.
        """
        missing = self._missing(node)
        if not self._filling.isdisjoint(missing):
            return None
        if not missing:
            return self._begin_reread(node)
        first, above = missing[0], self.solid(missing[0].parent)
        have = 0
        if first in self._entries:
            kv_node = self._entries.pop(first)
            have = self.kv.length(kv_node)
        else:
            kv_node = int(self.kv.add([self._entries[above] if above else -1])[0])
        if above is not None:
            self._touch(above)
        self._filling.update(missing)
        tokens = np.concatenate([np.asarray(self.tokens_of(n), np.int64) for n in missing])[have:]
        ends = np.cumsum([len(self.tokens_of(n)) for n in missing]) - have
        position = sum(len(self.tokens_of(n)) for n in self._lineage(above)) + have
        return Prefill(kv_node, tokens, position, missing, ends.tolist())

    def _begin_reread(self, node: Node) -> Prefill:
        self._touch(node)
        self.kv.retain(self._entries[node])
        self._filling.add(node)
        last = np.asarray(self.tokens_of(node)[-1:], np.int64)
        position = sum(len(self.tokens_of(n)) for n in self._lineage(node)) - 1
        return Prefill(self._entries[node], last, position, [node], [1], is_reread=True)

    def finish(self, prefill: Prefill, hidden: torch.Tensor) -> int:
        """Enter a prefill whose tokens are all in; `hidden` T[E] is the last one's state. Gives how many were read again."""
        self._filling.difference_update(prefill.nodes)
        self._hidden[prefill.nodes[-1]] = hidden
        if prefill.is_reread:
            self.kv.release(prefill.kv_node)
            return 1
        new = 0
        begin = 0
        for node, end in zip(prefill.nodes, prefill.ends):
            total = len(self.tokens_of(node))
            # Tokens [total - (end - begin), total) of the node were in this prefill.
            new += total - max(total - (end - begin), min(self._num_read.get(node, 0), total))
            begin = end
        for node in prefill.nodes[:-1]:
            self.enter(node, self.kv.split(prefill.kv_node, len(self.tokens_of(node))))
        self.enter(prefill.nodes[-1], prefill.kv_node)
        return len(prefill.tokens) - new

    def abort(self, prefill: Prefill) -> None:
        self._filling.difference_update(prefill.nodes)
        self.kv.release(prefill.kv_node)

    def evict(self, num_pages: int) -> bool:
        """Give away entries nobody builds on, least recently used first, until `num_pages` are free.

        Where it must look at all it frees a thirty-second of the pool beyond that, so that the next steps need not look.
        """
        if self.kv.num_free_pages >= num_pages:
            return True
        wanted = num_pages + self.kv.num_pages // 32
        while self.kv.num_free_pages < wanted:
            leaves = [n for n, kv_node in self._entries.items() if not self.kv.has_children(kv_node)]
            if not leaves:
                break
            for node in leaves:
                self._release(node)
                if self.kv.num_free_pages >= wanted:
                    break
        return self.kv.num_free_pages >= num_pages

    def drop(self, node: Node) -> None:
        """Give away the node's KV now, unless other nodes stand on it."""
        kv_node = self._entries.get(node)
        if kv_node is not None and not self.kv.has_children(kv_node):
            self._release(node)

    def forget(self, nodes: Iterable[Node]) -> None:
        """Release all KV of a problem that is over, and the memory that its tokens were ever read."""
        for node in nodes:
            self._release(node)
            self._num_read.pop(node, None)

    def _release(self, node: Node) -> None:
        kv_node = self._entries.pop(node, None)
        self._hidden.pop(node, None)
        if kv_node is not None:
            self.kv.release(kv_node)

    def _touch(self, node: Node) -> None:
        self._entries[node] = self._entries.pop(node)

    def _missing(self, node: Node) -> list[Node]:
        """The nodes from below the deepest complete one to `node`."""
        found: list[Node] = []
        for n in reversed(self._lineage(node)):
            if self.is_complete(n):
                break
            found.append(n)
        return found[::-1]

    def _lineage(self, node: Node | None) -> list[Node]:
        """The nodes with tokens from the root to `node`."""
        found: list[Node] = []
        while node is not None:
            if len(self.tokens_of(node)):
                found.append(node)
            node = node.parent
        return found[::-1]
