"""One call of an op held to a case: inputs in any memory layout, outputs poisoned, nothing written but what the contract says."""

from functools import partial

import torch
from cases import Case, copies, each

import tts_kernels
from tts_kernels import Op

MARGIN = 37  # odd, so that what lies behind it is misaligned
CANARY = 77

Placed = tuple[torch.Tensor, torch.Tensor]
"""A tensor and the buffer that it is a part of; all else in the buffer is canaries."""


def on_the_cpu(op: Op) -> list[str]:
    """The backends that compute on CPU tensors. Interpreted kernels are too slow for many calls: `test_triton` has some."""
    return [name for name, backend in op.backends.items() if name != "triton" and backend.why_not("cpu", None) is None]


def in_the_middle(tensor: torch.Tensor) -> Placed:
    """A misaligned row-major copy of `tensor` between canaries."""
    buffer = torch.full((tensor.numel() + 2 * MARGIN,), CANARY, dtype=tensor.dtype, device=tensor.device)
    middle = buffer[MARGIN : MARGIN + tensor.numel()].view(tensor.shape)
    middle.copy_(tensor)
    return middle, buffer


def with_gaps(tensor: torch.Tensor) -> Placed:
    """A copy with canaries behind each row."""
    buffer = torch.full((*tensor.shape[:-1], tensor.shape[-1] + 3), CANARY, dtype=tensor.dtype, device=tensor.device)
    rows = buffer[..., :-3]
    rows.copy_(tensor)
    return rows, buffer


def slots_before_heads(pages: torch.Tensor) -> Placed:
    """A copy of pages [P,G,S,D], or of all layers' [L,P,G,S,D], in the order [P,S,G,D], canaries behind each row."""
    rows, buffer = with_gaps(pages.transpose(-3, -2))
    return rows.transpose(-3, -2), buffer


def heads_before_tokens(rows: torch.Tensor) -> Placed:
    """A copy of heads [N,H,D] in the order [H,N,D], canaries behind each row."""
    rows, buffer = with_gaps(rows.transpose(0, 1))
    return rows.transpose(0, 1), buffer


def scattered(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, every second element of a larger tensor in reversed order of dims."""
    reversed_dims = tuple(range(tensor.ndim))[::-1]
    wide = torch.full((*tensor.shape[::-1], 2), CANARY, dtype=tensor.dtype, device=tensor.device)
    wide[..., 0] = tensor.permute(reversed_dims)
    return wide[..., 0].permute(reversed_dims)


LAYOUTS = {
    "dense": lambda x: x,
    "misaligned": lambda x: in_the_middle(x)[0],
    "gapped": lambda x: with_gaps(x)[0],
    "scattered": scattered,
}
WRITTEN_LAYOUTS = {
    5: {"gapped": with_gaps, "scattered": slots_before_heads},
    4: {"gapped": with_gaps, "scattered": slots_before_heads},
    3: {"gapped": with_gaps, "scattered": heads_before_tokens},
}
"""Of pages and of heads that are written in place, by their dims; what is not here is row-major."""


def lay_out(op: Op, values, layout: str) -> tuple[list, list[Placed]]:
    """The inputs in a memory layout, and those of them that the op writes."""
    inputs, written = [], []
    for arg, value in zip(op.inputs, values):
        if not arg.is_mutated:
            inputs.append(each(LAYOUTS[layout], value))
            continue
        is_list = isinstance(value, list)
        tensors = value if is_list else [value]
        placed = [WRITTEN_LAYOUTS.get(x.ndim, {}).get(layout, in_the_middle)(x) for x in tensors]
        written += placed
        inputs.append([x for x, _ in placed] if is_list else placed[0][0])
    return inputs, written


def poisoned_outputs(op: Op, inputs, backend: str) -> list[Placed]:
    """Outputs of the right shapes, found by a call on copies, filled with NaN between canaries."""
    made = op(*copies(inputs), backend=backend)
    made = () if made is None else (made,) if isinstance(made, torch.Tensor) else made
    return [in_the_middle(torch.full_like(x, float("nan") if x.is_floating_point() else -7777)) for x in made]


def is_only_written_inside(placed: Placed) -> bool:
    view, buffer = placed
    outside = buffer.clone()
    outside.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(CANARY)
    return bool((outside == CANARY).all())


def run(op: Op, values, backend: str, layout: str, device: str = "cpu") -> dict[str, torch.Tensor]:
    """What a call on `device` gives: its outputs and the inputs that it wrote, lists as one tensor, all on the CPU."""
    inputs, written = lay_out(op, [each(lambda x: x.to(device), value) for value in values], layout)
    before, outputs = copies(inputs), poisoned_outputs(op, inputs, backend)
    op(*inputs, out=[x for x, _ in outputs], backend=backend)
    for arg, value, kept in zip(op.inputs, inputs, before):
        if isinstance(value, torch.Tensor) and not arg.is_mutated:
            assert torch.equal(value.nan_to_num(0.5), kept.nan_to_num(0.5)), f"{arg.name} was written"
    for placed in written + outputs:
        assert is_only_written_inside(placed), "written outside an output"
    results = {arg.name: x for arg, x in zip(op.inputs, inputs) if arg.is_mutated}
    results = {name: torch.stack(x) if isinstance(x, list) else x for name, x in results.items()}
    results |= {arg.name: x for arg, (x, _) in zip(op.outputs, outputs)}
    return {name: x.cpu() for name, x in results.items()}


def compare(results: dict[str, torch.Tensor], case: Case, backend: str) -> None:
    """Hold the results of a backend to what is expected."""
    rounds_weights = backend == "native" and tts_kernels.native.isa().endswith("bf16")
    for name, (expected, tolerance) in case.expected.items():
        tolerance += case.error_of_weights.get(name, 0.0) if rounds_weights else 0.0
        message = partial("{}: {}".format, name)
        torch.testing.assert_close(results[name].double(), expected.double(), rtol=0, atol=tolerance, equal_nan=True, msg=message)
