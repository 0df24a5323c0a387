"""What every row of a measurement says of where it was made, and how it is written."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import torch


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where and with what; the fields that all rows of a run share."""
    on_gpu = {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if device == "cuda" else {}
    return on_gpu | {
        "device": device,
        "threads": torch.get_num_threads(),
        "cpu": _cpu(),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "tts-kernels": _version("tts-kernels")},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def append_line(path: Path, row: dict[str, Any]) -> None:
    """One write for a line: rows of two runs into one file do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file:
        file.write(json.dumps(row).encode() + b"\n")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores"


def _commit() -> str:
    """The commit of this checkout, with `-dirty` if a tracked file differs from it; without git what TTS_COMMIT says."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        described = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        described = ""  # git is not installed
    return described or os.environ.get("TTS_COMMIT") or "unknown"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "from source"
