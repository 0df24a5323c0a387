"""Figures of calibration on small cases that can be worked out by hand, and the command that prints them."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from surfaces.test_cli import run

from tts.calibration import Isotonic, Judged, auc, ece, reliability, report, within_question_auc
from tts.solver import Solver
from tts.tasks.chain import EXAMPLE
from tts.verifiers import Checkpoint


def judged(question, scores, labels, lengths=None):
    return Judged(question, scores, labels, lengths or [1] * len(scores))


def test_reliability_bins_hold_every_finite_score_once():
    bins = reliability([0.05, 0.95, 1.0, math.nan, 0.92], [False, True, True, True, False])
    assert [(b.low, b.count) for b in bins] == [(0.0, 1), (0.9, 3)]
    assert bins[1].share_right == pytest.approx(2 / 3) and bins[1].mean_score == pytest.approx((0.95 + 1.0 + 0.92) / 3)


def test_ece_is_the_weighted_gap():
    assert ece([0.05, 0.95, 0.95, 0.95], [True, True, True, False]) == pytest.approx((0.95 + 3 * abs(0.95 - 2 / 3)) / 4)
    assert math.isnan(ece([], []))


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.booleans()), max_size=20))
def test_auc_counts_pairs(pairs):
    right = [s for s, label in pairs if label]
    wrong = [s for s, label in pairs if not label]
    found = auc([s for s, _ in pairs], [label for _, label in pairs])
    if not right or not wrong:
        assert math.isnan(found)
    else:
        wins = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
        assert found == pytest.approx(wins / (len(right) * len(wrong)))


def test_within_question_auc_does_not_credit_telling_hard_questions_from_easy_ones():
    easy = [judged("easy", [s], [label]) for s, label in [*[(0.9, True)] * 3, (0.95, False)]]
    hard = [judged("hard", [s], [label]) for s, label in [*[(0.1, False)] * 3, (0.05, True)]]
    assert within_question_auc(easy + hard) == 0.0
    assert auc([s.scores[-1] for s in easy + hard], [s.labels[-1] for s in easy + hard]) > 0.5


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
def test_an_isotonic_fit_rises_and_keeps_the_mean(pairs):
    pytest.importorskip("scipy")
    scores, labels = [s for s, _ in pairs], [label for _, label in pairs]
    fit = Isotonic.fit(scores, labels)
    values = [fit(score) for score in sorted(scores)]
    assert values == sorted(values) and all(0 <= v <= 1 for v in values)
    assert sum(values) == pytest.approx(sum(labels))


def test_a_fit_is_stored_and_read_again(tmp_path):
    pytest.importorskip("scipy")
    fit = Isotonic.fit([0.1, 0.4, 0.8], [False, True, True])
    fit.save(tmp_path / "calibration.json")
    assert Isotonic.load(tmp_path / "calibration.json") == fit
    assert math.isnan(fit(math.nan)) and fit(0.0) == 0.0 and fit(1.0) == 1.0


def test_a_verifier_with_a_fit_gives_its_probabilities(tmp_path):
    Isotonic((0.0, 1.0), (0.25, 0.75)).save(tmp_path / "calibration.json")
    plain, fitted = (
        Solver(verifier=Checkpoint("zoo:M", calibration=path)).solve(EXAMPLE, "best_of_n", n=1).candidates[0].scores
        for path in (None, tmp_path / "calibration.json")
    )
    assert fitted == pytest.approx([0.25 + score / 2 for score in plain])


def test_the_four_kinds_of_error_are_counted():
    pytest.importorskip("scipy")
    found, _ = report(
        [
            judged("a", [0.9, 0.3, 0.9], [True, True, True], [1, 9, 2]),  # one right step criticised
            judged("b", [0.9, 0.8, 0.2], [True, False, False]),  # the first error neglected, found a step late
            judged("c", [0.9, 0.1], [True, False]),  # found in its place
            judged("d", [math.nan, 0.7], [True, False]),  # never found
        ]
    )
    assert (found.num_solutions, found.num_questions, found.num_steps, found.num_invalid) == (4, 4, 10, 1)
    assert found.over_criticism == pytest.approx(1 / 5) and found.error_neglect == pytest.approx(2 / 4)
    assert found.located == pytest.approx(1 / 3) and found.displacement == pytest.approx(0.5)
    assert found.length_bias < 0


def test_no_solution_and_numbers_that_disagree_are_errors():
    with pytest.raises(ValueError, match="there is no solution"):
        report([])
    with pytest.raises(ValueError, match="2 scores, 1 labels, 1 lengths"):
        judged("a", [0.1, 0.2], [True], [1])


# ---- the command


def test_verifier_check_prints_all_figures_for_the_chain_task(monkeypatch, capsys):
    pytest.importorskip("scipy")
    code, out, _ = run(monkeypatch, capsys, "verifier", "check", "zoo:M", "--data", "chain", "--limit", "12", "--json")
    found = json.loads(out)
    assert code == 0 and found["num_questions"] == 12 and found["num_invalid"] == 0
    assert found["within_question_auc"] > 0.8 and 0 <= found["error_neglect"] <= 1


def test_verifier_check_reads_a_file_and_stores_the_fit(monkeypatch, capsys, tmp_path):
    pytest.importorskip("scipy")
    rows = [
        {"question": "Q94a-3;", "steps": ["a94-3=64;", "A949464$"], "labels": [True, True]},
        {"question": "Q94a-3;", "steps": ["a94-3=74;", "A949474$"], "labels": [False, False]},
        {"question": "Q10a+2;", "steps": ["a10+2=30;", "A101030$"], "labels": [True, True]},
    ]
    data, fit = tmp_path / "data.jsonl", tmp_path / "calibration.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, err = run(
        monkeypatch, capsys, "verifier", "check", "zoo:M", "--data", str(data), "--task", "chain", "--fit", str(fit)
    )
    assert code == 0, err
    assert "over-criticism" in out and Isotonic.load(fit).scores


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Q94a-3;", "steps": ["a94-3=64;"]}, "line 1: 'labels' must be"),
        ({"question": "Q94a-3;", "steps": ["a94-3=64;"], "labels": [True, False]}, "line 1: 1 steps and 2 labels"),
        ({"steps": [], "labels": []}, "line 1: 'question' must be"),
    ],
)
def test_a_bad_row_is_one_line_that_names_it(monkeypatch, capsys, tmp_path, row, message):
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps(row) + "\n")
    code, _, err = run(monkeypatch, capsys, "verifier", "check", "zoo:M", "--data", str(data), "--task", "chain")
    assert code == 2 and message in " ".join(err.split())
