"""append: one layer's new keys and values, for a decode step and for a prefill."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import tts_kernels
from benchmarks.kernels.cases import Case, Setting, Spec, Variant, copies, family, mismatches, random, rotate
from benchmarks.kernels.floors import Work
from benchmarks.kernels.trees import LLAMA, PAGE_SIZE, QWEN, Heads
from tts_kernels.pages import PagedKV


@family
def append() -> Iterator[Spec]:
    for heads in (QWEN, LLAMA):
        yield Spec("append", f"{heads.name} decode 64 rows", heads is QWEN, partial(_case, heads, 64, True))
        for tokens in (512, 4096):
            is_quick = heads is QWEN and tokens == 512
            yield Spec("append", f"{heads.name} prefill {tokens}", is_quick, partial(_case, heads, tokens, False))


def _case(heads: Heads, tokens: int, is_decode: bool, setting: Setting) -> Case:
    """A decode step writes one slot in the middle of a page for each row, a prefill whole pages in order."""
    dtype, num_pages = setting.torch_dtype, tokens if is_decode else -(-tokens // PAGE_SIZE)
    device = setting.device
    slots = torch.arange(tokens, device=device) * (PAGE_SIZE if is_decode else 1) + (5 if is_decode else 0)
    key, value = (random((tokens, heads.G, heads.D), dtype, seed, device) for seed in (0, 1))
    written = 2 * tokens * heads.G * heads.D * dtype.itemsize
    count = copies(written, setting)
    kv = PagedKV(num_pages, PAGE_SIZE, count, heads.G, heads.D, dtype, device)
    kv.pool.zero_()  # the first touch of a page is the system's work, not the op's

    def check():
        for pages in (*kv.layers[0], *kv.layers[1]):
            pages.fill_(-1)
        tts_kernels.append(key, value, *kv.layers[0], slots)
        tts_kernels.append(key, value, *kv.layers[1], slots, backend="reference")
        return mismatches(*zip(kv.layers[0], kv.layers[1]))

    next_pages, next_pages_of_torch = rotate(kv.layers), rotate(kv.layers)
    case = Case(
        dtype=setting.dtype,
        work=Work(bytes=2 * written, rate="dram_copy"),
        cold=f"pages: {count} layers in turn, {count * written >> 20} MiB written; the new keys and values are not",
        check=check,
        ours=Variant(lambda: tts_kernels.append(key, value, *next_pages(), slots)),
        backend=tts_kernels.append.choose(device, dtype).name,
    )
    page, offset = slots // PAGE_SIZE, slots % PAGE_SIZE

    def index_put():
        keys, values = next_pages_of_torch()
        keys[page, :, offset] = key
        values[page, :, offset] = value

    case.add_peer("index_put", lambda: Variant(index_put))
    return case
