"""The meter: tokens, FLOPs and seconds of a problem. Every token that a model processes is counted where it passes, once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


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
    """Tokens that verifiers read: new ones only, never a prefix again."""
    reused_tokens: int = 0
    """Prefix tokens that branches of the policy took over at a fork instead of reading them again."""
    policy_flops: float = 0.0
    """Nominal: 2 x parameters x (prompt + drawn tokens)."""
    verifier_flops: float = 0.0

    reprefilled_tokens: int = 0
    """Tokens read a second time because their pages had been given away."""
    cancelled_tokens: int = 0
    """Tokens that branches drew beyond the point at which `All(stop)` ended them; up to it they count as drawn."""
    seconds: float = 0.0
    """From the start of the problem's first move to its answer; problems overlap."""

    @property
    def flops(self) -> float:
        return self.policy_flops + self.verifier_flops

    def __add__(self, other: Meter) -> Meter:
        return Meter(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def search_cost(self) -> dict[str, float]:
        """The reproducible part: equal for equal requests, whatever the batch and the pool."""
        names = ("prompt_tokens", "policy_tokens", "verifier_tokens", "reused_tokens", "policy_flops", "verifier_flops")
        return {name: getattr(self, name) for name in names} | {"flops": self.flops}

    def as_dict(self) -> dict[str, float]:
        return asdict(self) | {"flops": self.flops}
