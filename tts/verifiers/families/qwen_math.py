"""Qwen2.5-Math-PRM: a head of two layers at the token `<extra_0>` behind each step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tts.engine.model import Model
from tts.engine.weights import Weights
from tts.verifiers.families.base import Facts, Family, Head, family, published_texts

SEPARATOR = "<extra_0>"


@family("qwen-math-prm", source="Zhang et al. 2025, arXiv:2501.07301; cards of Qwen/Qwen2.5-Math-PRM-7B, -72B and -7B-PRM800K")
@dataclass
class QwenMathPRM(Family):
    """A chat whose assistant turn is the steps, each followed by the separator; the label is the second of two."""

    system: str = r"Please reason step by step, and put your final answer within \boxed{}."
    as_published: bool = False
    """Score, as search-and-learn does, the empty step behind a text that ends with an empty line."""

    label = 1

    def bind(self, model: Model) -> None:
        super().bind(model)
        self.separator = self.token_id(SEPARATOR)
        self._opening = lru_cache(256)(self._render_opening)

    def _render_opening(self, question: str) -> str:
        """The conversation up to where the assistant's first step begins."""
        turns = [("system", self.system), ("user", question), ("assistant", SEPARATOR)]
        return self.chat([{"role": role, "content": text} for role, text in turns]).rpartition(SEPARATOR)[0]

    def tokens(self, question: str, steps: Sequence[str]) -> list[int]:
        texts = published_texts(steps)[0] if self.as_published else [step.strip() for step in steps]
        texts[0] = self._opening(question) + texts[0]
        # No token straddles the separator, so pieces between separators may be tokenized one by one.
        return [token for text in texts for token in (*self.encode(text), self.separator)]

    def readout(self, question: str, steps: Sequence[str]) -> list[int] | None:
        has_empty = self.as_published and published_texts(steps)[1]
        return [*self.tokens(question, steps), self.separator] if has_empty else None

    def head(self, weights: Weights) -> Head:
        return self.two_layers(weights, "score")

    @classmethod
    def detects(cls, facts: Facts) -> bool:
        return facts.is_for("ForProcessRewardModel")
