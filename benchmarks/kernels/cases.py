"""What is measured: a case of an op with its check, its work, and the variants that do it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.kernels.floors import Work

DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


class PeerError(RuntimeError):
    """A peer cannot do this case, for the reason that the message gives."""


def reason(error: Exception) -> str:
    """One line for a table: what a `PeerError` says, of others the type and the first line."""
    if isinstance(error, PeerError):
        return str(error)
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


@dataclass(frozen=True)
class Variant:
    """One implementation of a case."""

    run: Callable[[], Any]
    """One call, on data that has left the caches if the case says so."""
    plan: Callable[[], Any] | None = None
    """Work that is done once for all layers of a step; a layer's part of it counts as time of the call."""
    layers: int = 1
    timer: Callable[[], tuple[float, bool]] | None = None
    """(seconds of one call, whether another process disturbed it), for what runs in a process of its own and times itself."""


@dataclass
class Case:
    """One op on one shape. The maker of a case prepares all data, so that only the op is timed."""

    dtype: str
    work: Work
    cold: str
    """What comes from DRAM, and how that is brought about."""
    check: Callable[[], tuple[float, float]]
    """(largest error of the op, largest allowed error)"""
    ours: Variant
    backend: str
    peers: dict[str, Variant] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Peers that cannot do this case, with the reason."""
    details: dict[str, Any] = field(default_factory=dict)
    """More fields of the row."""
    parts: tuple[Work, ...] = ()
    """The work in pieces that a simple implementation does one after the other; their floors add up to `floor_added_us`."""

    def add_peer(self, name: str, make: Callable[[], Variant]) -> None:
        """Prepare a peer; one that cannot do the case is kept with its reason, never dropped in silence."""
        try:
            self.peers[name] = make()
        except Exception as error:  # noqa: BLE001  (other people's code, which must not end the run)
            self.missing[name] = reason(error)


@dataclass(frozen=True)
class Setting:
    """What the makers of cases have to know."""

    dtype: str = "bf16"
    device: str = "cpu"
    cold_bytes: int = 256 << 20
    """Data that is to be cold is rotated through at least so many bytes."""
    max_bytes: int = 3 << 30
    """The most that one variant may prepare."""
    vllm: Any = None
    """The running peer process, None if there is none."""
    vllm_reason: str = "not asked for: --vllm names the Python of its environment (benchmarks/peers/vllm_cpu.sh)"
    is_quick: bool = False
    """Without peers that take longer to prepare than all else to measure."""

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


@dataclass(frozen=True)
class Spec:
    """A case that has not been made yet."""

    op: str
    name: str
    is_quick: bool
    make: Callable[[Setting], Case]
    devices: tuple[str, ...] = ("cpu", "cuda")
    """Where it can be measured: not on a GPU where the op has no kernel of ours for it."""


FAMILIES: dict[str, Callable[[], Iterator[Spec]]] = {}


def family(make: Callable[[], Iterator[Spec]]) -> Callable[[], Iterator[Spec]]:
    """Register a family of cases under the name of the function that yields them."""
    FAMILIES[make.__name__] = make
    return make


def cold_bytes(device: str = "cpu") -> int:
    """Three times the last cache, at least 256 MB."""
    if device == "cuda":
        return max(256 << 20, 3 * torch.cuda.get_device_properties(device).L2_cache_size)
    try:
        last = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (ValueError, OSError):
        last = 0
    return max(256 << 20, 3 * last)


def copies(size: int, setting: Setting) -> int:
    """How many copies of `size` bytes a call rotates through so that each finds its own in DRAM."""
    if size > setting.max_bytes:
        raise PeerError(f"its data take {size / 2**30:.1f} GiB, the limit is {setting.max_bytes / 2**30:.1f} GiB")
    return -(-setting.cold_bytes // size)


def rotate(items: Iterable[Any]) -> Callable[[], Any]:
    """A function that gives the items in turn, without end."""
    return itertools.cycle(list(items)).__next__


def nbytes(*tensors: torch.Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def random(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> torch.Tensor:
    """Standard normal, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), device="cpu").to(device, dtype)


def error(result: torch.Tensor, exact: torch.Tensor) -> float:
    """The largest absolute difference; NaN counts as infinite."""
    difference = (result.to(exact.dtype) - exact).abs().max().item() if exact.numel() else 0.0
    return float("inf") if difference != difference else difference


def allowance(exact: torch.Tensor, plain: torch.Tensor) -> float:
    """Twice the error of plain PyTorch in the same dtype, and one rounding of the largest value."""
    return 2 * error(plain, exact) + torch.finfo(plain.dtype).eps * exact.abs().max().item()


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """A type that is precise enough to judge results of `dtype`."""
    return torch.float64 if dtype == torch.float32 else torch.float32


def mismatches(*pairs: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, float]:
    """For results that must be equal bit for bit: how many elements are not, and that none may be."""
    return float(sum(int((a != b).sum()) for a, b in pairs)), 0.0
