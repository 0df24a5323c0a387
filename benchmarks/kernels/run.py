"""Check, then measure: a row per case, written as soon as it is known."""

from __future__ import annotations

import gc
import math
import os
import statistics
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels import append, attend, copy_tails, elementwise, fork, forward, gpu, linear, prune, sample, score  # noqa: F401  (registers them)
from benchmarks.kernels.cases import DTYPES, FAMILIES, Case, PeerError, Setting, Spec, cold_bytes, reason
from benchmarks.kernels.floors import Ceilings, floor
from benchmarks.kernels.timing import Times, on_the_host, seconds_of, times
from benchmarks.kernels.vllm import Peer
from benchmarks.record import append_line, machine
from tts_kernels import native

__all__ = ["DTYPES", "make_setting", "run"]


def run(out: Path, families: list[str] | None, only: str, quick: bool, setting: Setting, seconds: float) -> list[dict[str, Any]]:
    """Measure the cases of the families whose name contains `only`; `seconds` each. The rows are appended to `out`, too."""
    unknown = set(families or ()) - set(FAMILIES)
    if unknown:
        raise SystemExit(f"no family {', '.join(sorted(unknown))}; there are {', '.join(FAMILIES)}")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    made = machine(setting.device)
    ceilings = Ceilings(0.4 if quick else 1.0, gpu.ceilings if setting.device == "cuda" else native.ceilings)
    _print_ceilings(ceilings.at_start)
    rows = []
    for spec in _specs(families, only, quick, setting.device):
        row = measured_or_failed(spec, setting, ceilings, seconds) | made
        if setting.vllm is not None:
            row["versions"] = row["versions"] | setting.vllm.versions
        append_line(out, row)
        rows.append(row)
        _print_progress(row)
        gc.collect()  # closures hold a case's data in cycles
    if setting.vllm is not None:
        setting.vllm.close()
    return rows


def measured_or_failed(spec: Spec, setting: Setting, ceilings: Ceilings, seconds: float) -> dict[str, Any]:
    """The row of one case, or as `error` the reason why there is none: the cases behind it are measured all the same."""
    try:
        return measure(spec, setting, ceilings, seconds)
    except Exception as error:  # noqa: BLE001  (whatever it is, the traceback tells)
        traceback.print_exc()
        return {"op": spec.op, "case": spec.name, "is_correct": False, "error": reason(error), "peer_missing": {}}


def measure(spec: Spec, setting: Setting, ceilings: Ceilings, seconds: float) -> dict[str, Any]:
    """The row of one case: its check, and if that passes the times of all variants in turn."""
    case = spec.make(setting)
    max_error, allowed = case.check()
    row: dict[str, Any] = {
        "op": spec.op,
        "case": spec.name,
        "dtype": case.dtype,
        "backend": case.backend,
        "max_error": max_error if math.isfinite(max_error) else str(max_error),
        "allowed_error": allowed,
        "is_correct": max_error <= allowed,
        "cold": case.cold,
        "load": os.getloadavg()[0],
    }
    if row["is_correct"]:
        before = ceilings.beside(case.work.rate)
        clock = gpu.Clock(setting.cold_bytes) if setting.device == "cuda" else None
        prepare = clock.prepare if clock else on_the_host
        found = times({"ours": case.ours, **case.peers}, case.missing, seconds, prepare)
        after = ceilings.beside(case.work.rate)
        row |= _figures(case, found, {name: max(before[name], after[name]) for name in before})
        if clock:
            row["is_graph"] = {name: clock.is_graph[{"ours": case.ours, **case.peers}[name]] for name in found}
    return row | {"peer_missing": case.missing, **case.details}


def _figures(case: Case, found: dict[str, Times], rates: dict[str, float]) -> dict[str, Any]:
    ours, peers = found["ours"], {name: t for name, t in found.items() if name != "ours"}
    least = floor(case.work, case.dtype, rates)
    figures: dict[str, Any] = {
        "median_us": ours.at(0.5),
        "p20_us": ours.at(0.2),
        "p80_us": ours.at(0.8),
        "floor_us": least.us,
        "bound": least.bound,
        "of_floor": least.us / ours.at(0.5),
        "peer_us": {name: t.at(0.5) for name, t in peers.items()},
        "peer_p20_us": {name: t.at(0.2) for name, t in peers.items()},
        "samples": len(ours.us),
        "disturbed": ours.disturbed,
        "is_clean": {name: t.is_clean for name, t in found.items()},
        "ceilings": rates,
    }
    if case.parts:
        figures["floor_added_us"] = sum(floor(part, case.dtype, rates).us for part in case.parts)
    if case.work.exps and rates["f32_exp2"]:
        figures["exp2_us"] = 1e6 * case.work.exps / rates["f32_exp2"]
    if case.ours.plan is not None:
        figures["plan_us"] = 1e6 * statistics.median(seconds_of(case.ours.plan) for _ in range(5))
    return figures


def _specs(families: list[str] | None, only: str, quick: bool, device: str) -> Iterator[Spec]:
    for name in families or FAMILIES:
        for spec in FAMILIES[name]():
            if only in spec.name and (spec.is_quick or not quick) and device in spec.devices:
                yield spec


def make_setting(dtype: str, device: str, vllm: Path | None, quick: bool = False) -> Setting:
    """Raises `ValueError` where there is no such device, or no kernels of ours for it."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU")
    max_bytes = torch.cuda.mem_get_info()[1] // 8 if device == "cuda" else 3 << 30
    setting = Setting(dtype, device, cold_bytes(device), max_bytes, is_quick=quick)
    if vllm is None:
        return setting
    try:
        return replace(setting, vllm=Peer(vllm, int(os.environ["OMP_NUM_THREADS"])))
    except (OSError, PeerError) as error:
        print(f"vllm_cpu: {error}", file=sys.stderr)
        return replace(setting, vllm_reason=f"could not be started: {error}")


def _print_ceilings(found: dict[str, float]) -> None:
    for name, rate in found.items():
        unit = "FLOP/s" if name in ("f32_fma", "bf16_dot", "bf16_tiles") else "values/s" if name == "f32_exp2" else "B/s"
        print(f"{name:12} {rate / 1e9:8.1f} G{unit}" if rate else f"{name:12} not on this machine")


def _print_progress(row: dict[str, Any]) -> None:
    if "error" in row:
        result = f"FAILED: {row['error']}"
    elif row["is_correct"]:
        result = f"{row['median_us']:.1f} us"
    else:
        result = f"WRONG: {row['max_error']} > {row['allowed_error']}"
    print(f"{row['op']} {row['case']}: {result}", file=sys.stderr, flush=True)
