"""Comparing strategies: intervals against a plain bootstrap, matched FLOPs and bins against their definitions."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts.comparison import (
    NUM_RESAMPLES,
    Measurement,
    Method,
    Trial,
    at_equal_flops,
    interval,
    quantile_bins,
    resamples,
    rows,
)


def measurement(correct, flops=1.0, name="a", n=4, seconds=None):
    trials = [Trial(bool(c), 10, 20, flops, 1.0) for c in correct]
    return Measurement(Method(name, n, ""), trials, seconds)


def test_the_interval_is_that_of_drawing_questions_one_by_one_with_replacement():
    rng = random.Random(4)
    a, b = ([rng.random() < p for _ in range(60)] for p in (0.7, 0.5))
    difference = np.array(a, float) - np.array(b, float)
    found = interval(difference, resamples(60, 0))
    draws = sorted(sum(difference[rng.randrange(60)] for _ in range(60)) / 60 for _ in range(NUM_RESAMPLES))
    expected = draws[int(0.025 * NUM_RESAMPLES)], draws[int(0.975 * NUM_RESAMPLES)]
    assert found["mean"] == pytest.approx(difference.mean())
    assert found["ci"] == pytest.approx(expected, abs=1.01 / 60)  # a resampled mean is a multiple of 1/60


def test_a_resample_has_as_many_questions_as_there_are():
    weights = resamples(17, 3)
    assert weights.shape == (NUM_RESAMPLES, 17) and weights.sum(1) == pytest.approx(np.ones(NUM_RESAMPLES))
    assert (weights == resamples(17, 3)).all() and (weights != resamples(17, 4)).any()


def test_a_difference_is_paired_so_equal_methods_have_no_uncertainty():
    a = measurement([1, 0, 1, 0, 1, 1])
    (row,) = rows([measurement([1, 0, 1, 0, 1, 1], name="b")], "a", [a], [1, 1, 2, 2, 3, 3], 0)
    assert row["difference"] == {"mean": 0.0, "ci": [0.0, 0.0]} == row["difference_at_equal_flops"]
    assert row["by_bin"] == {"1": 0.5, "2": 0.5, "3": 1.0}


def test_the_baseline_has_no_difference_from_itself_nor_one_where_it_was_not_run():
    a, other = measurement([1, 0, 1], name="a"), measurement([1, 1, 1], flops=9.0, name="b", n=64)
    first, second = rows([a, other], "a", [a], [1, 1, 1], 0)
    assert first["difference"] is None is first["difference_at_equal_flops"]
    assert second["difference"] is None is second["difference_at_equal_flops"]


def test_equal_flops_interpolates_in_the_logarithm():
    grid = [measurement([0, 0, 1], 100.0), measurement([1, 0, 1], 10_000.0), measurement([1, 1, 1], 1_000_000.0)]
    assert at_equal_flops(1000.0, grid) == pytest.approx([0.5, 0.0, 1.0])
    assert at_equal_flops(10_000.0, grid) == pytest.approx([1, 0, 1])
    assert at_equal_flops(100.0, grid) == pytest.approx([0, 0, 1])
    assert at_equal_flops(99.0, grid) == pytest.approx([0, 0, 1])
    assert at_equal_flops(1_010_000.0, grid) == pytest.approx([1, 1, 1])
    assert at_equal_flops(97.0, grid) is None is at_equal_flops(1_030_000.0, grid)
    assert at_equal_flops(1.0, []) is None


@given(st.lists(st.integers(0, 32), min_size=1, max_size=60))
def test_bins_are_quintiles_hardest_last_and_equal_rates_share_one(counts):
    rates = [c / 32 for c in counts]
    bins, edges = quantile_bins(rates)
    assert len(edges) == 4 and all(1 <= b <= 5 for b in bins)
    for rate, bin in zip(rates, bins):
        reached = sum(rate >= edge for edge in edges)  # search-and-learn: below the first edge is level 5
        assert bin == 5 - reached
    assert all(bins[i] == bins[j] for i in range(len(rates)) for j in range(i) if rates[i] == rates[j])


def test_bins_of_distinct_rates_are_equal_in_size():
    bins, _ = quantile_bins([i / 100 for i in range(100)])
    assert [bins.count(b) for b in range(1, 6)] == [20] * 5 and bins[0] == 5 and bins[-1] == 1


def test_a_row_has_means_a_question_and_counts_errors_and_unparsable_answers():
    trials = [Trial(True, 10, 20, 100.0, 7.0), Trial(False, 30, 40, 300.0, 9.0, is_unparsable=True, error="broken")]
    (row,) = rows([Measurement(Method("a", 4, "max"), trials, 0.5)], "b", [], [1, 2], 0)
    assert (row["strategy"], row["n"], row["accuracy"], row["flops"], row["attention_flops"]) == ("a/max", 4, 0.5, 200.0, 8.0)
    assert (row["policy_tokens"], row["verifier_tokens"], row["unparsable"], row["num_errors"]) == (20.0, 30.0, 0.5, 1)
    assert row["seconds"] == 0.5 and not math.isnan(row["ci"][0])
