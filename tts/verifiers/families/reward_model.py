"""Outcome and scalar reward models: one number at the end of the conversation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from tts.engine.model import Model
from tts.engine.weights import Weights
from tts.verifiers.families.base import Facts, Family, Head, family

_MARK = "\x00answer\x00"


@family("reward-model", source="Cobbe et al. 2021; sequence classification as transformers, TRL and Qwen2.5-Math-RM read it")
@dataclass
class RewardModel(Family):
    """The chat of question and answer so far, read at its last token.

    The end of the assistant's turn is not part of what comes next: it is read for the score and then discarded.
    """

    system: str = ""
    """A system prompt, where the model was trained with one."""

    activation = "sigmoid"

    def bind(self, model: Model) -> None:
        super().bind(model)
        self._opening = lru_cache(256)(lambda question: self.chat(self._turns(question, _MARK)).partition(_MARK)[0])

    def _turns(self, question: str, answer: str) -> list[dict[str, str]]:
        turns = [("system", self.system), ("user", question), ("assistant", answer)]
        return [{"role": role, "content": text} for role, text in turns if text or role != "system"]

    def tokens(self, question: str, steps: Sequence[str]) -> list[int]:
        return list(self.encode(self._opening(question) + "".join(steps)))

    def readout(self, question: str, steps: Sequence[str]) -> list[int] | None:
        return list(self.encode(self.chat(self._turns(question, "".join(steps)))))

    def head(self, weights: Weights) -> Head:
        return self.two_layers(weights, "score") if "score.0.weight" in weights else self.linear(weights, "score")

    @classmethod
    def detects(cls, facts: Facts) -> bool:
        return facts.is_for("ForSequenceClassification") or facts.is_for("ForRewardModel")


@family("reward-model-raw", source="the same")
@dataclass
class RawRewardModel(RewardModel):
    """The reward as the head gives it, without the sigmoid: any real number, so `weighted` voting refuses it."""

    activation = "raw"

    @classmethod
    def detects(cls, facts: Facts) -> bool:
        return False
