"""The package's counter-based generator inside a kernel."""

import triton
import triton.language as tl


@triton.jit
def uniform(key, counter):
    """f64 in (0, 1) of i64 `key` at i64 `counter`, the bits of `tts_kernels.philox.uniform`."""
    zero = (counter * 0).to(tl.uint32)
    words = tl.philox(key, counter.to(tl.uint32), (counter >> 32).to(tl.uint32), zero, zero)
    return ((words[0] >> 8).to(tl.float64) + 0.5) * 5.9604644775390625e-08  # 2^-24
