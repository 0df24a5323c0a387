"""What verifiers that read with a model share: places of search nodes in a forest of the model's own tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile

import torch

from tts.engine.model import Model
from tts.engine.reader import Passage, Reader
from tts.meter import Meter
from tts.tree import Node
from tts.verifiers.base import Invalid, Unreadable
from tts_kernels.pages import PagedKV


class ReadingVerifier:
    """A model on a reader of its own: every token of a branch's input is read once, hidden states come out where scores are read.

    A step's input is written whole and compared with that of the step before: the longest common token prefix is shared, the
    rest is new. Where the verifier tokenizes across the border of steps, the last tokens of the step before are rolled back:
    its place is cut, and both go on from the cut. So a *place* is a `Node` of the verifier's own: a run of its tokens, which
    only a cut makes shorter. Branches of a problem whose inputs are equal share a place: it is read, charged and scored once.

    Subclasses say `_input` and make scores of the hidden states in `step`.
    """

    name: str
    overlap = 0
    """Tokens in front of a cut that are read again, for what a subclass keeps of the state before the first new one."""

    def __init__(self, model: Model, num_pages: int, page_size: int, max_batch_tokens: int):
        self.model = model
        self._reader = Reader(model, num_pages, lambda place: place.tokens, page_size, max_batch_tokens)
        self._places: dict[Node, Node] = {}
        """Where the input of a search node ends that the next step's goes on from."""
        self._owned: dict[Node, list[Node]] = {}
        """All places of a search tree by its root."""
        self._known: dict[Node, dict[tuple[Node | None, tuple[int, ...]], Node]] = {}
        """By the root of a search tree: where a run of tokens behind a place leads to."""
        self._waiting: dict[Node, list[Node]] = {}
        """The search nodes that wait for the score read at a place."""
        self._scores: dict[Node, float] = {}
        """Scores by place."""
        self._ready: list[tuple[Node, float | Exception]] = []
        self.calibration: Callable[[float], float] | None = None
        """Makes probabilities of scores."""

    @property
    def has_work(self) -> bool:
        return bool(self._ready) or self._reader.has_work

    @property
    def num_queued_tokens(self) -> int:
        return self._reader.num_queued_tokens

    @property
    def seconds(self) -> float:
        return self._reader.seconds

    @property
    def kv(self) -> PagedKV:
        return self._reader.kv

    @property
    def max_length(self) -> int:
        """Tokens of the longest input that can be read: the model's window, or what the pool holds."""
        return min(self.model.max_length, (self.kv.num_pages - 1) * self.kv.page_size)

    def submit(self, question: str, nodes: Sequence[Node], meter: Meter) -> None:
        wanted: list[Node] = []
        suffixed: list[Node] = []
        for node in nodes:
            try:
                place, suffix = self._place(question, node), self._suffix(question, node)
            except Unreadable as error:
                self._ready.append((node, Invalid(str(error))))
                continue
            at = place if suffix is None else suffix
            if at in self._scores:
                self._ready.append((node, self._scores[at]))
                continue
            if at in self._waiting:
                self._waiting[at].append(node)
                continue
            if self._reader.cache.is_ready(at):
                self._reader.cache.hidden.drop(at)  # it was read without being asked for: its last token is forwarded again
            self._waiting[at] = [node]
            wanted.append(place)
            if suffix is not None:
                suffixed.append(suffix)
        # What scores are read behind and then discarded comes last: by then all of a chain is in, and they go in one pass.
        self._read_all(wanted, meter)
        self._read_all(suffixed, meter)

    def close(self, nodes: Sequence[Node]) -> None:
        """Forget nodes, all of a problem's or those of branches that were cancelled; what others stand on stays."""
        gone = set(nodes)
        self._ready = [(node, score) for node, score in self._ready if node not in gone]
        self._waiting = {at: kept for at, found in self._waiting.items() if (kept := [n for n in found if n not in gone])}
        for node in nodes:
            self._places.pop(node, None)
        for root in {node.root for node in nodes if node.parent not in gone}:
            self._close_places(root, is_all=root in gone)

    def _close_places(self, root: Node, is_all: bool) -> None:
        """Give back the places of a tree, all or those that nothing stands on or waits for any more."""
        places, known = self._owned.pop(root, []), self._known.pop(root, {})
        needed: set[Node] = set()
        if not is_all:
            for place in [*self._waiting, *(place for node, place in self._places.items() if node.root is root)]:
                at: Node | None = place
                while at is not None and at not in needed:
                    needed.add(at)
                    at = at.parent
            self._owned[root] = [place for place in places if place in needed]
            self._known[root] = {way: place for way, place in known.items() if place in needed}
        gone = [place for place in places if place not in needed]
        self._reader.close(gone)
        for place in gone:
            self._scores.pop(place, None)
            self._closed(place)

    # ---- what subclasses say

    def _input(self, question: str, node: Node) -> list[int]:
        """The tokens of a branch up to `node`; of the prompt alone for a root, at least one."""
        raise NotImplementedError

    def _readout(self, question: str, node: Node) -> list[int] | None:
        """The input at whose end the score is read, where that is not a beginning of the next step's input."""
        return None

    def _closed(self, place: Node) -> None:
        """Forget what is kept of a place."""

    def _was_cut(self, place: Node, upper: Node) -> None:
        """`upper` has taken over the first tokens of `place`."""

    # ---- places

    def _place(self, question: str, node: Node) -> Node:
        if node not in self._places:
            self._places[node] = self._grow(self._input(question, node), self._place_above(question, node), node)
        return self._places[node]

    def _place_above(self, question: str, node: Node) -> Node | None:
        """The place of the nearest ancestor that has one."""
        if node.parent is None:
            return None
        try:
            return self._place(question, node.parent)
        except Unreadable:
            return self._place_above(question, node.parent)

    def _suffix(self, question: str, node: Node) -> Node | None:
        ids = self._readout(question, node)
        return None if ids is None else self._grow(ids, self._places[node], node)

    def _grow(self, ids: list[int], above: Node | None, node: Node) -> Node:
        """The place at the end of the input `ids`, which shares with the path of `above` what is equal."""
        if len(ids) > self.max_length:
            raise Unreadable(
                f"verifier {self.name}: the input of step {node.depth} has {len(ids)} tokens, {self.model.name} reads "
                f"{self.max_length} at most"
            )
        shared = 0
        if above is not None:
            before = _tokens(above)
            shared = len(before) if ids[: len(before)] == before else sum(1 for _ in takewhile(_same, zip(before, ids)))
            if shared < len(before):
                above = self._cut_back(above, len(before) - shared, node.root)
                shared = 0 if above is None else above.num_path_tokens
        if above is not None and shared == len(ids):
            return above
        root, way = node.root, (above, tuple(ids[shared:]))
        known = self._known.setdefault(root, {})
        if way not in known:
            known[way] = Node(above, ids[shared:], b"", node.end, node.key, root.prompt, order=root.order)
            self._owned.setdefault(root, []).append(known[way])
        return known[way]

    def _cut_back(self, place: Node, num_tokens: int, root: Node) -> Node | None:
        """The place that the path of `place` without its last `num_tokens` ends with, or one a little before it.

        A place that is being read cannot be cut: what hangs on it is then shared from where it begins.
        """
        num_tokens += self.overlap
        at: Node | None = place
        while at is not None and num_tokens >= len(at.tokens):
            num_tokens -= len(at.tokens)
            at = at.parent
        if at is None or not num_tokens:
            return at
        if not self._reader.cache.can_split(at):
            return at.parent
        length = len(at.tokens) - num_tokens
        upper = Node(at.parent, at.tokens[:length], b"", at.end, at.key, at.prompt)
        upper.order, upper.num_children = at.order, 1  # next to each other in depth-first order
        at.parent, at.tokens = upper, at.tokens[length:]
        self._owned[root].append(upper)
        self._reader.cache.split(at, upper)
        self._was_cut(at, upper)
        return upper

    # ---- reading

    def _read_all(self, places: Iterable[Node], meter: Meter) -> None:
        """Have places read; of a chain the last one is asked for, the others come along."""
        covered: set[Node] = set()
        for place in sorted(set(places), key=lambda p: -p.num_path_tokens):
            if place in covered:
                continue
            self._reader.read(place, meter)
            above = place.parent
            while above is not None and above not in covered and not self._reader.cache.is_complete(above):
                covered.add(above)
                above = above.parent

    def _read(self) -> tuple[torch.Tensor, list[Passage], list[tuple[Node, int]]]:
        """One pass: hidden states T[T, E], passages, and (place, row) where scores are waited for, parents first."""
        hidden, passages = self._reader.step()
        ends = [pair for passage in passages for pair in passage.ends()]
        if ends:
            self._reader.cache.hidden.keep([place for place, _ in ends], hidden[[row for _, row in ends]])
        wanted = [(place, row) for place, row in ends if place in self._waiting]
        return hidden, passages, sorted(wanted, key=lambda pair: pair[0].num_path_tokens)

    def _settle(self, places: Sequence[Node], scores: Sequence[float]) -> None:
        """Enter scores; whoever waited for them gets them."""
        for place, score in zip(places, scores):
            nodes = self._waiting.pop(place)
            if self.calibration is not None and math.isfinite(score):
                score = self.calibration(score)
            self._ready += [(node, score) for node in nodes]
            self._scores[place] = score
            if not place.num_children and all(self._places.get(node) is not place for node in nodes):
                self._reader.cache.drop(place)  # a read-out, on which nothing will ever stand

    def _take_ready(self) -> list[tuple[Node, float | Exception]]:
        ready, self._ready = self._ready, []
        return ready


def _tokens(place: Node) -> list[int]:
    """All tokens of the path."""
    parts = []
    at: Node | None = place
    while at is not None:
        parts.append(at.tokens)
        at = at.parent
    return [token for part in reversed(parts) for token in part]


def _same(pair: tuple[int, int]) -> bool:
    return pair[0] == pair[1]
