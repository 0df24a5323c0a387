"""The backend `native`: the torch-free C++ module on CPU tensors. The only importer of `tts_kernels._native`; the module's CUDA
kernels, where it has some, go on to `tts_kernels.cuda`.

Each function passes sizes, strides and addresses as kernels.h names them. Inputs that are not row-major are copied first; tensors
that are written in place must be row-major, because a copy would lose what the kernel writes.
"""

from array import array
from collections.abc import Sequence

import torch

import tts_kernels._native as _native
from tts_kernels import cuda
from tts_kernels.append import append
from tts_kernels.arguments import ACTIVATIONS, DTYPES, RULES, check_rows_in_place, dense, dense_all, dense_rows, pointer
from tts_kernels.attend import attend, plan, plan_pages
from tts_kernels.decoder import decoder
from tts_kernels.fork import copy_tails, fork
from tts_kernels.linear import linear, pack
from tts_kernels.op import register_backend
from tts_kernels.prune import prune
from tts_kernels.rms_norm import rms_norm
from tts_kernels.rope import rope
from tts_kernels.sample import sample
from tts_kernels.score import score
from tts_kernels.silu_and_mul import silu_and_mul


def _in_place(op: str, **tensors: torch.Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{op}: {name} is written in place and must be contiguous, got strides {tensor.stride()}")


def _pages(tensor: torch.Tensor) -> tuple[int, ...]:
    """Address and strides of pages T[P,G,S,D], or of all layers' T[L,P,G,S,D]."""
    return tensor.data_ptr(), *tensor.stride()[:-1]


def _pack(weight, *, packed):
    weight = dense_rows(weight)
    _native.pack(DTYPES[weight.dtype], *weight.shape, weight.data_ptr(), weight.stride(0), packed.data_ptr())


def _linear(x, N, weight, bias, *, out):
    x, (weight,) = dense_rows(x), dense_all(weight)
    bias = None if bias is None else dense(bias)
    inputs = x.data_ptr(), x.stride(0), weight.data_ptr(), pointer(bias)
    _native.linear(DTYPES[x.dtype], x.shape[0], N, x.shape[1], *inputs, out.data_ptr())


def _rms_norm(x, weight, eps, *, out):
    x, (weight,) = dense_rows(x), dense_all(weight)
    _native.rms_norm(DTYPES[x.dtype], *x.shape, x.data_ptr(), x.stride(0), weight.data_ptr(), eps, out.data_ptr())


def _silu_and_mul(x, *, out):
    x = dense_rows(x)
    _native.silu_and_mul(DTYPES[x.dtype], *out.shape, x.data_ptr(), x.stride(0), out.data_ptr())


def _rope(x, cos, sin):
    check_rows_in_place("rope", x=x)
    cos, sin = dense_rows(cos), dense_rows(sin)
    rows = x.data_ptr(), *x.stride()[:2], cos.data_ptr(), cos.stride(0), sin.data_ptr(), sin.stride(0)
    _native.rope(DTYPES[x.dtype], *x.shape[:2], cos.shape[1], *rows)


def _append(k, v, keys, values, slots):
    check_rows_in_place("append", keys=keys, values=values)
    k, v, (slots,) = dense_rows(k), dense_rows(v), dense_all(slots)
    P, G, S, D = keys.shape
    new = k.data_ptr(), *k.stride()[:2], v.data_ptr(), *v.stride()[:2]
    _native.append(DTYPES[k.dtype], k.shape[0], G, D, P, S, *new, *_pages(keys), *_pages(values), slots.data_ptr())


def _attend(q, keys, values, spans, item_indptr, items, scale, *, out, lse):
    q, keys, values = dense_rows(q), dense_rows(keys), dense_rows(values)
    spans, item_indptr, items = dense_all(spans, item_indptr, items)
    P, G, S, D = keys.shape
    sizes = *q.shape[:2], G, D, P, S, spans.shape[0], items.shape[0]
    tables = spans.data_ptr(), item_indptr.data_ptr(), items.data_ptr()
    inputs = q.data_ptr(), *q.stride()[:2], *_pages(keys), *_pages(values), *tables
    _native.attend(DTYPES[q.dtype], *sizes, *inputs, scale, out.data_ptr(), lse.data_ptr())


def _decoder(hidden, cos, sin, keys, values, slots, spans, item_indptr, items, scale, eps, H, F, *weights, out):
    check_rows_in_place("decoder", keys=keys, values=values)
    hidden, slots, spans, item_indptr, items = dense_all(hidden, slots, spans, item_indptr, items)
    cos, sin = dense_rows(cos), dense_rows(sin)
    kept = [None if x is None else dense(x) for x in weights]
    addresses = array("q", [pointer(x) for x in kept])  # a tts_decoder_weights
    (N, E), (L, P, G, S, D) = hidden.shape, keys.shape
    sizes = L, N, E, F, H, G, D, cos.shape[1], P, S, spans.shape[0], items.shape[0]
    angles = cos.data_ptr(), cos.stride(0), sin.data_ptr(), sin.stride(0)
    tables = slots.data_ptr(), spans.data_ptr(), item_indptr.data_ptr(), items.data_ptr()
    inputs = hidden.data_ptr(), *angles, *_pages(keys), *_pages(values), *tables, scale, eps, addresses.buffer_info()[0]
    _native.decoder(DTYPES[hidden.dtype], *sizes, *inputs, out.data_ptr())


def _plan(leaves, indptr, parent, start, length, first_page, next_page, page_size, max_items, max_spans, **outputs):
    tables = dense_all(leaves, indptr, parent, start, length, first_page, next_page)
    pointers = [t.data_ptr() for t in tables]
    sizes = leaves.shape[0], parent.shape[0], next_page.shape[0]
    _native.plan(*sizes, *pointers, page_size, max_items, max_spans, *(t.data_ptr() for t in outputs.values()))


def _plan_pages(page_table, context, indptr, page_size, max_items, max_spans, **outputs):
    page_table, (context, indptr) = dense_rows(page_table), dense_all(context, indptr)
    tables = page_table.data_ptr(), page_table.stride(0), context.data_ptr(), indptr.data_ptr()
    sizes = page_size, max_items, max_spans
    _native.plan_pages(*page_table.shape, *tables, *sizes, *(t.data_ptr() for t in outputs.values()))


def _score(hidden, head, bias, before, label, activation, *, out, running):
    hidden, (head, before) = dense_rows(hidden), dense_all(head, before)
    bias = None if bias is None else dense(bias)
    inputs = hidden.data_ptr(), hidden.stride(0), head.data_ptr(), pointer(bias), before.data_ptr()
    sizes = *hidden.shape, head.shape[0]
    _native.score(DTYPES[hidden.dtype], *sizes, *inputs, label, ACTIVATIONS[activation], out.data_ptr(), running.data_ptr())


def _prune(scores, indptr, total, keep, keys, rule, temperature, capacity, *, widths, parents, counts):
    tables = dense_all(scores, indptr, total, keep)
    keys = None if keys is None else dense(keys)
    inputs = *(t.data_ptr() for t in tables), pointer(keys)
    outputs = widths.data_ptr(), parents.data_ptr(), counts.data_ptr()
    _native.prune(scores.shape[0], total.shape[0], *inputs, RULES[rule], temperature, capacity, *outputs)


def _fork(parents, nodes, parent, refs, start, length, first_page, last_page):
    _in_place("fork", parent=parent, refs=refs, start=start, length=length, first_page=first_page, last_page=last_page)
    tables = *dense_all(parents, nodes), parent, refs, start, length, first_page, last_page
    _native.fork(parents.shape[0], parent.shape[0], *(t.data_ptr() for t in tables))


def _copy_tails(sources, destinations, counts, caches):
    check_rows_in_place("copy_tails", caches=caches[0])
    (P, G, S, D), strides = caches[0].shape, caches[0].stride()
    if any(cache.stride() != strides for cache in caches):
        raise ValueError(f"copy_tails: caches must all have the strides of the first, {strides}")
    addresses = torch.tensor([cache.data_ptr() for cache in caches], device="cpu")
    copies = dense_all(sources, destinations, counts)
    sizes = sources.shape[0], len(caches), G, D, P, S
    inputs = *(t.data_ptr() for t in copies), addresses.data_ptr(), *strides[:3]
    _native.copy_tails(DTYPES[caches[0].dtype], *sizes, *inputs)


def _sample(*inputs, **outputs):
    *tensors, with_statistics = inputs
    tensors = dense_all(*tensors)
    logits, row, next_state = tensors[0], tensors[1], tensors[9]
    sizes = *logits.shape, row.shape[0], next_state.shape[0]
    _native.sample(
        DTYPES[logits.dtype], *sizes, *(t.data_ptr() for t in tensors), with_statistics, *(t.data_ptr() for t in outputs.values())
    )


ISAS = ("base", "avx2", "avx512", "avx512-bf16", "amx-bf16")


def isa() -> str:
    """The instruction set in use."""
    return ISAS[_native.isa()]


def limit_isa(name: str = ISAS[-1]) -> str:
    """Use no instruction set beyond `name` from now on, in the whole process, and return the one in use.

    For tests of the code that other machines run, and to compare with them. Bits differ between instruction sets.
    """
    if name not in ISAS:
        raise ValueError(f"limit_isa: name must be one of {', '.join(ISAS)}, got {name!r}")
    _native.limit_isa(ISAS.index(name))
    return isa()


CEILINGS = ("dram_read", "dram_copy", "cache_read", "f32_fma", "bf16_dot", "bf16_tiles", "f32_exp2")


def ceilings(seconds: float = 0.5, names: Sequence[str] = CEILINGS) -> dict[str, float]:
    """What this machine can do with all threads: bytes/s of `*_read` and `*_copy` (read plus written), FLOP/s of `f32_fma`,
    `bf16_dot` and `bf16_tiles` (0 where it has no such instruction), values/s of `f32_exp2`. `seconds` for each of them."""
    out = torch.zeros(1, dtype=torch.float64)
    found = {}
    for name in names:
        _native.ceiling(CEILINGS.index(name), seconds, out.data_ptr())
        found[name] = out.item()
    return found


_OPS = (
    pack,
    linear,
    rms_norm,
    silu_and_mul,
    rope,
    append,
    attend,
    decoder,
    plan,
    plan_pages,
    score,
    prune,
    fork,
    copy_tails,
    sample,
)
for _op in _OPS:
    register_backend(_op, "native", globals()[f"_{_op.name}"], devices=("cpu",), checks_values=True)

_cuda_launchers = {name: value for name, value in vars(_native).items() if name.startswith("cuda_")}
if _cuda_launchers:
    cuda.register(_cuda_launchers)
