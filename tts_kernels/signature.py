"""The signatures of ops: their grammar, and what is made of them once, when an op is declared.

Item by item:

    x f32[N,D]           tensor; a dim is a name, a number, or a name plus a number (R+1); a name's first use binds it.
                         N/32 is N in blocks of 32, the last one perhaps partly used; N is bound before. So are the names in
                         (2*F), an expression, which may stand where a name does
    x T[N]               T is a type variable over f32, f16, bf16: all tensors marked T have the same dtype
    x T[N]*              a list of one or more tensors of that form
    x? f32[N]            optional, may be None           pool! T[P,S]    written in place
    slots i64[N] in 0..P*S    every value lies in the half-open range (checked on the CPU, where it costs no synchronisation,
                              here or by a backend that says so)
    layer int in 0..L    scalar with a range             rule str in top|softmax    scalar with choices
    -> out f32[R]        output: allocated by the dispatcher, or given by the caller as `out=`
    where H%G==0         a condition on the dims
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import CodeType
from typing import Any

import torch

DTYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i32": torch.int32,
    "i64": torch.int64,
    "u8": torch.uint8,
}
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
CPU = torch.device("cpu")
SCALARS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (float, int), "str": (str,)}
_ITEM = re.compile(r"(?P<name>\w+)(?P<mark>[?!]?) (?P<type>\w+)(\[(?P<dims>[^\]]*)\](?P<list>\*)?)?( in (?P<range>\S+))?")
_DIM = re.compile(r"(?P<name>[A-Za-z_]\w*|\(.*\))?(/(?P<block>\d+))?\+?(?P<number>\d+)?")
_NO_BUILTINS: dict[str, Any] = {"__builtins__": {}}


@dataclass(frozen=True, slots=True)
class Arg:
    """One item of a signature, parsed."""

    text: str
    name: str
    type: str
    dtype: torch.dtype | None
    """`None` for a scalar and for the type variable."""
    is_tensor: bool
    element: Arg | None
    """What each tensor of a list must be; `None` for all else."""
    dims: tuple[tuple[str, int, int], ...]
    """(name or "", block, number): the size is ceil(name / block) + number."""
    expressions: tuple[tuple[str, CodeType], ...]
    """The names in `dims` that are expressions, compiled."""
    limits: tuple[str, str] | None
    """(low, high) as they are written ..."""
    bounds: CodeType | None
    """... and compiled."""
    choices: tuple[str, ...]
    is_optional: bool
    is_mutated: bool


def _parse(text: str) -> Arg:
    match = _ITEM.fullmatch(text)
    if match is None:
        raise SyntaxError(f"not an item of an op signature: {text!r}")
    low, dots, high = (match["range"] or "").partition("..")
    dims = tuple(_parse_dim(d.strip(), text) for d in (match["dims"] or "").split(",") if match["dims"])
    arg = Arg(
        text=text,
        name=match["name"],
        type=match["type"],
        dtype=DTYPES.get(match["type"]),
        is_tensor=match["dims"] is not None,
        element=None,
        dims=dims,
        expressions=tuple((name, compile(name, text, "eval")) for name, _, _ in dims if name.startswith("(")),
        limits=(low, high) if dots else None,
        bounds=compile(f"{low}, {high}", text, "eval") if dots else None,
        choices=tuple(low.split("|")) if low and not dots else (),
        is_optional=match["mark"] == "?",
        is_mutated=match["mark"] == "!",
    )
    return replace(arg, is_tensor=False, element=arg) if match["list"] else arg


def _parse_dim(dim: str, text: str) -> tuple[str, int, int]:
    match = _DIM.fullmatch(dim)
    if not dim or match is None:
        raise SyntaxError(f"not a dim of an op signature: {dim!r} in {text!r}")
    return match["name"] or "", int(match["block"] or 1), int(match["number"] or 0)


def split(text: str) -> list[Arg]:
    """Split at the commas outside brackets."""
    return [_parse(part) for part in re.split(r",\s*(?![^\[]*\])", text.strip()) if part]


def evaluate(code: CodeType, dims: dict[str, int]) -> Any:
    # Signature strings are constants of this package's source, never input.
    return eval(code, _NO_BUILTINS, dims)


def conformance(inputs: Sequence[Arg], outputs: Sequence[Arg], conditions: Sequence[str]) -> Callable[[Sequence[Any]], Any]:
    """The checks of a call's inputs as straight code: a quarter to a half of the time of walking the signature.

    Gives a function of the values. Where they are tensors and scalars as the signature says it gives (dims, dtype of the type
    variable, device, shapes of the outputs), else None: what is wrong, or that they are arrays, is for the walk to find. The
    values of index tensors are not looked at. A signature with a list, or whose dims depend on what is optional, goes to the walk
    always.
    """
    lines, bound = [f"{', '.join(f'_{i}' for i in range(len(inputs)))}, = values"], set[str]()
    has_device = has_dtype = False
    for i, arg in enumerate(inputs):
        is_first = not has_device or (arg.dtype is None and not has_dtype) or not _new_names(arg) <= bound
        if arg.element is not None or (arg.is_optional and is_first):
            return _unknown
        if not arg.is_tensor:
            lines += _scalar_checks(f"_{i}", arg)
            bound |= {arg.name} if arg.type == "int" else set()
            continue
        checks = _type_checks(f"_{i}", arg, has_device, has_dtype) + _shape_checks(f"_{i}", arg, bound)
        lines += [f"if _{i} is not None:", *(f"  {line}" for line in checks)] if arg.is_optional else checks
        has_device, has_dtype = True, has_dtype or arg.dtype is None
    if not has_device:
        return _unknown
    lines += [f"if not ({condition}): return None" for condition in conditions]
    dims = ", ".join(f"{name!r}: {name}" for name in sorted(bound))
    shapes = "".join(f"({_sizes(arg)}), " for arg in outputs)
    lines.append(f"return {{'': 0, {dims}}}, {'_dtype' if has_dtype else None}, _device, ({shapes})")
    names: dict[str, Any] = {"Tensor": torch.Tensor, "FLOATS": FLOATS, "CPU": CPU, **DTYPES}
    # Signature strings are constants of this package's source, never input.
    exec("def conforms(values):\n  " + "\n  ".join(lines), names)
    return names["conforms"]


def _unknown(values: Sequence[Any]) -> None:
    return None


def _new_names(arg: Arg) -> set[str]:
    return {name for name, _, _ in arg.dims if name.isidentifier()}


def _sizes(arg: Arg) -> str:
    return "".join(f"{_size(dim)}, " for dim in arg.dims)


def _size(dim: tuple[str, int, int]) -> str:
    name, block, number = dim
    size = f"-(-{name} // {block})" if block > 1 else name
    return f"{size} + {number}" if name and number else size or str(number)


def _type_checks(x: str, arg: Arg, has_device: bool, has_dtype: bool) -> list[str]:
    lines = [f"if not isinstance({x}, Tensor): return None"]
    lines.append(f"if {x}.device != _device: return None" if has_device else f"_device = CPU if {x}.is_cpu else {x}.device")
    if arg.dtype is None and not has_dtype:
        return [*lines, f"_dtype = {x}.dtype", "if _dtype not in FLOATS: return None"]
    return [*lines, f"if {x}.dtype is not {arg.type if arg.dtype else '_dtype'}: return None"]


def _shape_checks(x: str, arg: Arg, bound: set[str]) -> list[str]:
    """Compare the sizes with those that are bound, and bind the others."""
    if _new_names(arg) <= bound:
        return [f"if {x}.shape != ({_sizes(arg)}): return None"]
    lines = [f"_shape = {x}.shape", f"if len(_shape) != {len(arg.dims)}: return None"]
    for i, (name, block, number) in enumerate(arg.dims):
        if name.isidentifier() and name not in bound:
            lines += [f"{name} = _shape[{i}] - {number}", f"if {name} < 0: return None"]
            bound.add(name)
        else:
            lines.append(f"if _shape[{i}] != {_size((name, block, number))}: return None")
    return lines


def _scalar_checks(x: str, arg: Arg) -> list[str]:
    lines = [f"if {' and '.join(f'type({x}) is not {t.__name__}' for t in SCALARS[arg.type])}: return None"]
    if arg.choices:
        lines.append(f"if {x} not in {arg.choices!r}: return None")
    if arg.limits:
        lines.append(f"if not {arg.limits[0]} <= {x} < {arg.limits[1]}: return None")
    return [*lines, f"{arg.name} = {x}"] if arg.type == "int" else lines
