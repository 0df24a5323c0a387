"""Any process reward model that TRL's PRMTrainer made: two labels at a separator behind each step."""

from collections.abc import Sequence
from dataclasses import dataclass

from tts.engine.weights import Weights
from tts.verifiers.families.base import Facts, Family, Head, family


@family("trl", source="TRL, PRMTrainer: tokenize_row")
@dataclass
class TRL(Family):
    """`bos question`, then every step and the separator tokenized apart; the label is the second of two."""

    separator: str = "\n"
    """What the trainer was given as `step_separator`; may be empty: then the score is read at the step's own last token."""

    label = 1

    def tokens(self, question: str, steps: Sequence[str]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        ids = [*([] if bos is None else [bos]), *self.encode(question)]
        for step in steps:
            ids += [*self.encode(step.rstrip("\n")), *self.encode(self.separator)]
        return ids

    def head(self, weights: Weights) -> Head:
        return self.linear(weights, "score")

    @classmethod
    def detects(cls, facts: Facts) -> bool:
        return facts.is_for("ForTokenClassification")
