"""Every op x backend x case x dtype x memory layout against the definition in float64."""

from functools import partial

import pytest
import torch
from cases import FAMILIES

import tts_kernels

MARGIN = 37  # odd, so that what lies behind it is misaligned
CANARY = 77


def in_the_middle(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A misaligned row-major copy of `tensor` between canaries, and the whole buffer."""
    buffer = torch.full((tensor.numel() + 2 * MARGIN,), CANARY, dtype=tensor.dtype)
    middle = buffer[MARGIN : MARGIN + tensor.numel()].view(tensor.shape)
    middle.copy_(tensor)
    return middle, buffer


def scattered(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, every second element of a larger tensor in reversed order of dims."""
    reversed_dims = tuple(range(tensor.ndim))[::-1]
    wide = torch.full((*tensor.shape[::-1], 2), CANARY, dtype=tensor.dtype)
    wide[..., 0] = tensor.permute(reversed_dims)
    return wide[..., 0].permute(reversed_dims)


def gapped(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with a gap behind each row."""
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 3), CANARY, dtype=tensor.dtype)
    wide[..., :-3] = tensor
    return wide[..., :-3]


LAYOUTS = {"dense": lambda x: x, "misaligned": lambda x: in_the_middle(x)[0], "gapped": gapped, "scattered": scattered}


def copies(values) -> list:
    return [x.clone() if isinstance(x, torch.Tensor) else x for x in values]


def lay_out(op, values, layout) -> tuple[list, list]:
    """The inputs in a memory layout, and (tensor, buffer) of those that the op writes."""
    inputs, written = [], []
    for arg, value in zip(op.inputs, values):
        if arg.is_mutated:
            value, buffer = in_the_middle(value)
            written.append((value, buffer))
        elif isinstance(value, torch.Tensor):
            value = LAYOUTS[layout](value)
        inputs.append(value)
    return inputs, written


def poisoned_outputs(op, inputs, backend) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Outputs of the right shapes, found by a call on copies, filled with NaN between canaries."""
    made = op(*copies(inputs), backend=backend)
    made = () if made is None else (made,) if isinstance(made, torch.Tensor) else made
    return [in_the_middle(torch.full_like(x, float("nan") if x.is_floating_point() else -7777)) for x in made]


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
    op, made = tts_kernels.OPS[family.name], family.cases[case](dtype)
    inputs, written = lay_out(op, made.inputs, layout)
    before, outputs = copies(inputs), poisoned_outputs(op, inputs, backend)
    op(*inputs, out=[x for x, _ in outputs], backend=backend)

    results = {arg.name: x for arg, (x, _) in zip(op.outputs, outputs)}
    results |= {arg.name: x for arg, x in zip(op.inputs, inputs) if arg.is_mutated}
    for name, (expected, tolerance) in made.expected.items():
        got = results[name].double()
        message = partial("{}: {}".format, name)
        torch.testing.assert_close(got, expected.double(), rtol=0, atol=tolerance, equal_nan=True, msg=message)
    for arg, value, kept in zip(op.inputs, inputs, before):
        if isinstance(value, torch.Tensor) and not arg.is_mutated:
            assert torch.equal(value.nan_to_num(0.5), kept.nan_to_num(0.5)), f"{arg.name} was written"
    for value, buffer in written + outputs:
        end = MARGIN + value.numel()
        assert (buffer[:MARGIN] == CANARY).all() and (buffer[end:] == CANARY).all(), "written outside an output"


def test_every_op_has_cases():
    assert set(FAMILIES) == set(tts_kernels.OPS)
