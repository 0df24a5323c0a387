"""The command line, run in this process."""

import json

import pytest

from tts.surfaces import cli


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
