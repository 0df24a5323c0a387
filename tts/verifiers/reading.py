"""What verifiers that read with a model share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from tts.engine.model import Model
from tts.engine.reader import Passage, Reader
from tts.meter import Meter
from tts.tree import Node
from tts_kernels.pages import PagedKV


class ReadingVerifier:
    """A model on a reader of its own: nodes come in, each is read once, hidden states come out at their ends."""

    name: str

    def __init__(
        self, model: Model, tokens_of: Callable[[Node], Sequence[int]], num_pages: int, page_size: int, max_batch_tokens: int
    ):
        self.model = model
        self._reader = Reader(model, num_pages, tokens_of, page_size, max_batch_tokens)
        self._wanted: set[Node] = set()
        """Nodes that wait for their score."""

    @property
    def has_work(self) -> bool:
        return self._reader.has_work

    @property
    def num_queued_tokens(self) -> int:
        return self._reader.num_queued_tokens

    @property
    def seconds(self) -> float:
        return self._reader.seconds

    @property
    def kv(self) -> PagedKV:
        return self._reader.kv

    def _check_length(self, num_prompt_tokens: int, max_tokens: int) -> None:
        self.model.check_fits(self.kv, num_prompt_tokens, max_tokens, f"verifier {self.name}")

    def _want(self, nodes: Sequence[Node], meter: Meter) -> None:
        """Ask for the scores of nodes; a chain is read from its leaf, its inner nodes come along."""
        self._wanted.update(nodes)
        inner = {node.parent for node in nodes}
        for node in nodes:
            if node not in inner:
                self._reader.read(node, meter)

    def _read(self) -> tuple[torch.Tensor, list[Passage], list[tuple[Node, int]]]:
        """One pass: hidden states T[T, E], passages, and (node, row) of the wanted nodes that ended, parents first."""
        hidden, passages = self._reader.step()
        ends = [pair for passage in passages for pair in passage.ends()]
        if ends:
            self._reader.cache.hidden.keep([node for node, _ in ends], hidden[[row for _, row in ends]])
        wanted = [(node, row) for node, row in ends if node in self._wanted]
        return hidden, passages, sorted(wanted, key=lambda pair: pair[0].depth)

    def _forget(self, nodes: Sequence[Node]) -> None:
        self._reader.close(nodes)
        self._wanted.difference_update(nodes)
