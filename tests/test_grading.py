import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts import grading
from tts.grading import Grader, Verdict, boxed, extract
from tts.grading.grader import MAX_LENGTH, _Cache
from tts.selection import group_by

ENDLESS = "100000000!"
TOWER = "9^{9^{9^{9}}}"


@pytest.fixture(scope="module")
def hasty_grader():
    with Grader(workers=2, deadline=1.5) as grader:
        yield grader


@pytest.fixture(scope="module")
def grader():
    with Grader(workers=2, deadline=20.0) as grader:
        yield grader


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so $\boxed{42}$.", "42"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ \left\{ 1, 2 \right\} }", r"\left\{ 1, 2 \right\}"),
        (r"\boxed{\{x \mid x > 0\}}", r"\{x \mid x > 0\}"),
        (r"\boxed{a \\ b}", r"a \\ b"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxed  {8}", "8"),
        (r"$\boxed 9$", "9"),
        (r"\(\boxed -3\) is it", "-3"),
        (r"{x = \boxed\frac{1}{2}} follows", r"\frac{1}{2}"),
        (r"it is \boxed \pi", r"\pi"),
        (r"line\\\boxed{3}", "3"),
        (r"\\boxed{4}", "4"),
        (r"\boxed{5} or \boxed{6", "5"),
        (r"\boxed{5}} } { \{ ", "5"),
        ("\\boxed{1 +\n 2}", "1 +\n 2"),
        (r"\boxed{5} and \boxed", "5"),
        (r"{ {\boxed{6}", "6"),
    ],
)
def test_the_answer_is_the_content_of_the_last_complete_box(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(
    "text", ["", "the answer is 42", r"\boxed{", r"\boxed{\}", r"\boxedness{1}", r"\boxed{}", r"\boxed{ }", "boxed{1}"]
)
def test_without_a_complete_box_that_holds_something_there_is_no_answer(text):
    assert extract(text) is None


def test_an_empty_last_box_is_no_answer_even_after_a_full_one():
    assert extract(r"\boxed{1} \boxed{}") is None


@given(
    st.recursive(
        st.sampled_from(["", "1", "x+y", r"\{", r"\}", r"\\", r"\frac"]),
        lambda inner: inner.map("{{{}}}".format) | st.tuples(inner, inner).map("".join),
    )
)
def test_any_text_with_balanced_braces_comes_out_of_its_box_as_it_went_in(content):
    assert extract(f"text \\boxed{{{content} }} text") == (content.strip() or None)


@given(st.lists(st.sampled_from(["\\", "boxed", "fbox", "{", "}", "$", " ", "1", "a", "\\boxed{", "\\boxed "])).map("".join))
def test_any_text_at_all_is_read_without_an_exception(text):
    assert extract(text) is None or extract(text) in text


HARD_TEXTS = [
    r"\boxed{",
    r"\boxed",
    r"\boxed ",
    r"\boxed{}",
    r"\boxed x",
    "{",
    "}",
    "\\",
    "$",
    " ",
    r"\boxed{{",
    "\\\\boxed",
    "x",
]


@pytest.mark.parametrize("piece", HARD_TEXTS)
def test_twice_the_text_is_read_in_at_most_twice_the_steps(piece):
    once, twice = _steps(piece * 500), _steps(piece * 1000)
    assert once <= 40 * len(piece * 500) + 100
    assert twice <= 2 * once


def _steps(text):
    """How many lines of the scanner are executed for `text`."""
    count = 0

    def count_line(frame, event, argument):
        nonlocal count
        count += event == "line"
        return count_line

    before = sys.gettrace()
    sys.settrace(lambda frame, *_: count_line if frame.f_code.co_filename == boxed.__file__ else None)
    try:
        extract(text)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("piece", HARD_TEXTS)
def test_the_scanner_sees_at_most_one_token_per_character(piece):
    text = piece * (1_000_000 // len(piece))
    tokens = sum(1 for _ in boxed._tokens(text))
    assert tokens <= len(text)


def test_a_megabyte_of_open_boxes_holds_no_answer_and_the_box_after_it_does():
    text = "\\boxed{" * 150_000
    assert extract(text) is None
    assert extract(text + "7}") == "7"


def test_importing_the_grader_loads_neither_math_verify_nor_torch():
    code = (
        "import sys, tts.grading, tts.selection, tts.tasks.math\n"
        "print([m for m in ('math_verify', 'sympy', 'torch', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_equality_at_sight_starts_no_process():
    with Grader() as grader:
        assert grader.equal(r"\text{x} ", r" \text{x}")
        assert grader.equal(ENDLESS, ENDLESS)
        assert not grader.equal(None, "1")
        assert not grader.equal(None, None)
        assert not grader.equal("1" * (MAX_LENGTH + 1), "1")
        assert grader.group([None, "9" * (MAX_LENGTH + 1), "9" * (MAX_LENGTH + 1)]) == [-1, 0, 0]
        assert _processes(grader) == []


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("1/2", r"\frac{1}{2}"),
        ("0.5", r"\frac12"),
        ("1,234", "1234"),
        ("x^2+2x+1", "(x+1)^2"),
        (r"\text{Evelyn}", "evelyn"),
        ("x=5", "5"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)"),
        (r"x \in [-2,7]", "[-2,7]"),
        (r"90^\circ", "90"),
        (r"50\%", "50"),
        (TOWER, TOWER.replace("{9}", "9")),
    ],
)
def test_the_same_answer_written_differently_is_equal_in_both_orders(grader, a, b):
    assert grader.equal(a, b)
    assert grader.equal(b, a)


@pytest.mark.parametrize(
    ("a", "b"), [("1", "2"), ("x", "y"), ("(1,2)", "(2,1)"), ("", "1"), ("}{", "1"), (r"\frac{1}{0}", "3"), ("\ud800", "1")]
)
def test_different_answers_and_unreadable_ones_are_different(grader, a, b):
    assert grader.grade([(a, b), (b, a)]) == [Verdict.DIFFERENT] * 2


def test_verdicts_come_in_the_order_of_the_pairs_whatever_runs_first(grader):
    pairs = [(str(i), f"{i // 2 * 2}.0") for i in range(20)]
    assert grader.grade(pairs) == [Verdict.EQUAL, Verdict.DIFFERENT] * 10


def test_a_pair_that_hangs_times_out_and_the_others_get_their_verdicts(hasty_grader):
    pairs = [(ENDLESS, "3"), *((f"{i}/2", f"{i}.0 / 2") for i in range(20)), (TOWER, "3")]
    assert hasty_grader.grade(pairs) == [Verdict.TIMEOUT, *[Verdict.EQUAL] * 20, Verdict.TIMEOUT]
    assert hasty_grader.equal("1/2", "0.50")


def test_a_verdict_is_remembered_in_both_orders_a_time_out_too(hasty_grader, monkeypatch):
    hasty_grader.grade([(ENDLESS, "3"), ("1", "1.0")])
    asked = _record_requests(hasty_grader, monkeypatch)
    assert hasty_grader.grade([("3", ENDLESS), ("1.0", "1")] * 100) == [Verdict.TIMEOUT, Verdict.EQUAL] * 100
    assert asked == []


def test_the_memory_of_verdicts_keeps_the_last_ones_used():
    cache = _Cache(2)
    cache.put_all({"a": 1, "b": 2})
    assert cache.get_all(["a", "x"]) == {"a": 1}
    cache.put_all({"c": 3})
    assert cache.get_all(["a", "b", "c"]) == {"a": 1, "c": 3}


def test_a_process_that_dies_is_an_error_if_it_was_at_work_and_is_replaced_until_the_grader_is_closed():
    grader = Grader(workers=1, deadline=20.0)
    assert grader.equal("1", "1.0")
    (process,) = _processes(grader)
    threading.Timer(0.3, lambda: os.kill(process, signal.SIGKILL)).start()
    assert grader.grade([(ENDLESS, "3")]) == [Verdict.ERROR]
    assert grader.equal("2", "2.0")
    (process,) = _processes(grader)
    os.kill(process, signal.SIGKILL)
    _wait_for_the_end_of(process)
    assert grader.equal("3", "3.0")
    (process,) = _processes(grader)
    grader.close()
    grader.close()
    assert not _is_alive(process)
    with pytest.raises(RuntimeError, match="closed"):
        grader.equal("4", "4.0")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_a_process_has_no_more_memory_than_it_is_given():
    with Grader(workers=1, memory_limit=40 << 20) as grader, pytest.raises(RuntimeError, match="MemoryError|before it was ready"):
        grader.equal("1", "1.0")


def test_several_threads_may_grade_at_once(grader):
    verdicts = {}

    def run(thread):
        verdicts[thread] = grader.grade([(f"{thread}{i}", f"{thread}{i}.0") for i in range(10)])

    threads = [threading.Thread(target=run, args=(n,)) for n in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(verdicts.values()) == [[Verdict.EQUAL] * 10] * 6


def test_groups_join_equal_answers_in_the_order_first_seen_and_leave_out_none(grader):
    answers = ["3", None, "1/2", r"\frac{1}{2}", "3.0", "x+1", "0.5", "1+x", None, "2/4"]
    assert grader.group(answers) == [0, -1, 1, 1, 0, 2, 1, 2, -1, 1]
    assert grader.group([]) == []
    assert grader.group([None]) == [-1]


def test_grouping_makes_the_groups_of_pairwise_equality(grader):
    answers = ["2^9", "512", "x=5", "5", "y=5", r"\sqrt{x^2}", "|x|", "0.333333", r"\frac13", r"50\%", "50"]
    answers += [r"\text{east}", "east", "e", "E"]
    assert grader.group(answers) == group_by(grader.equal)(answers)


def test_numbers_are_told_apart_by_their_canonical_forms_alone(grader, monkeypatch):
    monkeypatch.setattr(grader, "_verify", lambda keys: pytest.fail(f"verified {keys}") if keys else {})
    numbers = [str(i) for i in range(5, 100)] + [r"\sqrt{3}", r"\pi", "2^{11}", "x^2+3", "x^2+4"]
    assert grader.group(numbers * 2) == list(range(len(numbers))) * 2


def test_endless_answers_are_grouped_by_their_form_and_time_out_once_each(hasty_grader, monkeypatch):
    asked = _record_requests(hasty_grader, monkeypatch)
    other = ENDLESS.replace("1", "2")
    answers = [other, "1/2", "0.5", f"{other} ", other.replace("!", " !"), "3"]
    assert hasty_grader.group(answers) == [0, 1, 1, 0, 0, 2]
    assert [request["do"] for request in asked if "0000" in request["answers"][0]] == ["form", "form", "evaluated_form"]
    assert not any(request["do"] == "verify" for request in asked)


def test_a_pair_that_cannot_be_compared_takes_both_answers_out_of_the_comparisons(grader, monkeypatch):
    calls = []

    def grade(pairs):
        calls.extend(pairs)
        return [Verdict.TIMEOUT if "stuck" in "".join(pair) else Verdict.DIFFERENT for pair in pairs]

    monkeypatch.setattr(grader, "grade", grade)
    answers = [r"\text{stuck}", r"\text{b}", r"\text{c}", r"\text{b} ", r"\text{d}"]
    assert grader.group(answers) == [0, 1, 2, 1, 3]
    assert calls == [(r"\text{stuck}", r"\text{b}"), (r"\text{c}", r"\text{d}")]


@pytest.mark.parametrize(("name", "value"), [("workers", 0), ("deadline", 0.0), ("deadline", float("inf")), ("cache_size", -1)])
def test_settings_that_cannot_work_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=name):
        Grader(**{name: value})


def test_processes_end_with_the_program_even_when_it_is_killed_in_the_middle_of_a_pair():
    code = (
        "import json, os, signal, threading\n"
        "from tts.grading import Grader\n"
        "grader = Grader(workers=1, deadline=0.5)\n"
        "grader.equal('1', '1.0')\n"
        "print(json.dumps([w._process.pid for w in grader._pool.workers]), flush=True)\n"
        "threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()\n"
        f"grader.equal({ENDLESS!r}, '3')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    (process,) = json.loads(done.stdout)
    _wait_for_the_end_of(process)


def test_a_missing_math_verify_is_named(monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if "site-packages" not in entry])
    with Grader(workers=1) as grader, pytest.raises(RuntimeError, match="cannot load math-verify.*pip install math-verify"):
        grader.equal("1", "1.0")


def test_the_module_functions_ask_the_default_grader(grader, monkeypatch):
    assert grading._default_grader(os.getpid()) is grading._default_grader(os.getpid())
    monkeypatch.setattr(grading, "_default_grader", lambda process: grader)
    assert grading.equal("1/2", "0.5")
    assert grading.grade([("1", "2"), (None, "1")]) == [Verdict.DIFFERENT] * 2
    assert grading.group(["1/2", None, "0.5"]) == [0, -1, 0]


def test_a_forked_child_grades_with_processes_of_its_own_and_leaves_the_parents_alone():
    code = (
        "import os\n"
        "from tts import grading\n"
        "assert grading.equal('1/2', '0.5')\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if grading.equal('1/4', '0.25') else 1)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "assert grading.equal('1/8', '0.125')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


def _processes(grader):
    """The ids of the grader's living processes."""
    return [worker._process.pid for worker in grader._pool.workers if worker._process is not None]


def _record_requests(grader, monkeypatch):
    asked = []
    ask = grader._pool.ask
    monkeypatch.setattr(grader._pool, "ask", lambda requests: (asked.extend(requests), ask(requests))[1])
    return asked


def _wait_for_the_end_of(process):
    for _ in range(200):
        if not _is_alive(process):
            return
        time.sleep(0.05)
    pytest.fail(f"process {process} is still alive")


def _is_alive(process):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
    return state != "" and not state.startswith("Z")
