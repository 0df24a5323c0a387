"""Every op x backend x case x dtype x memory layout against the definition in float64."""

import pytest
from cases import FAMILIES
from conformance import LAYOUTS, compare, run

import tts_kernels

WALK = [
    pytest.param(family, backend, case, dtype, layout, id=f"{family.name}-{backend}-{case}-{str(dtype)[6:]}-{layout}")
    for family in FAMILIES.values()
    for backend, registered in tts_kernels.OPS[family.name].backends.items()
    for case in family.cases
    for dtype in family.dtypes
    for layout in LAYOUTS
    if registered.why_not("cpu", dtype) is None
]


@pytest.mark.parametrize("family, backend, case, dtype, layout", WALK)
def test_a_backend_gives_what_the_definition_says(family, backend, case, dtype, layout):
    made = family.cases[case](dtype)
    compare(run(tts_kernels.OPS[family.name], made.inputs, backend, layout), made)


def test_every_op_has_cases():
    assert set(FAMILIES) == set(tts_kernels.OPS)
