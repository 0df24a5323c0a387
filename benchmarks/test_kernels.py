"""The quick cases under pytest-benchmark, only when asked: `python -m pytest benchmarks/test_kernels.py`.

Pin the threads from outside: OMP_NUM_THREADS=2 OMP_PROC_BIND=close OMP_PLACES=cores. Floors and peers: `python -m benchmarks`.
"""

import pytest

from benchmarks.kernels import run  # noqa: F401  (registers the families)
from benchmarks.kernels.cases import FAMILIES, Setting, cold_bytes

SPECS = [spec for make in FAMILIES.values() for spec in make() if spec.is_quick]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.op}: {spec.name}")
def test_the_op_is_right_and_this_fast(benchmark, spec):
    case = spec.make(Setting(cold_bytes=cold_bytes()))
    max_error, allowed = case.check()
    assert max_error <= allowed
    benchmark.group = spec.op
    benchmark(case.ours.run)
