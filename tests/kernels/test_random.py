"""Random calls of every op, as many as `--kernel-cases` says: shapes, dtypes, layouts, instruction sets, thread counts."""

import pytest
import torch
from cases import check_draws
from conformance import LAYOUTS, compare, run
from decoder_cases import one_by_one
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_cases import CASES

import tts_kernels

pytestmark = pytest.mark.skipif("native" not in tts_kernels.linear.backends, reason="the C++ module is not built")
HAS_CODE_PER_ISA = ("linear", "attend", "decoder")


def isas(name: str) -> list[str]:
    """The instruction sets of this machine for which the op has code of its own; only the machine's best where it has none."""
    from tts_kernels.native import ISAS, limit_isa

    best = limit_isa()
    return list(ISAS[: ISAS.index(best) + 1]) if name in HAS_CODE_PER_ISA else [best]


@pytest.fixture
def restored_isa():
    yield
    tts_kernels.native.limit_isa()


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name].contiguous().view(torch.uint8), other[name].contiguous().view(torch.uint8)) for name in one)


def check(name, case, layout, isa):
    op = tts_kernels.OPS[name]
    tts_kernels.native.limit_isa(isa)
    torch.set_num_threads(1)
    results = run(op, case.inputs, "native", layout)
    if name == "decoder":  # layers magnify a rounding without a bound, where a row is near 0: its bits are those of its parts
        parts = one_by_one(case.inputs, "native")
        assert same_bits(results, dict(zip(("out", "keys", "values"), parts, strict=True))), isa
    else:
        compare(results, case, "native")
    if name == "sample":
        check_draws(case.inputs, results)
    for threads in (2, 4):
        torch.set_num_threads(threads)
        assert same_bits(results, run(op, case.inputs, "native", layout)), f"{threads} threads on {isa}"


@pytest.mark.parametrize("name", CASES)
def test_random_calls_give_what_the_definition_says(name, pytestconfig, restored_isa):
    @settings(max_examples=pytestconfig.getoption("--kernel-cases"), suppress_health_check=list(HealthCheck))
    @given(CASES[name], st.sampled_from(list(LAYOUTS)), st.sampled_from(isas(name)))
    def walk(case, layout, isa):
        check(name, case, layout, isa)

    walk()


def test_every_op_has_random_cases():
    assert set(CASES) == set(tts_kernels.OPS)
