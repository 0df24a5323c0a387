"""copy_tails: the tails that 64 children with page tables of their own copy from their parents, in all layers at once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import tts_kernels
from benchmarks.kernels.cases import Case, Setting, Spec, Variant, copies, family, mismatches, rotate
from benchmarks.kernels.floors import Work
from benchmarks.kernels.trees import LLAMA, PAGE_SIZE, QWEN, Heads

CHILDREN = 64


@family
def copy_tails() -> Iterator[Spec]:
    for heads in (QWEN, LLAMA):
        for tokens in (4, PAGE_SIZE - 1):
            name = f"{heads.name} {CHILDREN} tails of {tokens} tokens, {heads.layers} layers"
            yield Spec("copy_tails", name, heads is QWEN, partial(_case, heads, tokens))


def _case(heads: Heads, tokens: int, setting: Setting) -> Case:
    """Each call copies between pages of its own, of the same caches."""
    dtype, i32 = setting.torch_dtype, {"dtype": torch.int32, "device": setting.device}
    copied = CHILDREN * 2 * heads.layers * heads.G * tokens * heads.D * dtype.itemsize
    count = copies(copied, setting)
    shape = (2 * CHILDREN * count, heads.G, PAGE_SIZE, heads.D)
    caches = [torch.zeros(shape, dtype=dtype, device=setting.device) for _ in range(2 * heads.layers)]
    pages = torch.arange(shape[0], **i32).view(count, 2, CHILDREN)
    counts = torch.full((CHILDREN,), tokens, **i32)

    def check():
        sources, destinations = pages[0]
        for number, cache in enumerate(caches):
            cache[sources] = number + 1.0
            cache[destinations] = -1.0
        tts_kernels.copy_tails(sources, destinations, counts, caches)
        expected = [torch.full_like(cache[:CHILDREN], -1.0) for cache in caches]
        for number, tail in enumerate(expected):
            tail[:, :, :tokens] = number + 1.0
        return mismatches(*((cache[destinations], tail) for cache, tail in zip(caches, expected)))

    next_pages, next_pages_of_torch = rotate(pages.unbind()), rotate(pages.long().unbind())
    case = Case(
        dtype=setting.dtype,
        work=Work(bytes=2 * copied, rate="dram_copy"),
        cold=f"tails: {count} sets of pages in turn, {count * copied >> 20} MiB read",
        check=check,
        ours=Variant(lambda: tts_kernels.copy_tails(*next_pages(), counts, caches)),
        backend=tts_kernels.copy_tails.choose(setting.device, dtype).name,
    )

    def index_copy():
        sources, destinations = next_pages_of_torch()
        for cache in caches:
            cache[destinations, :, :tokens] = cache[sources, :, :tokens]

    case.add_peer("index_put", lambda: Variant(index_copy))
    return case
