"""An engine without a model: it answers a strategy's moves from hashes, so a search is a function of its seed.

A token is drawn from a hash of (seed, lineage, position) as the real engine draws it, or, at temperature 0, of the text so far.
`script` turns the draw into a token, `verifier` turns a node into a score; tests put their own in place of both.
"""

from __future__ import annotations

import hashlib

import torch

import tts_kernels
from tts import selection, strategies
from tts.allocation import kernel_rule
from tts.moves import All, Allocate, Answer, Drop, Embed, Expand, Move, Score, Steps, Tokens, Top
from tts.record import Answered
from tts.strategies import SearchProblem
from tts.tasks.base import Thinking
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


class ScriptedTask:
    """Answers are `None` or one of three: what the text ends with, if it has ended."""

    name, templates = "scripted", ("solve", "revise", "correct", "debate", "judge", "think")
    max_tokens = MAX_TOKENS
    thinking = Thinking(end="END", wait="Wait", answer="so")

    def extract(self, text):
        return None if not text.endswith(chr(END)) else str(len(text) % 3)

    def group(self, answers):
        return selection.exact(answers)


class ScriptedEngine:
    """Answers the moves of one problem; `log` holds every (move, result) in order.

    `models` are the policies that there are, `num_drawn` the tokens that were drawn.
    """

    def __init__(self, seed=0, script=usual, verifier=None, models=("policy",), task=None):
        self.seed, self.script, self.models, self.task = seed, script, models, task or ScriptedTask()
        self.verifier = verifier or (lambda node: draw("score", seed, solution(node)))
        self.log: list[tuple[Move, object]] = []
        self.record: list[Answered] = []
        self.roots: dict[Prompt, Node] = {}
        self.num_drawn = 0

    def run(self, name, **parameters):
        """The answers of the strategy of that name."""
        strategy = strategies.find(name)
        strategy.check_task(self.task)
        problem = SearchProblem("a question", str(self.seed), self.seed, self.task)
        return self.drive(strategy.run(problem, strategy.make_parameters(parameters)), self.record)

    def drive(self, generator, record=None):
        result, record = None, [] if record is None else record
        while True:
            try:
                move = generator.send(result)
            except StopIteration as stop:
                return stop.value
            result, branches = self.all(move) if isinstance(move, All) else (self.answer(move), None)
            self.log.append((move, result))
            record.append(Answered(move, result, branches))

    def answer(self, move):
        if isinstance(move, Expand):
            pairs = zip(move.nodes, move.widths, strict=True)
            return [self.grow(self.node(source), move) for source, width in pairs for _ in range(width)]
        if isinstance(move, Score):
            return [self.score(node, move.by) for node in move.nodes]
        if isinstance(move, Allocate):
            return self.allocate(move)
        if isinstance(move, Embed):
            return [torch.tensor([draw("embed", self.node(x).key, i) - 0.5 for i in range(4)]).numpy() for x in move.nodes]
        assert isinstance(move, Drop), f"this engine has no answer to {move!r}"
        return None

    # ---- All

    def all(self, move):
        """Every branch is run to its end; those behind `stop` in the order (tokens, index) give None."""
        found = []
        for index, branch in enumerate(move.branches):
            before, record = self.num_drawn, []
            result = self.drive(branch, record)
            found.append((self.num_drawn - before, index, result, record))
        results, records = [None] * len(found), [None] * len(found)
        seen = []
        for _, index, result, record in sorted(found, key=lambda row: row[:2]):
            results[index], records[index] = result, record
            seen.append(result)
            if move.stop is not None and move.stop(list(seen)):
                break
        return results, records

    # ---- Expand

    def node(self, source):
        if isinstance(source, Node):
            return source
        assert source.model in self.models, f"there is no policy {source.model}"
        assert source.template in self.task.templates, f"the task has no template {source.template}"
        if source not in self.roots:
            said = tuple(node.key for node in source.previous)
            key = number(source.template, source.model, source.fields, said)
            self.roots[source] = Node(None, (), b"", "prompt", key, source, order=(len(self.roots),))
        return self.roots[source]

    def grow(self, parent, move):
        """One child: a chain of steps of which the last is given."""
        assert move.prefix or not parent.is_done, "a branch that has ended was expanded"
        key = parent.key if move.temperature == 0 else self.lineage(parent)
        before, node, num_steps = list(solution(parent)), parent, 0
        left = [MAX_TOKENS - len(before)]
        left += [move.max_tokens] if move.max_tokens is not None else []
        forced = [2 + ord(letter) % 7 for letter in move.prefix]
        if left[0] <= len(forced):
            return Node(parent, (), b"", "length", key, parent.prompt)
        budget, end = self.budget(left[0] - len(forced), move)
        confidences = []
        while True:
            node = self.grow_step(node, before, key, move, forced, budget, end, confidences)
            before += node.tokens
            num_steps += 1
            budget -= node.cost
            forced = []
            wanted = move.until.count if isinstance(move.until, Steps) else None
            if node.end != "step" or num_steps == wanted:
                return node
            node.num_drawn_children = 1  # the chain goes on with its first child's lineage

    def budget(self, left, move):
        """The most tokens to draw, and how a branch ends that draws them all."""
        limits = [(left, "length")]
        if move.max_tokens is not None:
            limits.append((move.max_tokens, "length"))
        if isinstance(move.until, Tokens):
            limits.append((move.until.count, "cut"))
        return min(limits, key=lambda limit: limit[0])

    def lineage(self, parent):
        """The first child of a step goes on with its parent's key; the children of the prompt are all different."""
        index = parent.num_drawn_children
        parent.num_drawn_children += 1
        if index == 0 and parent.parent is not None:
            return parent.key
        return number(parent.key, parent.num_path_tokens, index)

    def grow_step(self, parent, before, key, move, forced, budget, limit_end, confidences):
        tokens, end = list(forced), None
        is_greedy = move.temperature == 0
        while end is None:
            position = len(before) + len(tokens)
            uniform = draw("greedy", before, tokens) if is_greedy else draw(self.seed, key, position)
            tokens.append(self.script(uniform, position))
            confidences.append(3 * draw("confidence", key, position))
            self.num_drawn += 1
            if tokens[-1] == END:
                end = "stop"
            elif len(tokens) - len(forced) == budget:
                end = limit_end
            elif tokens[-1] == STEP_END:
                end = "step"
            elif move.watch and self.is_below(confidences, move.watch):
                end = "watch"
        cost = len(tokens) - len(forced)
        stats = {name: tuple([float("nan")] * len(forced) + confidences[-cost:]) for name in move.stats}
        if end == "stop" and isinstance(move.until, Answer) and not move.until.keep_stop:
            tokens.pop()
            stats = {name: values[:-1] for name, values in stats.items()}
        return Node(parent, tuple(tokens), bytes(tokens), end, key, parent.prompt, len(forced), cost, stats=stats)

    @staticmethod
    def is_below(confidences, watch):
        last = confidences[-watch.window :]
        return len(last) == watch.window and sum(last) / len(last) < watch.below

    # ---- Score, Allocate

    def score(self, node, by):
        for step in node.path:
            if by not in step.scores:
                step.set_score(by, self.verifier(step))
        return node.scores[by]

    def allocate(self, move):
        """The `prune` op, one group after the other."""
        values = [node.value() for node in move.nodes] if move.values is None else list(move.values)
        groups = [0] * len(move.nodes) if move.groups is None else list(move.groups)
        assert len(values) == len(groups) == len(move.nodes)
        names = list(dict.fromkeys(groups))
        totals = [move.total] * len(names) if isinstance(move.total, int) else list(move.total)
        widths = [0] * len(move.nodes)
        for name, total in zip(names, totals, strict=True):
            rows = [i for i, group in enumerate(groups) if group == name]
            key = number("allocate", self.seed, [(move.nodes[i].key, move.nodes[i].depth) for i in rows])
            for row, share in zip(rows, shares([values[i] for i in rows], move.rule, total, key), strict=True):
                widths[row] = share
        return widths


def shares(values, rule, total, key=0):
    """Children of each value under a rule, by the `prune` op."""
    name, temperature = kernel_rule(rule)
    sizes = [torch.tensor(x, dtype=torch.int32) for x in ([0, len(values)], [total], [rule.k if isinstance(rule, Top) else 0])]
    scores, keys = torch.tensor(values, dtype=torch.float32), torch.tensor([key])
    return tts_kernels.prune(scores, *sizes, keys, name, float(temperature), total).widths.tolist()
