import pytest

from tts.tasks.math import Math
from tts.tasks.prompts import PROMPTS, TEMPLATES, Prompt

TASK = Math()


def test_the_default_prompt_is_the_system_prompt_of_search_and_learn():
    messages = TASK.render("solve", "1+1?", [], {})
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[1]["content"] == "1+1?"
    system = messages[0]["content"]
    assert system.startswith(
        "Solve the following math problem efficiently and clearly:\n\n- For simple problems (2 steps or fewer):\n"
    )
    assert "\n\n## Step 1: [Concise description]\n[Brief explanation and calculations]\n\n## Step 2: " in system
    assert "Therefore, the final answer is: $\\boxed{answer}$. I hope it is correct.\n\nWhere [answer]" in system
    assert system.endswith("expression that solves the problem.")


def test_the_qwen_prompt_is_one_sentence():
    system = Math(prompt="qwen").render("solve", "1+1?", [], {})[0]["content"]
    assert system == "Please reason step by step, and put your final answer within \\boxed{}."


def test_every_prompt_names_its_source_and_version():
    assert all(x.source and x.version >= 1 for x in (*PROMPTS.values(), *TEMPLATES.values()))


def test_unknown_prompts_and_templates_are_refused_with_the_names_that_exist():
    with pytest.raises(ValueError, match="'llama'.*search-and-learn, qwen"):
        Math(prompt="llama")
    with pytest.raises(ValueError, match="'sing'.*solve, think, revise"):
        TASK.render("sing", "1+1?", [], {})


def test_templates_show_the_earlier_answers_where_each_has_its_place():
    contents = {name: [m["content"] for m in TASK.render(name, "1+1?", [" one", "two ", "three"], {})] for name in TASK.templates}
    roles = {name: [m["role"] for m in TASK.render(name, "1+1?", ["one", "two"], {})] for name in TASK.templates}
    assert contents["solve"] == contents["think"] == [TASK.prompt.system, "1+1?"]
    assert contents["revise"][1].startswith("1+1?\n\nAttempt 1:\none\n\nAttempt 2:\ntwo\n\nAttempt 3:\nthree\n\n")
    assert contents["correct"][2] == "three" and contents["debate"][2] == " one"
    assert contents["debate"][3].startswith("Agent 1:\ntwo\n\nAgent 2:\nthree\n\n")
    assert roles["revise"] == ["system", "user"] and roles["correct"] == roles["debate"] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


@pytest.mark.parametrize("question", ["", "  \n\t "])
def test_a_blank_question_is_refused(question):
    with pytest.raises(ValueError, match="question is empty"):
        TASK.check(question)


def test_a_question_may_have_a_hundred_thousand_characters_and_no_more():
    TASK.check("x" * 100_000)
    with pytest.raises(ValueError, match="100,001 characters: expected at most 100,000"):
        TASK.check("x" * 100_001)


def test_a_step_ends_at_a_blank_line_and_an_answer_has_2048_tokens():
    assert (TASK.name, TASK.step_stop, TASK.max_tokens) == ("math", ("\n\n",), 2048)


def test_answers_are_read_from_the_last_box_and_compared_as_strings_first():
    assert TASK.extract(r"So $\boxed{\frac{1}{2}}$.") == r"\frac{1}{2}"
    assert TASK.extract("So 1/2.") is None
    assert TASK.equal("1/2", " 1/2 ")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x9b1;31mred", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link", "link"),
        ("\x90secret\x9cshown", "shown"),
        ("over\rwritten\x08\x00\x7f\x85", "overwritten"),
        ("\x1b]never ends", "]never ends"),
        ("\x1b", ""),
        ("π ≤ 4, ½", "π ≤ 4, ½"),
    ],
)
def test_shown_text_holds_nothing_that_a_terminal_obeys(text, shown):
    assert TASK.show(text) == shown


@pytest.mark.parametrize("opening", ["\x1b[0", "\x1b]", "\x90", "\x9b", "\x1b[ "])
def test_a_megabyte_of_unfinished_sequences_is_shown_without_rereading_it(opening):
    shown = TASK.show(opening * (1_000_000 // len(opening)))
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in shown)


def test_a_prompt_without_a_system_text_is_the_question_and_its_suffix_alone():
    (message,) = Math(prompt="step-by-step").render("solve", "1+1?", [], {})
    assert message["content"] == "1+1? Let's think step by step and output the final answer within \\boxed{}."
    assert Math(prompt="question-only").render("solve", "1+1?", [], {}) == [{"role": "user", "content": "1+1?"}]
    assert Math(prompt="zero-shot-cot").render("solve", "1+1?", [], {})[0]["content"].endswith("step by step.")


def test_a_prompt_of_ones_own_is_taken_as_it_is():
    assert Math(prompt=Prompt("Be brief.", "mine")).render("solve", "1+1?", [], {})[0]["content"] == "Be brief."


def test_the_template_of_search_and_learn_trims_nothing_of_the_question_and_has_no_date_of_today():
    text = Math(chat="search-and-learn").render("solve", " {question} is 1+1?\n", [], {})
    assert text.startswith("<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n")
    assert "Today Date: 26 Jul 2024\n\nSolve the following math problem" in text
    assert text.endswith(
        "user<|end_header_id|>\n\n {question} is 1+1?\n<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_an_unknown_chat_template_is_refused():
    with pytest.raises(ValueError, match="unknown chat template 'llama': expected one of search-and-learn"):
        Math(chat="llama")
