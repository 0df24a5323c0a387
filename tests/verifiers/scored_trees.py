"""Search trees of random steps, scored by a verifier as a search would: ragged batches, forks, prunes, whole chains."""

from __future__ import annotations

import random

from tts.meter import Meter
from tts.tree import Node, Prompt

WORDS = ["so ", "the", "x = 3", "\n", " 2+2", "e", " é", "a\n", "th", "- 1", " ", "because"]


def make_root(order: int = 0) -> Node:
    return Node(None, [1], b"", "prompt", 0, Prompt(), order=(order,))


def make_child(parent: Node, text: str, end: str = "step") -> Node:
    return Node(parent, [1], text.encode(), end, 0, parent.prompt)


def random_step(rng: random.Random) -> str:
    return "".join(rng.choice(WORDS) for _ in range(rng.randint(1, 6))) + rng.choice(["\n\n", "\n\n", "", " "])


def drain(verifier) -> list[Node]:
    """Work until nothing is left; scores are entered in the nodes."""
    scored = []
    while verifier.has_work:
        for node, score in sorted(verifier.step(), key=lambda pair: pair[0].depth):
            if isinstance(score, Exception):
                raise score
            node.set_score("prm", score)
            scored.append(node)
    return scored


def score_tree(verifier, question: str, seed: int, max_steps: int = 12) -> list[Node]:
    """All scored nodes of a tree of up to `max_steps` steps; the verifier is closed and its pool is empty afterwards."""
    rng, meter, root = random.Random(seed), Meter(), make_root(seed)
    nodes, live = [], [root]
    for _ in range(max_steps):
        children = [make_child(parent, random_step(rng)) for parent in live for _ in range(rng.randint(1, 3))]
        rng.shuffle(children)
        cut = rng.randint(0, len(children))
        for group in (children[:cut], children[cut:]):
            verifier.submit(question, group, meter)
            if rng.random() < 0.5:
                drain(verifier)
        drain(verifier)
        nodes += children
        live = rng.sample(children, min(3, len(children)))
    chain = [live[0]]
    for _ in range(3):
        chain.append(make_child(chain[-1], random_step(rng)))
    verifier.submit(question, chain[1:], meter)
    drain(verifier)
    nodes += chain[1:]
    assert all("prm" in node.scores for node in nodes)
    verifier.close([root, *nodes])
    verifier.kv.check()
    assert verifier.kv.num_used_pages == 0 and verifier.kv.num_nodes == 0 and not verifier.has_work
    assert meter.verifier_tokens > 0
    return nodes
