"""RLHFlow's process reward models: a chat in which the user says a step and the assistant answers `+` or `-`."""

from collections.abc import Sequence
from dataclasses import dataclass

from tts.engine.model import Model
from tts.engine.weights import Weights
from tts.verifiers.families.base import Facts, Family, Head, family, published_texts


@family("rlhflow", source="Xiong et al. 2024, RLHFlow/RLHF-Reward-Modeling; cards of RLHFlow/Llama3.1-8B-PRM-*-Data")
@dataclass
class RLHFlow(Family):
    """The score of a step is read where the assistant's answer to it is predicted; all answers before it are `+`."""

    as_published: bool = False
    """Score, as search-and-learn does, the empty step behind a text that ends with an empty line."""

    def bind(self, model: Model) -> None:
        super().bind(model)
        self.labels = [self.single_id("+"), self.single_id("-")]

    def tokens(self, question: str, steps: Sequence[str]) -> list[int]:
        texts = published_texts(steps)[0] if self.as_published else [step.strip() for step in steps]
        return self._before_answer(question, texts)

    def readout(self, question: str, steps: Sequence[str]) -> list[int] | None:
        if not self.as_published:
            return None
        texts, has_empty = published_texts(steps)
        return self._before_answer(question, [*texts, ""]) if has_empty else None

    def _before_answer(self, question: str, steps: Sequence[str]) -> list[int]:
        turns = [{"role": role, "content": text} for step in steps for role, text in (("user", step), ("assistant", "+"))]
        turns[0]["content"] = f"{question} {steps[0]}"
        ids = list(self.encode(self.chat(turns)))
        last = len(ids) - 1 - ids[::-1].index(self.labels[0]) if self.labels[0] in ids else 0
        if len(ids) - last > 8:  # behind the answer stand the end of its turn and a line break at most
            raise ValueError(f"{self.model.name}: family rlhflow finds no token '+' at the end of the chat template's last turn")
        return ids[:last]

    def head(self, weights: Weights) -> Head:
        return self.label_rows(weights, self.labels)

    @classmethod
    def detects(cls, facts: Facts) -> bool:
        return (
            facts.is_for("ForCausalLM")
            and "prm" in facts.name
            and any(mark in facts.name for mark in ("rlhflow", "mistral-data", "deepseek-data"))
        )
