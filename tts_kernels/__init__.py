"""Kernels for test-time search: shared-prefix KV forking, tree attention, step scoring and beam pruning."""

from tts_kernels.append import append
from tts_kernels.attend import attend, plan
from tts_kernels.fork import fork
from tts_kernels.linear import linear, pack
from tts_kernels.op import OPS, Op, backends, op, register_backend
from tts_kernels.prune import prune
from tts_kernels.sample import sample
from tts_kernels.score import score

try:
    import tts_kernels.native  # noqa: F401  (registers its backends)
except ImportError as error:
    for _op in OPS.values():
        _op.missing["native"] = f"the C++ module could not be imported: {error}"

__all__ = [
    "OPS",
    "Op",
    "append",
    "attend",
    "backends",
    "fork",
    "linear",
    "op",
    "pack",
    "plan",
    "prune",
    "register_backend",
    "sample",
    "score",
]
