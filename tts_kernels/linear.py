"""linear: the skinny matrix product of a decode batch, and the packing of its weight."""

from tts_kernels.op import op


@op("weight T[N,K] -> packed T[N/16,K/32,16,16,2]")
def pack(weight, *, packed):
    """The weight of `linear` in the order in which it is read: once at load, then streamed front to back by every call.

    Panels of 16 rows, in a panel blocks of 32 k, in a block 16 pairs of k x 16 rows x 2:
    `packed[i,j,p,c,h] = weight[16i+c, 32j+2p+h]`, and 0 outside. The size grows to whole blocks.
    """
    panels, depth = packed.shape[:2]
    padded = weight.new_zeros(panels * 16, depth * 32)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    packed.copy_(padded.reshape(panels, 16, depth, 16, 2).permute(0, 2, 3, 1, 4))


@op("x T[M,K], N int in 0..1073741825, weight T[N/16,K/32,16,16,2], bias? T[N] -> out T[M,N]")
def linear(x, N, weight, bias, *, out):
    """`out = x @ W.T + bias` for the packed form of W T[N,K] (`pack`), accumulated in float32 and rounded once.

    Native: the sum over K has a fixed order, so a row's bits do not depend on M or on the other rows. The reference is
    torch's and does not promise that.
    """
    panels, depth = weight.shape[:2]
    unpacked = weight.permute(0, 3, 1, 2, 4).reshape(panels * 16, depth * 32)[:N, : x.shape[1]]
    result = x.float() @ unpacked.float().T
    out.copy_(result if bias is None else result + bias.float())
