"""The contract of a kernel: one signature string gives the document, the checks, the outputs and the dispatch.

    @op("scores f32[N], indptr i32[R+1] -> out f32[R]")
    def segment_max(scores, indptr, *, out): ...

declares the op `segment_max` with the decorated function as its reference implementation. The grammar is that of
`tts_kernels.signature`. Backends receive the inputs positionally and the outputs by keyword, and fill the outputs; they never
allocate them. Outputs are row-major.

A tensor may be torch's, a numpy array or anything that speaks DLPack: it is used in place, and never copied on the way. Backends
see torch tensors.
"""

from __future__ import annotations

import inspect
from collections import namedtuple
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tts_kernels.signature import CPU, FLOATS, SCALARS, Arg, conformance, evaluate, split

OPS: dict[str, Op] = {}
"""Every declared op by name, in order of declaration."""


def _as_tensor(array: Any) -> torch.Tensor:
    """A tensor over the memory of a numpy array or of what speaks DLPack, which takes read-only memory without a warning."""
    if isinstance(array, np.ndarray) and array.flags.writeable:
        return torch.from_numpy(array)
    if min(getattr(array, "strides", None) or (0,)) < 0:  # from_dlpack would end the process
        raise ValueError("it has negative strides")
    return torch.from_dlpack(array)


def _are_alike(values: Sequence[Any]) -> bool:
    """They are tensors of one shape, dtype and device, so that what holds for the first holds for all."""
    if not all(isinstance(x, torch.Tensor) for x in values):
        return False
    shape, dtype, device = values[0].shape, values[0].dtype, values[0].device
    return all(x.shape == shape and x.dtype is dtype and x.device == device for x in values)


@dataclass(frozen=True)
class Backend:
    """One implementation of an op and where it runs."""

    name: str
    fn: Callable[..., None]
    devices: tuple[str, ...] | None = None
    """Device types it runs on; `None` is all of them."""
    dtypes: tuple[torch.dtype, ...] = FLOATS
    """Values of the signature's type variable it takes."""
    checks_values: bool = False
    """It checks the ranges of index values itself."""

    def why_not(self, device: str, dtype: torch.dtype | None) -> str | None:
        """The reason why this backend cannot take a call on `device` with type variable `dtype`, or None if it can."""
        if self.devices is not None and device not in self.devices:
            return f"runs on {'/'.join(self.devices)}, the tensors are on {device}"
        if dtype is not None and dtype not in self.dtypes:
            return (
                f"takes {'/'.join(str(d).removeprefix('torch.') for d in self.dtypes)}, got {str(dtype).removeprefix('torch.')}"
            )
        return None


class Op:
    """A callable contract. `op(*inputs, out=None, backend=None)` validates, allocates, dispatches and returns the outputs.

    The outputs are new tensors of torch, or what `out=` gave: one tensor or array, or a sequence of them.
    """

    def __init__(self, signature: str, reference: Callable[..., None]):
        head, _, condition = signature.partition(" where ")
        left, _, right = head.partition("->")
        self.name = reference.__name__
        self.signature = signature
        self.inputs, self.outputs = split(left), split(right)
        self.conditions = [(c, compile(c, signature, "eval")) for c in condition.split(" and ") if c]
        self.reference = reference
        self.backends: dict[str, Backend] = {"reference": Backend("reference", reference)}
        self.missing: dict[str, str] = {}
        """Backends that could exist but do not, with the reason."""
        parameters = inspect.signature(reference).parameters
        if list(parameters) != [a.name for a in self.inputs + self.outputs]:
            raise TypeError(f"{self.name}: the reference takes {list(parameters)}, the signature says {signature!r}")
        self.defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
        self._conforms = conformance(self.inputs, self.outputs, [text for text, _ in self.conditions])
        self._output_names = [a.name for a in self.outputs]
        self._chosen: dict[tuple[str, torch.dtype | None, str | None], Backend] = {}
        self.result: Any = namedtuple(self.name, self._output_names) if len(self.outputs) > 1 else None
        self.__doc__ = f"{self.name}({signature})\n\n{inspect.cleandoc(reference.__doc__ or '')}"
        self.__name__ = self.name

    def __repr__(self) -> str:
        return f"<op {self.name}({self.signature}) backends={list(self.backends)}>"

    def __call__(self, *args: Any, out: Any = None, backend: str | None = None, **named: Any) -> Any:
        values = self._bind(args, named)
        conforming = self._conforms(values)
        if conforming is None:
            values, *conforming = self._walk(values)
        dims, dtype, device, shapes = conforming
        chosen = self.choose("cpu" if device is CPU else device.type, dtype, backend)
        if device is CPU and not chosen.checks_values:
            self._check_values(values, dims)
        if out is None:
            given = outputs = self._allocate(shapes, dtype, device)
        else:
            given = out if isinstance(out, (tuple, list)) else (out,)
            outputs = self._check_given(given, dims, dtype, device)
        named_outputs = dict(zip(self._output_names, outputs))
        if device.type == "cuda":
            with torch.cuda.device(device):  # where kernels are launched
                chosen.fn(*values, **named_outputs)
        else:
            chosen.fn(*values, **named_outputs)
        if self.result is not None:
            return self.result._make(given)
        return given[0] if given else None

    def choose(self, device: str, dtype: torch.dtype | None = None, backend: str | None = None) -> Backend:
        """The backend a call would use: the last registered one that can, or exactly `backend`, which never falls back."""
        found = self._chosen.get((device, dtype, backend))
        if found is None:
            found = self._chosen[device, dtype, backend] = self._choose(device, dtype, backend)
        return found

    def register(self, backend: Backend) -> None:
        """Add or replace a backend; the one registered last is preferred."""
        self.backends.pop(backend.name, None)
        self.backends[backend.name] = backend
        self.missing.pop(backend.name, None)
        self._chosen.clear()

    def _choose(self, device: str, dtype: torch.dtype | None, backend: str | None) -> Backend:
        if backend is None:
            return next(b for b in reversed(self.backends.values()) if b.why_not(device, dtype) is None)
        if backend not in self.backends:
            reason = self.missing.get(backend, "no such backend is registered")
            raise ValueError(f"{self.name}: backend {backend!r} does not exist here ({reason}); available: {list(self.backends)}")
        why_not = self.backends[backend].why_not(device, dtype)
        if why_not is not None:
            raise ValueError(f"{self.name}: backend {backend!r} cannot take this call: it {why_not}")
        return self.backends[backend]

    def _bind(self, args: Sequence[Any], named: dict[str, Any]) -> Sequence[Any]:
        if len(args) == len(self.inputs) and not named:
            return args
        if len(args) > len(self.inputs):
            raise TypeError(f"{self.name}: takes {len(self.inputs)} inputs, got {len(args)}; signature: {self.signature}")
        values = list(args)
        for arg in self.inputs[len(args) :]:
            if arg.name in named:
                values.append(named.pop(arg.name))
            elif arg.name in self.defaults:
                values.append(self.defaults[arg.name])
            elif arg.is_optional:
                values.append(None)
            else:
                raise TypeError(f"{self.name}: input {arg.text!r} is missing")
        if named:
            raise TypeError(f"{self.name}: unknown argument {next(iter(named))!r}; signature: {self.signature}")
        return values

    def _walk(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Check the inputs item by item; gives them, all tensors torch's by then, and what `conformance` gives."""
        dims = {"": 0}  # a dim without a name is its number
        values, dtype, device = self._check(self.inputs, values, dims, None, None)
        for text, code in self.conditions:
            if not evaluate(code, dims):
                raise ValueError(f"{self.name}: {text} does not hold for { ({k: v for k, v in dims.items() if k}) }")
        return values, dims, dtype, device, self._shapes(dims)

    def _check(self, items, values, dims: dict[str, int], dtype, device):
        """Check types, devices and shapes in order, bind `dims`, and return the values, all tensors torch's by then, and what
        the type variable and the device are."""
        for arg, value in zip(items, values):
            if not arg.is_tensor:
                if arg.element is None:
                    self._check_scalar(arg, value, dims)
                else:
                    checked, dtype, device = self._check_list(arg, value, dims, dtype, device)
                    values = [checked if x is value else x for x in values]
                continue
            if value is None and arg.is_optional:
                continue
            if not isinstance(value, torch.Tensor):
                return self._check(items, self._adopt(items, values), dims, dtype, device)
            if value.dtype is not (arg.dtype or dtype):
                dtype = self._bind_dtype(arg, value, dtype)
            if not (value.is_cpu and device is CPU) and value.device != device:
                device = self._bind_device(arg, value, device)
            shape = value.shape
            if len(shape) != len(arg.dims):
                raise ValueError(
                    f"{self.name}: {arg.name} must have {len(arg.dims)} dims ({arg.text!r}), got shape {tuple(shape)}"
                )
            for name, code in arg.expressions:
                dims[name] = evaluate(code, dims)
            for (name, block, number), size in zip(arg.dims, shape):
                if name not in dims and size >= number:
                    dims[name] = size - number
                elif size != -(-dims.get(name, 0) // block) + number:
                    self._reject_shape(arg, (name, block, number), shape, dims)
        return values, dtype, device

    def _adopt(self, items: Sequence[Arg], values: Sequence[Any]) -> list:
        """The values, with a tensor of torch over the memory of each array that is none."""
        adopted = list(values)
        for i, (arg, value) in enumerate(zip(items, values)):
            if not arg.is_tensor or isinstance(value, torch.Tensor) or (value is None and arg.is_optional):
                continue
            if not hasattr(value, "__dlpack__"):
                raise TypeError(f"{self.name}: {arg.name} must be a tensor {arg.text!r}, got {type(value).__name__}")
            is_written = arg.is_mutated or items is self.outputs
            if is_written and isinstance(value, np.ndarray) and not value.flags.writeable:
                raise ValueError(f"{self.name}: {arg.name} is written in place and must be writeable, got a read-only array")
            try:
                adopted[i] = _as_tensor(value)
            except (TypeError, ValueError, RuntimeError, BufferError) as error:
                raise TypeError(f"{self.name}: {arg.name} cannot be used as a tensor in place: {error}") from error
        return adopted

    def _check_list(self, arg: Arg, value: Any, dims: dict[str, int], dtype, device):
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"{self.name}: {arg.name} must be a list of tensors {arg.text!r}, got {type(value).__name__}")
        if not value:
            raise ValueError(f"{self.name}: {arg.name} ({arg.text!r}) must hold at least one tensor, got none")
        if not _are_alike(value):
            return self._check([arg.element] * len(value), value, dims, dtype, device)
        _, dtype, device = self._check([arg.element], value[:1], dims, dtype, device)
        return value, dtype, device

    def _check_scalar(self, arg: Arg, value: Any, dims: dict[str, int]) -> None:
        if not isinstance(value, SCALARS[arg.type]) or isinstance(value, bool):
            raise TypeError(f"{self.name}: {arg.name} must be {arg.type}, got {value!r}")
        if arg.choices and value not in arg.choices:
            raise ValueError(f"{self.name}: {arg.name} must be one of {', '.join(arg.choices)}, got {value!r}")
        if arg.bounds is not None:
            low, high = evaluate(arg.bounds, dims)
            if not low <= value < high:
                raise ValueError(f"{self.name}: {arg.name} must be in [{low}, {high}), got {value}")
        if isinstance(value, int):
            dims[arg.name] = value

    def _bind_dtype(self, arg: Arg, value: torch.Tensor, dtype: torch.dtype | None) -> torch.dtype:
        expected = arg.dtype or dtype
        if expected is not None:
            raise TypeError(f"{self.name}: {arg.name} must be {expected} ({arg.text!r}), got {value.dtype}")
        if value.dtype not in FLOATS:
            raise TypeError(f"{self.name}: {arg.name} must be float32, float16 or bfloat16, got {value.dtype}")
        return value.dtype

    def _bind_device(self, arg: Arg, value: torch.Tensor, device: torch.device | None) -> torch.device:
        if device is not None:
            raise ValueError(f"{self.name}: {arg.name} is on {value.device}, the tensors before it on {device}")
        return CPU if value.is_cpu else value.device

    def _reject_shape(self, arg: Arg, dim_: tuple[str, int, int], shape: Sequence[int], dims: dict[str, int]) -> None:
        name, block, number = dim_
        dim = name + (f"/{block}" if block > 1 else "") + (f"+{number}" if name and number else "") or number
        expected = -(-dims[name] // block) + number if name in dims else f"at least {number}"
        raise ValueError(f"{self.name}: dim {dim} of {arg.name} ({arg.text!r}) must be {expected}, got shape {tuple(shape)}")

    def _check_values(self, values: Sequence[Any], dims: dict[str, int]) -> None:
        for arg, value in zip(self.inputs, values):
            if arg.bounds is not None and arg.is_tensor and value is not None and value.numel():
                low, high = evaluate(arg.bounds, dims)
                least, most = (x.item() for x in torch.aminmax(value))
                if least < low or most >= high:
                    raise ValueError(f"{self.name}: values of {arg.name} must be in [{low}, {high}), got [{least}, {most}]")

    def empty_outputs(self, *values: Any) -> Sequence[torch.Tensor]:
        """Unfilled outputs as a call with these inputs would make them. Nothing is checked, and sizes may be symbolic."""
        dims = {"": 0}
        dtype = device = None
        for arg, value in zip(self.inputs, values):
            if arg.type == "int":
                dims[arg.name] = value
            for tensor in value if arg.element else [value] if isinstance(value, torch.Tensor) else []:
                dtype, device = dtype if arg.dtype else tensor.dtype, tensor.device
                for (name, _, number), size in zip(arg.dims, tensor.shape):
                    dims.setdefault(name, size - number)
        return self._allocate(self._shapes(dims), dtype, device)

    def _allocate(self, shapes: Sequence[Sequence[int]], dtype, device) -> Sequence[torch.Tensor]:
        return [torch.empty(s, dtype=a.dtype or dtype, device=device) for s, a in zip(shapes, self.outputs)]

    def _shapes(self, dims: dict[str, int]) -> list[list[int]]:
        """Those of the outputs."""
        for name, code in (x for a in self.outputs for x in a.expressions):
            dims[name] = evaluate(code, dims)
        return [[-(-dims[name] // block) + n for name, block, n in a.dims] for a in self.outputs]

    def _check_given(self, given: Sequence[Any], dims: dict[str, int], dtype, device) -> Sequence[torch.Tensor]:
        if len(given) != len(self.outputs):
            raise TypeError(f"{self.name}: out= must hold {len(self.outputs)} tensors, got {len(given)}")
        outputs, _, _ = self._check(self.outputs, given, dims, dtype, device)
        for arg, tensor in zip(self.outputs, outputs):
            if not tensor.is_contiguous():
                raise ValueError(f"{self.name}: out= {arg.name} must be contiguous, got strides {tensor.stride()}")
        return outputs


def op(signature: str) -> Callable[[Callable[..., None]], Op]:
    """Declare an op: the decorated function is its reference implementation and its name."""

    def declare(reference: Callable[..., None]) -> Op:
        OPS[reference.__name__] = declared = Op(signature, reference)
        return declared

    return declare


def register_backend(
    target: Op | str,
    name: str,
    fn: Callable[..., None],
    devices: Sequence[str] | None = None,
    dtypes: Sequence[torch.dtype] = FLOATS,
    checks_values: bool = False,
) -> None:
    """Give an op another implementation; the one registered last is preferred where it can take the call.

    `fn` gets the op's inputs positionally, already validated, and its outputs as keywords, and must fill them. With
    `checks_values` the ranges of index values are left to `fn`. Out-of-tree kernels join through this function; the op need not
    know them.
    """
    found = OPS.get(target) if isinstance(target, str) else target
    if found is None:
        raise ValueError(f"no op {target!r}; declared: {', '.join(OPS)}")
    found.register(Backend(name, fn, tuple(devices) if devices is not None else None, tuple(dtypes), checks_values))


def backends(device: str = "cpu", dtype: torch.dtype = torch.float32) -> list[dict[str, str]]:
    """Every op x backend with its state on `device`: rows of `op`, `backend`, `state` ("used", "can" or the reason why not)."""
    rows = []
    for declared in OPS.values():
        used = declared.choose(device, dtype).name
        for name, backend in declared.backends.items():
            state = "used" if name == used else backend.why_not(device, dtype) or "can"
            rows.append({"op": declared.name, "backend": name, "state": state})
        rows += [{"op": declared.name, "backend": name, "state": reason} for name, reason in declared.missing.items()]
    return rows
