"""The published formulas, to the digit, each on values worked out by hand or by an independent library."""

import itertools
import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies.scripted import END, ScriptedEngine, draw, shares, solution

from tts import selection
from tts.meter import matched_inference
from tts.moves import Allocate, Embed, Expand, Prompt, Proportional, Resample, Score, Softmax, Tokens
from tts.strategies.ab_mcts import Posterior
from tts.strategies.ab_mcts import draw as posterior_draw
from tts.strategies.adaptive_consistency import lead
from tts.strategies.deepconf import lowest_group, percentile
from tts.strategies.dora import uniqueness
from tts.strategies.particles import Particles, log_weights, softmax, temperature
from tts.tree import Node

NAN = math.nan
ROOT = Node(None, (), b"", "prompt", 0, Prompt(), order=(0,))


def chain(*scores, by="prm", end="step"):
    """A branch with these step scores."""
    node = ROOT
    for score in scores:
        node = Node(node, (2,), b"\2", end, 0, node.prompt)
        node.set_score(by, score)
    return node


def asked(engine, kind):
    return [(move, result) for move, result in engine.log if isinstance(move, kind)]


# ---- REBASE


def rebase_shares(scores, total, temperature):
    """The paper's loop: best first, W_i = ceil(W_left * its softmax among those that are left)."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    widths = [0] * len(scores)
    for place, i in enumerate(order):
        rest = sum(math.exp(scores[j] / temperature) for j in order[place:])
        widths[i] = min(total, math.ceil(total * math.exp(scores[i] / temperature) / rest - 1e-9))
        total -= widths[i]
    return widths


@pytest.mark.parametrize(
    ("scores", "total", "expected"),
    [
        # e^(r/.2) of .9 .5 .1 is 90.0 12.2 1.65: ceil(16 * .867) = 14, ceil(2 * .881) = 2, nothing is left
        ([0.9, 0.5, 0.1], 16, [14, 2, 0]),
        ([0.5, 0.5, 0.5, 0.5], 16, [4, 4, 4, 4]),
        # 16 * 1/3 = 5.33 -> 6, 10 * 1/2 = 5, 5
        ([0.5, 0.5, 0.5], 16, [6, 5, 5]),
        ([0.1, 0.9, 0.5], 16, [0, 14, 2]),
    ],
)
def test_rebase_shares_by_its_ceil_rule_from_the_best(scores, total, expected):
    assert rebase_shares(scores, total, 0.2) == expected == shares(scores, Softmax(0.2), total)


def test_rebase_asks_for_those_widths_and_a_finished_branch_uses_up_one():
    num_rounds = 0
    for seed, n in itertools.product(range(30), (4, 16)):
        engine = ScriptedEngine(seed)
        answers = engine.run("rebase", n=n, balance=0.3)
        num_done, frontier = 0, []
        for move, result in engine.log:
            if isinstance(move, Score):
                frontier = [x for x in move.nodes if not x.is_done]
                num_done += len(move.nodes) - len(frontier)
            if isinstance(move, Allocate):
                assert list(move.nodes) == frontier and move.total == n - num_done
                assert result == rebase_shares([float(np.float32(x.value())) for x in frontier], move.total, 0.3)
                num_rounds += 1
        assert len(answers) == n
    assert num_rounds > 60


# ---- DORA


def test_dora_divides_a_share_among_states_that_are_alike():
    a, b, c = (np.array(x, np.float32) for x in ([1, 0], [2, 0], [0, 1]))  # a and b are equal but for their length
    assert uniqueness([a, b, c], 0.01) == pytest.approx([0.5, 0.5, 1.0])
    assert uniqueness([a, a, a, c], 0.01) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])
    rng = np.random.default_rng(0)
    states = list(rng.normal(size=(6, 8)).astype(np.float32))
    units = np.array([x / np.linalg.norm(x) for x in states], np.float64)
    similar = np.exp(units @ units.T / 0.5)
    assert uniqueness(states, 0.5) == pytest.approx(np.diag(similar) / similar.sum(1), rel=1e-5)


def test_dora_rounds_n_times_the_weights():
    q = np.exp(np.array([0.9, 0.7, 0.3]) / 0.1)
    weights = q / q.sum() * np.array([0.5, 1.0, 1.0])
    expected = np.floor(16 * weights / weights.sum() + 0.5).astype(int).tolist()
    assert expected == [13, 3, 0] == shares(np.log(weights).tolist(), Proportional(), 16)


def test_dora_asks_for_the_softmax_of_scores_times_the_uniqueness():
    num_rounds = 0
    for seed in range(20):
        engine = ScriptedEngine(seed)
        assert len(engine.run("dora", n=8, balance=0.2, similarity=0.3)) == 8
        for (embed, states), (move, widths) in zip(asked(engine, Embed), asked(engine, Allocate), strict=True):
            gamma = uniqueness(states, 0.3)
            assert embed.nodes == move.nodes and move.rule == Proportional()
            assert list(move.values) == pytest.approx([x.value() / 0.2 + math.log(g) for x, g in zip(move.nodes, gamma)])
            weights = [math.exp(x.value() / 0.2) * g for x, g in zip(move.nodes, gamma)]
            shared = [move.total * w / sum(weights) for w in weights]
            assert all(abs(w - s) < 1.5 for w, s in zip(widths, shared)) and sum(widths) == move.total
            num_rounds += 1
    assert num_rounds > 20


# ---- particles


def test_particle_weights_are_logits_or_increments():
    particles = [chain(0.5, 0.8), chain(0.5, 0.5), chain(0.9, 0.1), chain(0.5, NAN)]
    logits = log_weights(particles, Particles(weight="logit"))
    assert logits[:3] == pytest.approx([math.log(4), 0.0, -math.log(9)]) and math.isnan(logits[3])
    assert softmax(logits)[:3] == pytest.approx([4 / (5 + 1 / 9), 1 / (5 + 1 / 9), (1 / 9) / (5 + 1 / 9)])
    assert softmax(logits)[3] == 0.0
    increments = log_weights(particles, Particles(weight="incremental"))
    assert increments[:3] == pytest.approx([math.log(1.6), 0.0, math.log(1 / 9)])
    assert log_weights([chain(0.25)], Particles(weight="incremental")) == pytest.approx([math.log(0.25)])


def test_a_certain_score_has_a_finite_weight():
    assert log_weights([chain(1.0), chain(0.0)], Particles()) == pytest.approx([math.log(1e7 - 1), -math.log(1e7 - 1)])


def test_without_a_valid_weight_all_particles_weigh_the_same():
    assert softmax([NAN, NAN]) == [0.5, 0.5] and softmax([NAN, 2.0, -math.inf]) == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("weights", "t", "rounds", "expected"),
    [
        # ESS = 1 / .97^2 + ... : of four, .97 and three times .01
        ([0.97, 0.01, 0.01, 0.01], 1, 40, 4 * (0.97**2 + 3 * 0.01**2) * (1 - 1 / 40)),
        ([0.97, 0.01, 0.01, 0.01], 10, 40, 4 * (0.97**2 + 3 * 0.01**2) * 0.75),
        ([0.97, 0.01, 0.01, 0.01], 20, 40, 1.0),  # t/T is .5
        ([0.25] * 4, 1, 40, 1.0),  # ESS/N is 1
        ([0.5, 0.5, 0.0, 0.0], 1, 40, 1.0),  # ESS/N is .5
    ],
)
def test_the_entropic_temperature(weights, t, rounds, expected):
    assert temperature(weights, t, rounds) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["particle_filter", "entropic_particle_filter"])
def test_a_filter_resamples_by_its_weights(name):
    num_heated = 0
    for seed in range(30):
        engine = ScriptedEngine(seed, verifier=lambda node: 0.999 if draw("good", solution(node)) < 0.2 else 0.2)
        engine.run(name, n=8, max_steps=20)
        for t, (move, widths) in enumerate(asked(engine, Allocate), start=1):
            plain = [math.log(r / (1 - r)) for r in (x.value() for x in move.nodes)]
            heat = temperature(softmax(plain), t, 20) if name.startswith("entropic") else 1.0
            num_heated += heat > 1
            assert list(move.values) == pytest.approx([v / heat for v in plain])
            assert move.rule == Resample("systematic") and sum(widths) == move.total == 8
            expected = [8 * w for w in softmax(list(move.values))]
            assert all(abs(width - mean) < 1 + 1e-5 for width, mean in zip(widths, expected))
    assert (num_heated > 10) == name.startswith("entropic")


def test_a_gibbs_reference_is_drawn_by_weight_and_is_in_every_round_of_the_next_filter():
    for seed in range(20):
        engine = ScriptedEngine(seed)
        answers = engine.run("particle_gibbs", n=6, iterations=2)
        starts = [move for move, _ in asked(engine, Expand) if isinstance(move.nodes[0] if move.nodes else None, Prompt)]
        assert [sum(move.widths) for move in starts] == [6, 5]
        at = [i for i, (move, _) in enumerate(engine.log) if move is starts[1]][0]
        first = {x for move, result in engine.log[:at] if isinstance(move, Expand) for x in result}
        (reference,) = {x for x in answers if x.path[0] in first and x in first} or [None]
        assert reference is not None and reference.is_done
        for move, _ in engine.log[at:]:
            if isinstance(move, Allocate):
                assert len(move.nodes) == 6 and move.total == 5 and move.nodes[-1] in reference.path


# ---- adaptive stopping


@pytest.mark.parametrize(("a", "b", "expected"), [(1, 0, 0.75), (2, 0, 0.875), (3, 0, 0.9375), (4, 0, 0.96875), (3, 3, 0.5)])
def test_the_lead_of_small_counts(a, b, expected):
    assert lead(a, b) == expected


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_lead_is_one_minus_the_regularised_incomplete_beta(a, b):
    """By Simpson's rule over the beta density, which knows nothing of binomials."""
    steps = 2000
    xs = [0.5 + 0.5 * i / steps for i in range(steps + 1)]
    log_norm = math.lgamma(a + b + 2) - math.lgamma(a + 1) - math.lgamma(b + 1)

    def density(x):
        return math.exp(log_norm) * x**a * (1 - x) ** b

    area = sum((1 if i in (0, steps) else 4 if i % 2 else 2) * density(x) for i, x in enumerate(xs)) * 0.5 / steps / 3
    assert lead(a, b) == pytest.approx(area, abs=1e-6)


class Says:
    """A task that reads answers off a list, in the order in which they are sampled."""

    name, templates = "says", ("solve",)

    def __init__(self, answers):
        self.answers = answers

    def extract(self, text):
        return self.answers[int(text.split("|")[0])]

    def group(self, answers):
        return selection.exact(answers)


class Numbered(ScriptedEngine):
    """Answers are numbered in the order in which they are drawn."""

    def grow(self, parent, move):
        leaf = super().grow(parent, move)
        self.num_answers = getattr(self, "num_answers", 0) + 1
        leaf.path[0].data = b"%d|" % (self.num_answers - 1) + leaf.path[0].data
        return leaf


@pytest.mark.parametrize(
    ("said", "num_sampled"),
    # 4 to 0 is a lead of .969; 5 to 1 one of .9375, 6 to 1 one of .965
    [("aaaaaaaa", 4), ("aaabaaaa", 7), ("abababab", 8), ([None] * 8, 8), ([None, *"aaaaaaa"], 5)],
)
def test_adaptive_consistency_stops_where_the_lead_reaches_the_threshold(said, num_sampled):
    engine = Numbered(0, task=Says(list(said)))
    assert len(engine.run("adaptive_consistency", n=8)) == num_sampled


@pytest.mark.parametrize(
    ("said", "num_sampled"),
    [("aaabbbbb", 3), ("aabbbbaa", 6), ("aabaabab", 8), ([None] * 8, 8), ([None, *"aabbbbb"], 6), ("abaabbaa", 8)],
)
def test_esc_stops_at_the_first_unanimous_window(said, num_sampled):
    engine = Numbered(0, task=Says(list(said)))
    assert len(engine.run("esc", n=8, window=3)) == num_sampled


# ---- speculative rejection


def test_speculative_rejection_drops_the_worst_half_every_c_tokens():
    num_cuts = 0
    for seed in range(30):
        engine = ScriptedEngine(seed, verifier=lambda node: draw("no ties", node.key, node.order))
        engine.run("speculative_rejection", n=9, every=3)
        for (_, kept), (score, _) in zip(asked(engine, Allocate), asked(engine, Score)):
            values = [x.value() for x in score.nodes]
            cut = sorted(values)[len(values) // 2]  # drop floor(m / 2): the rest is at or above this quantile
            assert [bool(w) for w in kept] == [v >= cut for v in values] and sum(kept) == len(values) - len(values) // 2
            num_cuts += 1
        assert all(move.until == Tokens(3) for move, _ in asked(engine, Expand))
    assert num_cuts > 60


# ---- DeepConf


def test_the_least_confident_group_is_the_lowest_sliding_mean():
    trace = Node(ROOT, (2,) * 5, b"", "stop", 0, ROOT.prompt, stats={"confidence": (3.0, 1.0, 2.0, 6.0, 5.0)})
    assert lowest_group(trace, 2) == 1.5 and lowest_group(trace, 1) == 1.0 and lowest_group(trace, 5) == 3.4
    assert lowest_group(trace, 2048) == 3.4, "a trace shorter than the window is one group"
    assert math.isnan(lowest_group(Node(ROOT, (), b"", "stop", 0, ROOT.prompt, stats={"confidence": ()}), 2))


@given(st.lists(st.floats(-9, 9), min_size=1, max_size=30), st.floats(0, 100))
def test_the_percentile_is_numpys(values, percent):
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)), abs=1e-9)


def test_the_percentile_agrees_with_the_standard_library():
    values = [random.Random(0).random() for _ in range(17)]
    assert percentile(values, 90) == pytest.approx(statistics.quantiles(values, n=100, method="inclusive")[89])


def test_deepconf_online_ends_what_falls_below_the_threshold_of_the_warm_up():
    num_watched = 0
    for seed in range(20):
        engine = ScriptedEngine(seed)
        kept = engine.run("deepconf_online", n=12, warmup=6, keep=40.0, window=2)
        (first, warmup), (second, rest) = asked(engine, Expand)
        bound = percentile([lowest_group(x, 2) for x in warmup], 60)
        assert (sum(first.widths), sum(second.widths)) == (6, 6) and first.watch is None
        assert (second.watch.window, second.watch.below) == (2, bound)
        whole = [x for x in [*warmup, *rest] if x.end != "watch"]
        assert kept == [x for x in whole if lowest_group(x, 2) >= bound]
        assert all(x.value("last", "confidence") == lowest_group(x, 2) for x in kept)
        num_watched += sum(x.end == "watch" for x in rest)
    assert num_watched > 20


def test_deepconf_offline_keeps_the_top_percent():
    for seed in range(10):
        engine = ScriptedEngine(seed)
        kept = engine.run("deepconf_offline", n=11, keep=30.0, window=3)
        ((_, everything),) = asked(engine, Expand)
        lowest = sorted((lowest_group(x, 3) for x in everything), reverse=True)
        # The 70th percentile of eleven is the fourth best.
        assert sorted((lowest_group(x, 3) for x in kept), reverse=True) == lowest[:4]


# ---- AB-MCTS


def test_the_posterior_is_the_conjugate_update():
    assert Posterior().given([]) == (0.0, 1.0, 1.0, 0.1)
    # one score of .8: m = .4, kappa = nu = 2, tau2 = (.1 + .8^2 / 2) / 2 = .21
    assert Posterior().given([0.8]) == pytest.approx((0.4, 2.0, 2.0, 0.21))
    # .6 and 1: mean .8, n = 2: m = 1.6 / 3, tau2 = (.1 + .08 + 2 * .64 / 3) / 3
    assert Posterior().given([0.6, 1.0]) == pytest.approx((1.6 / 3, 3.0, 3.0, (0.1 + 0.08 + 2 * 0.64 / 3) / 3))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_updating_one_score_after_the_other_is_updating_by_all(scores):
    one_by_one = Posterior()
    for score in scores:
        one_by_one = one_by_one.given([score])
    assert one_by_one == pytest.approx(Posterior().given(scores))


@pytest.mark.parametrize(("prior", "mean"), [("gaussian", 4 * 0.7 / 5), ("beta", (0.5 + 2.8) / 5)])
def test_draws_have_the_posteriors_mean(prior, mean):
    rng = random.Random(1)
    draws = [posterior_draw(rng, [0.6, 0.7, 0.7, 0.8], prior) for _ in range(20000)]
    assert statistics.fmean(draws) == pytest.approx(mean, abs=0.01)


def test_ab_mcts_revises_good_answers_more_and_starts_anew_where_all_are_bad():
    def num_fresh(verifier):
        found = [ScriptedEngine(seed, verifier=verifier).run("ab_mcts", n=12) for seed in range(20)]
        return sum(not x.prompt.previous for answers in found for x in answers)

    deeper_is_better = lambda node: 1 - 0.5 ** (1 + len(lineage(node)))  # noqa: E731
    deeper_is_worse = lambda node: 0.5 ** len(lineage(node))  # noqa: E731
    assert num_fresh(deeper_is_better) < num_fresh(deeper_is_worse)


def lineage(node):
    """The answers that led to this one."""
    found = []
    while node.prompt.previous:
        (node,) = node.prompt.previous
        found.append(node)
    return found


# ---- revision and debate


def test_a_revision_sees_the_last_answers_of_its_own_chain_and_no_others():
    engine = ScriptedEngine(1)
    answers = engine.run("sequential_revision", n=14, chains=3, context=4)
    chains = {x: [y for y in answers if y.origin is x.origin] for x in answers}
    assert sorted(len(c) for x, c in chains.items() if x.origin is x) == [4, 5, 5]
    for x in answers:
        before = chains[x][: chains[x].index(x)]
        assert x.prompt == (Prompt("revise", tuple(before[-4:])) if before else Prompt())


def test_selection_is_hierarchical_with_scores_and_flat_by_majority():
    # Chain 0 says a a b, chain 1 says c, chain 2 says c b b.
    answers, chains = [*"aab", "c", *"cbb"], [0, 0, 0, 1, 2, 2, 2]
    scores = [0.3, 0.4, 0.6, 0.5, 0.45, 0.2, 0.2]
    # Sums: chain 0 a .7 > b .6; chain 2 c .45 > b .4; representatives a .4, c .5, c .45: c. Flat weighted: b 1.0 > c .95 > a .7.
    assert selection.hierarchical(answers, scores, chains) == 3
    assert answers[selection.weighted(answers, scores)] == "b"
    assert answers[selection.majority(answers)] == "b"
    assert selection.hierarchical(["a", "b", "b"], [0.5, 0.3, 0.3], [0, 1, 2]) == 1, "chains of one answer: weighted"


def test_hierarchical_survives_chains_without_an_answer_or_a_score():
    assert selection.hierarchical([None, None, "a"], [0.9, 0.8, 0.1], [0, 0, 1]) == 2
    assert selection.hierarchical([None, None], [0.1, 0.9], [0, 1]) == 1
    assert selection.hierarchical(["a", "b"], [NAN, 0.0], [0, 1]) == 1
    with pytest.raises(ValueError, match="one chain for each of 1 answers, got 2"):
        selection.hierarchical(["a"], [0.5], [0, 1])


def test_debaters_see_their_own_answer_first_and_then_the_others():
    engine = ScriptedEngine(2)
    engine.run("debate", n=3, rounds=2)
    (_, first), (second, said), (third, _) = asked(engine, Expand)
    for move, before in ((second, first), (third, said)):
        for own, prompt in zip(before, move.nodes):
            assert prompt.template == "debate" and prompt.previous == (own, *(x for x in before if x is not own))


def test_a_correction_sees_the_answer_before_it():
    engine = ScriptedEngine(2)
    last = engine.run("self_correction", n=2, rounds=3)
    assert [len(lineage(x)) for x in last] == [3, 3] and len({x.origin for x in last}) == 2


# ---- budget forcing


def test_waiting_suppresses_the_end_so_often_and_then_the_answer_is_forced():
    never = lambda uniform, position: END if position % 4 == 3 else 2  # noqa: E731
    engine = ScriptedEngine(1, script=never)
    (answer,) = engine.run("budget_forcing", n=1, waits=2)
    prefixes = [move.prefix for move, _ in asked(engine, Expand)]
    assert prefixes == ["", "Wait", "Wait", "so"] and answer.path[1].num_forced == 4
    assert not any(END in step.tokens for step in answer.path[:-1]), "the end of thinking is left out"


def test_thinking_ends_at_the_ceiling_and_the_answer_begins():
    engine = ScriptedEngine(1, script=lambda uniform, position: 2)
    answers = engine.run("budget_forcing", n=3, max_thinking=5, waits=1)
    for x in answers:
        thought, answer = x.path
        assert (thought.cost, thought.end, answer.num_forced) == (5, "length", 2)


# ---- the hybrid tree


def test_the_hybrid_stops_where_no_draw_beats_a_certain_answer():
    ends_at_once = ScriptedEngine(0, script=lambda uniform, position: END, verifier=lambda node: 1.0)
    assert len(ends_at_once.run("hybrid", n=16, width=1)) == 1
    hopeless = ScriptedEngine(0, script=lambda uniform, position: END, verifier=lambda node: 0.0)
    assert len(hopeless.run("hybrid", n=16, width=3)) == 16


def test_the_hybrid_plays_every_arm():
    seen = set()
    for seed in range(20):
        engine = ScriptedEngine(seed)
        engine.run("hybrid", n=12)
        for move, _ in asked(engine, Expand):
            (source,) = move.nodes
            if isinstance(source, Prompt):
                seen.add(source.template)
            else:
                seen.add("revise step" if source.num_children > 1 else "next step")
    assert seen == {"solve", "revise", "revise step", "next step"}


# ---- equal FLOPs


@pytest.mark.parametrize(("ratio", "expected"), [(0.16, 257.75), (0.79, 63.37), (22, 15.77)])
def test_the_exchange_of_inference_for_size(ratio, expected):
    assert matched_inference(14, ratio) == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("values", [(0.5, 1), (14, 0), (14, -1), (NAN, 1)])
def test_an_exchange_without_sense_is_refused(values):
    with pytest.raises(ValueError, match="size_ratio >= 1 and token_ratio > 0"):
        matched_inference(*values)
