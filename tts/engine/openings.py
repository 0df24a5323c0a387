"""How a move opens: prompts become roots of the tree, and the children that are asked for become rows."""

from __future__ import annotations

import math
from dataclasses import replace

from tts.engine.cache import TreeCache
from tts.engine.model import Model
from tts.engine.rows import Recipe, Row
from tts.engine.sampling import child_key, root_key
from tts.engine.session import Session, Ticket
from tts.engine.stems import Stems
from tts.engine.stops import StopTable
from tts.moves import Answer, Expand, Steps, Tokens
from tts.tree import Node, Prompt

UNLIMITED = 1 << 30


class Openings:
    """Makes nodes and rows of what a move says, and charges the prompts that are new."""

    def __init__(self, model: Model, cache: TreeCache, stems: Stems, stops: StopTable):
        self.model, self.cache, self.stems, self.stops = model, cache, stems, stops

    def encode(self, session: Session, prompt: Prompt) -> list[int]:
        """A prompt's tokens; `ValueError` where there are none."""
        tokens = self.model.encode(session.render(prompt))
        if not tokens:
            raise ValueError(f"problem {session.id!r}: its prompt has no tokens")
        return tokens

    def node(self, session: Session, source: Node | Prompt) -> Node:
        """The node to expand; a prompt becomes a root, the same one each time."""
        if isinstance(source, Node):
            return source
        if source not in session.roots:
            session.roots[source] = self._root(session, source)
        return session.roots[source]

    def recipe(self, session: Session, move: Expand) -> Recipe:
        """How the children of the move are drawn."""
        until, sampling = move.until, session.sampling
        if move.temperature is not None:
            sampling = replace(sampling, temperature=move.temperature)
        forced = tuple(self.model.tokenizer(move.prefix, add_special_tokens=False)["input_ids"]) if move.prefix else ()
        is_cut = isinstance(until, Tokens) and until.count <= (move.max_tokens or UNLIMITED)
        return Recipe(
            sampling=sampling,
            start_state=self.stops.start(session.step_stop, until.stop if isinstance(until, Answer) else ()),
            num_steps=until.count if isinstance(until, Steps) else UNLIMITED,
            max_tokens=until.count if isinstance(until, Tokens) and is_cut else move.max_tokens,
            max_tokens_end="cut" if is_cut else "length",
            keep_stop=getattr(until, "keep_stop", True),
            forced=forced,
            watch=move.watch,
            stats=move.stats,
        )

    def row(self, ticket: Ticket, index: int, age: int, parent: Node, recipe: Recipe) -> Row:
        """A child of `parent` that waits for its first token, or for the one behind those that are forced."""
        if recipe.sampling.temperature:
            key = _child_key(parent)
            parent.num_drawn_children += 1
        else:
            key = root_key(parent.key, "greedy")
        left = ticket.session.max_tokens - (parent.num_path_tokens - parent.root.num_path_tokens)
        wanted = UNLIMITED if recipe.max_tokens is None else recipe.max_tokens + len(recipe.forced)
        end = recipe.max_tokens_end if wanted < left else "length"
        row = Row(ticket, index, age, parent, key, recipe, min(left, wanted), end)
        row.state, row.steps_left = recipe.start_state, recipe.num_steps
        if recipe.forced:
            row.tokens = recipe.forced
            row.logprobs = row.confidence = row.certainty = (math.nan,) * len(recipe.forced)
            row.state = self.stops.walk(row.state, recipe.forced)
        return row

    def _root(self, session: Session, prompt: Prompt) -> Node:
        tokens = self.encode(session, prompt)
        self.model.check_fits(self.cache.kv, len(tokens), session.max_tokens, f"problem {session.id!r}, {prompt.template!r}")
        previous = tuple(node.key for node in prompt.previous)
        lineage = session.seed, session.id, prompt.template, prompt.model, prompt.fields, previous
        root = Node(None, tokens, b"", "prompt", root_key(lineage), prompt, order=(session.order, len(session.roots)))
        alike = (other for known, other in session.roots.items() if known.model == prompt.model)
        shared, stem = self.stems.enter(root, alike, self.cache)
        session.shared[root] = shared
        if stem is not None:
            session.stems.append(stem)
        session.meter.reused_tokens += shared
        session.meter.charge_prompt(self.model, len(tokens) - shared)
        return root


def _child_key(parent: Node) -> int:
    """Lineages: the first child of a step goes on with its parent's; the children of a prompt are all different."""
    if parent.parent is None:
        return root_key(parent.key, parent.num_drawn_children)
    return child_key(parent.key, parent.num_path_tokens, parent.num_drawn_children)
