import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from tts import zoo
from tts.tasks.chain import ALPHABET, EXAMPLE, natural, solve
from tts.zoo.measure import Solver, best_of, chance_coverage, coverage, majority, pass_at_1, sample_all
from tts.zoo.train import RECIPES, batches, build_tokenizer, train

MINIATURE = dataclasses.replace(RECIPES["S"], tokens=30 * 1000, batch_tokens=1024)
TOKENIZER = build_tokenizer()


def test_the_shipped_models_are_those_with_a_recipe_and_they_are_small():
    assert set(zoo.names()) <= set(RECIPES)
    assert {"S", "M"} <= set(zoo.names())
    files = [file for name in zoo.names() for file in zoo.path(name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 2_000_000


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="'L'; there are: M, S"):
        zoo.path("L")


def test_importing_the_zoo_does_not_import_torch():
    code = "import sys, tts.zoo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(st.text(ALPHABET, max_size=60))
def test_text_survives_the_tokenizer_with_one_token_a_character(text):
    ids = TOKENIZER(text).input_ids
    assert len(ids) == len(text)
    assert TOKENIZER.decode(ids) == text


@pytest.mark.parametrize("name", ["S", "M"])
def test_the_shipped_tokenizer_is_the_one_the_recipe_builds(name):
    tokenizer = AutoTokenizer.from_pretrained(zoo.path(name))
    text = EXAMPLE + solve(EXAMPLE)
    assert tokenizer(text).input_ids == TOKENIZER(text).input_ids
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("$", "<pad>")
    assert "".join(tokenizer.decode([i]) for i in tokenizer(text).input_ids) == text


def test_a_character_outside_the_task_is_an_error():
    with pytest.raises(Exception, match="UNK"):
        TOKENIZER("Q94a-3; what?")


@pytest.mark.parametrize(("name", "parameters"), [("S", 52_224), ("M", 102_400)])
def test_a_shipped_model_loads_with_its_parameters_in_float32_and_its_data_sheet_agrees(name, parameters):
    model = AutoModelForCausalLM.from_pretrained(zoo.path(name))
    sheet = json.loads((zoo.path(name) / "DATASHEET.json").read_text())
    assert sum(p.numel() for p in model.parameters()) == parameters == sheet["parameters"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.generation_config.eos_token_id == TOKENIZER.eos_token_id
    assert model.generation_config.pad_token_id == TOKENIZER.pad_token_id
    assert sheet["recipe"] == dataclasses.asdict(RECIPES[name])


def test_the_larger_model_solves_most_short_questions_greedily():
    problems = [p for p in natural(200, seed=7) if p.meta["steps"] <= 4][:50]
    solver = Solver(zoo.path("M"))
    assert pass_at_1(problems, sample_all(solver, problems, 1, temperature=0.0))["all"] >= 0.8


def test_the_likelihood_of_a_batch_is_that_of_each_solution_alone_and_prefers_the_right_one():
    solver, right = Solver(zoo.path("M")), solve(EXAMPLE)
    solutions = [right, "a94-3=54;A549494$", right[:9]]
    together = solver.log_likelihoods(EXAMPLE, solutions)
    alone = torch.cat([solver.log_likelihoods(EXAMPLE, [s]) for s in solutions])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert together[0] > together[1]


def test_figures_of_known_samples_are_what_they_must_be():
    one, two = natural(2, seed=0)
    right, wrong, cut = solve(one.question), "A000000$", "a94"
    samples = {one.id: [right, wrong, wrong, right], two.id: [cut, cut, wrong, cut]}
    assert pass_at_1([one, two], samples)["all"] == 0.25
    assert coverage([one, two], samples, 1) == 0.25
    assert coverage([one, two], samples, 2) == round((1 - 1 / 6) / 2, 4)
    assert majority([one, two], samples) == 0.5
    assert best_of([one], samples, Solver(zoo.path("M"))) == 1.0
    assert chance_coverage([one, two], 64, knows_start=False) == pytest.approx(64e-6, abs=1e-6)


def test_batches_have_rows_of_one_length_that_hold_questions_and_solutions():
    stream = batches(MINIATURE, seed=0)
    for _ in range(10):
        ids, question_len = next(stream)
        text = TOKENIZER.decode(ids[0])
        assert text[question_len:] == solve(text[:question_len])
        assert ids.numel() <= MINIATURE.batch_tokens


def test_thirty_updates_lower_the_loss_and_the_same_seed_gives_the_same_model():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (first, losses), (second, again) = train(MINIATURE, seed=1), train(MINIATURE, seed=1)
    finally:
        torch.set_num_threads(threads)
    assert losses == again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
