"""What `tts info` says of this installation and machine."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

ISA_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def facts() -> dict[str, Any]:
    """Versions, processor, devices, and every kernel's backends with the reason for each state."""
    import torch

    import tts_kernels
    from tts import zoo

    packages = ("tts-kernels", "torch", "transformers", "triton", "numpy")
    return {
        "versions": {name: _version(name) for name in packages} | {"python": platform.python_version()},
        "cpu": _cpu_name(),
        "cpu_flags": [flag for flag in ISA_FLAGS if flag in _cpu_flags()],
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "zoo": zoo.names(),
        "kernels": tts_kernels.backends("cuda" if torch.cuda.is_available() else "cpu"),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_info(field: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _cpu_name() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> set[str]:
    return set((_cpu_info("flags") or _cpu_info("Features")).split())
