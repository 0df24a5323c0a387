"""Math-Shepherd: the probability of `+` against `-` at the tag behind each step."""

from collections.abc import Sequence
from dataclasses import dataclass

from tts.engine.model import Model
from tts.engine.weights import Weights
from tts.verifiers.base import Unreadable
from tts.verifiers.families.base import Facts, Family, Head, family

TAG = "ки"


@family("math-shepherd", source="Wang et al. 2023, arXiv:2312.08935; card of peiyi9979/math-shepherd-mistral-7b-prm")
@dataclass
class MathShepherd(Family):
    """One text, `question step ки` and a line `step ки` for each further step; tokenized as a whole, so tokens may straddle."""

    as_published: bool = False
    """The text of search-and-learn: steps stay as they are, and the tag stands before the empty line that ends them."""
    system: str = ""
    """With `as_published`: the policy's system prompt, which search-and-learn puts before the question."""

    def bind(self, model: Model) -> None:
        super().bind(model)
        self.tag = self.single_id(TAG, before="x ")
        self.labels = [self.single_id("+", before="x "), self.single_id("-", before="x ")]

    def tokens(self, question: str, steps: Sequence[str]) -> list[int]:
        if self.as_published:
            marked = "".join(steps).replace("\n\n", f" {TAG}\n\n")
            marked = marked if marked.endswith("\n\n") else f"{marked} {TAG}"
            text = f"{self.system}\n{question}\n {marked}"
            text = text[: text.rindex(TAG) + len(TAG)]
        else:
            text = f"{question} " + "\n".join(f"{step.strip()} {TAG}" for step in steps)
        ids = list(self.tokenizer(text)["input_ids"])
        if ids[-1] != self.tag:
            raise Unreadable(f"{self.model.name}: the text {text[-40:]!r} does not end with the token of the tag {TAG!r}")
        return ids

    def head(self, weights: Weights) -> Head:
        return self.label_rows(weights, self.labels)

    @classmethod
    def detects(cls, facts: Facts) -> bool:
        return facts.is_for("ForCausalLM") and "math-shepherd" in facts.name
