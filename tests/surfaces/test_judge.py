"""The judge on the real engine: a model whose judgements nobody can read still gives a defined result, metered and cleaned up."""

import json
import math

import pytest
from runs import is_empty
from surfaces.test_cli import run
from tiny_models import make_folder, make_reward_folder

from tts.solver import Solver


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    make = tmp_path_factory.mktemp
    return make_folder(make("judge"), "qwen2"), make_reward_folder(make("meta"), "qwen2", "ForSequenceClassification")


def test_judgements_that_cannot_be_read_are_charged_and_no_response_wins(folders):
    judge, _ = folders
    solver = Solver(judge, None, kv_bytes=1 << 24, judge=judge)
    verdict, meter = solver.judge("1+1?", ["2", "3"], k=6, max_tokens=5)
    assert (verdict.num_read, verdict.num_dropped) == (0, 6) and all(math.isnan(s) for s in verdict.scores)
    assert meter.policy_tokens == 30 or 6 <= meter.policy_tokens < 30
    assert is_empty(solver.search)


def test_each_distinct_order_is_read_once(folders):
    judge, _ = folders
    solver = Solver(judge, None, kv_bytes=1 << 24, judge=judge)
    costs = [solver.judge("1+1?", ["2", "3"], k=k, max_tokens=2)[1].prompt_tokens for k in (16, 64)]
    assert costs[0] == costs[1]  # both orders of two responses, whatever the number of samples


def test_semi_scalar_judging_reads_critiques_behind_the_prompt_they_answer(folders):
    judge, meta = folders
    solver = Solver(judge, None, kv_bytes=1 << 24, judge=judge, meta=meta)
    verdict, meter = solver.judge("1+1?", ["2", "3"], way="semi-scalar", k=2, max_tokens=4)
    assert all(0 < score < 1 for score in verdict.scores) and verdict.num_read == 4
    prompt = len(solver.search.policies["grm"].model.tokenizer("Question:\n1+1?\n\nResponse:\n2")["input_ids"])
    assert meter.verifier_tokens > 2 * prompt


def test_best_of_n_by_a_judge_returns_n_answers(folders):
    judge, _ = folders
    result = Solver(judge, None, kv_bytes=1 << 24, judge=judge).solve("1+1?", "grm_best_of_n", n=3, k=2, max_tokens=4)
    assert len(result.candidates) == 3 and all(math.isnan(c.score) for c in result.candidates)
    assert result.meter.policy_tokens > 0


def test_a_missing_judge_or_meta_model_is_an_error_before_a_judgement_is_drawn(folders):
    judge, _ = folders
    with pytest.raises(ValueError, match="there is no such policy"):
        Solver(judge, None, kv_bytes=1 << 24).judge("1+1?", ["2"])
    with pytest.raises(ValueError, match="there is no such verifier"):
        Solver(judge, None, kv_bytes=1 << 24, judge=judge).judge("1+1?", ["2"], k=4, k_meta=2)


def test_judge_prints_scores_and_how_many_judgements_count(monkeypatch, capsys, folders, tmp_path):
    (tmp_path / "answer.txt").write_text("two", encoding="utf-8")
    common = ("judge", "1+1?", "--response", "2", "--response", f"@{tmp_path / 'answer.txt'}", "--judge", folders[0])
    common += ("--k", "3", "--max-tokens", "3", "--kv-bytes", str(1 << 24))
    code, out, _ = run(monkeypatch, capsys, *common, "--json")
    found = json.loads(out)
    assert code == 0 and found["num_dropped"] == 3 and found["scores"] == [None, None]
    code, out, _ = run(monkeypatch, capsys, *common)
    assert code == 0 and "0 of 3 judgements count, 3 could not be read" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--way", "coin"), "unknown way to judge 'coin'"),
        (("--k", "0"), "need k >= 1"),
        (("--k", "2", "--k-meta", "3"), "0 <= k_meta <= k"),
    ],
)
def test_bad_settings_are_one_line(monkeypatch, capsys, folders, options, message):
    code, _, err = run(monkeypatch, capsys, "judge", "1+1?", "--response", "2", "--judge", folders[0], *options)
    assert code == 2 and message in " ".join(err.split())


def test_the_memory_plan_counts_weights_and_pages_of_both_models(monkeypatch, capsys, folders):
    policy, verifier = folders
    code, out, _ = run(monkeypatch, capsys, "info", "--policy", policy, "--verifier", verifier, "--n", "64", "--json")
    found = json.loads(out)
    solver = Solver(policy, verifier, kv_bytes=1 << 24)
    loaded = [solver.policy.model, solver.verifier.model]
    assert code == 0 and [m["family"] for m in found["models"]] == ["policy", "reward-model"]
    assert [m["kv_per_token"] for m in found["models"]] == [m.kv_bytes_per_token for m in loaded]
    assert found["models"][0]["num_parameters"] == loaded[0].num_parameters
    assert found["needed"] == sum(m["weights"] + 64 * 2048 * m["kv_per_token"] for m in found["models"]) and found["fits"]
    code, out, _ = run(monkeypatch, capsys, "info", "--policy", policy, "--n", "100000000")
    assert code == 0 and "branches fit at a time" in " ".join(out.split())
    code, _, err = run(monkeypatch, capsys, "info", "--verifier", verifier)
    assert code == 2 and "--verifier needs --policy" in err
