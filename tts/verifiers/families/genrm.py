"""GenRM and other judges by token probability: the probability that a language model answers Yes, not No."""

from collections.abc import Sequence
from dataclasses import dataclass

from tts.engine.model import Model
from tts.engine.weights import Weights
from tts.verifiers.families.base import Facts, Family, Head, family

_MARK = "\x00answer\x00"


@family("genrm", source="Zhang et al. 2024, arXiv:2408.15240: direct GenRM, r = p(Yes | x, y, I)")
@dataclass
class GenRM(Family):
    """A chat in which the user shows question and answer so far and asks whether it is right; no token is drawn.

    The asking is not part of what comes next: it is read for the score and then discarded.
    """

    ask: str = "Is the answer correct (Yes/No)?"
    yes: str = "Yes"
    no: str = "No"

    def bind(self, model: Model) -> None:
        super().bind(model)
        self.labels = [self.encode(self.yes)[0], self.encode(self.no)[0]]
        if self.labels[0] == self.labels[1]:
            raise ValueError(f"{model.name}: family genrm: {self.yes!r} and {self.no!r} begin with the same token")

    def _text(self, question: str, answer: str) -> str:
        if self.tokenizer.chat_template is None:
            raise ValueError(f"{self.model.name}: family {self.name} needs a chat template, and the tokenizer has none")
        turn = {"role": "user", "content": f"{question}\n\n{answer}\n\n{self.ask}"}
        return self.tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)

    def tokens(self, question: str, steps: Sequence[str]) -> list[int]:
        return list(self.encode(self._text(question, _MARK).partition(_MARK)[0] + "".join(steps)))

    def readout(self, question: str, steps: Sequence[str]) -> list[int] | None:
        return list(self.encode(self._text(question, "".join(steps))))

    def head(self, weights: Weights) -> Head:
        return self.label_rows(weights, self.labels)

    @classmethod
    def detects(cls, facts: Facts) -> bool:
        return False  # any chat model can be asked: the user says so
