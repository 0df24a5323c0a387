"""Every op x backend x case x dtype x memory layout against the definition in float64, on every device of this machine.

Interpreted kernels take each case and dtype in one layout, all four in turn.
"""

import os
from itertools import product

import pytest
import torch
from cases import FAMILIES
from conformance import LAYOUTS, compare, run

import tts_kernels

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def walk():
    for device, family in product(DEVICES, FAMILIES.values()):
        for backend, registered in tts_kernels.OPS[family.name].backends.items():
            if device == "cuda" and backend == "reference":
                continue  # it is held to the definition on the CPU
            calls = [x for x in product(family.cases, family.dtypes) if registered.why_not(device, x[1]) is None]
            for i, (case, dtype) in enumerate(calls):
                is_interpreted = backend == "triton" and device == "cpu"
                for layout in [list(LAYOUTS)[i % len(LAYOUTS)]] if is_interpreted else LAYOUTS:
                    name = f"{family.name}-{backend}-{case}-{str(dtype)[6:]}-{layout}" + ("-cuda" if device == "cuda" else "")
                    yield pytest.param(family, backend, case, dtype, layout, device, id=name)


@pytest.mark.parametrize("family, backend, case, dtype, layout, device", list(walk()))
def test_a_backend_gives_what_the_definition_says(family, backend, case, dtype, layout, device):
    made = family.cases[case](dtype)
    compare(run(tts_kernels.OPS[family.name], made.inputs, backend, layout, device), made, backend)


def test_every_op_has_cases():
    assert set(FAMILIES) == set(tts_kernels.OPS)


TRITON_OPS = {"append", "attend", "copy_tails", "fork", "prune", "sample", "score"}
CUDA_OPS = {"copy_tails", "prune", "sample", "score"}


@pytest.mark.parametrize("name", sorted(TRITON_OPS))
def test_triton_kernels_are_among_those_walked(name):
    missing = tts_kernels.OPS[name].missing.get("triton", "")
    if "not installed" in missing or os.environ.get("TRITON_INTERPRET") == "0":
        pytest.skip(missing)
    assert "triton" in tts_kernels.OPS[name].backends, missing


@pytest.mark.skipif(not (torch.cuda.is_available() and torch.version.cuda), reason="no NVIDIA GPU")
@pytest.mark.parametrize("backend, ops", [("triton", TRITON_OPS), ("cuda", CUDA_OPS)])
def test_on_a_gpu_all_kernels_for_it_are_among_those_walked(backend, ops):
    assert {name for name, op in tts_kernels.OPS.items() if backend in op.backends} == ops
