"""KV as a cache of tokens: which nodes of the search tree have their keys and values in pages, and how the others get them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from tts.tree import Node
from tts_kernels.pages import PagedKV


@dataclass(eq=False, slots=True)
class Prefill:
    """Tokens of a chain of nodes on their way into one KV node, in chunks; it is split at the nodes' ends when they are in."""

    kv_node: int
    tokens: np.ndarray
    position: int
    """Position in the branch of `tokens[0]`."""
    nodes: list[Node] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """Index behind each node's last token in `tokens`."""
    num_done: int = 0
    is_reread: bool = False
    """The one token is in its slot already: it is forwarded again for its hidden state alone."""
    chunk_end: torch.Tensor | None = None
    """T[E], the state behind the last chunk, where a reader needs it to predict the first token of the next."""

    @property
    def num_left(self) -> int:
        return len(self.tokens) - self.num_done


class HiddenStates:
    """The last hidden states of nodes, rows of one tensor so that many are kept or read by one index operation."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device):
        self._rows = torch.empty(64, width, dtype=dtype, device=device)
        self._index: dict[Node, int] = {}
        self._free = list(range(63, -1, -1))

    def __contains__(self, node: Node) -> bool:
        return node in self._index

    def keep(self, nodes: Sequence[Node], states: torch.Tensor) -> None:
        """Keep `states` T[len(nodes), E]."""
        for node in nodes:
            if node not in self._index:
                if not self._free:
                    self._grow()
                self._index[node] = self._free.pop()
        self._rows[[self._index[node] for node in nodes]] = states

    def read(self, nodes: Sequence[Node]) -> torch.Tensor:
        """T[len(nodes), E]; every node must be kept."""
        return self._rows[[self._index[node] for node in nodes]]

    def drop(self, node: Node) -> None:
        row = self._index.pop(node, None)
        if row is not None:
            self._free.append(row)

    def _grow(self) -> None:
        have = len(self._rows)
        self._free += range(2 * have - 1, have - 1, -1)
        self._rows = torch.cat([self._rows, torch.empty_like(self._rows)])


class TreeCache:
    """The KV of a forest of nodes under one model. Any entry may be evicted at any time and be filled again.

    `tokens_of` gives a node's tokens in this model's vocabulary, `above` the node whose tokens come before them; a node without
    tokens shares the KV of the one above it. An entry is *complete* when all of its node's tokens are in pages; a freshly drawn
    node lacks its last one, which was never forwarded.
    """

    def __init__(
        self,
        kv: PagedKV,
        tokens_of: Callable[[Node], Sequence[int]],
        hidden: HiddenStates,
        above: Callable[[Node], Node | None] = operator.attrgetter("parent"),
    ):
        self.kv, self.tokens_of, self.hidden, self.above = kv, tokens_of, hidden, above
        self._entries: dict[Node, int] = {}  # in order of last use
        self._complete: set[Node] = set()
        self._num_read: dict[Node, int] = {}  # tokens of the node that were ever forwarded
        self._ends: dict[Node, int] = {}  # position behind the node's last token
        self._filling: dict[Node, Prefill] = {}

    def solid(self, node: Node) -> Node:
        """The node itself, or its nearest ancestor with tokens; a prompt always has some."""
        while not len(self.tokens_of(node)):
            assert node.parent is not None, "a prompt without tokens"
            node = node.parent
        return node

    def is_complete(self, node: Node) -> bool:
        return node in self._complete

    def is_ready(self, node: Node) -> bool:
        """Whether children can be drawn from `node`: its KV is complete and its last hidden state kept."""
        return node in self._complete and node in self.hidden

    def fork(self, nodes: Sequence[Node]) -> np.ndarray:
        """A new, empty KV node under each of these complete nodes (repeats allowed); i32, owned by the caller."""
        for node in dict.fromkeys(nodes):
            self._touch(node)
        return self.kv.add([self._entries[node] for node in nodes])

    def enter(self, node: Node, kv_node: int) -> None:
        """Take over the caller's reference on `kv_node` as the KV of a node that was decoded into it."""
        self._entries[node] = kv_node
        self._num_read[node] = length = self.kv.length(kv_node)
        if length == len(self.tokens_of(node)):
            self._complete.add(node)

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

    def begin(self, nodes: Iterable[Node], budget: int) -> list[Prefill | None]:
        """Start to fill `nodes`, in order, until `budget` tokens are under way; nodes behind that are left out.

        A node is filled together with those of its ancestors that lack tokens. None stands for a node that another prefill is
        at, or at one of its ancestors. Nodes must be solid and not ready; if a node's KV is complete, its last token is
        forwarded again, for the hidden state.
        """
        started: list[Prefill | None] = []
        opened: list[tuple[Prefill, int]] = []
        for node in nodes:
            if budget <= 0:
                break
            missing = self._missing(node)
            if any(x in self._filling for x in missing or [node]):
                started.append(None)
                continue
            prefill = self._make_prefill(missing) if missing else self._make_reread(node)
            if prefill.kv_node < 0:
                above = self.above(missing[0])
                if above is not None:
                    self._touch(self.solid(above))
                opened.append((prefill, -1 if above is None else self._entries[self.solid(above)]))
            started.append(prefill)
            budget -= prefill.num_left
        for (prefill, _), kv_node in zip(opened, self.kv.add([above for _, above in opened]) if opened else ()):
            prefill.kv_node = int(kv_node)
        return started

    def finish(self, prefill: Prefill) -> int:
        """Enter a prefill whose tokens are all in; its hidden states are the caller's to keep. Gives how many were read again."""
        self._no_longer_filled(prefill)
        if prefill.is_reread:
            self.kv.release(prefill.kv_node)
            return 1
        new = begin = 0
        for node, end in zip(prefill.nodes, prefill.ends):
            total = len(self.tokens_of(node))
            # Tokens [total - (end - begin), total) of the node were in this prefill.
            new += total - max(total - (end - begin), min(self._num_read.get(node, 0), total))
            begin = end
        for node in prefill.nodes[:-1]:
            self.enter(node, self.kv.split(prefill.kv_node, len(self.tokens_of(node))))
        self.enter(prefill.nodes[-1], prefill.kv_node)
        return len(prefill.tokens) - new

    def can_split(self, node: Node) -> bool:
        return node not in self._filling

    def split(self, node: Node, upper: Node) -> None:
        """`upper`, new and by now above the node, has taken over its first tokens: their KV goes with them.

        A prefill that the node is under way in goes on, with `upper` as one node more. The state behind `upper`'s last token is
        not known.
        """
        length = len(self.tokens_of(upper))
        num_read = self._num_read.pop(node, 0)
        self._num_read[upper], self._num_read[node] = min(num_read, length), max(0, num_read - length)
        if node in self._entries:
            assert node in self._complete, "half a node cannot be split"
            self._entries[upper] = self.kv.split(self._entries[node], length)
            self._complete.add(upper)
        elif node in self._filling:
            prefill = self._filling[upper] = self._filling[node]
            at = prefill.nodes.index(node)
            prefill.nodes.insert(at, upper)
            prefill.ends.insert(at, prefill.ends[at] - len(self.tokens_of(node)))

    def abort(self, prefill: Prefill) -> None:
        self._no_longer_filled(prefill)
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
        """Release all KV of a problem that is over, and what was remembered of its nodes."""
        for node in nodes:
            self._release(node)
            self._num_read.pop(node, None)
            self._ends.pop(node, None)

    def _release(self, node: Node) -> None:
        self.hidden.drop(node)
        self._complete.discard(node)
        kv_node = self._entries.pop(node, None)
        if kv_node is not None:
            self.kv.release(kv_node)

    def _make_prefill(self, missing: list[Node]) -> Prefill:
        """A prefill of all tokens that a chain lacks; its KV node is the first one's own if that has one, else -1 for now."""
        kv_node = self._entries.pop(missing[0], -1)
        have = self.kv.length(kv_node) if kv_node >= 0 else 0
        lengths = [len(self.tokens_of(node)) for node in missing]
        tokens = np.array([t for node in missing for t in self.tokens_of(node)][have:], np.int64)
        ends = [sum(lengths[: i + 1]) - have for i in range(len(lengths))]
        prefill = Prefill(kv_node, tokens, self._end(missing[-1]) - len(tokens), missing, ends)
        self._filling.update(dict.fromkeys(missing, prefill))
        return prefill

    def _make_reread(self, node: Node) -> Prefill:
        self._touch(node)
        self.kv.retain(self._entries[node])
        last = np.array(self.tokens_of(node)[-1:], np.int64)
        prefill = self._filling[node] = Prefill(self._entries[node], last, self._end(node) - 1, [node], [1], is_reread=True)
        return prefill

    def _no_longer_filled(self, prefill: Prefill) -> None:
        for node in prefill.nodes:
            del self._filling[node]

    def _touch(self, node: Node) -> None:
        self._entries[node] = self._entries.pop(node)

    def _missing(self, node: Node | None) -> list[Node]:
        """The nodes with tokens from below the deepest complete one to `node`."""
        found: list[Node] = []
        while node is not None and node not in self._complete:
            if len(self.tokens_of(node)):
                found.append(node)
            node = self.above(node)
        return found[::-1]

    def _end(self, node: Node | None) -> int:
        """Tokens from the root's first to the node's last, in this model's vocabulary."""
        if node is None:
            return 0
        if node not in self._ends:
            self._ends[node] = self._end(self.above(node)) + len(self.tokens_of(node))
        return self._ends[node]
