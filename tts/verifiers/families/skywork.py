"""Skywork-o1-Open-PRM: the sigmoid of a value head at the end of each line."""

from collections.abc import Sequence
from dataclasses import dataclass

from tts.engine.model import Model
from tts.engine.weights import Weights
from tts.verifiers.families.base import Facts, Family, Head, family


@family("skywork", source="Skywork-o1-Open-PRM-Qwen-2.5; SkyworkAI/skywork-o1-prm-inference")
@dataclass
class Skywork(Family):
    """`bos question newline`, then every line tokenized apart and followed by the newline token.

    A step is scored at the end of its last line. Lines without text are left out, so a step that ends with an empty line is
    scored at its own end.
    """

    separator: str = "\n"
    as_published: bool = False
    """Keep empty lines and, as search-and-learn does, read the score at the one behind a text that ends with a newline."""

    activation = "sigmoid"

    def bind(self, model: Model) -> None:
        super().bind(model)
        if self.tokenizer.bos_token is None:
            raise ValueError(f"{model.name}: family skywork begins with the tokenizer's bos token, and there is none")
        ids = self.encode(self.separator)
        if not ids:
            raise ValueError(f"{model.name}: family skywork needs a token for its separator {self.separator!r}")
        self.end = ids[-1]

    def tokens(self, question: str, steps: Sequence[str]) -> list[int]:
        ids = list(self.encode(f"{self.tokenizer.bos_token}{question}\n"))
        for line in self._lines(steps):
            ids += [*self.encode(line), self.end]
        return ids

    def readout(self, question: str, steps: Sequence[str]) -> list[int] | None:
        is_defect = self.as_published and steps[-1].endswith(self.separator)
        return [*self.tokens(question, steps), self.end] if is_defect else None

    def _lines(self, steps: Sequence[str]) -> list[str]:
        if self.as_published:
            return "".join(steps).removesuffix(self.separator).split(self.separator)
        # A step without any text still ends somewhere.
        return [line for step in steps for line in [x for x in step.strip().split(self.separator) if x.strip()] or [""]]

    def head(self, weights: Weights) -> Head:
        return self.linear(weights, "v_head.summary")

    @classmethod
    def detects(cls, facts: Facts) -> bool:
        return facts.is_for("ForPrmModel") or "skywork-o1-open-prm" in facts.name
