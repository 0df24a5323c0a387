"""Search strategies: one file each, a generator that reads like the paper's pseudo-code. No torch, no I/O."""

from importlib import import_module
from pkgutil import iter_modules

from tts.strategies.base import STRATEGIES, SearchProblem, Strategy, find, parameter, strategy

for _module in iter_modules(__path__):  # every file here registers what it holds: adding a strategy is adding a file
    import_module(f"{__name__}.{_module.name}")

__all__ = ["STRATEGIES", "SearchProblem", "Strategy", "find", "parameter", "strategy"]
