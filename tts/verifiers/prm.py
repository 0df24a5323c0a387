"""Process reward models on the incremental engine: a step is read once, in pages that fork with the search."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

import tts_kernels
from tts.engine.model import Model
from tts.meter import Meter
from tts.tree import Node
from tts.verifiers.reading import ReadingVerifier


class Family(Protocol):
    """How one family of PRMs writes its input and reads its score. Nothing else in the package knows PRM families.

    The input is `prompt(question)` and then `step(i, text)` for each step, every piece tokenized once; a step's score is read
    at its last token: `activation(head @ hidden + bias)` of row `label`.
    """

    @property
    def label(self) -> int: ...

    @property
    def activation(self) -> str:
        """`softmax` over the label rows, or `sigmoid` of one."""
        ...

    def prompt(self, model: Model, question: str) -> list[int]: ...

    def step(self, model: Model, index: int, text: str) -> list[int]: ...

    def head(self, model: Model) -> tuple[torch.Tensor, torch.Tensor | None]:
        """T[C, E] label rows and f32[C] bias."""
        ...


@dataclass(frozen=True)
class TokenClassificationPRM:
    """Any PRM trained with TRL's PRMTrainer: a two-label head at the separator behind each step, softmax, label 1."""

    separator: str = "\n"
    label: int = 1
    activation: str = "softmax"

    def prompt(self, model: Model, question: str) -> list[int]:
        ids = model.tokenizer(question, add_special_tokens=False)["input_ids"]
        bos = model.tokenizer.bos_token_id
        return ids if bos is None else [bos, *ids]

    def step(self, model: Model, index: int, text: str) -> list[int]:
        encode = lambda piece: model.tokenizer(piece, add_special_tokens=False)["input_ids"]  # noqa: E731
        return encode(text) + encode(self.separator)

    def head(self, model: Model) -> tuple[torch.Tensor, torch.Tensor | None]:
        score = model.inner.score
        return score.weight, None if score.bias is None else score.bias.float()


_FIRST = torch.tensor([math.inf, 0.0, 0.0, 0.0])
"""`score`'s aggregates of no steps: the tree keeps the running ones (`tts.tree.Running`)."""


class PRM(ReadingVerifier):
    """A process reward model as verifier. New steps only are read; a score, once computed, is locked."""

    name = "prm"

    def __init__(self, model: Model, family: Family, num_pages: int, page_size: int = 16, max_batch_tokens: int = 2048):
        self._tokens: dict[Node, list[int]] = {}
        super().__init__(model, self._tokens.__getitem__, num_pages, page_size, max_batch_tokens)
        self.family = family
        self._head, self._bias = family.head(model)

    def check(self, question: str, num_prompt_tokens: int, max_tokens: int) -> None:
        # A step adds its separator; one a token is the worst case, and no text has that, so the separators are left out here.
        self._check_length(len(self.family.prompt(self.model, question)), max_tokens)

    def submit(self, question: str, nodes: Sequence[Node], meter: Meter) -> None:
        for node in nodes:
            root = node.root
            if root not in self._tokens:
                self._tokens[root] = self.family.prompt(self.model, question)
            for i, step in enumerate(node.path):
                if step not in self._tokens:
                    self._tokens[step] = self.family.step(self.model, i, step.text)
        self._want(nodes, meter)

    def step(self) -> list[tuple[Node, float | Exception]]:
        hidden, _, ends = self._read()
        return self._score([node for node, _ in ends], hidden[[row for _, row in ends]]) if ends else []

    def close(self, nodes: Sequence[Node]) -> None:
        known = [node for node in nodes if node in self._tokens]
        self._forget(known)
        for node in known:
            del self._tokens[node]

    def _score(self, nodes: list[Node], states: torch.Tensor) -> list[tuple[Node, float | Exception]]:
        self._wanted.difference_update(nodes)
        before = _FIRST.to(self.model.device).expand(len(nodes), 4)
        with torch.inference_mode():
            scored = tts_kernels.score(
                states, self._head, self._bias, before, self.family.label, self.family.activation, backend=self.model.backend
            )
        return list(zip(nodes, scored.out.tolist()))
