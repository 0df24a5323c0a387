"""The command line, run in this process."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny_models import make_folder

from tts.surfaces import cli, workers


def run(monkeypatch, capsys, *arguments):
    """Exit code, stdout and stderr of `tts ARGUMENTS`."""
    monkeypatch.setattr("sys.argv", ["tts", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    return stopped.value.code, out, err


def test_solve_prints_one_json_object_with_the_answer(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "solve", "Q94a-3b+2c+4d+2;", "--strategy", "beam", "--n", "16", "--json")
    found = json.loads(out)
    assert code == 0 and found["answer"] == "842545"
    assert len(found["candidates"]) == 16 and found["meter"]["policy_tokens"] > 0


def test_solve_shows_steps_in_ordinary_digits(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "solve", "Q94a-3b+2c+4d+2;", "--n", "8")
    assert code == 0 and "49-3=46" in out


def test_eval_gives_the_same_json_whatever_the_batch_and_the_pool(monkeypatch, capsys):
    common = ("eval", "chain", "--strategy", "beam", "--n", "8", "--limit", "6", "--seed", "977", "--json")
    code, first, _ = run(monkeypatch, capsys, *common)
    assert code == 0 and set(json.loads(first)) == {"accuracy", "ci", "meter", "per_problem"}
    for change in ((), ("--max-rows", "7"), ("--kv-bytes", "700000")):
        assert run(monkeypatch, capsys, *common, *change)[1] == first


def test_demo_prints_a_row_for_each_method_and_width(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "demo", "--limit", "2", "--json")
    rows = [(row["strategy"], row["n"]) for row in json.loads(out)["rows"]]
    assert code == 0
    assert rows == [
        ("greedy", 1),
        *((rule, n) for rule in ("majority", "max", "weighted") for n in (1, 4, 16, 64)),
        *((name, n) for name in ("beam", "dvts") for n in (1, 4, 16, 64)),
        ("verifier used as solver", 1),
    ]


def test_the_demo_charges_best_of_n_what_a_run_of_that_width_costs(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, "demo", "--limit", "3", "--json")
    row = next(r for r in json.loads(out)["rows"] if (r["strategy"], r["n"]) == ("weighted", 4))
    _, out, _ = run(monkeypatch, capsys, "eval", "chain", "--strategy", "best_of_n", "--n", "4", "--limit", "3", "--json")
    found = json.loads(out)
    assert row["accuracy"] == found["accuracy"]
    for name in ("policy_tokens", "verifier_tokens"):
        assert row[name] * 3 == pytest.approx(found["meter"][name])
    assert row["mflop"] * 3e6 == pytest.approx(found["meter"]["flops"])


def test_info_lists_every_op_and_its_backend(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "info", "--json")
    facts = json.loads(out)
    used = {row["op"]: row["backend"] for row in facts["kernels"] if row["state"] == "used"}
    assert code == 0 and {"linear", "append", "attend", "score", "prune", "fork", "sample"} <= set(used)
    assert {used["append"], used["attend"], used["score"], used["prune"]} == {"native"}
    assert facts["versions"]["torch"] and facts["zoo"] == ["M", "S"]


def test_strategies_come_from_their_dataclasses(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "strategies", "--json")
    found = {entry["name"]: entry for entry in json.loads(out)["strategies"]}
    assert code == 0 and found["beam"]["parameters"]["expand"]["default"] == 4
    assert all(entry["summary"] and entry["source"] for entry in found.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("solve", "Q94a-3;", "--strategy", "bean"), "unknown strategy 'bean'"),
        (("solve", "Q94a-3;", "--n", "0"), "n must be in [1, 4096], got 0"),
        (("solve", "Q94a-3;", "--set", "expand=much"), "expand must be int"),
        (("solve", "Q94a-3;", "--strategy", "search_and_learn_beam", "--set", "filter_duplicates=yes"), "must be true or false"),
        (("solve", "Q94a-3;", "--set", "width=3"), "unknown parameter 'width'"),
        (("solve", ""), "question"),
        (("solve", "1+1?", "--policy", "./missing"), "no model folder './missing'"),
        (("eval", "chain", "--limit", "0"), "--limit must be in [1, 100000], got 0"),
        (
            (
                "eval",
                "math",
            ),
            "no dataset for task 'math'",
        ),
    ],
)
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(monkeypatch, capsys, arguments, message):
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 2 and out == "" and message in " ".join(err.split())


# ---- several strategies side by side


def test_a_comparison_has_the_rows_that_each_strategy_alone_would_have(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(workers, "pool", lambda: ThreadPoolExecutor(1))  # two shards, in this process: it is quicker
    monkeypatch.setattr(workers, "count", lambda: 2)
    common = ("eval", "chain", "--limit", "5", "--seed", "3", "--json")
    picture = tmp_path / "p.png"
    code, out, _ = run(
        monkeypatch,
        capsys,
        *(*common, "--strategy", "search_and_learn_dvts,best_of_n,beam", "--n", "2,4", "--set", "prune_agg=min"),
        *("--plot", str(picture)),
    )
    found = json.loads(out)
    assert code == 0 and picture.read_bytes().startswith(b"\x89PNG")
    rules = [("best_of_n/" + rule, n) for rule in ("majority", "max", "weighted") for n in (2, 4)]
    others = [("greedy", 1), ("search_and_learn_dvts", 4), ("verifier as solver", 1)]
    rows = {(row["strategy"], row["n"]): row for row in found["rows"]}
    assert list(rows) == [("beam", 2), ("beam", 4), *rules, *others]
    ((entry),) = found["not_run"]
    assert (entry["strategy"], entry["n"]) == ("search_and_learn_dvts", 2) and "multiple of expand" in entry["reason"]
    assert found["baseline"] == "best_of_n/weighted" and sum(found["bins"]["questions"].values()) == 5
    assert rows["best_of_n/weighted", 2]["difference"] is None and rows["beam", 4]["difference"]["ci"]
    for name, key, extra in (("beam", "beam", ("--set", "prune_agg=min")), ("best_of_n", "best_of_n/weighted", ())):
        _, out, _ = run(monkeypatch, capsys, *common, "--strategy", name, "--n", "2", *extra)
        alone, row = json.loads(out), rows[key, 2]
        assert row["accuracy"] == alone["accuracy"] and row["ci"] == alone["ci"]
        for field in ("policy_tokens", "verifier_tokens", "flops", "attention_flops"):
            assert row[field] * 5 == pytest.approx(alone["meter"][field])


# ---- recipes and columns of search-and-learn

RECIPE = "approach: beam_search\nfilter_duplicates: true\nn: 4\nsearch_batch_size: 1\nnum_samples: 3\nseed: 0\n"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return str(path)


def test_a_recipe_runs_on_chain_and_says_what_has_no_effect(monkeypatch, capsys, recipe):
    code, out, err = run(monkeypatch, capsys, "eval", "chain", "--recipe", recipe, "--json")
    assert code == 0 and len(json.loads(out)["per_problem"]) == 3
    assert "search_batch_size (batches change speed here, never a result)" in " ".join(err.split())
    _, solved, _ = run(monkeypatch, capsys, "solve", "Q94a-3b+2;", "--recipe", recipe, "--policy", "zoo:S", "--n", "8", "--json")
    result = json.loads(solved)
    assert result["strategy"] == "search_and_learn_beam" and result["parameters"]["filter_duplicates"] is True
    assert len(result["candidates"]) == 8  # the command line wins over the recipe


def test_the_columns_are_those_of_search_and_learn_and_ours_behind_them(monkeypatch, capsys, recipe):
    arguments = ("eval", "chain", "--recipe", recipe, "--format", "search-and-learn", "--set", "agg_last=false")
    code, out, _ = run(monkeypatch, capsys, *arguments)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(rows) == 3
    theirs = ["problem", "answer", "unique_id", "completions", "scores", "pred", "agg_scores", "completion_tokens"]
    preds = [f"pred_{name}@{k}" for k in (1, 2, 4) for name in ("naive", "weighted", "maj")]
    ours = ["finish_reasons", "prompt_tokens", "verifier_tokens", "flops", "wall_s", "seed", "config_hash", "grader"]
    ours += ["error", "schema_version"]
    for row in rows:
        assert list(row) == [*theirs, *preds, *(p.replace("pred", "correct") for p in preds), *ours]
        assert len(row["completions"]) == len(row["scores"]) == len(row["completion_tokens"]) == 4
        assert row["correct_weighted@4"] == (row["pred_weighted@4"] == f"\\boxed{{{row['answer']}}}")
    assert len({row["config_hash"] for row in rows}) == 1


def test_a_recipe_runs_on_a_file_of_problems_with_models_from_folders(monkeypatch, capsys, tmp_path):
    policy = make_folder(tmp_path / "policy", "qwen2")
    prm = make_folder(tmp_path / "prm", "qwen2", kind="token-classification", seed=1)
    data, recipe = tmp_path / "problems.jsonl", tmp_path / "recipe.yaml"
    data.write_text("".join(json.dumps({"problem": "1+1?", "answer": "2", "unique_id": "same"}) + "\n" for _ in range(2)))
    recipe.write_text("approach: dvts\nn: 4\nbeam_width: 2\nnum_iterations: 2\nmax_tokens: 12\ncustom_chat_template: null\n")
    arguments = ("eval", "math", "--data", str(data), "--recipe", str(recipe), "--policy", policy, "--verifier", prm)
    code, out, _ = run(monkeypatch, capsys, *arguments, "--kv-bytes", str(1 << 24), "--format", "search-and-learn")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [len(row["completions"]) for row in rows] == [4, 4]  # equal problems have n answers each


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strategy", "beam,bean", "--n", "4"), "unknown strategy 'bean'"),
        (("--n", "4,many"), "--n 4,many: expected whole numbers"),
        (("--strategy", "beam,dvts", "--set", "width=3"), "--set width=3: none of beam, dvts has this parameter"),
        (("--strategy", "beam,dvts", "--baseline", "best"), "unknown strategy 'best'"),
        (("--strategy", "beam,dvts", "--format", "search-and-learn"), "several strategies or widths"),
        (("--strategy", "beam,dvts", "--threads", "2"), "without --recipe, --data, --format, --prompt, --threads"),
        (("--strategy", "beam,dvts", "--limit", "0"), "--limit must be in [1, 100000], got 0"),
        (("--format", "csv"), "--format must be table or search-and-learn"),
        (("--recipe", "./missing.yaml"), "--recipe ./missing.yaml: cannot be read"),
        (("--data", "./missing.jsonl"), "--data ./missing.jsonl: cannot be read"),
        (("--prompt", "qwen"), "--prompt is for the task math"),
    ],
)
def test_bad_input_of_an_evaluation_is_one_line_on_stderr_and_exit_code_2(monkeypatch, capsys, arguments, message):
    code, out, err = run(monkeypatch, capsys, "eval", "chain", *arguments)
    assert code == 2 and out == "" and message in " ".join(err.split())
