"""The Python surface: results, models from folders, and every bad input as one clear error."""

import json
import math

import pytest
from tiny_models import make_folder, make_reward_folder

import tts
from tts import selection
from tts.solver import Solver
from tts.strategies import STRATEGIES
from tts.tasks.base import Problem
from tts.tasks.chain import EXAMPLE, natural
from tts.tasks.math import Math


@pytest.fixture(scope="module")
def solver():
    return Solver(max_rows=256)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    policy = make_folder(tmp_path_factory.mktemp("policy"), "qwen2")
    return policy, make_reward_folder(tmp_path_factory.mktemp("prm"), "qwen2", "ForTokenClassification", seed=1)


def test_the_worked_example_is_solved(solver):
    result = solver.solve(EXAMPLE, strategy="beam", n=16)
    assert result.answer == "842545" == result.candidates[result.winner].answer
    assert len(result.candidates) == 16
    assert result.meter.policy_tokens == sum(node["num_tokens"] for node in result.tree)


def test_candidates_hold_their_steps_and_scores(solver):
    result = solver.solve(EXAMPLE, strategy="best_of_n", n=4)
    for candidate in result.candidates:
        assert candidate.text == "".join(step.text for step in candidate.steps)
        assert candidate.score == candidate.scores[-1]
        assert candidate.end in ("stop", "length")


@pytest.mark.parametrize("how", ["last", "min", "prod", "mean"])
@pytest.mark.parametrize("rule", ["majority", "max", "weighted"])
def test_the_winner_is_what_selection_says(solver, rule, how):
    result = solver.solve(EXAMPLE, "best_of_n", n=8, select=rule, answer_agg=how, temperature=1.5)
    scores = [selection.aggregate(c.scores, how) for c in result.candidates]
    assert [c.score for c in result.candidates] == pytest.approx(scores)
    assert result.winner == selection.select([c.answer for c in result.candidates], scores, rule)


def test_the_tree_holds_every_node_once_with_its_parent(solver):
    result = solver.solve(EXAMPLE, "beam", n=8)
    for node in result.tree:
        assert node["parent"] is None or node["parent"] < node["id"]
    assert sum(node["is_candidate"] for node in result.tree) == 8


def test_many_problems_come_back_in_their_order_and_as_dicts(solver):
    problems = natural(5, 1)
    results = solver.solve_many(problems, "dvts", n=4)
    assert [r.problem.id for r in results] == [p.id for p in problems]
    assert json.loads(json.dumps(results[0].as_dict(), allow_nan=False))["id"] == problems[0].id
    assert [r.as_dict() for r in solver.solve_many(problems, "dvts", n=4)] == [r.as_dict() for r in results]


def test_models_load_from_folders_with_their_chat_template(folders):
    policy, prm = folders
    solver = Solver(policy, prm, kv_bytes=1 << 24)
    result = solver.solve("What is 1 + 1?", "beam", n=4, max_tokens=40, max_steps=3)
    assert len(result.candidates) == 4
    assert all(0 <= score <= 1 for c in result.candidates for score in c.scores)


REVISING = ["ab_mcts", "budget_forcing", "debate", "hybrid", "self_correction", "sequential_revision"]


@pytest.mark.parametrize("strategy", REVISING)
def test_strategies_that_show_earlier_answers_run_on_the_math_task(folders, strategy):
    solver = Solver(*folders, kv_bytes=1 << 24)
    result = solver.solve("What is 1 + 1?", strategy, n=3, max_tokens=12)
    assert 1 <= len(result.candidates) <= 3
    assert solver.policy.kv.num_used_pages == 0 and result.meter.policy_tokens > 0
    scored = [math.isfinite(c.score) for c in result.candidates]
    assert all(scored) if STRATEGIES[strategy].score else not any(scored)


def test_revisions_are_chosen_chain_by_chain(folders):
    class Last(Math):
        def extract(self, text):
            return str(len(text) % 3)

    solver = Solver(*folders, Last(), kv_bytes=1 << 24)
    for seed in range(4):
        result = solver.solve("What is 1 + 1?", "sequential_revision", n=6, chains=2, max_tokens=8, seed=seed)
        answers, scores = [c.answer for c in result.candidates], [c.score for c in result.candidates]
        assert result.winner == selection.hierarchical(answers, scores, [0] * 3 + [1] * 3)


def test_confident_answers_vote_by_their_confidence_and_unscored_ones_by_majority(solver):
    result = solver.solve(EXAMPLE, "deepconf_offline", n=8, keep=60.0, temperature=2.0)
    answers, scores = [c.answer for c in result.candidates], [c.score for c in result.candidates]
    assert 5 <= len(answers) < 8 and all(score > 0 for score in scores)  # more than 5 where equal texts tie
    assert result.winner == selection.weighted(answers, scores)
    result = solver.solve(EXAMPLE, "esc", n=8, temperature=2.0)
    assert result.winner == selection.majority([c.answer for c in result.candidates])
    assert result.meter.verifier_tokens == 0


def test_without_a_verifier_majority_still_works(folders):
    solver = Solver(folders[0], None, kv_bytes=1 << 24)
    result = solver.solve("What is 1 + 1?", "best_of_n", n=3, max_tokens=10)
    assert len(result.candidates) == 3 and math.isnan(result.candidates[0].score)


def test_a_function_and_the_rule_are_verifiers_too():
    for verifier in (lambda question, steps: [len(s) / 100 for s in steps], "rule"):
        result = Solver(verifier=verifier).solve(EXAMPLE, "beam", n=4)
        assert all(0 <= score <= 1 for c in result.candidates for score in c.scores)
    assert result.candidates[0].scores == [1.0] * 5  # the rule kept a right branch


@pytest.mark.parametrize(
    ("problem", "options", "message"),
    [
        (EXAMPLE, {"strategy": "bean"}, "unknown strategy 'bean'; there are .*beam, best_of_n"),
        (EXAMPLE, {"width": 3}, "unknown parameter 'width'; beam takes n, expand, max_steps, prune_agg"),
        (EXAMPLE, {"n": 0}, r"n must be in \[1, 4096\], got 0"),
        (EXAMPLE, {"n": 10**9}, r"n must be in \[1, 4096\], got 1000000000"),
        (EXAMPLE, {"n": "many"}, "n must be int, got 'many'"),
        (EXAMPLE, {"n": 0, "expand": 0}, r"n must be in \[1, 4096\], got 0; expand must be in"),
        (EXAMPLE, {"temperature": -1.0}, r"temperature must be in \[0, 100\]"),
        (EXAMPLE, {"temperature": math.nan}, r"temperature must be in \[0, 100\]"),
        (EXAMPLE, {"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        (EXAMPLE, {"select": "best"}, "select must be one of majority, max, weighted, hierarchical"),
        (EXAMPLE, {"strategy": "esc", "select": "weighted"}, "select must be majority for strategy esc, which scores no answers"),
        (EXAMPLE, {"strategy": "debate", "n": 3}, "strategy debate needs the template debate, which task chain does not have"),
        (EXAMPLE, {"answer_agg": "sum"}, "answer_agg must be one of last, min, prod, mean"),
        (EXAMPLE, {"max_tokens": 0}, r"max_tokens must be in \[1, "),
        (EXAMPLE, {"max_tokens": 10**6}, r"lower max_tokens to \d+"),
        ("", {}, "question"),
        ("Q1+2;", {}, "question"),
    ],
)
def test_bad_input_is_one_clear_error_before_anything_is_allocated(solver, problem, options, message):
    with pytest.raises(ValueError, match=message):
        solver.solve(problem, **options)
    assert solver.policy.kv.num_nodes == 0 and not solver.policy.has_work


@pytest.mark.parametrize("strategy", ["beam", "dvts", "lookahead"])
def test_a_guided_strategy_without_a_verifier_is_refused(strategy):
    with pytest.raises(ValueError, match="needs a verifier"):
        Solver("zoo:S", None).solve(EXAMPLE, strategy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "./no/such/folder"}, "no model folder './no/such/folder'"),
        ({"policy": "zoo:XXL"}, "no shipped model is called 'XXL'"),
        ({"verifier": "/no/such/prm"}, "no model folder '/no/such/prm'"),
        ({"device": "tpu0"}, "unknown device"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"kv_bytes": 10}, "kv_bytes must hold at least one page"),
        ({"task": "sudoku"}, "unknown task 'sudoku'"),
        ({"max_rows": 0}, "need 1 <= max_rows"),
    ],
)
def test_bad_settings_are_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        Solver(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attn_logit_softcapping": 50.0}, "soft-capped attention scores"),
        ({"final_logit_softcapping": 30.0}, "soft-capped logits"),
        ({"kv_lora_rank": 8}, "latent attention"),
    ],
)
def test_attention_that_is_not_ordinary_is_refused_at_load(tmp_path, changes, message):
    folder = make_folder(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(ValueError, match=message):
        Solver(folder, None)


def test_a_sliding_window_shorter_than_the_run_is_refused(tmp_path):
    solver = Solver(make_folder(tmp_path, "mistral", sliding_window=640), None, kv_bytes=1 << 24)
    with pytest.raises(ValueError, match=r"more than the window of .*, 640: lower max_tokens to \d+"):
        solver.solve("1?", "best_of_n", n=1, max_tokens=600)
    with pytest.raises(ValueError, match="more than the window of .*, 640: shorten the problem"):
        solver.solve("1?" * 100, "best_of_n", n=1, max_tokens=5)
    assert len(solver.solve("1?", "best_of_n", n=1, max_tokens=5).candidates) == 1


def test_a_model_without_a_chat_template_says_so(tmp_path):
    folder = make_folder(tmp_path, "llama")
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="no chat template"):
        Solver(folder, None, kv_bytes=1 << 24).solve("1?", "best_of_n", n=1, max_tokens=5)


def test_a_failed_problem_has_an_error_and_the_others_their_answers():
    def verifier(question, steps):
        if question == EXAMPLE:
            raise RuntimeError("no idea")
        return [0.5] * len(steps)

    solver = Solver(verifier=verifier)
    with pytest.raises(RuntimeError, match="no idea"):
        solver.solve(EXAMPLE, "beam", n=4)
    good = natural(1, 1)[0]
    failed, fine = solver.solve_many([Problem(EXAMPLE, id="a"), good], "beam", n=4)
    assert failed.error == "RuntimeError: no idea" and failed.answer is None and fine.error is None
    assert solver.policy.kv.num_used_pages == 0


def test_the_package_offers_its_names_lazily():
    assert tts.Solver is Solver and tts.selection is selection
    with pytest.raises(AttributeError):
        _ = tts.nothing
