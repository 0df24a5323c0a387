"""The meter: tokens, FLOPs and seconds of a problem. Every token that a model processes is counted where it passes, once.

FLOPs are nominal: 2 for each active parameter and token that a model read or drew, whatever a kernel saved or padded. What
attention does beyond the parameters grows with the context and is stated apart: 4 x layers x width x context for a token, the
products with the keys and with the values (Kaplan et al. 2020, arXiv 2001.08361, table 1, forward). `tts.engine.flops` counts
what was really multiplied.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Protocol


class Charged(Protocol):
    """What the meter must know of a model."""

    @property
    def flops_per_token(self) -> float:
        """2 x active parameters."""
        ...

    @property
    def attention_flops_per_context(self) -> float:
        """4 x layers x attention width: for one token, times the tokens of its context, itself included."""
        ...


@dataclass
class Meter:
    """What one problem has spent. Sums of meters are meters.

    The first group is a property of the search alone: it does not depend on batch size, pool size or machine. The second is
    what this run did beyond it.
    """

    prompt_tokens: int = 0
    """Prompt and forced tokens that the policy read."""
    policy_tokens: int = 0
    """Tokens drawn, those of discarded branches and rollouts included."""
    verifier_tokens: int = 0
    """Tokens that verifiers read: new ones only, never a prefix again; branches of equal text once."""
    reused_tokens: int = 0
    """Prefix tokens that branches of the policy took over at a fork instead of reading them again."""
    policy_flops: float = 0.0
    """Nominal: 2 x active parameters x (prompt + drawn tokens)."""
    verifier_flops: float = 0.0
    policy_attention_flops: float = 0.0
    """Of the same tokens, beyond the parameters: no part of `flops`. Branches that `All(stop)` cut short are not in it."""
    verifier_attention_flops: float = 0.0

    reprefilled_tokens: int = 0
    """Tokens read a second time because their pages had been given away."""
    reprefilled_flops: float = 0.0
    """Nominal, of those tokens: no part of `flops`."""
    cancelled_tokens: int = 0
    """Tokens that branches drew beyond the point at which `All(stop)` ended them; up to it they count as drawn."""
    seconds: float = 0.0
    """From the start of the problem's first move to its answer; problems overlap."""

    @property
    def flops_nominal(self) -> float:
        """2 x active parameters x tokens, over all models; discarded branches, rollouts and judgements included."""
        return self.policy_flops + self.verifier_flops

    @property
    def flops(self) -> float:
        """`flops_nominal` under the name that it has in results."""
        return self.flops_nominal

    @property
    def attention_flops(self) -> float:
        return self.policy_attention_flops + self.verifier_attention_flops

    def charge_prompt(self, model: Charged, count: int) -> None:
        """The policy reads so many tokens of prompts, or forced ones, for the first time."""
        self.prompt_tokens += count
        self.policy_flops += model.flops_per_token * count

    def charge_drawn(self, model: Charged, count: int) -> None:
        """The policy has drawn so many tokens."""
        self.policy_tokens += count
        self.policy_flops += model.flops_per_token * count

    def charge_verifier(self, model: Charged, begin: int, end: int) -> None:
        """A verifier reads the tokens at positions `begin` to `end` of a branch for the first time."""
        self.verifier_tokens += end - begin
        self.verifier_flops += model.flops_per_token * (end - begin)
        self.verifier_attention_flops += model.attention_flops_per_context * context(begin, end)

    def charge_again(self, model: Charged, count: int) -> None:
        """A model reads tokens again that it has read before."""
        self.reprefilled_tokens += count
        self.reprefilled_flops += model.flops_per_token * count

    def charge_attention(self, model: Charged, begin: int, end: int) -> None:
        """The policy's tokens at positions `begin` to `end` of a branch attended to those before them."""
        self.policy_attention_flops += model.attention_flops_per_context * context(begin, end)

    def __add__(self, other: Meter) -> Meter:
        return Meter(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def search_cost(self) -> dict[str, float]:
        """The reproducible part: equal for equal requests, whatever the batch and the pool."""
        names = ("prompt_tokens", "policy_tokens", "verifier_tokens", "reused_tokens", "policy_flops", "verifier_flops")
        return {name: getattr(self, name) for name in names} | self._totals()

    def as_dict(self) -> dict[str, float]:
        return asdict(self) | self._totals()

    def _totals(self) -> dict[str, float]:
        return {"flops": self.flops, "attention_flops": self.attention_flops}


def context(begin: int, end: int) -> int:
    """The tokens that those at positions `begin` to `end` attend to, all together: each to itself and all before it."""
    return (end * (end + 1) - begin * (begin + 1)) // 2


def matched_inference(size_ratio: float, token_ratio: float) -> float:
    """How many times the inference tokens a model may spend at the total FLOPs of one `size_ratio` times its size.

    M + 3 (M - 1) / R with R = inference tokens / pretraining tokens (Snell et al. 2024, section 7): 6 P D for pretraining and
    2 P D for inference, both models pretrained on the same data. Raises `ValueError` unless M >= 1 and R > 0.
    """
    if not (size_ratio >= 1 and token_ratio > 0):
        raise ValueError(f"need size_ratio >= 1 and token_ratio > 0, got {size_ratio} and {token_ratio}")
    return size_ratio + 3 * (size_ratio - 1) / token_ratio
