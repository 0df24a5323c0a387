"""Nodes, the running aggregates of their scores, and the moves that hold them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts.moves import Answer, Expand, Resample, Steps, Tokens
from tts.selection import AGGREGATIONS, aggregate
from tts.tree import ENDS, Node, Prompt, Running

NAN = math.nan
step_scores = st.lists(st.floats(0, 1) | st.just(NAN) | st.just(0.0), max_size=8)


def root(order=0):
    return Node(None, [1, 2, 3], b"", "prompt", 0, Prompt(), order=(order,))


def child(parent, end="step", text=b"x", tokens=(7,)):
    return Node(parent, tokens, text, end, 0, parent.prompt)


def chain(scores, ends=None):
    """The last node of a path whose nodes have these scores and ends."""
    node = root()
    for score, end in zip(scores, ends or ["step"] * len(scores), strict=True):
        node = child(node, end)
        node.set_score("prm", score)
    return node


def same(a, b):
    return (math.isnan(a) and math.isnan(b)) or a == pytest.approx(b, rel=1e-9, abs=1e-12)


# ---- aggregates


@pytest.mark.parametrize(("how", "expected"), [("last", 0.8), ("min", 0.5), ("prod", 0.36), ("mean", 0.7333)])
def test_the_documented_step_scores_have_the_documented_values(how, expected):
    assert chain([0.9, 0.5, 0.8]).value(how) == pytest.approx(expected, abs=5e-5)


def test_an_unknown_aggregation_is_one_clear_error():
    with pytest.raises(ValueError, match="unknown aggregation 'average': there are last, min, prod, mean"):
        chain([0.9]).value("average")


@given(step_scores)
def test_running_aggregates_equal_those_of_the_whole_list(scores):
    running = Running()
    for score in scores:
        running = running.then(score)
    for how in AGGREGATIONS:
        assert same(running.value(how), aggregate(scores, how))


@given(step_scores, st.data())
def test_siblings_carry_on_from_the_same_parent_without_disturbing_it(scores, data):
    parent = chain(scores)
    before = [parent.value(how) for how in AGGREGATIONS]
    for score in data.draw(st.lists(st.floats(0, 1), min_size=2, max_size=3)):
        sibling = child(parent)
        sibling.set_score("prm", score)
        assert all(same(sibling.value(how), aggregate([*scores, score], how)) for how in AGGREGATIONS)
    assert all(same(a, parent.value(how)) for a, how in zip(before, AGGREGATIONS, strict=True))


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["step", "cut"])), min_size=1, max_size=8))
def test_cut_segments_enter_the_last_score_only(steps):
    node = chain([score for score, _ in steps], [end for _, end in steps])
    assert node.value("last") == steps[-1][0]
    whole = [score for score, end in steps if end != "cut"]
    for how in ("min", "prod", "mean"):
        assert same(node.value(how), aggregate(whole, how))


@pytest.mark.parametrize("scores", [[NAN, 0.5], [0.5, NAN], [0.1, NAN, 0.9]])
def test_one_nan_step_spoils_every_aggregate_but_last(scores):
    node = chain(scores)
    assert all(math.isnan(node.value(how)) for how in ("min", "prod", "mean"))
    assert math.isnan(node.value("last")) == math.isnan(scores[-1])


def test_a_path_without_scores_has_no_value():
    assert all(math.isnan(node.value(how)) for node in (root(), child(root())) for how in AGGREGATIONS)
    assert math.isnan(chain([0.5]).value("last", by="another"))


def test_a_negative_score_has_no_product_but_the_other_aggregates():
    node = chain([2.0, -1.0])
    assert math.isnan(node.value("prod"))
    assert [node.value(how) for how in ("last", "min", "mean")] == [-1.0, -1.0, 0.5]


def test_scores_too_large_for_a_product_leave_the_other_aggregates_alone():
    node = chain([1e300] * 3)
    assert node.value("prod") == math.inf
    assert [node.value(how) for how in ("last", "min", "mean")] == [1e300, 1e300, pytest.approx(1e300)]


def test_verifiers_do_not_disturb_each_other():
    node = chain([0.9, 0.5])
    for step, score in zip(node.path, [0.75, 0.25], strict=True):
        step.set_score("orm", score)
    assert [node.value("mean", by=by) for by in ("prm", "orm")] == [pytest.approx(0.7), 0.5]
    assert node.scores == {"prm": 0.5, "orm": 0.25}


# ---- the tree


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 2**20)), max_size=25), st.permutations(range(28)))
def test_sorting_by_order_is_a_depth_first_walk(growth, shuffle):
    roots = [root(0), root(1)]
    nodes, children = list(roots), {}
    for where, _ in growth:
        parent = nodes[where % len(nodes)]
        nodes.append(child(parent))
        children.setdefault(parent, []).append(nodes[-1])

    def walk(node):
        return [node, *(x for c in children.get(node, []) for x in walk(c))]

    shuffled = [nodes[i] for i in shuffle if i < len(nodes)]
    assert sorted(shuffled, key=lambda n: n.order) == [x for r in roots for x in walk(r)]


@given(st.lists(st.tuples(st.binary(max_size=3), st.lists(st.integers(0, 9), max_size=4)), max_size=6))
def test_a_path_holds_the_steps_without_the_prompt(steps):
    start = node = root()
    nodes = []
    for text, tokens in steps:
        node = child(node, "step", text, tokens)
        nodes.append(node)
    assert node.path == nodes and node.root is start and node.depth == len(steps)
    assert node.num_path_tokens == 3 + sum(len(tokens) for _, tokens in steps)
    assert node.solution == b"".join(text for text, _ in steps).decode("utf-8", "replace")


def test_a_character_that_straddles_two_nodes_is_whole_in_the_solution():
    first = child(root(), "step", "é".encode()[:1])
    second = child(first, "stop", "é".encode()[1:])
    assert second.solution == "é" and second.text == "\ufffd"


def test_children_are_numbered_in_order_of_birth():
    parent = root()
    assert [child(parent).order for _ in range(3)] == [(0, 0), (0, 1), (0, 2)] and parent.num_children == 3


@pytest.mark.parametrize("end", ENDS)
def test_a_branch_is_done_unless_its_step_or_segment_only_ended(end):
    assert Node(None, [], b"", end, 0, Prompt()).is_done == (end not in ("prompt", "step", "cut"))


def test_prompts_are_values_and_nodes_are_not():
    assert Prompt("solve", (), fields=(("k", 1),)) == Prompt("solve", (), fields=(("k", 1),))
    start = root()
    assert child(start) != child(start)


# ---- moves


def test_one_width_is_every_nodes_width():
    assert Expand([Prompt(), Prompt()], 3).widths == [3, 3]
    assert Expand([Prompt(), Prompt()], (0, 2)).widths == [0, 2]
    assert Expand([]).widths == []


def test_an_expansion_decodes_one_step_unless_told_otherwise():
    assert Expand([Prompt()]).until == Steps(1)
    assert Answer() == Answer((), True) and Tokens(4).count == 4


@pytest.mark.parametrize("scheme", ["stratified", "", "Systematic"])
def test_an_unknown_resampling_scheme_is_refused_with_the_names_that_exist(scheme):
    with pytest.raises(ValueError, match=f"systematic or multinomial, got {scheme!r}"):
        Resample(scheme)
    assert [Resample(s).scheme for s in ("systematic", "multinomial")] == ["systematic", "multinomial"]


def test_depth_counts_steps_whatever_names_the_root():
    start = Node(None, [1], b"", "prompt", 0, Prompt(), order=(4, 2))
    assert [start.depth, child(start).depth, child(child(start)).depth] == [0, 1, 2]
