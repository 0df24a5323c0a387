"""rope: rotary position embedding of queries and keys in place, one pass instead of ten elementwise operations."""

import torch

from tts_kernels.op import op


@op("x! T[N,H,D], cos T[N,R], sin T[N,R] -> where R<=D and R%2==0")
def rope(x, cos, sin):
    """Rotate the first R elements of all heads of token `i` by its angles: `x * cos + rotate_half(x) * sin` (Su et al. 2021,
    2104.09864), where `rotate_half` of the halves `low, high` is `-high, low`. The elements behind R stay.

    `x` is a view with any strides of tokens and heads and a dense last dim: the heads of queries and keys in the result of one
    projection. Both products and the sum are rounded to T, as Llama rounds them. Native: an element's bits depend on its pair
    and its angles alone. Bytes moved: 2 * N*H*R*s and the angles.
    """
    turned, half = x[..., : cos.shape[1]], cos.shape[1] // 2
    rotated = torch.cat([-turned[..., half:], turned[..., :half]], -1)
    turned.copy_(turned * cos[:, None] + rotated * sin[:, None])
