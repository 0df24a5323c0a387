"""Search strategies: one file each, a generator that reads like the paper's pseudo-code. No torch, no I/O."""

from tts.strategies import beam, best_of_n, dvts, grm_best_of_n, lookahead
from tts.strategies.base import STRATEGIES, SearchProblem, Strategy, find, parameter, strategy

__all__ = [
    "STRATEGIES",
    "SearchProblem",
    "Strategy",
    "beam",
    "best_of_n",
    "dvts",
    "find",
    "grm_best_of_n",
    "lookahead",
    "parameter",
    "strategy",
]
