"""Likelihood under another model as a training-free verifier."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from tts.engine.model import Model
from tts.engine.reader import Passage
from tts.tree import Node
from tts.verifiers.reading import ReadingVerifier

LOGIT_BYTES = 64 << 20
"""Ceiling on the logits held at a time: rows are taken in pieces, [tokens, vocabulary] never exists."""

Render = Callable[[str], list[int]]
"""A question -> the tokens of its prompt."""


class Likelihood(ReadingVerifier):
    """The score of a step is the probability of the whole branch up to it under `model`: exp of the sum of log-probabilities.

    It estimates, as a PRM does, how likely the prefix is right, if wrong steps are unlikely texts. With `per_token` it is the
    geometric mean per token, for texts so long that the product vanishes.

    A model with the policy's vocabulary reads the policy's own tokens. Any other gets `render`, which writes the prompt in its
    vocabulary, and reads the branch's text, tokenized as one: then probabilities are of texts, and a token across the border
    of two steps belongs to the later one.
    """

    name = "likelihood"
    overlap = 1

    def __init__(
        self,
        model: Model,
        num_pages: int,
        page_size: int = 16,
        max_batch_tokens: int = 2048,
        *,
        per_token: bool = False,
        render: Render | None = None,
    ):
        super().__init__(model, num_pages, page_size, max_batch_tokens)
        self.per_token, self._render = per_token, render
        self._logprobs: dict[Node, list[float]] = {}
        """Log-probabilities of a place's tokens, as far as they were read."""
        self._behind: dict[Node, float] = {}
        """By a place that a cut made: of the token behind it, which every place on it begins with (`overlap`)."""

    def check(self, question: str, num_prompt_tokens: int, max_tokens: int) -> None:
        prompt = num_prompt_tokens if self._render is None else len(self._render(question))
        self.model.check_fits(self.kv, prompt, max_tokens, f"verifier {self.name}")

    def step(self) -> list[tuple[Node, float | Exception]]:
        hidden, passages, ends = self._read()
        self._read_logprobs(hidden, passages)
        self._keep_chunk_ends(hidden, passages)
        self._settle([place for place, _ in ends], [self._value(place) for place, _ in ends])
        return self._take_ready()

    def _input(self, question: str, node: Node) -> list[int]:
        if self._render is None:
            return [token for n in [node.root, *node.path] for token in n.tokens]
        text = self.model.tokenizer(node.solution, add_special_tokens=False)["input_ids"] if node.parent else []
        return [*self._render(question), *text]

    def _closed(self, place: Node) -> None:
        self._logprobs.pop(place, None)
        self._behind.pop(place, None)

    def _was_cut(self, place: Node, upper: Node) -> None:
        known, length = self._logprobs.pop(place, []), len(upper.tokens)
        self._logprobs[upper], self._logprobs[place] = known[:length], known[length:]
        if known[length:]:
            self._behind[upper] = known[length]

    def _value(self, place: Node) -> float:
        """The probability of the path behind the prompt. fsum is exact: no cut into passages or places changes the sum."""
        known: list[float] = []
        at = place
        while at.parent is not None:
            known += self._logprobs[at]
            at = at.parent
        total = math.fsum(known)
        return math.exp(total / max(len(known), 1) if self.per_token else total)

    def _read_logprobs(self, hidden: torch.Tensor, passages: list[Passage]) -> None:
        """Collect log p(token | tokens before it) for the tokens of places that are new; those of the prompt are not looked at.

        A token is predicted by the state one row above it; the first of a passage by the state that `_states_before` names.
        """
        rows, targets, owners, first, num_targets = [], [], [], [], 0
        for passage in passages:
            place_begin = 0
            for place, end in zip(passage.prefill.nodes, passage.prefill.ends):
                begin, until, offset = max(place_begin, passage.begin), min(end, passage.end), passage.begin - place_begin
                place_begin = end
                if place.parent is None or len(self._logprobs.get(place, ())) == len(place.tokens) or begin >= until:
                    continue
                known = self._logprobs.setdefault(place, [])
                del known[max(0, offset) :]  # of a pass whose pages were given away
                if offset == 0 and passage.prefill.chunk_end is None and place.parent not in self._reader.cache.hidden:
                    known.append(self._behind[place.parent])
                    begin += 1
                if begin < until:
                    shift = passage.first_row - passage.begin
                    rows.append(np.arange(begin - 1 + shift, until - 1 + shift))
                    if begin == passage.begin:
                        first.append((num_targets, passage, place))
                    targets.append(passage.prefill.tokens[begin:until])
                    owners.append((known, until - begin))
                    num_targets += until - begin
        if not owners:
            return
        index = np.concatenate(rows)
        states = hidden[torch.from_numpy(np.maximum(index, 0))]
        if first:
            states[[at for at, _, _ in first]] = self._states_before([(passage, place) for _, passage, place in first])
        logprobs = self._gather(states, torch.from_numpy(np.concatenate(targets)).to(self.model.device)).tolist()
        end = 0
        for known, count in owners:
            known += logprobs[end : end + count]
            end += count

    def _states_before(self, firsts: list[tuple[Passage, Node]]) -> torch.Tensor:
        """The states that predict the first tokens of passages: of the chunk before it, or of the place above."""
        cache = self._reader.cache
        states = [None if p.prefill.chunk_end is None else p.prefill.chunk_end[None] for p, _ in firsts]
        above = [place.parent for (_, place), state in zip(firsts, states) if state is None and place.parent is not None]
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
            torch.log_softmax(self.model.logits(s), -1, dtype=torch.float32).gather(-1, t[:, None])[:, 0]
            for s, t in zip(states.split(rows), targets.split(rows))
        ]
        return torch.cat(parts)
