"""append: write new keys and values into the pages."""

from tts_kernels.op import op


@op("k T[N,G,D], v T[N,G,D], pool! T[P,L,2,G,S,D], slots i64[N] in 0..P*S, layer int in 0..L ->")
def append(k, v, pool, slots, layer):
    """Write token `i`'s key and value of `layer` into slot `slots[i]` = page x page_size + offset, for all G heads.

    Slots are distinct; two tokens for one slot is an error of the caller and leaves either. Bytes moved: 2 * 2*N*G*D*s.
    """
    page, offset = slots // pool.shape[4], slots % pool.shape[4]
    pool[page, layer, 0, :, offset] = k
    pool[page, layer, 1, :, offset] = v
