"""Every strategy, whatever its parameters, on degenerate policies and verifiers: it ends, within its budget, with a record."""

import dataclasses
import json
import math
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies.scripted import END, MAX_TOKENS, STEP_END, ScriptedEngine, draw, solution, usual

from tts.moves import All, Expand
from tts.record import dump, replay
from tts.strategies import STRATEGIES

SMALL = {
    "n": (1, 12),
    "max_steps": (1, 8),
    "iterations": (1, 3),
    "rounds": (1, 3),
    "waits": (0, 3),
    "k": (2, 6),
    "k_meta": (0, 2),
    "lookahead": (0, 3),
}
"""Ranges that keep a search short; every other parameter is drawn from the whole of its own."""

POLICIES = {
    "usual": usual,
    "ends at once": lambda uniform, position: END,
    "never ends": lambda uniform, position: 2,
    "never ends but in steps": lambda uniform, position: STEP_END,
    "repeats itself": lambda uniform, position: (3, 4, STEP_END)[position % 3] if position < 9 else END,
}
VERIFIERS = {
    "usual": lambda node: draw("score", solution(node)),
    "constant": lambda node: 0.5,
    "certain": lambda node: float(draw("certain", solution(node)) < 0.5),
    "nothing but NaN": lambda node: math.nan,
    "often invalid": lambda node: (math.nan, math.inf, -math.inf, 0.3, 0.7)[int(5 * draw("odd", solution(node)))],
    "raw rewards": lambda node: 20 * draw("raw", solution(node)) - 10,
}

EXACTLY_N = {
    *("ab_mcts", "beam", "best_of_n", "budget_forcing", "debate", "dora", "dvts", "entropic_particle_filter", "lookahead"),
    *("particle_filter", "particle_gibbs", "rebase", "search_and_learn_dvts", "self_correction", "sequential_revision"),
}


def most_children(name, p):
    """The most children that a strategy may ask for: its budget in expansions."""
    rounds = getattr(p, "max_steps", 1)
    return {
        "lookahead": lambda: p.n * rounds * (1 + (p.k > 0)),
        "particle_gibbs": lambda: p.n * rounds * p.iterations,
        "self_correction": lambda: p.n * (1 + p.rounds),
        "debate": lambda: p.n * (1 + p.rounds),
        "budget_forcing": lambda: p.n * (2 + p.waits),
        "speculative_rejection": lambda: p.n * math.ceil(MAX_TOKENS / p.every),
        "hybrid": lambda: p.n * MAX_TOKENS,
        "grm_best_of_n": lambda: p.n + p.k * p.n * p.n,  # pairwise judgements see every ordered pair
        **dict.fromkeys(
            ("search_and_learn_beam", "search_and_learn_dvts"),
            lambda: p.n * rounds * (1 + (p.lookahead > 0) + p.empty_step),
        ),
    }.get(name, lambda: p.n * rounds)()


@st.composite
def parameters(draw, strategy):
    given = {}
    for field in dataclasses.fields(strategy.parameters):
        kind, low, high = typing.get_type_hints(strategy.parameters)[field.name], field.metadata["low"], field.metadata["high"]
        if field.metadata["choices"]:
            given[field.name] = draw(st.sampled_from(field.metadata["choices"]))
        elif kind is int:
            given[field.name] = draw(st.integers(*SMALL.get(field.name, (low, high))))
        elif kind is bool:
            given[field.name] = draw(st.booleans())
        elif kind is float:
            given[field.name] = draw(st.floats(low, high))
    if strategy.name == "search_and_learn_dvts":  # its subtrees must divide n
        given["expand"] = draw(st.sampled_from([m for m in range(1, given["n"] + 1) if given["n"] % m == 0]))
    return given


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_ends_within_its_budget_and_its_record_replays(name, request):
    strategy = STRATEGIES[name]
    seen = set()

    @settings(max_examples=request.config.getoption("--search-cases"), deadline=None, derandomize=True)
    @given(parameters(strategy), st.integers(0, 99), st.sampled_from(sorted(POLICIES)), st.sampled_from(sorted(VERIFIERS)))
    def search(values, seed, policy, verifier):
        engine = ScriptedEngine(seed, POLICIES[policy], VERIFIERS[verifier], models=("policy", "grm"))
        answers = engine.run(name, **values)
        p = strategy.make_parameters(values)
        assert 1 <= len(answers) <= p.n
        assert len(answers) == p.n or name not in EXACTLY_N
        num_children = sum(sum(move.widths) for move, _ in engine.log if isinstance(move, Expand))
        assert num_children <= most_children(name, p)
        assert all(sum(len(step.tokens) for step in x.path) <= MAX_TOKENS for x in answers)
        if name == "hybrid":
            assert engine.num_drawn <= p.n * MAX_TOKENS
        if name == "budget_forcing":
            assert all(sum(step.cost for step in x.path[:-1]) <= p.max_thinking for x in answers if x.depth == 2)
        record = dump(strategy, p, "a question", str(seed), seed, engine.record)
        again = replay(json.loads(json.dumps(record, allow_nan=False)), engine.task)
        assert [transcript(x) for x in again] == [transcript(x) for x in answers]
        seen.add((policy, verifier))

    search()
    assert seen


def transcript(leaf):
    """All of an answer that a result rests on; NaN equals NaN."""
    return [(step.tokens, step.data, step.end, step.cost, repr(step.scores), repr(step.running)) for step in leaf.path]


def test_the_record_of_branches_that_were_cut_short_replays():
    from tts.moves import Answer, Steps

    def branch(problem, i):
        live = yield Expand([problem.root], 1, Steps(1))
        return (yield Expand(live, 1, Answer())) if not live[0].is_done else live

    engine = ScriptedEngine(3)

    def search(problem):
        found = yield All([branch(problem, i) for i in range(5)], lambda results: len(results) == 2)
        return [x for leaves in found if leaves for x in leaves]

    from tts.strategies import SearchProblem, Strategy

    strategy = Strategy("cut_short", "", STRATEGIES["esc"].parameters, lambda problem, p: search(problem))
    p = strategy.make_parameters({})
    answers = engine.drive(strategy.run(SearchProblem("q", "0", 3, engine.task), p), engine.record)
    record = json.loads(json.dumps(dump(strategy, p, "q", "0", 3, engine.record)))
    assert len(answers) == 2 and record["moves"][0]["branches"].count(None) == 3
    STRATEGIES["cut_short"] = strategy
    try:
        assert [transcript(x) for x in replay(record, engine.task)] == [transcript(x) for x in answers]
    finally:
        del STRATEGIES["cut_short"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record | {"version": 0}, "record has version 0; this package replays version 1"),
        (lambda record: record | {"moves": record["moves"][:1]}, "asks for Score where its record is at its end"),
        (lambda record: record | {"moves": record["moves"] * 2}, "ended where its record goes on with Expand"),
        (lambda record: record | {"moves": record["moves"][1:]}, "asks for Expand where its record has Score"),
        (lambda record: record | {"strategy": "bean"}, "unknown strategy 'bean'"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(change, message):
    engine = ScriptedEngine(1)
    engine.run("best_of_n", n=2)
    strategy = STRATEGIES["best_of_n"]
    record = dump(strategy, strategy.make_parameters({"n": 2}), "a question", "1", 1, engine.record)
    with pytest.raises(ValueError, match=message):
        replay(change(record), engine.task)
