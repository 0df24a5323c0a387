"""An engine without a model: it answers a strategy's moves from hashes, so a search is a function of its seed.

A token is drawn from a hash of (seed, lineage, position) as the real engine draws it, or, at temperature 0, of the text so far.
`script` turns the draw into a token, `verifier` turns a node into a score; tests put their own in place of both.
"""

from __future__ import annotations

import hashlib
import math

from tts import strategies
from tts.moves import All, Allocate, Answer, Drop, Expand, Move, Score, Steps, Top
from tts.strategies import SearchProblem
from tts.tree import Node, Prompt

END, STEP_END = 0, 1
"""Tokens that end the answer and the step; all others are text."""
MAX_TOKENS = 14


def draw(*key):
    """A number in [0, 1) that is a function of `key` alone."""
    return number(*key) / 2**56


def number(*key):
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "big")


def usual(uniform, position):
    """Steps of about two tokens, answers of one to about ten steps."""
    if uniform < 0.1:
        return END
    return STEP_END if uniform < 0.5 else 2 + int(uniform * 97) % 7


def solution(node):
    """The tokens of the whole path."""
    return tuple(token for step in node.path for token in step.tokens)


def top(values, keep, total):
    """`total` shared evenly among the `keep` best finite values, the remainder to the best; of equals the first is better."""
    order = sorted((i for i, value in enumerate(values) if math.isfinite(value)), key=lambda i: -values[i])
    kept = order[: max(1, min(keep, total))]
    return [total // len(kept) + (kept.index(i) < total % len(kept)) if i in kept else 0 for i in range(len(values))]


class ScriptedEngine:
    """Answers the moves of one problem; `log` holds every (move, result) in order."""

    def __init__(self, seed=0, script=usual, verifier=None):
        self.seed, self.script = seed, script
        self.verifier = verifier or (lambda node: draw("score", seed, solution(node)))
        self.log: list[tuple[Move, object]] = []
        self.roots: dict[Prompt, Node] = {}

    def run(self, name, **parameters):
        """The answers of the strategy of that name."""
        strategy = strategies.find(name)
        problem = SearchProblem("a question", str(self.seed), self.seed)
        return self.drive(strategy.run(problem, strategy.make_parameters(parameters)))

    def drive(self, generator):
        result = None
        while True:
            try:
                move = generator.send(result)
            except StopIteration as stop:
                return stop.value
            result = self.answer(move)
            self.log.append((move, result))

    def answer(self, move):
        if isinstance(move, Expand):
            pairs = zip(move.nodes, move.widths, strict=True)
            return [self.grow(self.node(source), move) for source, width in pairs for _ in range(width)]
        if isinstance(move, Score):
            return [self.score(node, move.by) for node in move.nodes]
        if isinstance(move, Allocate):
            return self.allocate(move)
        if isinstance(move, All):
            return [self.drive(branch) for branch in move.branches]
        assert isinstance(move, Drop), f"this engine has no answer to {move!r}"
        return None

    # ---- Expand

    def node(self, source):
        if isinstance(source, Node):
            return source
        if source not in self.roots:
            self.roots[source] = Node(None, (), b"", "prompt", number(source.template), source, order=(len(self.roots),))
        return self.roots[source]

    def grow(self, parent, move):
        """One child: a chain of steps of which the last is given."""
        assert not parent.is_done, "a branch that has ended was expanded"
        key = parent.key if move.temperature == 0 else self.lineage(parent)
        assert isinstance(move.until, Steps | Answer), f"this engine does not decode until {move.until!r}"
        before, node, num_steps = list(solution(parent)), parent, 0
        while True:
            node = self.grow_step(node, before, key, move)
            before += node.tokens
            num_steps += 1
            wanted = move.until.count if isinstance(move.until, Steps) else None
            if node.end != "step" or num_steps == wanted:
                return node
            node.num_drawn_children = 1  # the chain goes on with its first child's lineage

    def lineage(self, parent):
        """The first child of a step goes on with its parent's key; the children of the prompt are all different."""
        index = parent.num_drawn_children
        parent.num_drawn_children += 1
        if index == 0 and parent.parent is not None:
            return parent.key
        return number(parent.key, parent.num_path_tokens, index)

    def grow_step(self, parent, before, key, move):
        tokens, end = [], None
        while end is None:
            position = len(before) + len(tokens)
            is_greedy = move.temperature == 0
            uniform = draw("greedy", before, tokens) if is_greedy else draw(self.seed, key, position)
            tokens.append(self.script(uniform, position))
            if tokens[-1] == END:
                end = "stop"
            elif position + 1 == MAX_TOKENS:
                end = "length"
            elif tokens[-1] == STEP_END:
                end = "step"
        return Node(parent, tuple(tokens), bytes(tokens), end, key, parent.prompt, cost=len(tokens))

    # ---- Score, Allocate

    def score(self, node, by):
        for step in node.path:
            if by not in step.scores:
                step.set_score(by, self.verifier(step))
        return node.scores[by]

    def allocate(self, move):
        assert isinstance(move.rule, Top), f"this engine has no rule {move.rule!r}"
        values = [node.value() for node in move.nodes] if move.values is None else list(move.values)
        groups = [0] * len(move.nodes) if move.groups is None else list(move.groups)
        assert len(values) == len(groups) == len(move.nodes)
        names = list(dict.fromkeys(groups))
        totals = [move.total] * len(names) if isinstance(move.total, int) else list(move.total)
        widths = [0] * len(move.nodes)
        for name, total in zip(names, totals, strict=True):
            rows = [i for i, group in enumerate(groups) if group == name]
            shares = top([values[i] for i in rows], move.rule.k, total)
            for row, share in zip(rows, shares, strict=True):
                widths[row] = share
        return widths
