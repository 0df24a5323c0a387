"""Reading the final answer out of a solution: the content of its last ``\\boxed``."""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOKEN = re.compile(
    r"""\\(?=\\(?:boxed|fbox)(?![A-Za-z]))    # the first backslash of an over-escaped "\\boxed"
      | \\(?:boxed|fbox)(?![A-Za-z])\s*
      | \\.                                   # any other escape: "\{" and "\}" are no braces, "\\" escapes nothing
      | [{}$\s]""",
    re.VERBOSE | re.DOTALL,
)
_BARE_ENDS = ("$", "\\\\", "\\)", "\\]")
_NO_BOX = -1


def extract(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{...}``, ``\boxed x`` or ``\fbox`` in `text`, stripped.

    Braces must balance; ``\{`` and ``\}`` do not count. Of nested boxes the innermost is the last. A box that is cut off is
    passed over for the complete one before it. Without braces the content is one run without spaces, which a ``$``, a
    ``\)``, a ``\]`` or the closing brace of its surroundings ends. An empty last box, or none, is `None`: nothing else in the
    text is taken for an answer. One pass: linear in ``len(text)`` whatever the text.
    """
    last = (_NO_BOX, _NO_BOX)
    for start, end in _boxes(text):
        last = max(last, (start, end))
    return text[slice(*last)].strip() or None if last[0] != _NO_BOX else None


def _boxes(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of the content of every complete box, in the order in which they end."""
    open_braces: list[int] = []  # for each open "{": where the box's content starts, or _NO_BOX for another brace
    bare, bare_depth = _NO_BOX, 0  # the box without braces that is being read, and how many braces were open around it
    after_box = _NO_BOX  # where the last "\boxed" ended: a "{" there is its own
    for token in _tokens(text):
        kind, start, end = token.group(), token.start(), token.end()
        if bare != _NO_BOX and _ends_bare(kind, len(open_braces) - bare_depth):
            yield bare, start
            bare = _NO_BOX
        if kind == "{":
            is_box = start == after_box
            open_braces.append(end if is_box else _NO_BOX)
            bare = _NO_BOX if is_box else bare
        elif kind == "}" and open_braces:
            content = open_braces.pop()
            if content != _NO_BOX:
                yield content, start
        elif kind.startswith(("\\boxed", "\\fbox")):
            after_box = bare = end
            bare_depth = len(open_braces)
    if _NO_BOX < bare < len(text) and bare_depth == len(open_braces):
        yield bare, len(text)


def _ends_bare(kind: str, depth: int) -> bool:
    """Whether a token ends a box without braces; `depth` counts the braces opened since the box began."""
    return depth == 0 and (kind in _BARE_ENDS or kind == "}" or kind.isspace())


def _tokens(text: str) -> Iterator[re.Match[str]]:
    """The characters of `text` that matter, in order: at most one token per character, found without backtracking."""
    return _TOKEN.finditer(text)
