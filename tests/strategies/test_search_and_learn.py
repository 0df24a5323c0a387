"""The rules of search-and-learn, against a second statement of them, and its defects one by one.

The second statement (`restated_*`) knows no nodes, moves or engines. A beam is a list of texts and the key of its draws, in the
spirit of the reference's `Beam`; both sides ask the same random tree for texts and scores.
"""

import itertools
import math
import random
from dataclasses import dataclass, field

import pytest
from strategies.scripted import END, STEP_END, ScriptedEngine, solution

from tts.meter import Meter
from tts.moves import Allocate, Expand, Steps, Tokens
from tts.presets.columns import Scoring, columns
from tts.selection import exact
from tts.solver import Candidate, Result, Step
from tts.strategies import SearchProblem, find
from tts.tasks.base import Problem
from tts.tree import Node

NUM_TREES = 2000
MAX_TOKENS = 14


def mixed(*key):
    """A number in [0, 1) that is a function of whole numbers; quick, for it is asked for millions of times."""
    return (hash(key) * 0x9E3779B97F4A7C15 >> 11 & (1 << 53) - 1) / (1 << 53)


class Tree:
    """A random tree of texts: what a branch with a key writes at a position, and what it is worth.

    The worth depends on the key too, so that branches with the same text do not tie.
    """

    root = 1

    def __init__(self, seed):
        self.seed = seed

    def child(self, key, index):
        return hash((self.seed, key, index))

    def step(self, key, num_before):
        """The tokens of one step and why it ended."""
        tokens = []
        while True:
            uniform = mixed(self.seed, key, num_before + len(tokens))
            tokens.append(END if uniform < 0.15 else STEP_END if uniform < 0.55 else 2 + int(uniform * 97) % 7)
            if tokens[-1] == END:
                return tuple(tokens), "stop"
            if num_before + len(tokens) == MAX_TOKENS:
                return tuple(tokens), "length"
            if tokens[-1] == STEP_END:
                return tuple(tokens), "step"

    def score(self, key, num_tokens):
        return mixed(self.seed, key, num_tokens, -1)


class TreeEngine(ScriptedEngine):
    """Answers moves from a `Tree`."""

    def __init__(self, tree, verifier=None):
        super().__init__(tree.seed, verifier=verifier or (lambda node: tree.score(node.key, len(solution(node)))))
        self.tree = tree

    def node(self, source):
        node = super().node(source)
        if node.parent is None:
            node.key = self.tree.root
        return node

    def grow(self, parent, move):
        if move.until == Tokens(0):
            return Node(parent, (), b"", "cut", parent.key, parent.prompt)
        if move.temperature == 0:
            key = hash((parent.key, -2))
        else:
            key = self.tree.child(parent.key, parent.num_drawn_children)
            parent.num_drawn_children += 1
        node, num_steps = parent, 0
        while True:
            tokens, end = self.tree.step(key, len(solution(node)))
            node = Node(node, tokens, bytes(tokens), end, key, parent.prompt, cost=len(tokens))
            num_steps += 1
            if end != "step" or (isinstance(move.until, Steps) and num_steps == move.until.count):
                return node


def run(name, tree, verifier=None, **parameters):
    """The engine after the search and the answers of the strategy."""
    engine = TreeEngine(tree, verifier)
    strategy = find(name)
    made = strategy.make_parameters(parameters)
    return engine, engine.drive(strategy.run(SearchProblem("a question", "0", tree.seed), made))


# ---- the second statement


class Tied(Exception):
    """Two values are equal, as under `min` they often are: which one the reference keeps depends on its sorting algorithm."""


@dataclass
class Beam:
    key: int
    steps: list = field(default_factory=list)
    draws: dict = field(default_factory=dict)  # shared by the copies of a beam: how many draws were made from here
    scores: list = field(default_factory=list)
    done: bool = False

    @property
    def text(self):
        return sum(self.steps, ())


def aggregated(scores, how):
    return {"last": lambda: scores[-1], "min": lambda: min(scores), "prod": lambda: math.prod(scores)}[how]()


def continued(tree, beam, to_the_end):
    """A copy of the beam, one draw further: a step, or all steps to the end."""
    index = beam.draws.setdefault("next", 0)
    beam.draws["next"] += 1
    new = Beam(tree.child(beam.key, index), list(beam.steps), scores=list(beam.scores))
    while True:
        tokens, end = tree.step(new.key, len(new.text))
        new.steps.append(tokens)
        new.scores.append(tree.score(new.key, len(new.text)))
        if end != "step" or not to_the_end:
            new.done = end != "step"
            return new


def restated_beam_search(tree, n, width, iterations, how, unique, sort):
    """Texts and scores of the answers, and the texts kept in each round."""
    active, completed, kept_log = [Beam(tree.root)], [], []
    for i in range(iterations):
        active = [continued(tree, active[j % len(active)], i == iterations - 1) for j in range(n)]
        completed += [b for b in active if b.done]
        active = [b for b in active if not b.done]
        if not active:
            break
        if unique:
            seen, first = set(), []
            for b in active:
                if b.text not in seen:
                    seen.add(b.text)
                    first.append(b)
            active = first
        values = [aggregated(b.scores, how) for b in active]
        if len(set(values)) < len(values):
            raise Tied
        ranked = sorted(range(len(active)), key=values.__getitem__)
        top = set(ranked[-(n // width) :])  # of nothing, -0: is everything
        active = [b for j, b in enumerate(active) if j in top]
        kept_log.append([b.text for b in active])
    if sort:
        completed.sort(key=lambda b: aggregated(b.scores, how), reverse=True)
    return completed[:n], kept_log


def restated_dvts(tree, n, width, iterations, how):
    trees = [{"at": Beam(tree.root), "last": [], "over": False} for _ in range(n // width)]
    root = trees[0]["at"]
    for t in trees:
        t["at"] = root
    kept_log = []
    for i in range(iterations):
        going = [t for t in trees if not t["over"]]
        if not going:
            break
        for t in going:
            t["last"] = [continued(tree, t["at"], i == iterations - 1) for _ in range(width)]
        for t in going:
            t["at"] = max(t["last"], key=lambda b: aggregated(b.scores, how))
            t["over"] = t["at"].done
        kept_log.append([t["at"].text for t in going])
    return [b for t in trees for b in t["last"]], kept_log


def restated_picks(texts, scores, how):
    """`pred` and the three votes at every power of two."""
    answers = [answer_of(text) for text in texts]
    last = [s[-1] for s in scores]
    found = {"pred": texts[max(range(len(texts)), key=lambda i: aggregated(scores[i], how))]}
    k = 1
    while k <= len(texts):
        ranked = sorted(zip(answers[:k], last[:k]), key=lambda pair: pair[1], reverse=True)
        sums, counts = {}, {}
        for answer, score in zip(answers[:k], last[:k]):
            sums[answer] = sums.get(answer, 0) + score
            counts[answer] = counts.get(answer, 0) + 1
        found[f"pred_naive@{k}"] = ranked[0][0]
        found[f"pred_weighted@{k}"] = max(sums, key=sums.get)
        found[f"pred_maj@{k}"] = max(counts, key=counts.get)
        k *= 2
    return found


def answer_of(text):
    """A text's answer: few answers, so that they form groups; of some texts none, which the reference calls empty."""
    value = hash(text) % 5
    return str(value) if value else ""


class Answers:
    """The task as the columns see it."""

    name = "scripted"

    def equal(self, a, b):
        return a == b

    def group(self, answers):
        return exact(answers)


def as_result(leaves, parameters=()):
    """Leaves of a scripted search as the solver would give them."""
    candidates = [
        Candidate(
            "".join(map(str, solution(leaf))),
            answer_of(solution(leaf)) or None,
            [Step("", step.scores["prm"], step.end, len(step.tokens)) for step in leaf.path],
            leaf.value(),
            leaf.end,
        )
        for leaf in leaves
    ]

    return Result(Problem("a question", gold="1"), None, 0, candidates, Meter(), [], "beam", dict(parameters), 0)


# ---- the comparison


def settings(seed):
    rng = random.Random(seed)
    width = rng.choice([1, 2, 4])
    return {
        "n": width * rng.choice([1, 2, 3]),
        "width": width,
        "iterations": rng.choice([1, 2, 3, 5, 40]),
        "how": rng.choice(["last", "min", "prod"]),
    }


def kept(engine):
    """The texts of the survivors of each round."""
    return [[solution(x) for x, w in zip(move.nodes, widths) if w] for move, widths in engine.log if isinstance(move, Allocate)]


def check(leaves, beams, how):
    """Returned texts, their scores and every pick are the same."""
    assert [solution(x) for x in leaves] == [b.text for b in beams]
    assert [[step.scores["prm"] for step in x.path] for x in leaves] == [b.scores for b in beams]
    row = columns(as_result(leaves), Answers(), Scoring(agg=how))
    picks = restated_picks([b.text for b in beams], [b.scores for b in beams], how)
    assert row["pred"] == "".join(map(str, picks.pop("pred")))
    assert row["agg_scores"] == [b.scores[-1] for b in beams]
    assert {key: row[key] for key in picks} == {key: f"\\boxed{{{answer}}}" for key, answer in picks.items()}


def test_best_of_n_picks_what_the_reference_picks_on_2000_trees():
    for seed in range(NUM_TREES):
        tree, given = Tree(seed), settings(seed)
        _, leaves = run("best_of_n", tree, n=given["n"])
        root = Beam(tree.root)
        check(leaves, [continued(tree, root, True) for _ in range(given["n"])], given["how"])


def test_beam_search_keeps_returns_and_picks_what_the_reference_does_on_2000_trees():
    num_trees = num_past_n = 0
    for seed in itertools.count():
        tree, given, rng = Tree(seed), settings(seed), random.Random(seed + 1)
        width, how, rounds = given["width"], given["how"], given["iterations"]
        n = rng.choice([given["n"], given["n"] + 1, max(1, width - 1)])  # also where M does not divide N, and M > N
        unique, sort = rng.random() < 0.5, rng.random() < 0.5
        try:
            beams, log = restated_beam_search(tree, n, width, rounds, how, unique, sort)
        except Tied:
            continue
        options = {"prune_agg": how, "filter_duplicates": unique, "sort_completed": sort}
        engine, leaves = run("search_and_learn_beam", tree, n=n, expand=width, max_steps=rounds, **options)
        assert kept(engine) == log
        check(leaves, beams, how)
        num_past_n += sum(x.is_done for move, grown in engine.log if isinstance(move, Expand) for x in grown) > n
        num_trees += 1
        if num_trees == NUM_TREES:
            break
    assert num_past_n > NUM_TREES / 4  # the search did go on past N finished beams


def test_dvts_keeps_returns_and_picks_what_the_reference_does_on_2000_trees():
    num_unfinished = 0
    for seed in range(NUM_TREES):
        tree, given = Tree(seed), settings(seed)
        engine, leaves = run(
            "search_and_learn_dvts",
            tree,
            n=given["n"],
            expand=given["width"],
            max_steps=given["iterations"],
            prune_agg=given["how"],
        )
        beams, log = restated_dvts(tree, *given.values())
        assert kept(engine) == log
        check(leaves, beams, given["how"])
        num_unfinished += any(not x.is_done for x in leaves)
    assert num_unfinished > NUM_TREES / 4  # unfinished candidates were returned


# ---- its defects, one by one; numbers are those of the reference code's known defects


def searches(seeds=range(60), name="search_and_learn_beam", **parameters):
    """(engine, answers) of many small searches."""
    return [run(name, Tree(seed), **{"n": 6, "expand": 2, **parameters}) for seed in seeds]


def texts(leaves):
    return [solution(x) for x in leaves]


def test_rollouts_of_beam_search_cost_tokens_and_change_nothing_unless_they_are_scored():  # defect 1
    plain, rolled = searches(), searches(lookahead=2)
    assert [texts(x) for _, x in plain] == [texts(x) for _, x in rolled]
    assert all(len(b.log) > len(a.log) for (a, x), (b, _) in zip(plain, rolled) if kept(a))
    scored = searches(lookahead=2, score_lookahead=True)
    assert [texts(x) for _, x in plain] != [texts(x) for _, x in scored]


def test_scored_rollouts_are_greedy_and_value_a_branch_where_they_end():
    for engine, _ in searches(name="search_and_learn_dvts", lookahead=2):
        tips = [x for move, grown in engine.log if isinstance(move, Expand) and move.temperature == 0 for x in grown]
        values = [v for move, _ in engine.log if isinstance(move, Allocate) for v in move.values]
        assert {x.scores["prm"] for x in tips} <= set(values)


def test_votes_take_the_last_score_whatever_the_aggregation_unless_told_otherwise():  # defect 2
    _, leaves = run("best_of_n", Tree(5), n=8)
    by_last, by_min = ([aggregated([s.scores["prm"] for s in x.path], how) for x in leaves] for how in ("last", "min"))
    row = columns(as_result(leaves), Answers(), Scoring(agg="min"))
    repaired = columns(as_result(leaves), Answers(), Scoring(agg="min", agg_last=False))
    assert row["agg_scores"] == by_last != by_min == repaired["agg_scores"]
    assert row["pred"] == repaired["pred"]  # `pred` reads agg_strategy in either


def test_branches_cut_off_by_their_length_are_answers_unless_told_otherwise():  # defect 3
    for name in ("search_and_learn_beam", "search_and_learn_dvts"):
        kept_them = [x.end for _, leaves in searches(name=name) for x in leaves]
        repaired = searches(name=name, length_is_finished=False)
        assert "length" in kept_them and sum(x.end == "length" for _, found in repaired for x in found) < kept_them.count(
            "length"
        )
        for engine, leaves in repaired if name == "search_and_learn_beam" else ():
            ended = {x.end for move, grown in engine.log if isinstance(move, Expand) for x in grown}
            assert "stop" not in ended or all(x.end == "stop" for x in leaves)


def test_unfinished_branches_are_compared_by_an_empty_step_only_where_told_so():  # defect 5
    def verifier(node):
        return 0.25 if not node.tokens else 0.75

    for name in ("search_and_learn_beam", "search_and_learn_dvts"):
        for seed in range(20):
            for empty_step, value in ((True, 0.25), (False, 0.75)):
                engine, leaves = run(name, Tree(seed), verifier, n=6, expand=2, empty_step=empty_step, max_steps=4)
                seen = [
                    (x.is_done, v)
                    for move, _ in engine.log
                    if isinstance(move, Allocate)
                    for x, v in zip(move.nodes, move.values)
                ]
                assert all(v == (0.75 if is_done else value) for is_done, v in seen)
                assert all(x.value() == (0.75 if x.is_done else value) for x in leaves)
                assert all(x.is_done for x in leaves) or name == "search_and_learn_dvts"


def test_finished_beams_are_repeated_up_to_n_unless_told_otherwise():  # defect 6
    num_repeated = 0
    for seed in range(60):
        options = {"n": 6, "expand": 2, "length_is_finished": False, "max_steps": 2}
        _, repeated = run("search_and_learn_beam", Tree(seed), **options)
        _, once = run("search_and_learn_beam", Tree(seed), **options, repeat_to_n=False)
        assert len(repeated) == 6 and len(once) == len(set(once)) <= 6
        assert texts(repeated) == (texts(once) * 6)[:6]
        num_repeated += len(once) < 6
    assert num_repeated > 0


def test_completion_tokens_are_those_that_were_drawn():  # defect 7
    for name in ("search_and_learn_beam", "search_and_learn_dvts"):
        _, leaves = run(name, Tree(3), n=4, expand=2)
        row = columns(as_result(leaves), Answers())
        assert row["completion_tokens"] == [len(solution(x)) for x in leaves]


def test_texts_without_an_answer_vote_unless_told_otherwise():
    silent = next(x for seed in range(99) for x in run("best_of_n", Tree(seed), n=4)[1] if not answer_of(solution(x)))
    other = next(x for seed in range(99) for x in run("best_of_n", Tree(seed), n=4)[1] if answer_of(solution(x)))
    result = as_result([silent, silent, silent, other])
    assert columns(result, Answers())["pred_maj@4"] == "\\boxed{}"
    repaired = columns(result, Answers(), Scoring(unparsable_votes=False))
    assert repaired["pred_maj@4"] == f"\\boxed{{{answer_of(solution(other))}}}"
    assert columns(result, Answers())["correct_maj@4"] is False


@pytest.mark.parametrize("name", ["search_and_learn_beam", "search_and_learn_dvts"])
@pytest.mark.parametrize("empty_step", [False, True])
@pytest.mark.parametrize("verifier", [lambda node: math.nan, lambda node: 0.5, lambda node: -math.inf])
def test_degenerate_verifiers_end_the_search_with_n_answers(name, empty_step, verifier):
    for seed, n in itertools.product(range(10), (1, 4, 6)):
        _, leaves = run(name, Tree(seed), verifier, n=n, expand=min(n, 2), empty_step=empty_step)
        assert len(leaves) == n


def test_dvts_stops_a_subtree_at_the_box_and_refuses_a_width_that_m_does_not_divide():
    engine, _ = run("search_and_learn_dvts", Tree(1), n=2, expand=2, stop_text="\x01")
    assert len(kept(engine)) <= 2  # every step ends with this character, so the first choice ends the subtree
    with pytest.raises(ValueError, match=r"n must be a multiple of expand \(4\), got 6"):
        find("search_and_learn_dvts").make_parameters({"n": 6})
