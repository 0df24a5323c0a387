"""Likelihood under another model as a training-free verifier."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from tts.engine.model import Model
from tts.engine.reader import Passage
from tts.meter import Meter
from tts.tree import Node
from tts.verifiers.reading import ReadingVerifier

LOGIT_BYTES = 64 << 20
"""Ceiling on the logits held at a time: rows are taken in pieces, [tokens, vocabulary] never exists."""


def _parent(node: Node) -> Node:
    assert node.parent is not None, "a prompt has no score"
    return node.parent


class Likelihood(ReadingVerifier):
    """The score of a step is the probability of the whole branch up to it under `model`: exp of the sum of log-probabilities.

    It estimates, as a PRM does, how likely the prefix is right, if wrong steps are unlikely texts. With `per_token` it is the
    geometric mean per token, for texts so long that the product vanishes. Policy and model must share a tokenizer.
    """

    name = "likelihood"

    def __init__(
        self, model: Model, num_pages: int, page_size: int = 16, max_batch_tokens: int = 2048, *, per_token: bool = False
    ):
        super().__init__(model, lambda node: node.tokens, num_pages, page_size, max_batch_tokens)
        self.per_token = per_token
        self._tokens: dict[Node, list[float]] = {}  # log-probabilities of a node's tokens, as far as they were read
        self._total: dict[Node, tuple[float, int]] = {}  # over the branch: sum of log-probabilities, number of tokens

    def check_tokenizer(self, policy: Model) -> None:
        """Raise `ValueError` unless the policy's token ids mean the same here."""
        if policy.tokenizer.get_vocab() != self.model.tokenizer.get_vocab():
            raise ValueError(
                f"likelihood under {self.model.name} needs the tokenizer of the policy {policy.name}; their vocabularies differ"
            )

    def check(self, question: str, num_prompt_tokens: int, max_tokens: int) -> None:
        self._check_length(num_prompt_tokens, max_tokens)

    def submit(self, question: str, nodes: Sequence[Node], meter: Meter) -> None:
        self._want(nodes, meter)

    def step(self) -> list[tuple[Node, float | Exception]]:
        hidden, passages, ends = self._read()
        self._read_logprobs(hidden, passages)
        self._keep_chunk_ends(hidden, passages)
        settled = [self._settle(x) for node, _ in ends for x in (*self._empty_above(node), node)]
        return settled + self._settle_empty()

    def close(self, nodes: Sequence[Node]) -> None:
        self._forget(nodes)
        for node in nodes:
            self._tokens.pop(node, None)
            self._total.pop(node, None)

    def _settle(self, node: Node) -> tuple[Node, float | Exception]:
        self._wanted.discard(node)
        logprobs = self._tokens.pop(node, [])
        above, count = self._total.get(_parent(node), (0.0, 0))
        # fsum is exact, so a sum does not depend on how passes cut the node.
        total = above + math.fsum(logprobs)
        count += len(logprobs)
        self._total[node] = (total, count)
        return node, math.exp(total / max(count, 1) if self.per_token else total)

    def _empty_above(self, node: Node) -> list[Node]:
        """The steps without tokens between this one and the last with tokens, that wait for their score; parents first."""
        found = []
        while (node := _parent(node)) in self._wanted and not len(node.tokens):
            found.append(node)
        return found[::-1]

    def _settle_empty(self) -> list[tuple[Node, float | Exception]]:
        """Nodes without tokens end in no passage: they score as their parents."""
        empty = [
            node
            for node in self._wanted
            if not len(node.tokens) and (_parent(node) in self._total or _parent(node).end == "prompt")
        ]
        return [self._settle(node) for node in sorted(empty, key=lambda n: n.order)]

    def _read_logprobs(self, hidden: torch.Tensor, passages: list[Passage]) -> None:
        """Collect log p(token | tokens before it) for the tokens of wanted nodes.

        A token is predicted by the state one row above it; the first of a passage by the state that `_state_before` names.
        """
        rows, targets, owners, first, num_targets = [], [], [], [], 0
        for passage in passages:
            node_begin = 0
            for node, end in zip(passage.prefill.nodes, passage.prefill.ends):
                begin, until = max(node_begin, passage.begin), min(end, passage.end)
                node_begin = end
                if node not in self._wanted or begin >= until:
                    continue
                shift = passage.first_row - passage.begin
                rows.append(np.arange(begin - 1 + shift, until - 1 + shift))
                if begin == passage.begin:
                    first.append((num_targets, passage, node))
                targets.append(passage.prefill.tokens[begin:until])
                owners.append((node, until - begin))
                num_targets += until - begin
        if not owners:
            return
        index = np.concatenate(rows)
        states = hidden[torch.from_numpy(np.maximum(index, 0))]
        if first:
            states[[at for at, _, _ in first]] = self._states_before([(passage, node) for _, passage, node in first])
        logprobs = self._gather(states, torch.from_numpy(np.concatenate(targets)).to(self.model.device)).tolist()
        offset = 0
        for node, count in owners:
            self._tokens.setdefault(node, []).extend(logprobs[offset : offset + count])
            offset += count

    def _states_before(self, firsts: list[tuple[Passage, Node]]) -> torch.Tensor:
        """The states that predict the first tokens of passages: of the chunk before it, or of the node above."""
        cache = self._reader.cache
        states = [None if p.prefill.chunk_end is None else p.prefill.chunk_end[None] for p, _ in firsts]
        above = [cache.solid(_parent(node)) for (p, node), state in zip(firsts, states) if state is None]
        kept = iter(cache.hidden.read(above).split(1)) if above else iter(())
        return torch.cat([next(kept) if state is None else state for state in states])

    def _keep_chunk_ends(self, hidden: torch.Tensor, passages: list[Passage]) -> None:
        """Keep the state behind an unfinished prefill's last token: it predicts the first one of the next chunk."""
        for passage in passages:
            if passage.prefill.num_left:
                passage.prefill.chunk_end = hidden[passage.first_row + passage.end - passage.begin - 1].clone()

    def _gather(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        rows = max(1, LOGIT_BYTES // (4 * self.model.config.vocab_size))
        parts = [
            torch.log_softmax(self.model.logits(s), -1).gather(-1, t[:, None])[:, 0]
            for s, t in zip(states.split(rows), targets.split(rows))
        ]
        return torch.cat(parts)
