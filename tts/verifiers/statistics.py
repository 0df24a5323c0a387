"""The policy's own certainty as verifier: statistics of the sampler, no model of its own."""

from __future__ import annotations

import numpy as np

from tts.tree import Node
from tts.verifiers.base import Invalid, Queued

STATISTICS = {"self-certainty": "certainty", "confidence": "confidence"}
"""Verifier name -> the sampler's statistic that it reads."""
WINDOW = 2048
"""Tokens of DeepConf's sliding group."""


class Statistic(Queued):
    """Scores a branch by how certain the policy was of its tokens: larger is surer, never negative.

    `self-certainty` (Kang et al. 2025, arXiv:2502.18581) is the mean over the branch's drawn tokens of
    `-(1/V) sum_v log(V p_v)`. `confidence` (DeepConf, Fu et al. 2025, arXiv:2508.15260) takes each token's mean negative
    log-probability of the 20 likeliest, averages over a sliding window, and scores the branch by its lowest window: whole
    windows only, or all tokens while there are fewer.
    """

    def __init__(self, name: str, window: int = WINDOW):
        if name not in STATISTICS:
            raise ValueError(f"unknown statistic {name!r}; there are {', '.join(STATISTICS)}")
        if window < 1:
            raise ValueError(f"window must be >= 1 token, got {window}")
        super().__init__(name)
        self.window = window
        self.stats = (STATISTICS[name],)
        """What the search must ask the sampler for in every expansion."""

    def score(self, question: str, node: Node) -> float:
        name = self.stats[0]
        if any(name not in step.stats for step in node.path):
            return Invalid(f"verifier {self.name}: the sampler kept no {name} of this branch")
        values = np.array([x for step in node.path for x in step.stats[name]], np.float64)
        values = values[~np.isnan(values)]  # forced tokens were not drawn
        if not len(values):
            return Invalid(f"verifier {self.name}: no token of this branch was drawn")
        return float(values.mean() if self.name == "self-certainty" else _lowest_window(values, self.window))


def _lowest_window(values: np.ndarray, window: int) -> float:
    if len(values) <= window:
        return float(values.mean())
    sums = np.concatenate([[0.0], values.cumsum()])
    return float((sums[window:] - sums[:-window]).min() / window)
