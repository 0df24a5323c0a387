"""Whether two mathematical answers are the same: verdicts of math-verify, from processes that can be killed."""

from __future__ import annotations

import cmath
import enum
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tts.grading.pool import WorkerPool
from tts.grading.worker import Message

MAX_LENGTH = 10_000
"""Longer answers are compared as strings only."""


class Verdict(enum.Enum):
    """What grading one pair came to. `TIMEOUT` and `ERROR` say nothing about the answers: count them apart from wrong ones."""

    EQUAL = "equal"
    DIFFERENT = "different"
    TIMEOUT = "timeout"
    ERROR = "error"


Pair = tuple[str | None, str | None]
Key = tuple[str, str]


class Grader:
    """Grades answers with math-verify in up to `workers` processes, each pair within `deadline` seconds.

    math-verify guards itself with SIGALRM, which fails outside the main thread and does not interrupt one long
    multiplication (``100000000!``); here it runs unguarded in processes that are killed when they overrun and limited to
    `memory_limit` bytes each. They start with the first pair that needs one and end with `close`, with this object or at exit.
    Every verdict is remembered, a time-out too, up to `cache_size` pairs. All methods may be called from several threads.
    """

    def __init__(
        self, *, workers: int | None = None, deadline: float = 5.0, memory_limit: int = 2 << 30, cache_size: int = 10_000
    ) -> None:
        workers = min(4, os.cpu_count() or 1) if workers is None else workers
        for name, value in (("workers", workers), ("deadline", deadline), ("cache_size", cache_size)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")
        self._pool = WorkerPool(workers, deadline, memory_limit)
        self._verdicts: _Cache[Key, Verdict] = _Cache(cache_size)
        self._forms: _Cache[str, _Form] = _Cache(cache_size)

    def equal(self, a: str | None, b: str | None) -> bool:
        """Whether `a` and `b` are the same answer; `False` after a time-out or an error. `None` equals nothing, not even `None`.

        Symmetric. Not transitive: math-verify takes ``x=5`` for ``5`` and ``5`` for ``y=5``, but not ``x=5`` for ``y=5``.
        """
        return self.grade([(a, b)])[0] is Verdict.EQUAL

    def grade(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """The verdict on each pair, in order. Pairs run concurrently: one that hangs holds up one process until its deadline.

        Strings equal after `strip` are `EQUAL` and need no process; nor do strings above 10,000 characters, which are
        otherwise `DIFFERENT`. Raises `RuntimeError` if math-verify cannot be loaded.
        """
        settled = [_at_sight(a, b) for a, b in pairs]
        known = self._verify(list(dict.fromkeys(key for key in settled if not isinstance(key, Verdict))))
        return [key if isinstance(key, Verdict) else known[key] for key in settled]

    def _verify(self, keys: Sequence[Key]) -> dict[Key, Verdict]:
        known = self._verdicts.get_all(keys)
        asked = [key for key in keys if key not in known]
        replies = self._pool.ask([{"do": "verify", "answers": key} for key in asked])
        new = {key: _verdict(reply) for key, reply in zip(asked, replies, strict=True)}
        self._verdicts.put_all(new)
        return known | new

    def group(self, answers: Sequence[str | None]) -> list[int]:
        """A group id for each answer: equal answers share one; ids count from 0 in the order first seen; `None` gets -1.

        Answers with the same canonical form need no verification, nor do expressions with values far apart; else a form is
        compared with the first member of every group so far, in order, and joins the first that equals it. A form that
        math-verify cannot evaluate, and both forms of a pair that it cannot compare (time-out or error), join by canonical form
        only: n answers cost at most n time-outs.
        """
        texts = [None if answer is None else answer.strip() for answer in answers]
        distinct = list(dict.fromkeys(text for text in texts if text is not None))
        groups = _Groups(self.grade, self._pool.num_workers)
        ids = {text: groups.place(text, form) for text, form in zip(distinct, self._canonical(distinct), strict=True)}
        return [-1 if text is None else ids[text] for text in texts]

    def _canonical(self, texts: Sequence[str]) -> list[_Form]:
        known = self._forms.get_all(texts)
        new = self._read([text for text in texts if text not in known])
        self._forms.put_all(new)
        known |= new
        return [known[text] for text in texts]

    def _read(self, texts: Sequence[str]) -> dict[str, _Form]:
        """Canonical forms. What the unevaluated forms already show to be the same is evaluated once."""
        forms = {text: _Form(f"text {text}", is_comparable=False) for text in texts}
        short = [text for text in texts if len(text) <= MAX_LENGTH]
        forms |= {text: _form(reply, forms[text].key) for text, reply in zip(short, self._ask("form", short), strict=True)}
        unevaluated = {form.key: text for text, form in forms.items() if form.is_comparable and form.value is None}
        replies = self._ask("evaluated_form", list(unevaluated.values()))
        evaluated = {key: _form(reply, key) for key, reply in zip(unevaluated, replies, strict=True)}
        return {text: evaluated.get(form.key, form) for text, form in forms.items()}

    def _ask(self, what: str, texts: Sequence[str]) -> list[Message]:
        return self._pool.ask([{"do": what, "answers": [text]} for text in texts])

    def close(self) -> None:
        """End all processes. Grading afterwards raises `RuntimeError`."""
        self._pool.close()

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Form:
    """What `group` knows of an answer: answers with the same `key` are equal."""

    key: str
    value: complex | None = None
    """Approximate, where the answer is an expression, at one point of its symbols."""
    is_comparable: bool = True

    def is_far_from(self, other: _Form) -> bool:
        """Whether both have values that cannot be equal: math-verify rounds to 6 decimals, a float holds 15 digits."""
        if self.value is None or other.value is None:
            return False
        return not cmath.isclose(self.value, other.value, rel_tol=1e-9, abs_tol=1e-5)


class _Groups:
    """The groups of one call of `Grader.group`, as they grow."""

    def __init__(self, grade: Callable[[Sequence[Pair]], list[Verdict]], num_workers: int) -> None:
        self._grade = grade
        self._num_workers = num_workers
        self._ids: dict[str, int] = {}  # by form
        self._first: list[str] = []  # the text of each group's first member
        self._open: dict[int, _Form] = {}  # the groups whose first member can be compared

    def place(self, text: str, form: _Form) -> int:
        """The id of the group that `text` joins or founds."""
        if form.key not in self._ids:
            self._ids[form.key] = self._join(text, form) if form.is_comparable else self._found(text)
        return self._ids[form.key]

    def _join(self, text: str, form: _Form) -> int:
        candidates = [index for index, other in self._open.items() if not form.is_far_from(other)]
        for start in range(0, len(candidates), self._num_workers):
            chunk = candidates[start : start + self._num_workers]
            verdicts = dict(zip(chunk, self._grade([(self._first[index], text) for index in chunk]), strict=True))
            stuck = [index for index, verdict in verdicts.items() if verdict in (Verdict.TIMEOUT, Verdict.ERROR)]
            for index in stuck:
                del self._open[index]
            equal = [index for index, verdict in verdicts.items() if verdict is Verdict.EQUAL]
            if equal:
                return equal[0]
            if stuck:
                return self._found(text)
        group = self._found(text)
        self._open[group] = form
        return group

    def _found(self, text: str) -> int:
        self._first.append(text)
        return len(self._first) - 1


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Cache(Generic[K, V]):
    """The last `size` entries to be used. Thread-safe."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get_all(self, keys: Iterable[K]) -> dict[K, V]:
        """The entries that are known."""
        with self._lock:
            found = {key: self._entries[key] for key in keys if key in self._entries}
            for key in found:
                self._entries.move_to_end(key)
            return found

    def put_all(self, entries: Mapping[K, V]) -> None:
        """Add the entries; the ones unused for longest make room."""
        with self._lock:
            self._entries |= entries
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)


def _at_sight(a: str | None, b: str | None) -> Verdict | Key:
    """The verdict on a pair that needs no process, else the key of the pair: the same in both orders."""
    if a is None or b is None:
        return Verdict.DIFFERENT
    a, b = a.strip(), b.strip()
    if a == b:
        return Verdict.EQUAL
    if max(len(a), len(b)) > MAX_LENGTH:
        return Verdict.DIFFERENT
    return (a, b) if a <= b else (b, a)


def _verdict(reply: Message) -> Verdict:
    if reply["status"] == "ok":
        return Verdict.EQUAL if reply["equal"] else Verdict.DIFFERENT
    return Verdict(reply["status"])


def _form(reply: Message, otherwise: str) -> _Form:
    """The form in a reply; without one, `otherwise` is the form of an answer that nothing is to be compared with."""
    if reply["status"] != "ok":
        return _Form(otherwise, is_comparable=False)
    return _Form(reply["form"], None if reply["value"] is None else complex(*reply["value"]))
