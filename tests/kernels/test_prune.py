"""Selection: the published rules, ties, invalid scores, and what every rule must keep."""

import numpy as np
import pytest
import torch
from conformance import on_the_cpu
from trees import i32

from tts_kernels import prune

BACKENDS = on_the_cpu(prune)
RULES = ("top", "softmax", "systematic", "multinomial", "proportional")


def one_segment(scores, total, keep=1, rule="top", temperature=1.0, key=0, backend=None):
    scores, keys = torch.as_tensor(scores, dtype=torch.float32), torch.tensor([key])
    result = prune(scores, i32([0, len(scores)]), i32([total]), i32([keep]), keys, rule, temperature, total, backend=backend)
    return result.widths.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_rebase_rounds_up_from_the_best_until_nothing_is_left(backend):
    # e^(s/T) = 8 : 4 : 2 : 1; of 10: ceil(10 * 8/15) = 6, ceil(4 * 4/7) = 3, ceil(1 * 2/3) = 1, 0.
    scores = 0.2 * torch.log(torch.tensor([2.0, 8.0, 1.0, 4.0]))
    assert one_segment(scores, 10, rule="softmax", temperature=0.2, backend=backend) == [1, 6, 0, 3]
    assert one_segment(scores, 2, rule="softmax", temperature=0.2, backend=backend) == [0, 2, 0, 0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rows", [1, 3, 7, 49, 128])
def test_rebase_gives_equal_scores_equal_shares(backend, rows):
    assert one_segment([0.3] * rows, 5 * rows, rule="softmax", temperature=0.1, backend=backend) == [5] * rows


@pytest.mark.parametrize("backend", BACKENDS)
def test_proportional_rounds_each_share_and_gives_what_is_left_to_the_best(backend):
    scores = torch.log(torch.tensor([2.0, 8.0, 1.0, 4.0]))  # shares of 2/15, 8/15, 1/15, 4/15
    assert one_segment(scores, 15, rule="proportional", backend=backend) == [2, 8, 1, 4]
    # of 10: 1.33, 5.33, .67, 2.67 round to 1, 5, 1, 3; of 8: 1.07, 4.27, .53, 2.13 round to 1, 4, 1, 2
    assert one_segment(scores, 10, rule="proportional", backend=backend) == [1, 5, 1, 3]
    assert one_segment(scores, 8, rule="proportional", backend=backend) == [1, 4, 1, 2]
    # three times 1.33 round to 1, so one is left; twice 1.5 round to 2, so the second gets what there is
    assert one_segment([0.5] * 3, 4, rule="proportional", backend=backend) == [2, 1, 1]
    assert one_segment([0.5] * 2, 3, rule="proportional", backend=backend) == [2, 1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_rebase_survives_weights_that_underflow(backend):
    assert one_segment([0.0, -1e30, 1.0, -1e35], 4, rule="softmax", temperature=1e-30, backend=backend) == [0, 0, 4, 0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_top_keeps_the_lowest_rows_among_ties_and_gives_the_remainder_to_the_best(backend):
    rng = np.random.default_rng(0)
    for rows, total, keep in ((16, 16, 4), (64, 64, 16), (257, 64, 13), (5, 23, 9)):
        scores = rng.choice([0.0, -0.0, 0.25, 0.5], rows)  # far more than half of them tie
        order = np.argsort(-scores, kind="stable")[: min(keep, total, rows)]
        widths = np.zeros(rows, int)
        widths[order] = total // len(order)
        widths[order[: total % len(order)]] += 1
        assert one_segment(scores, total, keep, backend=backend) == widths.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_spends_the_total_on_finite_scores_and_plans_the_children_in_row_order(backend, rule):
    rng = np.random.default_rng(1)
    sizes = [0, 1, 2, 17, 64, 0, 5, 101]
    scores = torch.from_numpy(
        rng.choice([0.1, 0.2, 0.9, np.nan, np.inf, -np.inf], sum(sizes), p=[0.3, 0.2, 0.2, 0.1, 0.1, 0.1]).astype(np.float32)
    )
    scores[1] = float("nan")
    indptr = [0, *np.cumsum(sizes).tolist()]
    total, keep = rng.integers(0, 40, len(sizes)).tolist(), rng.integers(0, 9, len(sizes)).tolist()
    keys = torch.from_numpy(rng.integers(-(2**63), 2**63 - 1, len(sizes)))
    got = prune(scores, i32(indptr), i32(total), i32(keep), keys, rule, 0.3, 400, backend=backend)
    assert (got.widths[~scores.isfinite()] == 0).all()
    for r, (begin, end) in enumerate(zip(indptr, indptr[1:])):
        expected = total[r] if scores[begin:end].isfinite().any() else 0
        assert got.counts[r] == got.widths[begin:end].sum() == expected
    children = [row for row, width in enumerate(got.widths.tolist()) for _ in range(width)]
    assert got.parents.tolist() == children + [-1] * (400 - len(children))


@pytest.mark.skipif("native" not in BACKENDS, reason="the C++ module is not built")
@pytest.mark.parametrize("rule", RULES)
def test_native_and_reference_agree_exactly(rule):
    rng = np.random.default_rng(2)
    scores = torch.from_numpy(rng.normal(0, 1, 500).astype(np.float32))
    scores[::7] = 0.5
    scores[::11] = float("nan")
    indptr, total = list(range(0, 501, 50)), rng.integers(0, 99, 10).tolist()
    inputs = (scores, i32(indptr), i32(total), i32(rng.integers(0, 60, 10)), torch.arange(10) ** 15, rule, 0.37, 990)
    for one, other in zip(prune(*inputs, backend="native"), prune(*inputs, backend="reference")):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_row_does_not_change_what_the_others_get(backend):
    clean = one_segment([0.5, 0.1, 0.7], 9, rule="softmax", backend=backend)
    for bad in (float("nan"), float("inf"), float("-inf")):
        assert one_segment([0.5, bad, 0.1, bad, 0.7], 9, rule="softmax", backend=backend) == [clean[0], 0, clean[1], 0, clean[2]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_systematic_resampling_stays_within_one_child_of_the_expectation(backend):
    scores = np.random.default_rng(3).normal(0, 1, 30)
    expected = 64 * np.exp(scores) / np.exp(scores).sum()
    for key in range(20):
        widths = np.array(one_segment(scores, 64, rule="systematic", key=key, backend=backend))
        assert widths.sum() == 64 and (abs(widths - expected) < 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_multinomial_resampling_has_the_right_mean(backend):
    scores = torch.tensor([0.0, 1.0, 2.0, -1.0])
    expected = 20000 * torch.softmax(scores.double(), 0)
    widths = torch.tensor(one_segment(scores, 20000, rule="multinomial", key=5, backend=backend))
    assert ((widths - expected).abs() < 4 * expected.sqrt()).all()
