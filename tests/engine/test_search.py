"""The whole search on the shipped models: identities, independence of batches and pools, the meter, and clean ends."""

import math

import pytest
from runs import answers, is_empty, outcomes, requests, scripted, transcript

from tts.engine.sampling import Sampling
from tts.moves import Allocate, Answer, Embed, Expand, Score, Steps, Tokens, Top
from tts.request import Request
from tts.search import Search
from tts.strategies import find
from tts.tasks.base import Problem
from tts.tasks.chain import natural
from tts.verifiers.base import Function

ALL = [("best_of_n", {}), ("beam", {}), ("dvts", {}), ("lookahead", {"k": 1})]


# ---- identities


def test_lookahead_of_zero_steps_is_beam_token_for_token(make_search):
    beam = outcomes(make_search(), requests("beam", n=8))
    lookahead = outcomes(make_search(), requests("lookahead", n=8, k=0))
    assert [transcript(o) for o in beam] == [transcript(o) for o in lookahead]


def test_beam_that_expands_by_one_is_best_of_n_token_for_token(make_search):
    beam = outcomes(make_search(), requests("beam", n=8, expand=1))
    best = outcomes(make_search(), requests("best_of_n", n=8))
    for one, other in zip(beam, best):
        assert sorted(transcript(one)) == sorted(transcript(other))


def test_dvts_with_one_subtree_is_beam_token_for_token(make_search):
    beam = outcomes(make_search(), requests("beam", n=4, expand=4))
    dvts = outcomes(make_search(), requests("dvts", n=4, expand=4))
    assert [transcript(o) for o in beam] == [transcript(o) for o in dvts]


def test_the_first_of_many_samples_are_those_of_few(make_search):
    few = outcomes(make_search(), requests("best_of_n", n=3))
    many = outcomes(make_search(), requests("best_of_n", n=9))
    assert [answers(o) for o in few] == [answers(o)[:3] for o in many]


@pytest.mark.parametrize(("name", "changes"), ALL)
@pytest.mark.parametrize("n", [1, 5, 8])
def test_a_strategy_gives_exactly_n_answers(make_search, name, changes, n):
    assert [len(o.leaves) for o in outcomes(make_search(), requests(name, n=n, **changes))] == [n] * 6


# ---- independence


@pytest.mark.parametrize(("name", "changes"), ALL)
@pytest.mark.parametrize(
    "sizes",
    [
        {"max_rows": 5, "max_batch_tokens": 7},
        {"num_pages": 24, "verifier_pages": 24},
        {"page_size": 3, "num_pages": 60},
        {"page_size": 64, "max_rows": 64, "max_batch_tokens": 64, "num_pages": 400},
    ],
    ids=["small-batch", "small-pool", "odd-pages", "large-pages"],
)
def test_results_do_not_depend_on_batch_pool_or_page_size(make_search, name, changes, sizes):
    large = outcomes(make_search(), requests(name, n=8, **changes))
    search = make_search(**sizes)
    small = outcomes(search, requests(name, n=8, **changes))
    assert [transcript(o) for o in large] == [transcript(o) for o in small]
    assert [o.session.meter.search_cost() for o in large] == [o.session.meter.search_cost() for o in small]
    assert is_empty(search)
    if "verifier_pages" in sizes:
        assert search.policy.num_preemptions > 0 and sum(o.session.meter.reprefilled_tokens for o in small) > 0


def test_a_problem_alone_gives_what_it_gives_among_others(make_search):
    made = requests("beam", n=8)
    together = outcomes(make_search(), made)
    alone = [outcomes(make_search(), [request])[0] for request in made]
    assert [transcript(o) for o in together] == [transcript(o) for o in alone]


def test_another_seed_gives_other_answers(make_search):
    problem = natural(1, 1)[0]
    first, second = (
        outcomes(
            make_search(),
            [Request(problem, find("best_of_n"), find("best_of_n").make_parameters({"n": 16}), Sampling(2.0), seed)],
        )
        for seed in (0, 1)
    )
    assert answers(first[0]) != answers(second[0])


# ---- the meter


def num_distinct_tokens(nodes):
    """Tokens of the nodes, those of equal paths once."""
    return sum(len(path[-1]) for path in {tuple(tuple(step.tokens) for step in node.path) for node in nodes})


@pytest.mark.parametrize(("name", "changes"), ALL)
def test_the_meter_equals_the_tokens_of_the_transcript(make_search, zoo_models, name, changes):
    small, large = zoo_models
    for outcome in outcomes(make_search(), requests(name, n=8, **changes)):
        session, meter = outcome.session, outcome.session.meter
        drawn = sum(len(node.tokens) for node in session.nodes)
        prompt = len(outcome.request.problem.question)
        assert meter.policy_tokens == drawn == sum(node.cost for node in session.nodes)
        assert meter.prompt_tokens == prompt
        # Every step that was scored was read once, equal ones together, the prompt once.
        assert meter.verifier_tokens == prompt + num_distinct_tokens(node for node in session.nodes if node.scores)
        assert meter.reprefilled_tokens == 0
        assert meter.policy_flops == 2 * small.num_parameters * (prompt + drawn)
        assert meter.verifier_flops == 2 * large.num_parameters * meter.verifier_tokens


def test_beam_search_reads_new_tokens_only(make_search):
    """Re-encoding every prefix would cost the sum over rounds of the whole paths."""
    for outcome in outcomes(make_search(), requests("beam", n=8)):
        prompt = len(outcome.request.problem.question)
        new = num_distinct_tokens(outcome.session.nodes)
        again = sum(node.num_path_tokens for node in outcome.session.nodes)
        assert outcome.session.meter.verifier_tokens == prompt + new <= again


def test_equal_branches_are_read_once_and_have_equal_scores(make_search):
    def drawn_and_read(outcome):
        session, scores = outcome.session, {}
        for node in session.nodes:
            scores.setdefault(tuple(tuple(step.tokens) for step in node.path), set()).add(node.scores["prm"])
        assert all(len(found) == 1 for found in scores.values())
        return len(session.nodes) - len(scores), session.meter

    num_equal = 0
    for outcome in outcomes(make_search(), requests("beam", n=16)):
        count, meter = drawn_and_read(outcome)
        num_equal += count
        assert (meter.verifier_tokens < meter.prompt_tokens + meter.policy_tokens) == (count > 0)
    assert num_equal > 20


# ---- clean ends


def test_after_many_problems_the_pools_are_empty(make_search):
    search = make_search()
    assert len(outcomes(search, requests("beam", count=200, n=4))) == 200
    assert is_empty(search)


@pytest.mark.parametrize("num_moves", range(6))
def test_an_exception_inside_a_strategy_ends_its_problem_alone(make_search, num_moves):
    def breaks(problem, p):
        live = [problem.root]
        for i in range(6):
            if i == num_moves:
                raise RuntimeError("a mistake in a strategy")
            live = yield Expand(live, 2 if i < 2 else 1)
            yield Score(live)
            live = [x for x in live if not x.is_done] or [problem.root]
        return live

    search = make_search()
    good = requests("beam", n=4, count=3)
    found = list(search.run([good[0], scripted(breaks), *good[1:]]))
    assert sorted(str(o.error) for o in found) == ["None"] * 3 + ["a mistake in a strategy"]
    assert {id(o.request): answers(o) for o in found if not o.error} == {
        id(o.request): answers(o) for o in outcomes(make_search(), good)
    }
    assert is_empty(search)


@pytest.mark.parametrize("when", [0, 3, 10, 25])
def test_an_interrupt_leaves_the_pools_empty_and_the_search_usable(make_search, monkeypatch, when):
    search, calls, step = make_search(), [], None
    step = search.policy.step

    def interrupted():
        calls.append(1)
        if len(calls) > when:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(search.policy, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(search.run(requests("beam", n=8)))
    assert is_empty(search)
    monkeypatch.setattr(search.policy, "step", step)
    made = requests("beam", n=8)
    assert [answers(o) for o in outcomes(search, made)] == [answers(o) for o in outcomes(make_search(), made)]


def test_leaving_the_iteration_early_leaves_the_pools_empty(make_search):
    search = make_search()
    for _ in search.run(requests("beam", n=8)):
        break
    assert is_empty(search)


def test_a_pool_too_small_for_one_branch_says_what_it_needs_and_has(make_search):
    search = make_search(num_pages=10, page_size=4)
    with pytest.raises(ValueError, match=r"one branch of \d+ tokens needs \d+ pages of 4 tokens, the pool of .* has 10"):
        search.check(requests("beam", n=1, count=1)[0])
    assert is_empty(search)


# ---- odd verifiers and moves


def test_a_score_that_is_not_a_number_never_wins_while_another_exists(make_search):
    poisoned = Function(lambda question, steps: [math.nan if "=1" in s else 0.5 for s in steps])
    for outcome in outcomes(make_search(verifier=poisoned), requests("beam", n=8, count=12)):
        kept = {node.parent for node in outcome.session.nodes if node.parent.parent is not None}
        assert not any(math.isnan(node.scores["prm"]) for node in kept)


def test_only_invalid_scores_end_the_search_without_an_exception(make_search):
    search = make_search(verifier=Function(lambda question, steps: [math.nan] * len(steps)))
    found = outcomes(search, requests("beam", n=8))
    assert all(len(o.leaves) <= 8 for o in found)
    assert is_empty(search)


def test_a_wrong_number_of_scores_is_recorded_as_invalid(make_search):
    short = Function(lambda question, steps: [0.5] * (len(steps) - 1))
    for outcome in outcomes(make_search(verifier=short), requests("best_of_n", n=2)):
        assert all(math.isnan(node.scores["prm"]) for leaf in outcome.leaves for node in leaf.path)


def test_one_verifier_under_two_names_is_refused(make_search):
    search = make_search()
    (verifier,) = search.verifiers.values()
    with pytest.raises(ValueError, match="verifiers prm, meta are one object"):
        Search(search.policy, {"prm": verifier, "meta": verifier}, search.task)


def test_every_move_of_a_generator_is_answered(make_search):
    seen = {}

    def moves(problem, p):
        first = yield Expand([problem.root], 3)
        seen["scores"] = yield Score(first)
        seen["widths"] = yield Allocate(first, Top(1), 4, groups=["a", "b", "a"])
        cut = yield Expand(first[:1], 2, Tokens(2))
        seen["states"] = yield Embed([problem.root, *cut])
        two = yield Expand(cut, 1, Steps(2), stats=("confidence",))
        forced = yield Expand(two[:1], 1, Answer(), prefix="A", temperature=0)
        seen["cut"], seen["two"], seen["forced"] = cut, two, forced
        return forced

    (outcome,) = outcomes(make_search(), [scripted(moves)])
    assert len(seen["scores"]) == 3 and all(0 <= s <= 1 for s in seen["scores"])
    assert sum(seen["widths"]) == 8 and seen["widths"][1] == 4
    assert [s.shape for s in seen["states"]] == [(48,)] * 3
    assert all(len(node.tokens) == 2 and node.end == "cut" for node in seen["cut"])
    assert all(len(node.stats["confidence"]) == len(node.tokens) for node in seen["two"])
    (leaf,) = outcome.leaves
    assert leaf.path[-1].text.startswith("A") or leaf.parent.text.startswith("A")
    assert outcome.session.meter.prompt_tokens == len(outcome.request.problem.question) + 1


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (lambda q, x: Expand([x], [1, 2]), "widths must be one number"),
        (lambda q, x: Score([x], by="other"), "there is no such verifier; there are prm"),
        (lambda q, x: Allocate([x], Top(1), [1, 2]), "1 groups, 2 totals"),
        (lambda q, x: "expand", "a strategy yields moves"),
    ],
)
def test_a_malformed_move_is_one_clear_error(make_search, move, message):
    def run(problem, p):
        (x,) = yield Expand([problem.root], 1)
        yield move(problem, x)

    search = make_search()
    (found,) = search.run([scripted(run)])
    assert message in str(found.error)
    assert is_empty(search)


def test_an_ended_node_is_only_continued_by_a_prefix(make_search):
    def run(problem, p):
        (x,) = yield Expand([problem.root], 1, Answer())
        yield Expand([x], 1)

    (found,) = make_search().run([scripted(run)])
    assert "has ended (stop); only a prefix can continue it" in str(found.error)


def test_a_length_limit_ends_a_branch_exactly_there(make_search):
    made = [
        Request(Problem("Q94a-3b+2c+4d+2;"), find(name), find(name).make_parameters({"n": 4}), Sampling(max_tokens=m), 0)
        for name in ("best_of_n", "beam")
        for m in (1, 7, 8, 9, 20)
    ]
    for outcome in outcomes(make_search(), made):
        limit = outcome.request.sampling.max_tokens
        assert all(sum(len(n.tokens) for n in leaf.path) == limit and leaf.end == "length" for leaf in outcome.leaves)
