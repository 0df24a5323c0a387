"""Likelihood under another model as a training-free verifier."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tts.engine.model import Model
from tts.engine.reader import Passage, Reader
from tts.meter import Meter
from tts.tree import Node

LOGIT_BYTES = 64 << 20
"""Ceiling on the logits held at a time: rows are taken in pieces, [tokens, vocabulary] never exists."""


class Likelihood:
    """The score of a step is the probability of the whole branch up to it under `model`: exp of the sum of log-probabilities.

    It estimates, as a PRM does, how likely the prefix is right, if wrong steps are unlikely texts. With `per_token` it is the
    geometric mean per token, for texts so long that the product vanishes. Policy and model must share a tokenizer.
    """

    name = "likelihood"

    def __init__(self, model: Model, num_pages: int, page_size: int = 16, max_batch_tokens: int = 2048, per_token: bool = False):
        self.model, self.per_token = model, per_token
        self._reader = Reader(model, num_pages, lambda node: node.tokens, page_size, max_batch_tokens)
        self._wanted: set[Node] = set()
        self._tokens: dict[Node, list[float]] = {}  # log-probabilities of a node's tokens, as far as they were read
        self._total: dict[Node, tuple[float, int]] = {}  # over the branch: sum of log-probabilities, number of tokens

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
    def kv(self):
        return self._reader.kv

    def check_tokenizer(self, policy: Model) -> None:
        """Raise `ValueError` unless the policy's token ids mean the same here."""
        if policy.tokenizer.get_vocab() != self.model.tokenizer.get_vocab():
            raise ValueError(f"likelihood under {self.model.name} needs the tokenizer of the policy {policy.name}; their vocabularies differ")

    def check(self, question: str, num_prompt_tokens: int, max_tokens: int) -> None:
        self._reader.check(num_prompt_tokens + max_tokens, f"verifier {self.name}")

    def submit(self, question: str, nodes: Sequence[Node], meter: Meter) -> None:
        self._wanted.update(nodes)
        inner = {node.parent for node in nodes}
        for node in nodes:
            if node not in inner:
                self._reader.read(node, meter)

    def step(self) -> list[tuple[Node, float]]:
        passages, _ = self._reader.step()
        if not passages:
            return self._settle_empty()
        self._read_logprobs(passages)
        done = []
        for passage in passages:
            passage.prefill.last_hidden = passage.hidden[-1].clone()
            for node, hidden in passage.ends():
                self._reader.cache.keep_hidden(node, hidden.clone())
                if node in self._wanted:
                    done.append(self._settle(node))
        return done + self._settle_empty()

    def close(self, nodes: Sequence[Node]) -> None:
        self._reader.close(nodes)
        self._wanted.difference_update(nodes)
        for node in nodes:
            self._tokens.pop(node, None)
            self._total.pop(node, None)

    def _settle(self, node: Node) -> tuple[Node, float]:
        self._wanted.discard(node)
        logprobs = self._tokens.pop(node, [])
        above, count = self._total.get(node.parent, (0.0, 0))
        # fsum is exact, so a sum does not depend on how passes cut the node.
        total = above + math.fsum(logprobs)
        count += len(logprobs)
        self._total[node] = (total, count)
        return node, math.exp(total / max(count, 1) if self.per_token else total)

    def _settle_empty(self) -> list[tuple[Node, float]]:
        """Nodes without tokens end in no passage: they score as their parents."""
        empty = [node for node in self._wanted if not len(node.tokens) and (node.parent in self._total or node.parent.parent is None)]
        return [self._settle(node) for node in sorted(empty, key=lambda n: n.order)]

    def _read_logprobs(self, passages: list[Passage]) -> None:
        """Collect log p(token | tokens before it) for the tokens of wanted nodes."""
        states, targets, owners = [], [], []
        for passage in passages:
            prefill, begin = passage.prefill, passage.begin
            node_begin = 0
            for node, end in zip(prefill.nodes, prefill.ends):
                first, last = max(node_begin, begin), min(end, begin + len(passage.hidden))
                node_begin = end
                if node not in self._wanted or first >= last:
                    continue
                if first == begin:
                    states.append(self._state_before(passage, node)[None])
                    states.append(passage.hidden[: last - 1 - begin])
                else:
                    states.append(passage.hidden[first - 1 - begin : last - 1 - begin])
                targets.append(torch.as_tensor(prefill.tokens[first:last]))
                owners.append((node, last - first))
        if not owners:
            return
        logprobs = self._gather(torch.cat(states), torch.cat(targets).to(self.model.device)).tolist()
        offset = 0
        for node, count in owners:
            self._tokens.setdefault(node, []).extend(logprobs[offset : offset + count])
            offset += count

    def _state_before(self, passage: Passage, node: Node) -> torch.Tensor:
        """The hidden state that predicts the first token of a passage: of the chunk before it, or of the node above."""
        cache = self._reader.cache
        return passage.prefill.last_hidden if passage.begin else cache.hidden(cache.solid(node.parent))

    def _gather(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows = max(1, LOGIT_BYTES // (4 * self.model.config.vocab_size))
        parts = [
            torch.log_softmax(self.model.logits(s), -1).gather(-1, t[:, None])[:, 0]
            for s, t in zip(states.split(rows), targets.split(rows))
        ]
        return torch.cat(parts)
