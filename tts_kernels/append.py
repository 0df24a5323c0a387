"""append: write new keys and values into the pages."""

from tts_kernels.op import op


@op("k T[N,G,D], v T[N,G,D], keys! T[P,G,S,D], values! T[P,G,S,D], slots i64[N] in -1..P*S ->")
def append(k, v, keys, values, slots):
    """Write token `i`'s key and value into slot `slots[i]` = page x page_size + offset of a layer's pages, for all G heads.

    `keys` and `values` are views with any order of pages, heads and slots and a dense last dim: `PagedKV.layers`, or another
    engine's pool in place (`[P,S,G,D]` transposed). A token with slot -1 is not written: it fills up a batch of fixed size.
    The other slots are distinct; two tokens for one slot is an error of the caller and
    leaves either. Bytes moved: 2 * 2*N*G*D*s.
    """
    is_written = slots >= 0
    page, offset = slots[is_written] // keys.shape[2], slots[is_written] % keys.shape[2]
    keys[page, :, offset] = k[is_written]
    values[page, :, offset] = v[is_written]
