"""What the prompts of a problem have in common: read once, though they are different prompts.

A judge sees the same responses in many orders, a revision the same question with other answers, a debate the same system
prompt: their tokens begin alike. A *stem* is such a beginning; prompts hang on stems as branches hang on prompts.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from tts.engine.cache import TreeCache
from tts.tree import Node

MIN_TOKENS = 16
"""A shorter beginning costs less to read again than to keep apart."""


class Stems:
    """A forest of token runs above the prompts of all problems: a prefix tree with one tree a problem and beginning.

    Stems are nodes that hold all tokens from the first, as prompts do; `begin` says where a node's own run starts, behind those
    of the nodes `above` it.
    """

    def __init__(self) -> None:
        self._above: dict[Node, Node] = {}
        self._begin: dict[Node, int] = {}

    def above(self, node: Node) -> Node | None:
        """The node whose KV comes before that of `node`."""
        return node.parent or self._above.get(node)

    def tokens(self, node: Node) -> Sequence[int]:
        """The tokens of the node's own run."""
        begin = self._begin.get(node, 0)
        return node.tokens[begin:] if begin else node.tokens

    def enter(self, prompt: Node, others: Iterable[Node], cache: TreeCache) -> tuple[int, Node | None]:
        """Hang a new prompt on what it has in common with one of `others`: how many tokens, and the stem if that is new.

        Both keep their last token to themselves, so that the sum over prompts does not depend on their order.
        """
        shared, other = max(
            ((_num_equal(prompt, other), other) for other in others), key=lambda pair: pair[0], default=(0, prompt)
        )
        if shared < MIN_TOKENS:
            return 0, None
        lower = other
        while self._begin.get(lower, 0) >= shared:
            lower = self._above[lower]
        self._begin[prompt] = shared
        if len(lower.tokens) == shared:
            self._above[prompt] = lower
            return shared, None
        stem = Node(None, lower.tokens[:shared], b"", "prompt", lower.key, lower.prompt)
        if lower in self._above:
            self._above[stem], self._begin[stem] = self._above[lower], self._begin[lower]
        self._above[lower] = self._above[prompt] = stem
        self._begin[lower] = shared
        cache.split(lower, stem)
        return shared, stem

    def forget(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            self._above.pop(node, None)
            self._begin.pop(node, None)


def _num_equal(prompt: Node, other: Node) -> int:
    """Tokens that both begin with, the last ones left out."""
    one, two = prompt.tokens, other.tokens
    # Slices are compared in C: a prompt of thousands of tokens costs a dozen of comparisons.
    return bisect.bisect_left(range(min(len(one), len(two)) - 1), True, key=lambda i: one[: i + 1] != two[: i + 1])
