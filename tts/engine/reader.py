"""The reader: runs a model over the nodes of search trees, each token once, and hands out the hidden states. What verifiers stand on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tts.engine import batch
from tts.engine.cache import Prefill, TreeCache
from tts.engine.model import Model
from tts.meter import Meter
from tts.tree import Node
from tts_kernels.pages import OutOfPages


@dataclass(eq=False)
class Passage:
    """What one forward pass read of one prefill."""

    prefill: Prefill
    begin: int
    """Index in `prefill.tokens` of the first token read."""
    hidden: torch.Tensor
    """T[n, E], one state a token."""

    def ends(self) -> Iterator[tuple[Node, torch.Tensor]]:
        """The nodes that end in this passage, each with the state of its last token."""
        for node, end in zip(self.prefill.nodes, self.prefill.ends):
            if self.begin < end <= self.begin + len(self.hidden):
                yield node, self.hidden[end - 1 - self.begin]


@dataclass(eq=False)
class _Job:
    node: Node
    meter: Meter
    age: int
    prefill: Prefill | None = None


class Reader:
    """Brings nodes into its own paged KV, sharing prefixes as the search tree does; `tokens_of` is its view of a node.

    `read` enters nodes, `step` runs one forward pass of at most `max_batch_tokens` and gives the passages read and the nodes
    that are complete. Verifier tokens are charged when they are read for the first time, re-read ones apart.
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
        self.cache = TreeCache(self.kv, tokens_of)
        self.seconds, self.num_passes = 0.0, 0
        self._jobs: list[_Job] = []  # by age
        self._num_asked = 0

    @property
    def num_queued_tokens(self) -> int:
        """Tokens that wait to be read, prefixes that are in pages not counted; a lower bound where nodes share missing ones."""
        return sum(job.prefill.num_left if job.prefill else len(self.cache.tokens_of(job.node)) for job in self._jobs)

    @property
    def has_work(self) -> bool:
        return bool(self._jobs)

    def check(self, num_tokens: int, what: str) -> None:
        """Raise `ValueError` where a text of `num_tokens` cannot be read."""
        if num_tokens > self.model.max_length:
            raise ValueError(f"{what}: {num_tokens} tokens exceed the window of {self.model.name}, {self.model.max_length}: lower max_tokens")
        needed = -(-num_tokens // self.kv.page_size) + 1
        if needed > self.kv.num_pages:
            raise ValueError(
                f"{what}: reading one branch of {num_tokens} tokens needs {needed} pages of {self.kv.page_size} tokens, the pool has "
                f"{self.kv.num_pages}: make the pool larger or lower max_tokens"
            )

    def read(self, node: Node, meter: Meter) -> None:
        """Ask for a node that is not in the cache; those of its ancestors that are missing are read with it."""
        self._jobs.append(_Job(node, meter, self._num_asked))
        self._num_asked += 1

    def step(self) -> tuple[list[Passage], list[Node]]:
        """One forward pass. A node asked for twice, or as an ancestor of another, is read once and reported for each request."""
        started = time.perf_counter()
        done = self._begin()
        jobs, sizes = self._make_room()
        passages: list[Passage] = []
        if any(sizes):
            prefills = [job.prefill for job in jobs]
            begins = [prefill.num_done for prefill in prefills]
            none = np.zeros(0, np.int64)
            hidden = batch.forward(self.model, self.kv, none, none, none, prefills, sizes)
            self.num_passes += 1
            offset = 0
            for job, begin, size in zip(jobs, begins, sizes):
                if size:
                    passages.append(Passage(job.prefill, begin, hidden[offset : offset + size]))
                offset += size
                if size and job.prefill.num_left == 0:
                    done.append(self._finish(job, passages[-1]))
        self.seconds += time.perf_counter() - started
        return passages, done

    def close(self, nodes: Sequence[Node]) -> None:
        """Stop reading for a problem's nodes (children behind parents) and give its pages back."""
        gone = set(nodes)
        for job in [j for j in self._jobs if j.node in gone]:
            if job.prefill:
                self.cache.abort(job.prefill)
            self._jobs.remove(job)
        self.cache.forget(reversed(nodes))

    def _begin(self) -> list[Node]:
        """Start as many prefills as one pass can use; gives the nodes that need none."""
        done, budget = [], self.max_batch_tokens
        for job in list(self._jobs):
            if budget <= 0:
                break
            if job.prefill is None:
                node = self.cache.solid(job.node)
                if self.cache.is_ready(node):
                    self._jobs.remove(job)
                    done.append(job.node)
                    continue
                job.prefill = self.cache.begin(node)
            budget -= job.prefill.num_left if job.prefill else 0
        return done

    def _make_room(self) -> tuple[list[_Job], list[int]]:
        """The prefills in depth-first order and their chunks, for which the pages suffice; the youngest wait."""
        while True:
            jobs = [job for job in self._jobs if job.prefill]
            sizes_by_age = batch.chunk_sizes([job.prefill for job in jobs], self.max_batch_tokens)
            chosen = sorted(zip(jobs, sizes_by_age), key=lambda pair: pair[0].node.order)
            jobs_in_order, sizes = [job for job, _ in chosen], [size for _, size in chosen]
            needed = batch.pages_needed(self.kv, [job.prefill for job in jobs_in_order], sizes)
            if self.cache.evict(needed):
                return jobs_in_order, sizes
            if len(jobs) == 1 and self.kv.num_used_pages == 0:
                raise OutOfPages(needed, self.kv.num_free_pages, self.kv.num_pages)
            self._give_up(jobs[-1])
            if len(jobs) == 1:  # its prefix may be scattered over half-filled pages; read again, it is compact
                self.cache.evict(self.kv.num_pages)
                self._begin()

    def _give_up(self, job: _Job) -> None:
        job.meter.reprefilled_tokens += job.prefill.num_done
        self.cache.abort(job.prefill)
        job.prefill = None

    def _finish(self, job: _Job, passage: Passage) -> Node:
        self._jobs.remove(job)
        again = self.cache.finish(job.prefill, passage.hidden[-1].clone())
        new = len(job.prefill.tokens) - again
        job.meter.reprefilled_tokens += again
        job.meter.verifier_tokens += new
        job.meter.verifier_flops += 2.0 * self.model.num_parameters * new
        return job.node
