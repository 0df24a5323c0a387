"""The backend `triton`: importing this registers the kernels for tensors on a GPU.

Under Triton's interpreter (`TRITON_INTERPRET=1` before the first import) they run on CPU tensors as well, for tests. Raises
`ImportError` where there is neither a GPU nor the interpreter, with the reason.
"""

import os

import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET", "0") in ("", "0"):
    raise ImportError("torch sees no GPU")  # before Triton is loaded, which takes half a second

try:
    from tts_kernels.triton import append, attend, fork, prune, sample, score
    from tts_kernels.triton.device import is_interpreted
except ModuleNotFoundError as error:
    raise ImportError(f"Triton is not installed: {error}") from error
from tts_kernels.op import OPS, register_backend

if is_interpreted():
    # The interpreter keeps bfloat16 as its 16 bits and computes with those.
    PLACE: dict[str, tuple] = {"devices": ("cpu",), "dtypes": (torch.float32, torch.float16)}
else:
    PLACE = {"devices": ("cuda",)}

for _name, _kernel in {
    "append": append.append,
    "attend": attend.attend,
    "score": score.score,
    "fork": fork.fork,
    "copy_tails": fork.copy_tails,
    "prune": prune.prune,
    "sample": sample.sample,
}.items():
    register_backend(_name, "triton", _kernel, **PLACE)
    if is_interpreted():
        OPS[_name].register(OPS[_name].backends["reference"])  # preferred: the interpreter is for tests that ask for it
