"""What the moves promise, on the real engine: how expansions end, branches side by side, several policies."""

import math
from dataclasses import replace

import pytest
from runs import answers, is_empty, outcomes, scripted, transcript

from tts.moves import All, Answer, Confidence, Embed, Expand, Prompt, Score, Steps, Tokens


def seen(make_search, run, **options):
    """The outcome of a generator, and what it kept in the dict that it is given."""
    kept, search = {}, make_search(**options)
    (outcome,) = outcomes(search, [scripted(lambda problem, p: run(problem, kept))])
    assert is_empty(search)
    return outcome, kept


# ---- how an expansion ends


@pytest.mark.parametrize("count", [1, 3, 9, 20])
def test_tokens_cuts_after_so_many_drawn_tokens_wherever_that_falls(make_search, count):
    def run(problem, kept):
        kept["cut"] = yield Expand([problem.root], 8, Tokens(count))
        kept["whole"] = yield Expand([x for x in kept["cut"] if not x.is_done], 1, Answer())
        return kept["whole"]

    _, kept = seen(make_search, run)
    cut = [x for x in kept["cut"] if x.end == "cut"]
    assert cut and all(sum(len(step.tokens) for step in x.path) == count for x in cut)
    assert all(sum(step.cost for step in x.path) <= count for x in kept["cut"] if x.end == "stop")
    assert all(x.is_done for x in kept["whole"])


def test_cutting_and_going_on_draws_what_one_expansion_draws(make_search):
    def whole(problem, kept):
        return (yield Expand([problem.root], 6, Answer()))

    def in_parts(problem, kept):
        live, done = (yield Expand([problem.root], 6, Tokens(7))), []
        while live:
            done += [x for x in live if x.is_done]
            live = yield Expand([x for x in live if not x.is_done], 1, Tokens(7))
        return done

    one, other = seen(make_search, whole)[0], seen(make_search, in_parts)[0]
    assert sorted(answers(one)) == sorted(answers(other))


def test_a_stop_that_is_not_kept_is_charged_and_the_text_goes_on_with_a_prefix(make_search):
    def run(problem, kept):
        (kept["thought"],) = yield Expand([problem.root], 1, Answer(stop=("A",), keep_stop=False), temperature=0)
        (kept["plain"],) = yield Expand([problem.root], 1, Answer(), temperature=0)
        (kept["forced"],) = yield Expand([kept["thought"]], 1, Answer(), prefix="A", temperature=0)
        kept["scores"] = yield Score([kept["forced"], kept["plain"]])
        return [kept["forced"]]

    outcome, kept = seen(make_search, run)
    thought, plain, forced = kept["thought"], kept["plain"], kept["forced"]
    assert thought.end == "stop" and thought.cost == len(thought.tokens) + 1 and not thought.solution.endswith("A")
    assert forced.solution == plain.solution, "the forced A is the one that the policy would have written"
    assert not kept["thought"].tokens and kept["scores"][0] == pytest.approx(kept["scores"][1]), "an empty step changes no score"
    assert forced.num_forced == 1 and math.isnan(forced.logprobs[0]) and not math.isnan(forced.logprobs[1])
    meter = outcome.session.meter
    assert meter.prompt_tokens == len(outcome.request.problem.question) + 1
    assert meter.policy_tokens == sum(node.cost for node in outcome.session.nodes)


@pytest.mark.parametrize("window", [1, 4, 8])
def test_watch_ends_a_branch_where_its_mean_confidence_falls_below_the_bound(make_search, window):
    def run(problem, kept):
        kept["free"] = yield Expand([problem.root], 8, Answer(), stats=("confidence",))
        means = sorted(mean for x in kept["free"] for mean in sliding(confidences(x), window))
        kept["bound"] = means[len(means) // 8]
        watch = Confidence(window, kept["bound"])
        again = replace(problem.root, fields=(("again", 1),))  # the same prompt, other draws
        kept["watched"] = yield Expand([again], 8, Answer(), watch=watch, stats=("confidence",))
        return kept["watched"]

    _, kept = seen(make_search, run)
    assert "watch" in {x.end for x in kept["watched"]}
    for leaf in kept["watched"]:
        means = sliding(confidences(leaf), window)
        assert all(mean >= kept["bound"] for mean in means[:-1])
        assert (means[-1] < kept["bound"]) == (leaf.end == "watch")


def confidences(leaf):
    return [value for node in leaf.path for value in node.stats["confidence"]]


def sliding(values, window):
    return [sum(values[i : i + window]) / window for i in range(len(values) - window + 1)] or [math.inf]


def test_the_certainty_of_each_token_is_kept_where_it_is_asked_for(make_search):
    def run(problem, kept):
        return (yield Expand([problem.root], 2, Steps(1), stats=("certainty",)))

    outcome, _ = seen(make_search, run)
    for leaf in outcome.leaves:
        assert set(leaf.stats) == {"certainty"} and all(value >= 0 for value in leaf.stats["certainty"])


def test_without_room_for_a_token_an_expansion_ends_at_once_and_costs_nothing(make_search):
    def run(problem, kept):
        (x,) = yield Expand([problem.root], 1, Tokens(93), temperature=100.0)
        live = x
        while not live.is_done:
            (live,) = yield Expand([live], 1, Tokens(96))
        kept["before"] = live
        kept["after"] = yield Expand([live], 2, Answer(), prefix="AAAA")
        kept["scores"] = yield Score(kept["after"])
        return kept["after"]

    outcome, kept = seen(make_search, run)
    if kept["before"].end == "length":
        assert all(x.end == "length" and not x.tokens and not x.cost for x in kept["after"])
        assert outcome.session.meter.prompt_tokens == len(outcome.request.problem.question)
    assert all(sum(len(s.tokens) for s in x.path) <= 96 for x in kept["after"])


# ---- branches


def sample(problem, name, width=1, temperature=None):
    """A branch of its own prompt, so that its draws do not depend on when it is started."""
    return (yield Expand([replace(problem.root, fields=(("branch", name),))], width, Answer(), temperature=temperature))


@pytest.mark.parametrize("sizes", [{"max_rows": 2, "max_batch_tokens": 4}, {"num_pages": 24}])
@pytest.mark.parametrize("num_wanted", [1, 5])
def test_stop_judges_results_in_order_of_tokens_whatever_the_batch(make_search, sizes, num_wanted):
    def run(problem, kept):
        def stop(results):
            kept.setdefault("seen", []).append([x.solution for (x,) in results])
            return len(results) == num_wanted

        kept["all"] = yield All([sample(problem, i) for i in range(8)])
        kept["some"] = yield All([sample(problem, i + 8) for i in range(8)], stop)
        kept["again"] = yield All([sample(problem, i + 8) for i in range(8)])
        return [x for found in kept["some"] if found for x in found]

    outcome, kept = seen(make_search, run, **sizes)
    everything = [(sum(step.cost for step in x.path), i, x.solution) for i, (x,) in enumerate(kept["all"])]
    assert len(everything) == 8
    judged = kept["seen"][-1]
    assert [len(results) for results in kept["seen"]] == list(range(1, num_wanted + 1))
    assert all(longer[: len(shorter)] == shorter for shorter, longer in zip(kept["seen"], kept["seen"][1:]))
    costs = sorted((sum(step.cost for step in found[0].path), i) for i, found in enumerate(kept["some"]) if found)
    assert [kept["some"][i][0].solution for _, i in costs] == judged
    assert sum(found is None for found in kept["some"]) == 8 - num_wanted
    reference, again = seen(make_search, run)
    assert again["seen"] == kept["seen"] and transcript(outcome) == transcript(reference)
    assert outcome.session.meter.search_cost() == reference.session.meter.search_cost()
    # Those that were cut short are no shorter than those that were judged, and their nodes are no part of the result.
    longest = max(costs)[0]
    rest = [sum(step.cost for step in x.path) for (x,), found in zip(kept["again"], kept["some"]) if found is None]
    assert all(cost >= longest for cost in rest)
    charged = sum(node.cost for node in outcome.session.nodes) + longest * len(rest)
    assert outcome.session.meter.policy_tokens == charged
    assert outcome.session.meter.cancelled_tokens >= 0


def test_branches_that_are_cut_short_give_back_what_their_own_branches_have_in_flight(make_search):
    def branch(problem, i):
        parts = yield All([sample(problem, (i, j)) for j in range(3)])
        leaves = [x for found in parts for x in found]
        yield Score(leaves)
        return leaves

    def run(problem, kept):
        kept["found"] = yield All([branch(problem, i) for i in range(5)], lambda results: len(results) == 2)
        return [x for found in kept["found"] if found for x in found]

    outcome, kept = seen(make_search, run)
    assert sum(found is None for found in kept["found"]) == 3 and len(outcome.leaves) == 6


def test_a_mistake_in_stop_ends_its_problem_alone(make_search):
    def run(problem, p):
        yield All([sample(problem, i) for i in range(3)], lambda results: results[0].nonsense)

    search = make_search()
    found = list(search.run([scripted(run), *([scripted(lambda problem, p: sample(problem, 1))])]))
    assert sorted(type(o.error).__name__ for o in found) == ["AttributeError", "NoneType"]
    assert is_empty(search)


def test_all_of_nothing_is_nothing(make_search):
    def run(problem, kept):
        kept["found"] = yield All([], lambda results: True)
        return []

    assert seen(make_search, run)[1]["found"] == []


# ---- several policies


def test_a_prompt_goes_to_the_policy_that_it_names_and_is_charged_at_its_size(make_search, zoo_models):
    small, large = zoo_models

    def run(problem, kept):
        other = replace(problem.root, model="other")
        kept["mixed"] = yield Expand([problem.root, other, problem.root], [1, 2, 1], Answer(), temperature=0)
        kept["states"] = yield Embed([other, problem.root])
        return kept["mixed"]

    outcome, kept = seen(make_search, run, models={"other": large})
    assert [x.prompt.model for x in kept["mixed"]] == ["policy", "other", "other", "policy"]
    assert [len(state) for state in kept["states"]] == [large.config.hidden_size, small.config.hidden_size]

    def alone(problem, kept):
        return (yield Expand([problem.root], 1, Answer(), temperature=0))

    assert kept["mixed"][0].solution == seen(make_search, alone)[0].leaves[0].solution
    tokens = {"policy": 0, "other": 0}
    for node in outcome.session.nodes:
        tokens[node.prompt.model] += node.cost
    prompt = len(outcome.request.problem.question)
    expected = 2 * small.num_parameters * (prompt + tokens["policy"]) + 2 * large.num_parameters * (prompt + tokens["other"])
    assert outcome.session.meter.policy_flops == expected and outcome.session.meter.prompt_tokens == 2 * prompt


def test_an_unknown_policy_is_one_clear_error_before_anything_is_allocated(make_search):
    def run(problem, p):
        yield Expand([problem.root, Prompt(model="grm")], 1)

    search = make_search()
    (found,) = search.run([scripted(run)])
    assert str(found.error) == "Prompt(model='grm'): there is no such policy; there are policy"
    assert not found.session.roots and is_empty(search)


def test_a_prompt_too_long_for_its_policy_is_one_clear_error(make_search):
    def run(problem, p):
        answers = yield Expand([problem.root], 1, Answer())
        yield Expand([Prompt("long", tuple(answers))], 1)

    search = make_search()
    window = search.policy.model.max_length
    render = search.task.render
    search.task.render = lambda name, question, *rest: question * window if name == "long" else render(name, question, *rest)
    (found,) = search.run([scripted(run)])
    assert f"that is more than the window of {search.policy.model.name}, {window}" in str(found.error)
    assert is_empty(search)
