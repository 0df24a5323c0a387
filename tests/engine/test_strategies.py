"""Every strategy on the real engine: clean pools, records that replay, no dependence on the batch, and what equals what."""

import json
import math

import pytest
from runs import answers, is_empty, outcomes, requests, transcript

from tts.record import replay
from tts.strategies import STRATEGIES
from tts.tasks.base import Thinking
from tts.tasks.chain import Chain
from tts.verifiers.base import Function


class EveryTemplate(Chain):
    """The chain task with every template: earlier answers are shown in front of the question, whatever the policy makes of it."""

    templates = ("solve", "think", "revise", "correct", "debate", "judge")
    thinking = Thinking(end="A", wait=";", answer="A")
    max_tokens = 60

    def render(self, template, question, previous, fields):
        return "".join(text[:6] for text in previous) + question


SMALL = {
    "lookahead": {"k": 1, "max_steps": 4},
    "particle_gibbs": {"iterations": 2},
    "deepconf_online": {"warmup": 3, "window": 4, "keep": 50.0},
    "deepconf_offline": {"window": 4, "keep": 50.0},
    "speculative_rejection": {"every": 9},
    "budget_forcing": {"waits": 1, "max_thinking": 20},
    "hybrid": {"width": 3},
    "grm_best_of_n": {"k": 2},
    "esc": {"window": 2},
    "sequential_revision": {"chains": 2},
    "self_correction": {"rounds": 1},
    "debate": {"rounds": 1},
}


def with_every_template(search):
    """The policy is its own judge."""
    search.task = EveryTemplate()
    search.policies["grm"] = search.policies["policy"]
    return search


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_strategy_leaves_no_page_replays_and_does_not_depend_on_the_batch(make_search, name):
    search, small = (
        with_every_template(make_search(**sizes)) for sizes in ({}, {"num_pages": 60, "page_size": 5, "max_rows": 3})
    )
    made = requests(name, count=2, n=4, **SMALL.get(name, {}))
    found, again = outcomes(search, made), outcomes(small, made)
    assert is_empty(search) and is_empty(small)
    assert repr([transcript(o) for o in found]) == repr([transcript(o) for o in again])  # NaN is NaN
    assert [o.session.meter.search_cost() for o in found] == [o.session.meter.search_cost() for o in again]
    for outcome in found:
        meter = outcome.session.meter
        assert outcome.leaves and meter.policy_tokens == sum(node.cost for node in outcome.session.nodes)
        assert all(sum(len(step.tokens) for step in x.path) <= EveryTemplate.max_tokens for x in outcome.leaves)
        replayed = replay(json.loads(json.dumps(outcome.record(), allow_nan=False)), search.task)
        assert repr([replica(x) for x in replayed]) == repr([replica(x) for x in outcome.leaves])


def replica(leaf):
    return [(step.tokens, step.end, step.scores, step.running, repr(step.logprobs)) for step in leaf.path]


@pytest.mark.parametrize(
    "scores", [lambda n: [math.nan] * n, lambda n: [0.5] * (n - 1), lambda n: [0.5] * n], ids=["NaN", "wrong length", "constant"]
)
def test_a_verifier_that_says_nothing_ends_no_strategy_with_an_exception(make_search, scores):
    search = with_every_template(make_search(verifier=Function(lambda question, steps: scores(len(steps)))))
    guided = sorted(name for name, strategy in STRATEGIES.items() if strategy.needs_verifier)
    for name in guided:
        for outcome in outcomes(search, requests(name, count=1, n=4, **SMALL.get(name, {}))):
            assert len(outcome.leaves) >= 1 and is_empty(search), name


ONE = [
    *("beam", "dvts", "rebase", "dora", "particle_filter", "entropic_particle_filter", "particle_gibbs", "ab_mcts"),
    *("sequential_revision", "esc", "adaptive_consistency", "deepconf_offline", "deepconf_online", "speculative_rejection"),
]


@pytest.mark.parametrize("name", ONE)
def test_one_branch_is_best_of_one_token_for_token(make_search, name):
    best = outcomes(with_every_template(make_search()), requests("best_of_n", count=3, n=1))
    found = outcomes(with_every_template(make_search()), requests(name, count=3, n=1))
    assert [answers(o) for o in found] == [answers(o) for o in best]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("speculative_rejection", {"rejected": 0.0, "every": 10}),
        ("esc", {"window": 6}),
        ("adaptive_consistency", {"threshold": 1.0, "batch": 4}),
        ("deepconf_offline", {"keep": 100.0}),
        ("deepconf_online", {"warmup": 6}),
    ],
)
def test_what_never_stops_early_is_best_of_n_token_for_token(make_search, name, changes):
    best = outcomes(make_search(), requests("best_of_n", count=3, n=6))
    found = outcomes(make_search(), requests(name, count=3, n=6, **changes))
    for one, other in zip(found, best):
        everything = [n for n in one.session.nodes if n.is_done]
        assert sorted(answers_of(everything)) == sorted(answers(other))


def answers_of(leaves):
    return [tuple(t for node in leaf.path for t in node.tokens) for leaf in leaves]
