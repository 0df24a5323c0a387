"""The program of one grading process: reads requests from stdin, judges them with math-verify, writes replies to stdout.

A message is a 4-byte big-endian length and that many bytes of JSON. The first message in carries the settings (`sys_path`,
`deadline` in seconds, `memory_limit` in bytes), the first one out says whether math-verify could be loaded. It is run by its
path and imports nothing of its package, so a restart costs the import of math-verify alone.
"""

from __future__ import annotations

import cmath
import contextlib
import functools
import hashlib
import itertools
import json
import logging
import os
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any, BinaryIO

Message = dict[str, Any]

HEADER = struct.Struct(">I")
GRACE_SECONDS = 1.0
"""A worker outlives its deadline by this much and then ends itself, in case nobody is left to kill it."""


def frame(message: Message) -> bytes:
    """`message` as it goes over the pipe."""
    body = json.dumps(message).encode("ascii")
    return HEADER.pack(len(body)) + body


def read_frame(stream: BinaryIO) -> Message | None:
    """The next message, or `None` at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    return decode(stream.read(HEADER.unpack(header)[0]))


def decode(body: bytes | bytearray) -> Message:
    """The message in the body of a frame."""
    message: Message = json.loads(body)
    return message


def send(stream: BinaryIO, message: Message) -> None:
    """Write `message` and let it go."""
    stream.write(frame(message))
    stream.flush()


@functools.lru_cache(maxsize=512)
def parse(answer: str) -> tuple[Any, ...]:
    """math-verify's readings of `answer`: a sympy object where it found one, then the normalised text; or nothing.

    Only the LaTeX reader is asked: the other one passes the text to sympy's `parse_expr`, which evaluates Python.
    """
    import math_verify

    latex = math_verify.LatexExtractionConfig(boxed_match_priority=0)
    return tuple(math_verify.parse(f"\\boxed{{{answer}}}", extraction_config=[latex], parsing_timeout=None))


def verify(a: str, b: str) -> Message:
    """Whether math-verify takes `a` for `b` or `b` for `a`: which one is called gold matters to it.

    Where it raises (``\\frac{1}{0}``) the two readings are different: its own rule.
    """
    import math_verify

    for gold, target in itertools.chain.from_iterable(orders(x, y) for x, y in itertools.product(parse(a), parse(b))):
        try:
            if math_verify.verify(gold, target, timeout_seconds=None, raise_on_error=True):
                return {"status": "ok", "equal": True}
        except MemoryError:
            raise
        except Exception:
            continue
    return {"status": "ok", "equal": False}


def orders(x: Any, y: Any) -> tuple[tuple[Any, Any], ...]:
    """Both orders of two readings, or one for plain expressions: only relations, sets and tuples are treated as gold or not."""
    import sympy

    is_symmetric = isinstance(x, sympy.Expr) and isinstance(y, sympy.Expr)
    return ((x, y),) if is_symmetric else ((x, y), (y, x))


def form(answer: str) -> Message:
    """The canonical form of `answer` before anything is evaluated: cheap even for a tower of powers."""
    import sympy

    readings = parse(answer)
    if not readings or isinstance(readings[0], str):
        return canonical(f"text {readings[0] if readings else answer}")
    return canonical(sympy.srepr(readings[0]), sample(readings[0]) if isinstance(readings[0], sympy.Rational) else None)


def evaluated_form(answer: str) -> Message:
    """The canonical form after evaluation, which the likes of ``100000000!`` never reach.

    Relations and sets stay as they are. So do percentages: math-verify takes 50% for both 1/2 and 50.
    """
    import sympy

    readings = parse(answer)
    if not readings or not isinstance(readings[0], sympy.Expr) or readings[0].has(sympy.UnevaluatedExpr):
        return form(answer)
    try:
        expression = readings[0].doit()
        return canonical(sympy.srepr(expression), sample(expression))
    except MemoryError:
        raise
    except Exception:
        return form(answer)


def canonical(text: str, value: tuple[float, float] | None = None) -> Message:
    """The reply with a canonical form: its digest, because an evaluated expression may fill megabytes."""
    return {"status": "ok", "form": hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest(), "value": value}


def sample(expression: Any) -> tuple[float, float] | None:
    """Real and imaginary part of an expression where each of its symbols has the value that `point` gives its name.

    `None` where that is no finite number, and for a symbol alone: math-verify compares those as words.
    """
    if expression.is_Symbol:
        return None
    try:
        value = complex(expression.evalf(15, subs={symbol: point(symbol.name) for symbol in expression.free_symbols}))
    except (TypeError, ValueError, OverflowError):
        return None
    return (value.real, value.imag) if cmath.isfinite(value) else None


def point(name: str) -> float:
    """A number in [1, 2) that depends on `name` only."""
    return 1 + int.from_bytes(hashlib.sha256(name.encode(errors="surrogatepass")).digest()[:6], "big") / (1 << 48)


REQUESTS: dict[str, Callable[..., Message]] = {"verify": verify, "form": form, "evaluated_form": evaluated_form}


def limit_resources(memory_limit: int) -> None:
    """Bound the address space where the system allows it, and leave no core files."""
    import resource

    for kind, limit in ((resource.RLIMIT_AS, memory_limit), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # macOS refuses RLIMIT_AS
            resource.setrlimit(kind, (limit, limit))


def load() -> Message:
    """Import math-verify and what it imports at its first comparison, so that no request pays for it. The greeting to send."""
    logging.disable(logging.CRITICAL)
    try:
        verify("1/2", "x+1")
    except Exception as error:
        return {"status": "error", "reason": f"{type(error).__name__}: {error}"}
    return {"status": "ok"}


def reply_to(request: Message) -> Message:
    """The reply to one request. Without memory the process ends: what is left of it could not be trusted."""
    try:
        return REQUESTS[request["do"]](*request["answers"])
    except MemoryError:
        os._exit(1)
    except Exception:
        return {"status": "error"}


def main() -> None:
    """Serve requests until stdin ends."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not land between two frames
    settings = read_frame(requests)
    if settings is None:
        return
    sys.path[:] = settings["sys_path"]
    limit_resources(settings["memory_limit"])
    # The default action of SIGALRM ends the process in the kernel, even inside one long multiplication.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    send(replies, load())
    while (request := read_frame(requests)) is not None:
        signal.setitimer(signal.ITIMER_REAL, settings["deadline"] + GRACE_SECONDS)
        reply = reply_to(request)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(replies, reply)


if __name__ == "__main__":
    main()
