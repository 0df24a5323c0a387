"""Kernels for test-time search: shared-prefix KV forking, tree attention, step scoring and beam pruning."""

from tts_kernels.append import append
from tts_kernels.attend import attend, plan, plan_pages
from tts_kernels.c_library import get_include, get_library
from tts_kernels.decoder import decoder
from tts_kernels.fork import copy_tails, fork
from tts_kernels.linear import linear, pack
from tts_kernels.op import OPS, Op, backends, op, register_backend
from tts_kernels.prune import prune
from tts_kernels.rms_norm import rms_norm
from tts_kernels.rope import rope
from tts_kernels.sample import sample
from tts_kernels.score import score
from tts_kernels.silu_and_mul import silu_and_mul
from tts_kernels.torch_ops import register_torch_ops

# Each import registers its backends; where two can take a call, the one imported last is preferred.
try:
    import tts_kernels.triton.backend  # noqa: F401
except ImportError as error:
    for _op in OPS.values():
        _op.missing["triton"] = str(error)

try:
    import tts_kernels.native  # noqa: F401
except ImportError as error:
    for _op in OPS.values():
        _op.missing["native"] = f"the C++ module could not be imported: {error}"

register_torch_ops(OPS.values())

__all__ = [
    "OPS",
    "Op",
    "append",
    "attend",
    "backends",
    "copy_tails",
    "decoder",
    "fork",
    "get_include",
    "get_library",
    "linear",
    "op",
    "pack",
    "plan",
    "plan_pages",
    "prune",
    "register_backend",
    "register_torch_ops",
    "rms_norm",
    "rope",
    "sample",
    "score",
    "silu_and_mul",
]
