"""linear: the skinny matrix product of a decode batch."""

from tts_kernels.op import op


@op("x T[M,K], weight T[N,K], bias? T[N] -> out T[M,N]")
def linear(x, weight, bias, *, out):
    """`out = x @ weight.T + bias`, accumulated in float32 and rounded once.

    Native: the sum over K has a fixed order, so a row's bits do not depend on M or on the other rows. The reference is
    torch's and does not promise that.
    """
    result = x.float() @ weight.float().T
    out.copy_(result if bias is None else result + bias.float())
