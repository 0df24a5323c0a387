"""silu_and_mul: the activation of a gated MLP whose gate and up projections are one matrix product."""

import torch

from tts_kernels.op import op


@op("x T[M,N] -> out T[M,N/2] where N%2==0")
def silu_and_mul(x, *, out):
    """`out = silu(gate) * up` for `gate, up = x[:, :N/2], x[:, N/2:]`, where `silu(g) = g / (1 + exp(-g))` (2002.05202).

    Arithmetic is float32; silu is rounded to T, then times up, and rounded again. Native: an element's bits depend on its gate
    and its up alone; torch's silu gives other last bits at the end of each thread's share.
    """
    gate, up = x.chunk(2, -1)
    out.copy_(torch.nn.functional.silu(gate) * up)
