"""What a family of reward models is: how to write the input, where a score is read, with which head."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import nn

from tts.engine.model import Model
from tts.engine.parts import Linear
from tts.engine.weights import Weights


@dataclass
class Head:
    """Label rows T[C, E'] with bias f32[C] for the `score` op, behind an optional first layer E -> E' with a ReLU."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    first: nn.Linear | None = None

    def place(self, model: Model) -> Head:
        """The head in the model's dtype, on its device, its first layer in the form whose bits do not depend on the batch."""
        first: Any = self.first
        if first is not None:
            first = first.to(model.device, model.dtype)
            first = Linear(first.weight, first.bias, model.backend) if model.device.type == "cpu" else first
        bias = None if self.bias is None else self.bias.to(model.device, torch.float32)
        return Head(self.weight.to(model.device, model.dtype).contiguous(), bias, first)

    def states(self, hidden: torch.Tensor) -> torch.Tensor:
        """T[N, E'] that the label rows read, from hidden states T[N, E]."""
        return hidden if self.first is None else torch.relu(self.first(hidden))

    @property
    def num_parameters(self) -> int:
        first = () if self.first is None else (self.first.weight, self.first.bias)
        return sum(tensor.numel() for tensor in (self.weight, self.bias, *first) if tensor is not None)


@dataclass
class Family:
    """One family. A subclass says `tokens` and `head`; its dataclass fields are the options that a user may set.

    `tokens(question, steps)` writes the whole input up to where the score of the last step is read, as the family's authors
    write it. The engine compares it with the input of the step before and reads only what is new, so a family need not know
    that it runs incrementally. Steps are raw texts, the stop string that ended them included; a step is never cut in two.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    """Paper or model card that defines the format."""
    label: ClassVar[int] = 0
    """The head's row that is the score."""
    activation: ClassVar[str] = "softmax"
    """`softmax` over the label rows, or `sigmoid` of one."""

    def bind(self, model: Model) -> None:
        """Take the tokenizer and look up what the format needs; `ValueError` for a special token that is missing."""
        self.model, self.tokenizer = model, model.tokenizer
        self.encode: Callable[[str], tuple[int, ...]] = lru_cache(8192)(self._encode)

    def tokens(self, question: str, steps: Sequence[str]) -> list[int]:
        """Token ids up to where the score of the last of `steps` (at least one) is read."""
        raise NotImplementedError

    def readout(self, question: str, steps: Sequence[str]) -> list[int] | None:
        """The whole input of the last step's score where that ends with something the next step's input does not have."""
        return None

    def head(self, weights: Weights) -> Head:
        """Read the head; `missing_head` is the error where it is not there."""
        raise NotImplementedError

    @classmethod
    def detects(cls, facts: Facts) -> bool:
        """Whether a checkpoint is of this family."""
        raise NotImplementedError

    # ---- what families share

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The conversation as the tokenizer's template writes it, nothing opened behind it."""
        if self.tokenizer.chat_template is None:
            raise ValueError(f"{self.model.name}: family {self.name} needs a chat template, and the tokenizer has none")
        return self.tokenizer.apply_chat_template(list(messages), tokenize=False)

    def token_id(self, token: str) -> int:
        """The id of a token that must be in the vocabulary."""
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self.tokenizer.unk_token_id:
            raise ValueError(
                f"{self.model.name}: family {self.name} needs the token {token!r}, which its tokenizer does not have"
            )
        return found

    def single_id(self, text: str, before: str = "") -> int:
        """The id of `text` behind `before`, where it must be one token."""
        ids = self.encode(before + text)
        if not ids or self.tokenizer.decode(ids[-1:]).strip() != text:
            raise ValueError(
                f"{self.model.name}: family {self.name} needs a token for {text!r}; its tokenizer writes {before + text!r} as "
                f"{self.tokenizer.convert_ids_to_tokens(ids)}"
            )
        return ids[-1]

    def label_rows(self, weights: Weights, ids: Sequence[int]) -> Head:
        """The language-model head's rows of some tokens."""
        for name in ("lm_head.weight", "model.embed_tokens.weight"):
            if name in weights and (name == "lm_head.weight" or self.model.config.tie_word_embeddings):
                return Head(weights.rows(name, ids))
        raise self.missing_head("lm_head.weight", weights)

    def linear(self, weights: Weights, name: str) -> Head:
        """The weight and, where there is one, the bias of a linear head."""
        if f"{name}.weight" not in weights:
            raise self.missing_head(f"{name}.weight", weights)
        bias = weights.tensor(f"{name}.bias") if f"{name}.bias" in weights else None
        return Head(weights.tensor(f"{name}.weight"), bias)

    def two_layers(self, weights: Weights, name: str) -> Head:
        """A head of two linear layers with a ReLU between, `name.0` and `name.2`."""
        first, second = self.linear(weights, f"{name}.0"), self.linear(weights, f"{name}.2")
        layer = nn.Linear(first.weight.shape[1], first.weight.shape[0], bias=first.bias is not None, dtype=first.weight.dtype)
        with torch.no_grad():
            layer.weight.copy_(first.weight)
            if first.bias is not None:
                layer.bias.copy_(first.bias)
        return Head(second.weight, second.bias, layer.requires_grad_(False))

    def missing_head(self, name: str, weights: Weights) -> ValueError:
        others = [n for n in weights.files if "layers." not in n and "embed" not in n and "norm" not in n]
        return ValueError(
            f"{weights.source}: family {self.name} reads its head from the tensor {name!r}, which the checkpoint does not have; "
            f"outside the layers it has {', '.join(sorted(others)) or 'nothing'}: choose another family or another checkpoint"
        )


@dataclass(frozen=True)
class Facts:
    """What a checkpoint says of itself before a weight is read."""

    name: str
    """Folder or hub id, in lower case."""
    architectures: tuple[str, ...]

    def is_for(self, suffix: str) -> bool:
        return any(a.endswith(suffix) for a in self.architectures)


FAMILIES: dict[str, type[Family]] = {}


def family(name: str, source: str) -> Callable[[type[Family]], type[Family]]:
    """Register a family under its name."""

    def register(cls: type[Family]) -> type[Family]:
        cls.name, cls.source = name, source
        FAMILIES[name] = cls
        return cls

    return register


def make(name: str, options: Mapping[str, Any]) -> Family:
    """The family of that name with these options; one `ValueError` that lists what there is otherwise."""
    if name not in FAMILIES:
        raise ValueError(f"unknown verifier family {name!r}; there are {', '.join(sorted(FAMILIES))}, likelihood")
    known = [f.name for f in dataclasses.fields(FAMILIES[name])]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"family {name} has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}")
    return FAMILIES[name](**options)


def detect(facts: Facts) -> str | None:
    """The family that a checkpoint belongs to, or None."""
    return next((name for name, cls in FAMILIES.items() if cls.detects(facts)), None)


def published_texts(steps: Sequence[str]) -> tuple[list[str], bool]:
    """What search-and-learn takes for steps, all that stands between empty lines, and whether an empty step comes behind them.

    That one is not among them: the text that follows takes its place.
    """
    texts = "".join(steps).split("\n\n")
    has_empty = len(texts) > 1 and not texts[-1]
    return (texts[:-1] if has_empty else texts), has_empty
