"""From a checkpoint to a verifier: which family it is of, what of it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tts.calibration import Isotonic
from tts.engine.model import Model, read_config, resolve
from tts.verifiers import families
from tts.verifiers.checkpoint import Checkpoint
from tts.verifiers.likelihood import Likelihood
from tts.verifiers.prm import PRM

LIKELIHOOD = "likelihood"


def family_of(checkpoint: Checkpoint) -> str:
    """The family's name: the one that was given, or what the checkpoint's config says.

    Raises `ValueError` where it says nothing that is known.
    """
    if checkpoint.family != "auto":
        if checkpoint.family != LIKELIHOOD:
            families.make(checkpoint.family, checkpoint.options)
        return checkpoint.family
    source = resolve(checkpoint.model)
    architectures = read_config(source, checkpoint.trust_remote_code).architectures or []
    facts = families.Facts(source.lower(), tuple(architectures))
    found = families.detect(facts) or (LIKELIHOOD if facts.is_for("ForCausalLM") else None)
    if found is None:
        raise ValueError(
            f"verifier {source!r}: its architectures {architectures} belong to no known family; name one: "
            f"{', '.join(sorted(families.FAMILIES))} or {LIKELIHOOD}, as in {'trl:' + source!r}"
        )
    return found


@dataclass
class Opened:
    """A checkpoint whose model is loaded; pages are given out when the sizes of all models are known."""

    checkpoint: Checkpoint
    model: Model
    family: families.Family | None
    """None: it is read by its likelihood."""

    @classmethod
    def load(cls, checkpoint: Checkpoint, device: str = "auto", dtype: str = "auto", backend: str | None = None) -> Opened:
        """Load the model; of a reward model the trunk only, its head is read by the family."""
        name = family_of(checkpoint)
        family = None if name == LIKELIHOOD else families.make(name, checkpoint.options)
        kind = "trunk" if family else "causal-lm"
        model = Model.load(checkpoint.model, kind, device, dtype, backend, checkpoint.trust_remote_code)
        return cls(checkpoint, model, family)

    def make(self, policy: Model, render: Callable[[str], Any], *sizes: int) -> PRM | Likelihood:
        """The verifier; `render` writes a question as the task's prompt, `sizes` are pages, page size and tokens of a pass."""
        made: PRM | Likelihood
        model = self.model
        if self.family is not None:
            made = PRM(model, self.family, *sizes)
        elif policy.tokenizer.get_vocab() == model.tokenizer.get_vocab():
            made = Likelihood(model, *sizes)
        else:
            made = Likelihood(model, *sizes, render=lambda question: model.encode(render(question)))
        if self.checkpoint.calibration is not None:
            made.calibration = Isotonic.load(Path(self.checkpoint.calibration))
        return made
