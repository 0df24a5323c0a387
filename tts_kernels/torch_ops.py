"""The ops as `torch.ops.tts_kernels.<op>`, for `torch.compile` and `torch.export`.

All that torch wants to know comes from the contract: the schema, which inputs are written, and the shapes of the outputs, so that
a traced function runs the same kernels. A call outside of compiled code is quicker through the op itself.
"""

from collections.abc import Iterable

import torch

from tts_kernels.op import Op
from tts_kernels.signature import Arg

NAMESPACE = "tts_kernels"
_SCALARS = {"int": "SymInt", "float": "float", "str": "str"}


def schema(op: Op) -> str:
    """The contract in torch's words: `(Tensor x, SymInt N, Tensor weight, Tensor? bias) -> Tensor`."""
    inputs = (f"{_schema_type(i, arg)} {arg.name}" for i, arg in enumerate(op.inputs))
    outputs = ["Tensor"] * len(op.outputs)
    return f"({', '.join(inputs)}) -> {outputs[0] if len(outputs) == 1 else '(' + ', '.join(outputs) + ')'}"


def _schema_type(i: int, arg: Arg) -> str:
    if not arg.is_tensor and arg.element is None:
        return _SCALARS[arg.type]
    mutation = f"(a{i}!)" if arg.is_mutated else ""
    return f"Tensor{mutation}" + ("[]" if arg.element else "?" if arg.is_optional else "")


def register_torch_ops(ops: Iterable[Op]) -> None:
    """Make each op known to torch as `torch.ops.tts_kernels.<name>`: same inputs, the outputs as a tensor or a tuple.

    An op is registered once per process. It has no gradient.
    """
    for op in ops:
        _register(op)


def _register(op: Op) -> None:
    def run(*values):
        return _returned(op(*values))

    def fake(*values):
        return _returned(op.empty_outputs(*values))

    mutated = [arg.name for arg in op.inputs if arg.is_mutated]
    twin = torch.library.custom_op(f"{NAMESPACE}::{op.name}", run, mutates_args=mutated, schema=schema(op))
    twin.register_fake(fake)


def _returned(outputs):
    """A tensor, a tuple of several, or None."""
    if outputs is None or isinstance(outputs, torch.Tensor):
        return outputs
    return tuple(outputs) if len(outputs) > 1 else outputs[0] if outputs else None
