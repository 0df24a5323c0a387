"""The reader: runs a model over the nodes of search trees, each token once, and hands out the hidden states.

What every verifier with a model stands on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tts.engine import batch
from tts.engine.cache import HiddenStates, Prefill, TreeCache
from tts.engine.model import Model
from tts.meter import Meter
from tts.tree import Node
from tts_kernels.pages import OutOfPages


@dataclass(eq=False, slots=True)
class Passage:
    """What one forward pass read of one prefill: its tokens `begin` to `end`, whose hidden states begin at row `first_row`."""

    prefill: Prefill
    begin: int
    end: int
    first_row: int

    def ends(self) -> list[tuple[Node, int]]:
        """The nodes that end in this passage, each with the row of its last token."""
        shift = self.first_row - self.begin - 1
        return [(n, end + shift) for n, end in zip(self.prefill.nodes, self.prefill.ends) if self.begin < end <= self.end]


@dataclass(eq=False, slots=True)
class _Job:
    node: Node
    meter: Meter
    num_tokens: int
    prefill: Prefill | None = None


class Reader:
    """Brings nodes into its own paged KV, sharing prefixes as the search tree does; `tokens_of` is its view of a node.

    `read` enters nodes, `step` runs one forward pass of at most `max_batch_tokens` and gives what it read. What is queued goes
    in passes of about one size: a small rest would read all weights for few tokens. Verifier tokens are charged when they are
    read for the first time, those read again apart.
    """

    def __init__(
        self,
        model: Model,
        num_pages: int,
        tokens_of: Callable[[Node], Sequence[int]],
        page_size: int = 16,
        max_batch_tokens: int = 2048,
    ):
        self.model, self.max_batch_tokens = model, max_batch_tokens
        self.kv = model.make_kv(num_pages, page_size)
        self.cache = TreeCache(self.kv, tokens_of, HiddenStates(model.config.hidden_size, model.dtype, model.device))
        self.seconds, self.num_passes, self.num_queued_tokens = 0.0, 0, 0
        self._jobs: list[_Job] = []  # by age

    @property
    def has_work(self) -> bool:
        return bool(self._jobs)

    def read(self, node: Node, meter: Meter) -> None:
        """Ask for a node that is not in the cache; those of its ancestors that are missing are read with it."""
        self._jobs.append(_Job(node, meter, len(self.cache.tokens_of(node))))
        self.num_queued_tokens += self._jobs[-1].num_tokens

    def step(self) -> tuple[torch.Tensor, list[Passage]]:
        """One forward pass: hidden states T[T, E] and the passages that say whose they are; none if nothing was left to read."""
        started = time.perf_counter()
        self._begin()
        prefills, sizes = self._make_room()
        hidden, passages, row = torch.empty(0), [], 0
        if any(sizes):
            begins = [prefill.num_done for prefill in prefills]
            none = np.zeros(0, np.int64)
            hidden = batch.forward(self.model, self.kv, none.astype(np.int32), none, none, prefills, sizes)
            self.num_passes += 1
            for prefill, begin, size in zip(prefills, begins, sizes):
                if size:
                    passages.append(Passage(prefill, begin, begin + size, row))
                row += size
            self._finish()
        self.seconds += time.perf_counter() - started
        return hidden, passages

    def close(self, nodes: Sequence[Node]) -> None:
        """Stop reading for a problem's nodes (children behind parents) and give its pages back."""
        gone = set(nodes)
        for job in self._jobs:
            if job.node in gone:
                self._leave(job)
                if job.prefill:
                    self.cache.abort(job.prefill)
        self._jobs = [job for job in self._jobs if job.node not in gone]
        self.cache.forget(reversed(nodes))

    def _begin(self) -> None:
        """Start as many prefills as one pass can use; requests for nodes that are ready by now are done."""
        waiting, budget = [], self.max_batch_tokens
        for job in self._jobs:
            if budget <= 0:
                break
            if job.prefill is None:
                waiting.append(job)
            budget -= job.prefill.num_left if job.prefill else len(self.cache.tokens_of(job.node))
        nodes = [self.cache.solid(job.node) for job in waiting]
        ready = {id(job) for job, node in zip(waiting, nodes) if self.cache.is_ready(node)}
        lacking = [(job, node) for job, node in zip(waiting, nodes) if id(job) not in ready]
        for (job, _), prefill in zip(lacking, self.cache.begin([node for _, node in lacking], self.max_batch_tokens)):
            job.prefill = prefill
        if ready:
            for job in waiting:
                if id(job) in ready:
                    self._leave(job)
            self._jobs = [job for job in self._jobs if id(job) not in ready]

    def _under_way(self) -> list[tuple[_Job, Prefill]]:
        return [(job, job.prefill) for job in self._jobs if job.prefill]

    def _even_share(self) -> int:
        """Tokens of a pass, when as few as possible take the same share of what is queued."""
        left = sum(job.prefill.num_left if job.prefill else job.num_tokens for job in self._jobs)
        return -(-left // max(1, -(-left // self.max_batch_tokens)))

    def _make_room(self) -> tuple[list[Prefill], list[int]]:
        """The prefills in depth-first order and their chunks, for which the pages suffice; the youngest wait."""
        while True:
            under_way = self._under_way()
            prefills = [prefill for _, prefill in under_way]
            sizes = batch.chunk_sizes(prefills, self._even_share())
            needed = batch.pages_needed(self.kv, np.zeros(0, np.int32), prefills, sizes)
            if self.cache.evict(needed):
                order = sorted(range(len(under_way)), key=lambda i: under_way[i][0].node.order)
                return [prefills[i] for i in order], [sizes[i] for i in order]
            if len(under_way) == 1 and self.kv.num_used_pages == 0:
                raise OutOfPages(needed, self.kv.num_free_pages, self.kv.num_pages)
            self._give_up(*under_way[-1])
            if len(under_way) == 1:  # its prefix may be scattered over half-filled pages; read again, it is compact
                self.cache.evict(self.kv.num_pages)
                self._begin()

    def _give_up(self, job: _Job, prefill: Prefill) -> None:
        job.meter.charge_again(self.model, prefill.num_done)
        self.cache.abort(prefill)
        job.prefill = None

    def _finish(self) -> None:
        """Enter the prefills whose tokens are all in."""
        done = [(job, prefill) for job, prefill in self._under_way() if prefill.num_left == 0]
        for job, prefill in done:
            again = self.cache.finish(prefill)
            new = len(prefill.tokens) - again
            job.meter.charge_again(self.model, again)
            end = prefill.position + len(prefill.tokens)
            job.meter.charge_verifier(self.model, end - new, end)
            self._leave(job)
        gone = {id(job) for job, _ in done}
        self._jobs = [job for job in self._jobs if id(job) not in gone]

    def _leave(self, job: _Job) -> None:
        self.num_queued_tokens -= job.num_tokens
