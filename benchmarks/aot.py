"""Every configuration of the Triton kernels compiled for four GPUs, without having one: registers, spills, shared memory.

The launchers themselves are run, on small CPU tensors, with launches that only compile: what is compiled is what a GPU would run.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from tts_kernels.triton import append, attend, fork, prune, sample, score

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
HEAD_DIMS = (64, 80, 96, 128, 256)


@dataclass(frozen=True)
class Target:
    gpu: GPUTarget
    shared_bytes: int
    """The most that one program can have."""


TARGETS = {
    "sm_80": Target(GPUTarget("cuda", 80, 32), 163 << 10),
    "sm_90": Target(GPUTarget("cuda", 90, 32), 227 << 10),
    "sm_100": Target(GPUTarget("cuda", 100, 32), 227 << 10),
    "gfx942": Target(GPUTarget("hip", "gfx942", 64), 64 << 10),
}


@dataclass(frozen=True)
class Row:
    op: str
    config: str
    target: str
    kernel: str
    registers: int
    spills: int
    """Bytes of spill stores and loads of a thread on NVIDIA; vector registers that are spilled on AMD."""
    shared_bytes: int

    @property
    def fits(self) -> bool:
        return self.spills == 0 and self.shared_bytes <= TARGETS[self.target].shared_bytes


@dataclass(frozen=True)
class Configuration:
    op: str
    name: str
    is_quick: bool
    launch: Callable[[], None]


class _Compiler:
    """Stands in for a GPU's driver."""

    def __init__(self, index: int, target: GPUTarget):
        self._index, self._target = index, target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._index  # compiled kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


def run(out: Path, quick: bool) -> list[Row]:
    """Compile all configurations, or the quick ones; `out` is a JSON list of the rows so far."""
    if knobs.runtime.interpret:
        raise SystemExit("TRITON_INTERPRET is set: interpreted kernels cannot be compiled")
    targets = {name: TARGETS[name] for name in ("sm_90", "gfx942")} if quick else TARGETS
    rows: list[Row] = []
    seen = set()
    out.parent.mkdir(parents=True, exist_ok=True)
    for configuration in configurations():
        if quick and not configuration.is_quick:
            continue
        for name, target in targets.items():
            for kernel in _compile(configuration.launch, list(TARGETS).index(name), target.gpu):
                if kernel.hash not in seen:
                    row = Row(configuration.op, configuration.name, name, kernel.metadata.name, *_resources(kernel, target.gpu))
                    rows.append(row)
                    if not row.fits:
                        print(f"does not fit: {row}", file=sys.stderr, flush=True)
                seen.add(kernel.hash)
        out.write_text("[\n" + ",\n".join(json.dumps(asdict(row)) for row in rows) + "\n]\n")
    return rows


def _compile(launch: Callable[[], None], index: int, target: GPUTarget) -> list[Any]:
    """The kernels that `launch` would run on `target`."""
    compiled: list[Any] = []

    def compile_only(self, grid):
        return lambda *args, **options: compiled.append(self.run(*args, grid=grid, warmup=True, **options))

    launches = JITFunction.__getitem__
    JITFunction.__getitem__ = compile_only
    driver.set_active(_Compiler(index, target))
    try:
        launch()
    finally:
        JITFunction.__getitem__ = launches
    return compiled


def _resources(kernel: Any, target: GPUTarget) -> tuple[int, int, int]:
    """(registers of a thread, spills, bytes of shared memory)."""
    if target.backend == "hip":
        found = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count):\s+(\d+)", kernel.asm["amdgcn"]))
        return int(found["vgpr_count"]), int(found["vgpr_spill_count"]), kernel.metadata.shared
    says = _ptxas(kernel.asm["ptx"], target.arch)
    registers = re.search(r"Used (\d+) registers", says)
    spills = sum(int(x) for x in re.findall(r"(\d+) bytes spill (?:stores|loads)", says))
    assert registers, says
    return int(registers[1]), spills, kernel.metadata.shared


def _ptxas(ptx: str, arch: int) -> str:
    """What the assembler says of a kernel when it is asked to be verbose."""
    tool = get_ptxas(arch)  # Triton brings two assemblers, and a version of it writes PTX for the one that it runs itself
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        name = f"sm_{arch}" + ("a" if arch >= 90 else "")
        command = [tool.path, "-v", f"--gpu-name={name}", str(source), "-o", str(Path(folder, "kernel.cubin"))]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stderr


# ---- what is compiled


def configurations() -> Iterator[Configuration]:
    for (name, dtype), dim in product(DTYPES.items(), HEAD_DIMS):
        is_quick = name == "bf16" and dim in (64, 128)
        yield Configuration("append", f"{name} D={dim}", is_quick, _append(dtype, dim))
        yield Configuration("copy_tails", f"{name} D={dim}", is_quick, _copy_tails(dtype, dim))
        for rows in (16,) if name == "f32" or dim > 128 else (16, 32, 64):
            yield Configuration("attend", f"{name} D={dim} rows={rows}", is_quick and rows != 32, _attend(dtype, dim, rows))
    for (name, dtype), activation, has_bias in product(DTYPES.items(), ("softmax", "sigmoid"), (False, True)):
        config = f"{name} {activation}{'+bias' if has_bias else ''}"
        yield Configuration("score", config, name == "bf16" and not has_bias, _score(dtype, activation, has_bias))
    for rule in prune.RULES:
        yield Configuration("prune", rule, True, _prune(rule))
    yield Configuration("fork", "", True, _fork)
    for name, vocabulary, with_statistics in product(("f32", "bf16"), (32_000, 151_936), (0, 1)):
        config = f"{name} V={vocabulary}{' statistics' if with_statistics else ''}"
        is_quick = name == "bf16" and vocabulary == 151_936
        yield Configuration("sample", config, is_quick, _sample(DTYPES[name], vocabulary, with_statistics))


def _i32(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def _append(dtype: torch.dtype, dim: int) -> Callable[[], None]:
    new, pages = torch.zeros(5, 8, dim, dtype=dtype), torch.zeros(4, 8, 16, dim, dtype=dtype)
    return lambda: append.append(new, new, pages, pages, torch.zeros(5, dtype=torch.int64))


def _copy_tails(dtype: torch.dtype, dim: int) -> Callable[[], None]:
    caches = list(torch.zeros(6, 4, 8, 16, dim, dtype=dtype))
    return lambda: fork.copy_tails(_i32(3), _i32(3), _i32(3), caches)


def _attend(dtype: torch.dtype, dim: int, rows: int) -> Callable[[], None]:
    q, pages = torch.zeros(rows // 4, 8, dim, dtype=dtype), torch.zeros(4, 2, 16, dim, dtype=dtype)
    out, lse = torch.empty_like(q), torch.zeros(rows // 4, 8)
    return lambda: attend.attend(q, pages, pages, _i32(3, 3), _i32(3), _i32(2, 3), 0.125, out=out, lse=lse)


def _score(dtype: torch.dtype, activation: str, has_bias: bool) -> Callable[[], None]:
    hidden, head, running = torch.zeros(3, 4096, dtype=dtype), torch.zeros(2, 4096, dtype=dtype), torch.zeros(3, 4)
    bias = torch.zeros(2) if has_bias else None
    return lambda: score.score(hidden, head, bias, running, 1, activation, out=torch.zeros(3), running=running)


def _prune(rule: str) -> Callable[[], None]:
    outputs = {"widths": _i32(64), "parents": _i32(64), "counts": _i32(2)}
    keys = torch.zeros(2, dtype=torch.int64)
    return lambda: prune.prune(torch.zeros(64), _i32(3), _i32(2), _i32(2), keys, rule, 0.2, 64, **outputs)


def _fork() -> None:
    fork.fork(_i32(5), _i32(5), *(_i32(9) for _ in range(6)))


def _sample(dtype: torch.dtype, vocabulary: int, with_statistics: int) -> Callable[[], None]:
    n, i64, f32 = 3, torch.zeros(3, dtype=torch.int64), torch.zeros(3)
    logits, table = torch.zeros(2, vocabulary, dtype=dtype), _i32(1, vocabulary)
    inputs = (logits, _i32(n), i64, i64, f32, _i32(n), f32, f32, _i32(n), table, with_statistics)
    outputs = {"token": i64, "logprob": f32, "next": _i32(n), "confidence": f32, "certainty": f32}
    return lambda: sample.sample(*inputs, **outputs)


def summary(rows: list[Row]) -> str:
    bad = [row for row in rows if not row.fits]
    by_target = {name: [row for row in rows if row.target == name] for name in TARGETS}
    lines = [f"triton {triton.__version__}: {len(rows)} kernels compiled, {len(bad)} do not fit"]
    for name, found in by_target.items():
        if found:
            lines.append(
                f"{name:7} {len(found):4} kernels, at most {max(r.registers for r in found)} registers, "
                f"{max(r.shared_bytes for r in found)} of {TARGETS[name].shared_bytes} bytes shared, "
                f"{sum(r.spills > 0 for r in found)} spill"
            )
    return "\n".join(lines)
