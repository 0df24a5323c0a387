"""rms_norm: the root-mean-square norm before each block of a decoder, one pass instead of eight elementwise operations."""

import torch

from tts_kernels.op import op


@op("x T[M,E], weight T[E], eps float -> out T[M,E]")
def rms_norm(x, weight, eps, *, out):
    """`out = weight * (x / sqrt(mean(x^2) + eps))` for each row (Zhang and Sennrich 2019, 1910.07467), as Llama rounds it.

    Arithmetic is float32; the normalised row is rounded to T, then times the weight, and rounded again. Native: the squares
    of a row are summed in a fixed order, so its bits do not depend on M or on the other rows. A row with a NaN is NaN; one with
    an infinite value is NaN there and 0 elsewhere.
    """
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    out.copy_(weight * (wide * scale).to(x.dtype))
