"""append: write new keys and values into the pages."""

from tts_kernels.op import op


@op("k T[N,G,D], v T[N,G,D], keys! T[P,G,S,D], values! T[P,G,S,D], slots i64[N] in 0..P*S ->")
def append(k, v, keys, values, slots):
    """Write token `i`'s key and value into slot `slots[i]` = page x page_size + offset of a layer's pages, for all G heads.

    `keys` and `values` are views with any order of pages, heads and slots and a dense last dim: `PagedKV.layers`, or another
    engine's pool in place (`[P,S,G,D]` transposed). Slots are distinct; two tokens for one slot is an error of the caller and
    leaves either. Bytes moved: 2 * 2*N*G*D*s.
    """
    page, offset = slots // keys.shape[2], slots % keys.shape[2]
    keys[page, :, offset] = k
    values[page, :, offset] = v
