"""decoder: the layers of a Llama-like decoder over the pages, as one op."""

from tts_kernels.append import append
from tts_kernels.attend import attend
from tts_kernels.linear import linear
from tts_kernels.op import op
from tts_kernels.rms_norm import rms_norm
from tts_kernels.rope import rope
from tts_kernels.silu_and_mul import silu_and_mul


@op(
    "hidden T[N,E], cos T[N,R], sin T[N,R], keys! T[L,P,G,S,D], values! T[L,P,G,S,D], slots i64[N] in -1..P*S, spans i32[X,3],"
    " item_indptr i32[W+1], items i32[W,3], scale float in -1e38..1e38, eps float, H int in 0..65537, F int in 0..1073741825,"
    " input_norm T[L,E], qkv T[L,((H+2*G)*D)/16,E/32,16,16,2], qkv_bias? T[L,((H+2*G)*D)], q_norm? T[L,D], k_norm? T[L,D],"
    " o T[L,E/16,(H*D)/32,16,16,2], o_bias? T[L,E], post_norm T[L,E],"
    " gate_up T[L,(2*F)/16,E/32,16,16,2], gate_up_bias? T[L,(2*F)], down T[L,E/16,F/32,16,16,2], down_bias? T[L,E]"
    " -> out T[N,E] where H%G==0 and R<=D and R%2==0"
)
def decoder(
    hidden,
    cos,
    sin,
    keys,
    values,
    slots,
    spans,
    item_indptr,
    items,
    scale,
    eps,
    H,
    F,
    input_norm,
    qkv,
    qkv_bias,
    q_norm,
    k_norm,
    o,
    o_bias,
    post_norm,
    gate_up,
    gate_up_bias,
    down,
    down_bias,
    *,
    out,
):
    """The hidden states of N tokens behind L layers of Llama's form (Touvron et al. 2023, 2302.13971), keys and values in pages.

    A layer is the ops of this package in turn: `rms_norm`, `linear` to queries, keys and values, the norms of their heads where
    there are some (Qwen 3), `rope`, `append`, `attend`, `linear`, the residual; `rms_norm`, `linear` to gate and up,
    `silu_and_mul`, `linear`, the residual. All round where they round alone. H is the number of query heads, F the width of the
    MLP. The weights of all layers lie one behind the other, those of products packed (`pack`): `qkv` is that of queries, keys and
    values one below the other, `gate_up` that of gate and up. `keys` and `values` are views with any order of layers, pages,
    heads and slots and a dense last dim: `PagedKV.keys` and `PagedKV.values`.

    Native: the bits are those of the ops called one by one, and the host's work between them is saved. Bytes moved: the weights,
    and what `attend` reads.
    """
    eager = {"backend": "reference"}
    N, G, D = hidden.shape[0], keys.shape[2], keys.shape[4]
    optional = [[None] * len(keys) if x is None else x for x in (qkv_bias, q_norm, k_norm, o_bias, gate_up_bias, down_bias)]
    qkv_bias, q_norm, k_norm, o_bias, gate_up_bias, down_bias = optional
    for i in range(len(keys)):
        x = rms_norm(hidden, input_norm[i], eps, **eager)
        heads = linear(x, (H + 2 * G) * D, qkv[i], qkv_bias[i], **eager).view(N, H + 2 * G, D)
        q, k, v = heads.split((H, G, G), 1)
        for part, norm in ((q, q_norm[i]), (k, k_norm[i])):
            if norm is not None:
                part.copy_(rms_norm(part.reshape(-1, D), norm, eps, **eager).view(part.shape))
        rope(heads[:, : H + G], cos, sin, **eager)
        append(k, v, keys[i], values[i], slots, **eager)
        attended, _ = attend(q, keys[i], values[i], spans, item_indptr, items, scale, **eager)
        y = hidden + linear(attended.view(N, H * D), hidden.shape[1], o[i], o_bias[i], **eager)
        x = linear(rms_norm(y, post_norm[i], eps, **eager), 2 * F, gate_up[i], gate_up_bias[i], **eager)
        hidden = y + linear(silu_and_mul(x, **eager), hidden.shape[1], down[i], down_bias[i], **eager)
    out.copy_(hidden)
