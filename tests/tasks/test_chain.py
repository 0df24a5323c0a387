import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts.tasks.base import Problem
from tts.tasks.chain import (
    ALPHABET,
    EXAMPLE,
    MAX_STEPS,
    OPERANDS,
    Chain,
    gold,
    natural,
    sample,
    solve,
    split_steps,
    step_truth,
)

CHAIN = Chain()
SOLUTION = "a94-3=64;b64+2=84;c84+4=25;d25+2=45;A842545$"

questions = st.builds(
    lambda seed, steps, training: sample(random.Random(seed), steps, training),
    st.integers(0, 2**32),
    st.integers(1, MAX_STEPS),
    st.booleans(),
)


def test_the_worked_example_has_the_documented_solution_and_answer():
    assert solve(EXAMPLE) == SOLUTION
    assert gold(EXAMPLE) == CHAIN.extract(SOLUTION) == "842545"
    assert step_truth(EXAMPLE, SOLUTION) == [True] * 5


@pytest.mark.parametrize(
    ("question", "solution"),
    [
        ("Q94a-3;", "a94-3=64;A949464$"),
        ("Q94a-3b+2;", "a94-3=64;b64+2=84;A946484$"),
        ("Q10a-3b*9;", "a10-3=89;b89*9=28;A108928$"),  # 1 - 3 = 98 and 98 * 9 = 882 modulo 100
    ],
)
def test_short_problems_fill_the_answer_with_the_start_and_states_wrap_at_100(question, solution):
    assert solve(question) == solution


@given(questions)
def test_every_sampled_question_passes_the_check_and_its_solution_is_true_step_by_step(question):
    CHAIN.check(question)
    solution = solve(question)
    assert step_truth(question, solution) == [True] * (question.count(";") + solution.count(";"))
    assert "".join(split_steps(solution)) == solution
    assert set(question + solution) <= set(ALPHABET)
    assert len(solution) <= CHAIN.max_tokens
    assert CHAIN.equal(CHAIN.extract(solution), gold(question))


@given(questions, st.data())
def test_a_corrupted_digit_makes_its_step_false_and_no_other(question, data):
    solution = solve(question)
    place = data.draw(st.sampled_from([i for i, c in enumerate(solution) if c.isdigit()]))
    digit = data.draw(st.sampled_from(sorted(set("0123456789") - {solution[place]})))
    truth = step_truth(question, solution[:place] + digit + solution[place + 1 :])
    assert [i for i, true in enumerate(truth) if not true] == [solution[:place].count(";")]


@given(questions, st.data())
def test_a_prefix_is_judged_as_far_as_its_finished_steps_go(question, data):
    solution = solve(question)
    cut = data.draw(st.integers(0, len(solution)))
    truth = step_truth(question, solution[:cut])
    finished = solution[:cut].count(";") + (cut >= len(solution) - 1)
    assert truth == [True] * finished + [False] * (len(truth) - finished)
    assert len(truth) == len(split_steps(solution[:cut]))


def test_steps_after_a_complete_solution_are_false():
    assert step_truth("Q94a-3;", "a94-3=64;A949464;A949464$") == [True, False, False]
    assert step_truth("Q94a-3;", "a94-3=64;A949464$$") == [True, False]
    assert step_truth("Q94a-3;", "") == []


@given(st.text(ALPHABET + "x\n", max_size=40), st.text("0123456789", min_size=6, max_size=6), st.booleans())
def test_extract_reads_six_digits_after_the_last_mark_with_or_without_the_end(before, digits, ended):
    assert CHAIN.extract(before + "A" + digits + "$" * ended) == digits


NO_ANSWER = ["", "842545$", "A84254$", "A8425451", "A842545;", "A842545A", "A842545$\n", "A842545$$", "A٨٤٢٥٤٥"]


@pytest.mark.parametrize("text", NO_ANSWER)
def test_extract_finds_nothing_unless_exactly_six_digits_follow(text):
    assert CHAIN.extract(text) is None


def test_extract_and_show_are_linear_in_the_text():
    text = "A12345" * 200_000
    assert CHAIN.extract(text) is None
    CHAIN.show(text)


@pytest.mark.parametrize(
    "question",
    [
        "",
        "94a-3",
        "Q94;",
        "Q9a-3;",
        "Q94b-3;",
        "Q94a-3c+2;",
        "Q94a-0;",
        "Q94a-12;",
        "Q94a/3;",
        "Q94a-3",
        "Q94a-3;\n",
        "Q٩٤a-3;",
        "Q94" + "".join(f"{m}+1" for m in "abcdefgh") + "a+1;",
    ],
)
def test_a_malformed_question_is_refused_with_the_example(question):
    with pytest.raises(ValueError, match="Q94a-3b") as error:
        CHAIN.check(question)
    assert repr(question) in str(error.value)


def test_the_prompt_is_the_question_and_other_templates_are_refused():
    assert CHAIN.render("solve", EXAMPLE, (), {}) == EXAMPLE
    with pytest.raises(ValueError, match="'revise'; it has: solve"):
        CHAIN.render("revise", EXAMPLE, (), {})


def test_show_writes_ordinary_digits_and_leaves_malformed_text_alone():
    assert CHAIN.show("a94-3=64;") == "49-3=46"
    assert CHAIN.show(EXAMPLE) == "49, -3, +2, +4, +2 (mod 100)"
    assert CHAIN.show(SOLUTION) == "49-3=46; 46+2=48; 48+4=52; 52+2=54; answer 48 52 54"
    assert CHAIN.show(EXAMPLE + SOLUTION) == f"{CHAIN.show(EXAMPLE)}: {CHAIN.show(SOLUTION)}"
    assert CHAIN.show("a94-=64;") == "a94-=64;"


def test_the_natural_set_is_reproducible_gold_is_right_and_a_longer_set_continues_it():
    problems = natural(50, seed=3)
    assert problems == natural(80, seed=3)[:50]
    assert problems != natural(50, seed=4)
    assert len({p.id for p in problems}) == 50
    assert all(isinstance(p, Problem) and p.gold == gold(p.question) for p in problems)


def test_the_natural_set_is_even_over_lengths_operations_operands_and_starts():
    problems = natural(4000, seed=0)
    lengths = Counter(p.meta["steps"] for p in problems)
    operations = Counter(c for p in problems for c in p.question if c in "+-*")
    operands = Counter(k for p in problems for k in p.question[5:-1:3])
    for counts, kinds in ((lengths, 8), (operations, 3), (operands, 9)):
        expected = counts.total() / kinds
        assert len(counts) == kinds
        assert all(abs(n - expected) < 5 * expected**0.5 for n in counts.values())
    assert len({p.question[1:3] for p in problems}) == 100


def test_training_questions_are_skewed_as_documented():
    rng = random.Random(0)
    questions = [sample(rng, 8, training=True) for _ in range(3000)]
    operations = Counter(c for q in questions for c in q if c in "+-*")
    operands = Counter(int(k) for q in questions for k in q[5:-1:3])
    assert [round(operations[o] / operations.total(), 2) for o in "+-*"] == pytest.approx([0.5, 0.33, 0.17], abs=0.011)
    weights = {k: k**-1.2 for k in OPERANDS}
    for k, weight in weights.items():
        assert operands[k] / operands.total() == pytest.approx(weight / sum(weights.values()), abs=0.01)


@pytest.mark.parametrize("steps", [0, 9])
def test_sampling_another_number_of_steps_is_refused(steps):
    with pytest.raises(ValueError, match=f"1 to 8, got {steps}"):
        sample(random.Random(0), steps)


def test_importing_the_task_does_not_import_torch():
    code = "import sys, tts.tasks.chain; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
