"""The strategies on an engine without a model: how many answers, which branches survive, and what methods equal each other."""

import dataclasses
import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies.scripted import END, STEP_END, ScriptedEngine, ScriptedTask, draw, shares, solution

from tts.moves import Allocate, Drop, Expand, Score, Steps, Top
from tts.selection import aggregate
from tts.strategies import STRATEGIES, SearchProblem, find
from tts.strategies.base import AGGREGATIONS, MAX_WIDTH
from tts.tree import Node

ALL = ["beam", "best_of_n", "dvts", "lookahead"]
STEPWISE = ["beam", "dvts", "lookahead"]
WIDTHS, EXPANDS = (1, 3, 4, 16), (1, 2, 4, 7)
NAN = math.nan
TASK = ScriptedTask()


def run(name, seed=0, script=None, verifier=None, **values):
    """The engine after the search, and the answers; values that the strategy has no parameter for are left out."""
    engine = ScriptedEngine(seed, *([script] if script else []), verifier=verifier)
    taken = {field.name for field in dataclasses.fields(find(name).parameters)}
    return engine, engine.run(name, **{k: v for k, v in values.items() if k in taken})


def chains(answers):
    """Each answer as its steps' tokens and its end."""
    return [(tuple(step.tokens for step in leaf.path), leaf.end) for leaf in answers]


def moves(engine, kind):
    return [(move, result) for move, result in engine.log if isinstance(move, kind)]


def rounds(engine):
    """(frontier, [(survivor, its number of children)]) of each round that had a next one, as `Score` and `Expand` tell."""
    found, frontier = [], None
    for move, _ in engine.log:
        if isinstance(move, Score) and frontier is None:
            frontier = list(move.nodes)
        elif isinstance(move, Expand) and move.temperature is None and frontier is not None:
            found.append((frontier, [(x, w) for x, w in zip(move.nodes, move.widths, strict=True) if w]))
            frontier = None
    return found


def coarse(seed):
    """A verifier with three scores, so that most selections have ties."""
    return lambda node: (1 + int(3 * draw("coarse", seed, solution(node)))) / 4


def often_nan(seed):
    return lambda node: NAN if draw("nan", seed, solution(node)) < 0.5 else draw("score", seed, solution(node))


# ---- how many answers


@pytest.mark.parametrize("n", WIDTHS)
@pytest.mark.parametrize("name", ALL)
def test_exactly_n_answers_come_back_whole_and_distinct(name, n):
    for seed, expand in itertools.product(range(100), EXPANDS if name in STEPWISE else [1]):
        _, answers = run(name, seed, n=n, expand=expand)
        assert len(answers) == len(set(answers)) == n
        assert all(x.is_done for x in answers)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("script", "end", "depth"),
    [
        (lambda uniform, position: END, "stop", 1),
        (lambda uniform, position: STEP_END, "step", 5),
        (lambda uniform, position: 2, "length", 1),
        (lambda uniform, position: STEP_END if uniform < 0.5 else 2, None, 5),
    ],
    ids=["all end at once", "none ends", "no step ends", "only the ceiling on steps ends"],
)
def test_degenerate_policies_give_n_answers_within_the_ceiling_on_steps(name, script, end, depth):
    for n, expand in itertools.product(WIDTHS, EXPANDS):
        _, answers = run(name, 1, script, n=n, expand=expand, max_steps=5)
        assert len(set(answers)) == len(answers) == n
        if name in STEPWISE:
            assert all(x.depth <= depth and end in (None, x.end) for x in answers)


@pytest.mark.parametrize("name", STEPWISE)
def test_one_round_returns_the_first_steps(name):
    engine, answers = run(name, 3, n=6, max_steps=1)
    ((move, first),) = moves(engine, Expand)
    assert sorted(answers, key=id) == sorted(first, key=id) and move.widths == [6]
    assert all("prm" in x.scores for x in answers)


@pytest.mark.parametrize("name", ALL)
def test_every_answer_and_step_of_it_is_scored(name):
    for seed in range(20):
        _, answers = run(name, seed, n=5, expand=2, max_steps=4)
        assert all("prm" in step.scores for x in answers for step in x.path)


@pytest.mark.parametrize("name", ALL)
def test_a_search_is_a_function_of_its_seed(name):
    first, again, other = (chains(run(name, seed, n=8, expand=2)[1]) for seed in (1, 1, 2))
    assert first == again != other


# ---- identities


@pytest.mark.parametrize("n", WIDTHS)
def test_lookahead_by_no_step_is_beam_search(n):
    for seed, expand in itertools.product(range(20), EXPANDS):
        values = {"n": n, "expand": expand, "prune_agg": AGGREGATIONS[seed % 4]}
        looking, beam = (run(name, seed, k=0, **values) for name in ("lookahead", "beam"))
        assert chains(looking[1]) == chains(beam[1])
        assert len(looking[0].log) == len(beam[0].log)


@pytest.mark.parametrize("n", WIDTHS)
def test_beam_search_that_expands_by_one_is_n_independent_chains(n):
    for seed in range(50):
        beam, whole = (run(name, seed, n=n, expand=1)[1] for name in ("beam", "best_of_n"))
        assert Counter(chains(beam)) == Counter(chains(whole))


@pytest.mark.parametrize("n", WIDTHS)
def test_one_subtree_of_dvts_is_beam_search(n):
    for seed, more in itertools.product(range(40), (0, 3)):
        values = {"n": n, "expand": n + more, "prune_agg": AGGREGATIONS[seed % 4]}
        assert chains(run("dvts", seed, **values)[1]) == chains(run("beam", seed, **values)[1])


def test_the_identities_are_not_trivial():
    def differ(one, other):
        return sum(Counter(chains(run(**one, seed=s)[1])) != Counter(chains(run(**other, seed=s)[1])) for s in range(20))

    beam = {"name": "beam", "n": 8, "expand": 4}
    assert differ(beam, beam) == 0
    for other in ({"name": "lookahead", "k": 1}, {"name": "dvts"}, {"name": "best_of_n"}, {"expand": 2}, {"prune_agg": "prod"}):
        assert differ(beam, beam | other) > 2, other


# ---- who survives


def unfinished(nodes):
    return [x for x in nodes if not x.is_done]


def best(nodes, count, agg="last"):
    """The best by value, of equals the first; written apart from the engine's own selection."""
    left, found = list(nodes), []
    while left and len(found) < count:
        finite = [x.value(agg) for x in left if math.isfinite(x.value(agg))]
        if not finite:
            break
        found.append(next(x for x in left if x.value(agg) == max(finite)))
        left.remove(found[-1])
    return found


@pytest.mark.parametrize("verifier", [None, coarse, lambda seed: lambda node: 0.5], ids=["distinct", "ties", "constant"])
def test_beam_keeps_the_best_of_the_width_over_m_and_the_first_of_equals(verifier):
    for seed, n, expand in itertools.product(range(15), WIDTHS, EXPANDS):
        engine, answers = run("beam", seed, verifier=verifier and verifier(seed), n=n, expand=expand)
        num_done = 0
        for frontier, survivors in rounds(engine):
            num_done += len(frontier) - len(unfinished(frontier))
            width = n - num_done
            kept = best(unfinished(frontier), math.ceil(width / min(expand, n)))
            assert {x for x, _ in survivors} == set(kept)
            widths = dict(survivors)
            assert sum(widths.values()) == width
            assert [widths[x] for x in kept] == sorted(widths.values(), reverse=True), "the remainder goes to the best"
            assert max(widths.values()) - min(widths.values()) <= 1
        assert len(answers) == n


@pytest.mark.parametrize("verifier", [None, coarse, lambda seed: lambda node: 0.5], ids=["distinct", "ties", "constant"])
def test_dvts_keeps_the_best_of_each_subtree_and_the_first_of_equals(verifier):
    for seed, n, expand in itertools.product(range(15), WIDTHS, EXPANDS):
        engine, answers = run("dvts", seed, verifier=verifier and verifier(seed), n=n, expand=expand)
        room = Counter(i // expand for i in range(n))
        assert Counter(subtree(x, expand) for x in answers) == room
        for frontier, survivors in rounds(engine):
            room.subtract(subtree(x, expand) for x in frontier if x.is_done)
            groups = {subtree(x, expand) for x in unfinished(frontier)}
            expected = {t: best([x for x in unfinished(frontier) if subtree(x, expand) == t], 1) for t in groups}
            assert {subtree(x, expand): [x] for x, _ in survivors} == expected
            assert all(width == room[subtree(x, expand)] for x, width in survivors) and len(survivors) == len(groups)


def subtree(node, expand):
    """Where the branch began: its first step's place among the first steps, over M."""
    return node.path[0].order[1] // expand


def test_dvts_never_compares_across_subtrees():
    """Whatever a second subtree's scores are, the first one's survivors and answers stay what they are."""

    def first_subtree(seed, second):
        plain = ScriptedEngine(seed).verifier
        engine, answers = run("dvts", seed, verifier=lambda x: second(x) if subtree(x, 4) else plain(x), n=8, expand=4)
        survivors = [[solution(x) for x, _ in survivors if not subtree(x, 4)] for _, survivors in rounds(engine)]
        return [s for s in survivors if s], chains(x for x in answers if not subtree(x, 4)), chains(answers)

    seconds = [lambda x: 0.99, lambda x: 0.0, lambda x: NAN, lambda x: math.inf, lambda x: draw("other", solution(x))]
    num_changed = 0
    for seed in range(20):
        survivors, answers, everything = first_subtree(seed, ScriptedEngine(seed).verifier)
        for second in seconds:
            other_survivors, other_answers, other_everything = first_subtree(seed, second)
            assert other_survivors == survivors and other_answers == answers
            num_changed += other_everything != everything
    assert num_changed > 10, "the second subtree did not notice its scores"


@pytest.mark.parametrize("name", STEPWISE)
def test_a_finished_answer_is_set_aside_once_and_for_all(name):
    for seed in range(30):
        engine, answers = run(name, seed, n=8, expand=3)
        drawn = [x for move, children in moves(engine, Expand) if move.temperature is None for x in children]
        assert Counter(x for x in drawn if x.is_done) == Counter(answers), "what has ended is an answer"
        asked_for = [x for move, _ in moves(engine, Allocate) + moves(engine, Expand) for x in move.nodes if isinstance(x, Node)]
        assert asked_for and not any(x.is_done for x in asked_for)


@pytest.mark.parametrize("agg", AGGREGATIONS)
@pytest.mark.parametrize("name", ["beam", "dvts"])
def test_branches_are_kept_by_the_aggregate_that_was_asked_for(name, agg):
    num_compared = 0
    for seed in range(20):
        engine, _ = run(name, seed, n=8, expand=4, prune_agg=agg)
        for move, _ in moves(engine, Allocate):
            expected = [aggregate([step.scores["prm"] for step in x.path], agg) for x in move.nodes]
            assert list(move.values) == pytest.approx(expected)
            num_compared += len(move.nodes[0].path) > 1
        for frontier, survivors in rounds(engine):
            groups = {subtree(x, 4) if name == "dvts" else 0 for x in unfinished(frontier)}
            if len(groups) == 1:
                assert survivors[0][0] in best(unfinished(frontier), len(survivors), agg)
    assert num_compared > 20


@pytest.mark.parametrize("name", STEPWISE)
def test_what_does_not_survive_is_dropped(name):
    for seed in range(20):
        engine, _ = run(name, seed, n=8, expand=4)
        dropped = {x for move, _ in moves(engine, Drop) for x in move.nodes}
        for frontier, survivors in rounds(engine):
            assert dropped.isdisjoint(x for x, _ in survivors)
            assert {x for x in unfinished(frontier)} - {x for x, _ in survivors} <= dropped


# ---- lookahead


@pytest.mark.parametrize("k", [1, 3])
def test_rollouts_are_greedy_dropped_and_never_returned(k):
    for seed in range(20):
        engine, answers = run("lookahead", seed, n=6, expand=3, k=k)
        rollouts = [(move, tips) for move, tips in moves(engine, Expand) if move.temperature is not None]
        tips = {x for _, found in rollouts for x in found}
        assert tips and tips.isdisjoint(step for x in answers for step in x.path)
        assert all(move.temperature == 0 and move.until == Steps(k) and set(move.widths) <= {1} for move, _ in rollouts)
        dropped = [x for move, _ in moves(engine, Drop) for x in move.nodes]
        assert all(dropped.count(tip) == 1 for tip in tips)
        assert tips.isdisjoint(x for move, _ in moves(engine, Expand) for x in move.nodes)


@pytest.mark.parametrize("agg", AGGREGATIONS)
def test_a_prefix_is_worth_what_its_rollout_ends_with(agg):
    """The rollout goes at most k steps beyond its prefix, and only there does it stop before the answer has ended."""
    for seed, k in itertools.product(range(10), (1, 3)):
        engine, answers = run("lookahead", seed, n=6, expand=3, k=k, prune_agg=agg)
        rollouts = iter([tips for move, tips in moves(engine, Expand) if move.temperature == 0])
        for move, _ in moves(engine, Allocate):
            tips = next(rollouts)
            for x, tip in zip(move.nodes, tips, strict=True):
                assert x in tip.path[:-1]
                assert tip.depth - x.depth == k or (tip.is_done and tip.depth - x.depth < k)
            expected = [aggregate([step.scores["prm"] for step in tip.path], agg) for tip in tips]
            assert list(move.values) == pytest.approx(expected)
        assert next(rollouts, None) is None and len(answers) == 6


# ---- scores that are none


@pytest.mark.parametrize("agg", AGGREGATIONS)
@pytest.mark.parametrize("name", ["beam", "dvts"])
def test_a_nan_is_never_expanded_while_a_finite_value_exists(name, agg):
    num_chosen = 0
    for seed, expand in itertools.product(range(25), (2, 4)):
        engine, answers = run(name, seed, verifier=often_nan(seed), n=8, expand=expand, prune_agg=agg)
        assert len(set(answers)) == len(answers) == 8
        for frontier, survivors in rounds(engine):
            assert all(math.isfinite(x.value(agg)) for x, _ in survivors)
            valid = [x for x in unfinished(frontier) if math.isfinite(x.value(agg))]
            groups = {subtree(x, expand) if name == "dvts" else 0 for x in valid}
            assert {subtree(x, expand) if name == "dvts" else 0 for x, _ in survivors} == groups
            num_chosen += 0 < len(valid) < len(unfinished(frontier))
    assert num_chosen > 20


@pytest.mark.parametrize("k", [1, 2])
def test_lookahead_never_expands_a_prefix_whose_rollout_has_no_valid_value(k):
    for seed in range(25):
        engine, answers = run("lookahead", seed, verifier=often_nan(seed), n=8, k=k)
        assert len(set(answers)) == len(answers) == 8
        for move, widths in moves(engine, Allocate):
            assert all(math.isfinite(value) for value, width in zip(move.values, widths, strict=True) if width)
            assert sum(widths) == (move.total if any(map(math.isfinite, move.values)) else 0)


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("name", ALL)
def test_without_any_valid_score_the_branches_are_returned_as_they_are(name, value):
    for seed, n, expand in itertools.product(range(5), WIDTHS, EXPANDS):
        engine, answers = run(name, seed, verifier=lambda node: value, n=n, expand=expand)
        assert len(set(answers)) == len(answers) == n
        if name in STEPWISE:
            assert not any(survivors for _, survivors in rounds(engine)) and all(x.depth == 1 for x in answers)


@pytest.mark.parametrize("name", ALL)
def test_a_constant_verifier_gives_n_answers(name):
    for seed, n, expand in itertools.product(range(10), WIDTHS, EXPANDS):
        _, answers = run(name, seed, verifier=lambda node: 0.5, n=n, expand=expand)
        assert len(set(answers)) == len(answers) == n


# ---- parameters


def test_everything_wrong_with_the_parameters_is_said_at_once():
    with pytest.raises(ValueError) as caught:
        find("lookahead").make_parameters({"n": 0, "expand": 0, "prune_agg": "best", "k": -1, "max_steps": 10**9, "width": 3})
    message = str(caught.value)
    assert message.startswith("strategy lookahead: ")
    for part in ("n must be in [1, ", "expand must be in [1, ", "k must be in [0, ", "max_steps must be in [1, "):
        assert part in message
    assert "prune_agg must be one of last, min, prod, mean, got 'best'" in message
    assert "unknown parameter 'width'; lookahead takes n, expand, max_steps, prune_agg, k" in message


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n", [0, -1, 10**9, MAX_WIDTH + 1, 2.0, "4", None, True, NAN])
def test_a_width_that_is_no_integer_in_range_is_refused(name, n):
    with pytest.raises(ValueError, match=rf"strategy {name}: n must be .*, got {n!r}"):
        find(name).make_parameters({"n": n})


@pytest.mark.parametrize("name", ALL)
def test_the_defaults_and_the_ends_of_every_range_are_allowed(name):
    found = find(name)
    assert found.make_parameters({}) == found.parameters()
    for field in dataclasses.fields(found.parameters):
        allowed = field.metadata["choices"] or (field.metadata["low"], field.metadata["high"])
        for value in allowed:
            assert getattr(found.make_parameters({field.name: value}), field.name) == value


@pytest.mark.parametrize("name", ALL)
def test_parameters_are_frozen_and_documented(name):
    found = find(name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.parameters().n = 3
    assert found.summary.endswith(".") and found.source
    assert all(field.metadata["help"] for field in dataclasses.fields(found.parameters))


def test_an_unknown_strategy_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match="unknown strategy 'beams'; there are " + ", ".join(sorted(STRATEGIES))):
        find("beams")
    assert set(ALL) <= set(STRATEGIES)


def test_a_problems_draws_depend_on_seed_problem_and_key_alone():
    problem = SearchProblem("q", "7", 1, TASK)
    first = problem.rng("arm", 3).random()
    problem.rng("arm", 4).random()
    assert SearchProblem("another question", "7", 1, TASK).rng("arm", 3).random() == first
    others = [
        SearchProblem("q", "8", 1, TASK).rng("arm", 3),
        SearchProblem("q", "7", 2, TASK).rng("arm", 3),
        problem.rng("arm", 4),
    ]
    assert first not in [other.random() for other in others]


# ---- the engine itself


values = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, NAN, math.inf, -math.inf]), min_size=1, max_size=8)


@given(values, st.integers(0, 9), st.integers(0, 12))
def test_the_scripted_selection_is_the_published_one(values, keep, total):
    order = sorted((i for i, value in enumerate(values) if math.isfinite(value)), key=lambda i: -values[i])
    kept = order[: max(1, min(keep, total))]
    expected = [total // len(kept) + (kept.index(i) < total % len(kept)) if i in kept else 0 for i in range(len(values))]
    assert shares(values, Top(keep), total) == expected
