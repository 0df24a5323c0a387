"""Reward models on the incremental engine: a step is read once, in pages that fork with the search."""

from __future__ import annotations

import math
import os.path

import torch

import tts_kernels
from tts.engine.model import Model
from tts.engine.weights import Weights
from tts.tree import Node
from tts.verifiers.base import Invalid
from tts.verifiers.families import Family
from tts.verifiers.reading import ReadingVerifier

_FIRST = torch.tensor([math.inf, 0.0, 0.0, 0.0])
"""`score`'s aggregates of no steps: the tree keeps the running ones (`tts.tree.Running`)."""


class PRM(ReadingVerifier):
    """A reward model of some family as verifier. New tokens only are read; a score, once computed, is locked.

    A process reward model scores every step; an outcome reward model is read as if the answer ended with the step. The head's
    label rows see the states where scores are read and no others: logits of all tokens never exist.
    """

    name = "prm"

    def __init__(self, model: Model, family: Family, num_pages: int, page_size: int = 16, max_batch_tokens: int = 2048):
        super().__init__(model, num_pages, page_size, max_batch_tokens)
        self.family = family
        family.bind(model)
        self._head = family.head(Weights(model.name)).place(model)
        num_labels = len(self._head.weight)
        if num_labels <= family.label:
            raise ValueError(f"{model.name}: family {family.name} reads label {family.label}, and the head has {num_labels}")
        model.add_parameters(self._head.num_parameters)

    def check(self, question: str, num_prompt_tokens: int, max_tokens: int) -> None:
        # What the family adds to each step is left out here: a branch that outgrows the window gets `Invalid` scores.
        prompt = self._prompt(question)
        if not prompt:
            raise ValueError(f"verifier {self.name}: family {self.family.name} writes a prompt without tokens for {question!r}")
        self.model.check_fits(self.kv, len(prompt), max_tokens, f"verifier {self.name}")

    def step(self) -> list[tuple[Node, float | Exception]]:
        hidden, _, ends = self._read()
        if ends:
            places = [place for place, _ in ends]
            self._settle(places, self._score(hidden[[row for _, row in ends]]))
        return self._take_ready()

    def _prompt(self, question: str) -> list[int]:
        """What the inputs of all first steps begin with."""
        return list(os.path.commonprefix([self.family.tokens(question, [text]) for text in ("0", "x")]))

    def _input(self, question: str, node: Node) -> list[int]:
        return self.family.tokens(question, _steps(node)) if node.parent else self._prompt(question)

    def _readout(self, question: str, node: Node) -> list[int] | None:
        return self.family.readout(question, _steps(node))

    @torch.inference_mode()
    def _score(self, hidden: torch.Tensor) -> list[float]:
        """The scores read off states T[N, E]; `Invalid` where one is not finite."""
        states, head, label = self._head.states(hidden), self._head, self.family.label
        if self.family.activation == "raw":
            # One row at a time in effect: the bits of a sum over E do not depend on N.
            values = (states.float() * head.weight[label].float()).sum(-1)
            out = values if head.bias is None else values + head.bias[label]
        else:
            before = _FIRST.to(self.model.device).expand(len(states), 4)
            out = tts_kernels.score(
                states, head.weight, head.bias, before, label, self.family.activation, backend=self.model.backend
            ).out
        return [v if math.isfinite(v) else Invalid(f"verifier {self.name}: the head gave {v}") for v in out.tolist()]


def _steps(node: Node) -> list[str]:
    """The texts of a branch's steps; segments that were cut anywhere (`Tokens`) are part of the step that they lead to."""
    parts: list[list[bytes]] = [[]]
    for step in node.path:
        parts[-1].append(step.data)
        if step.end != "cut":
            parts.append([])
    return [b"".join(part).decode("utf-8", "replace") for part in parts if part]
