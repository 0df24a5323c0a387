"""Fast test-time scaling for language models: every search strategy on shared-prefix kernels.

>>> import tts
>>> solver = tts.Solver(policy="zoo:S")
>>> solver.solve("Q94a-3b+2c+4d+2;", strategy="beam", n=16).answer
'842545'
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tts import grading, selection
    from tts.solver import Result, Solver

_LAZY = {"Solver": "tts.solver", "Result": "tts.solver", "grading": "tts.grading", "selection": "tts.selection"}

__all__ = ["Result", "Solver", "grading", "selection"]


def __getattr__(name: str) -> Any:
    """Import on first use: `import tts` alone loads neither torch nor transformers."""
    if name not in _LAZY:
        raise AttributeError(f"module 'tts' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    return module if _LAZY[name] == f"tts.{name}" else getattr(module, name)
