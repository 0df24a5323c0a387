import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts import selection
from tts.selection import aggregate, exact, group_by, majority, pass_at_k, select, weighted

NAN, INF = float("nan"), float("inf")

answers_and_scores = st.lists(
    st.tuples(st.one_of(st.none(), st.sampled_from("abcd")), st.floats(0, 1)), min_size=1, max_size=12
).map(lambda rows: ([a for a, _ in rows], [s for _, s in rows]))


@pytest.mark.parametrize(("how", "expected"), [("last", 0.8), ("min", 0.5), ("prod", 0.36), ("mean", 0.7333)])
def test_the_documented_step_scores_aggregate_to_the_documented_values(how, expected):
    assert aggregate([0.9, 0.5, 0.8], how) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("how", selection.AGGREGATIONS)
def test_an_answer_without_steps_has_no_score(how):
    assert math.isnan(aggregate([], how))


@pytest.mark.parametrize("scores", [[NAN, 0.5], [0.5, NAN], [0.1, NAN, 0.9]])
def test_one_nan_step_spoils_every_aggregation_but_last(scores):
    assert all(math.isnan(aggregate(scores, how)) for how in ("min", "prod", "mean"))
    assert math.isnan(aggregate(scores, "last")) == math.isnan(scores[-1])


def test_an_unknown_aggregation_or_rule_is_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match="'median'.*last, min, prod, mean"):
        aggregate([0.5], "median")
    with pytest.raises(ValueError, match="'best'.*majority, max, weighted"):
        select(["a"], [0.5], "best")


def test_majority_takes_the_first_member_of_the_largest_group():
    assert majority(["a", "b", "c", "b"]) == 1


def test_majority_gives_a_tie_to_the_group_seen_first():
    assert majority(["b", "a", "a", "b"]) == 0


def test_weighted_sums_the_scores_of_equal_answers():
    assert weighted(["a", "b", "b"], [0.6, 0.4, 0.3]) == 1
    assert weighted(["a", "b", "b"], [0.8, 0.4, 0.3]) == 0


def test_weighted_gives_a_tie_to_the_group_seen_first_and_returns_its_first_member():
    assert weighted(["b", "a", "a", "b"], [0.25, 0.5, 0.5, 0.75]) == 0
    assert weighted(["b", "a", "b"], [0.1, 0.5, 0.9]) == 0


def test_max_gives_a_tie_to_the_first_sampled():
    assert selection.max(["a", "b", "c"], [0.1, 0.7, 0.7]) == 1


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("rule", ["max", "weighted"])
def test_a_score_that_is_not_finite_never_wins(rule, bad):
    assert np.argmax([0.1, NAN, 0.9]) == 1  # the trap: numpy calls NaN the largest
    assert select(["a", "b", "c"], [0.1, bad, 0.9], rule) == 2
    assert select(["a", "b"], [bad, 0.0], rule) == 1
    assert select(["a", "b"], [bad, bad], rule) == 0


def test_a_score_that_is_not_finite_adds_nothing_to_its_group():
    assert weighted(["a", "a", "b"], [0.2, INF, 0.3]) == 2
    assert weighted(["a", "b", "a"], [NAN, 0.3, 0.4]) == 0


def test_a_group_of_invalid_scores_loses_to_a_group_of_zeros():
    assert weighted(["a", "a", "b"], [NAN, INF, 0.0]) == 2


@pytest.mark.parametrize("rule", selection.RULES)
def test_an_unparsable_answer_never_wins_while_a_parsable_one_exists(rule):
    assert select([None, None, "a"], [0.9, 0.9, 0.1], rule) == 2
    assert select([None, "a"], [0.9, NAN], rule) == 1


def test_where_no_answer_parses_majority_takes_the_first_and_the_others_the_best_finite_score():
    answers, scores = [None, None, None], [NAN, 0.3, 0.2]
    assert majority(answers) == 0
    assert selection.max(answers, scores) == weighted(answers, scores) == 1
    assert weighted(answers, [NAN, INF, NAN]) == 0


def test_weighted_refuses_a_negative_score_and_says_what_to_do():
    with pytest.raises(ValueError, match=r"scores\[1\] = -0.5: .*sigmoid"):
        weighted(["a", "b"], [0.5, -0.5])


def test_scores_too_large_to_add_up_are_no_exception():
    assert weighted(["b", "a", "a"], [1e308, 1.7e308, 1.7e308]) == 1


@pytest.mark.parametrize("rule", selection.RULES)
def test_answers_and_scores_must_pair_up(rule):
    with pytest.raises(ValueError, match="each of 2 answers, got 1"):
        select(["a", "b"], [0.5], rule)
    with pytest.raises(ValueError, match="empty"):
        select([], [], rule)


def test_a_grouping_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="1 ids for 2 answers"):
        majority(["a", "b"], group=lambda answers: [0])


def test_exact_groups_number_the_strings_as_they_are_seen():
    assert exact(["b", None, "a", "b"]) == [0, -1, 1, 0]


def test_a_pairwise_equality_becomes_a_grouping_that_asks_for_distinct_strings_only():
    asked = []

    def same_letter(a, b):
        asked.append((a, b))
        return a.lower() == b.lower()

    assert group_by(same_letter)(["a", "B", None, "A", "b", "A", "a"]) == [0, 1, -1, 0, 1, 0, 0]
    assert asked == [("a", "B"), ("a", "A"), ("a", "b"), ("B", "b")]


def test_a_grouping_decides_which_votes_are_counted_together():
    answers = ["x", "1/2", "0.5"]
    halves = group_by(lambda a, b: {a, b} == {"1/2", "0.5"})
    assert majority(answers) == 0
    assert majority(answers, halves) == 1
    assert weighted(answers, [0.5, 0.3, 0.3], halves) == 1


@given(answers_and_scores, st.randoms(use_true_random=False), st.sampled_from(list(selection.RULES)))
def test_without_ties_the_winning_answer_does_not_depend_on_the_order(rows, random, rule):
    answers, scores = rows
    order = list(range(len(answers)))
    random.shuffle(order)
    shuffled = [answers[i] for i in order], [scores[i] for i in order]
    if not _has_tie(answers, scores, rule):
        assert answers[select(answers, scores, rule)] == shuffled[0][select(*shuffled, rule)]


def _has_tie(answers, scores, rule):
    distinct = {answer for answer in answers if answer is not None}
    value = {"majority": len, "max": max, "weighted": math.fsum}[rule]
    values = [value([score for answer, score in zip(answers, scores, strict=True) if answer == which]) for which in distinct]
    return len(values) != len(set(values))


@given(answers_and_scores)
def test_exact_strings_and_string_equality_group_alike(rows):
    assert group_by(lambda a, b: a == b)(rows[0]) == exact(rows[0])


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_one_minus_the_share_of_draws_that_miss_every_right_sample(nck):
    n, c, k = nck
    assert pass_at_k(n, c, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k))


def test_pass_at_k_does_not_overflow_where_binomials_would():
    assert pass_at_k(100_000, 50_000, 1) == pytest.approx(0.5)


@pytest.mark.parametrize("nck", [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(nck):
    with pytest.raises(ValueError, match="0 <= c <= n and 1 <= k <= n"):
        pass_at_k(*nck)
