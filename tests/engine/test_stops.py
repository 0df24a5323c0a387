"""The stop table against a scanner that looks at one byte after the other."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tts.engine.stops import EOS, KIND_SHIFT, RUNNING, STEP, STOP, StopTable
from tts_kernels.sample import STATE_MASK

LETTERS = "ab\né"  # the last one has two bytes, so tokens can cut it
BYTES = [b"a", b"b", b"\n", *(bytes([byte]) for byte in "é".encode()), b"x"]

vocabularies = st.lists(st.lists(st.sampled_from(BYTES), max_size=5).map(b"".join), min_size=1, max_size=10)
stop_strings = st.text(LETTERS, min_size=1, max_size=4)
stop_sets = st.tuples(
    st.lists(stop_strings, min_size=1, max_size=3).map(tuple),
    st.lists(stop_strings, max_size=2).map(tuple),
)


class Scanner:
    """What `StopTable` documents, written naively: `pending` are the bytes since the last match."""

    def __init__(self, step, answer, token_bytes, eos_ids):
        self.patterns = [(s.encode(), STEP) for s in step] + [(s.encode(), STOP) for s in answer]
        self.token_bytes, self.eos_ids = token_bytes, eos_ids
        self.pending = b""

    def read(self, token):
        """What the token did."""
        if token in self.eos_ids:
            self.pending = b""
            return EOS
        strongest = RUNNING
        for byte in self.token_bytes[token]:
            self.pending += bytes([byte])
            completed = [kind for pattern, kind in self.patterns if self.pending.endswith(pattern)]
            if completed:
                self.pending = b""
                strongest = max(strongest, *completed)
        return strongest

    @property
    def begun(self):
        """The longest end of the pending bytes that begins a stop: all of the past that can still matter."""
        ends = [self.pending[i:] for i in range(len(self.pending) + 1)]
        return next(e for e in ends if any(pattern.startswith(e) for pattern, _ in self.patterns))


def step_through(table, state, tokens):
    """[(state, what the token did)] behind each token."""
    seen = []
    for token in tokens:
        entry = int(table[state, token])
        state = entry & STATE_MASK
        seen.append((state, entry >> KIND_SHIFT))
    return seen


@st.composite
def cases(draw):
    vocabulary = draw(vocabularies)
    ids = st.integers(0, len(vocabulary) - 1)
    eos_ids = draw(st.lists(ids, max_size=2, unique=True))
    return vocabulary, eos_ids, draw(st.lists(ids, max_size=30))


@settings(max_examples=300)
@given(cases(), stop_sets)
def test_the_table_finds_what_a_naive_scanner_finds(case, stops):
    vocabulary, eos_ids, tokens = case
    table, scanner = StopTable(vocabulary, eos_ids), Scanner(*stops, vocabulary, eos_ids)
    start = table.start(*stops)
    state_of = {b"": start}
    for token, (state, kind) in zip(tokens, step_through(table.table, start, tokens)):
        assert kind == scanner.read(token)
        assert state_of.setdefault(scanner.begun, state) == state, "one past, two states"
    assert len(set(state_of.values())) == len(state_of), "two pasts, one state"


@settings(max_examples=100)
@given(cases(), st.lists(stop_sets, min_size=2, max_size=4))
def test_sets_in_one_table_do_not_disturb_each_other(case, sets):
    """Each set behaves as in a table of its own, whatever was entered before and after it."""
    vocabulary, eos_ids, tokens = case
    shared = StopTable(vocabulary, eos_ids)
    for i, stops in enumerate(sets):
        before = shared.table.copy()
        start = shared.start(*stops)
        assert np.array_equal(shared.table[: len(before)], before)
        assert start == (len(before) if stops not in sets[:i] else shared.start(*stops))
    assert (shared.table & STATE_MASK < len(shared.table)).all()
    for stops in sets:
        alone = StopTable(vocabulary, eos_ids)
        start, offset = alone.start(*stops), shared.start(*stops)
        expected = [(state + offset, kind) for state, kind in step_through(alone.table, start, tokens)]
        assert step_through(shared.table, offset, tokens) == expected


@given(cases(), stop_sets)
def test_entering_a_set_again_adds_no_row(case, stops):
    table = StopTable(*case[:2])
    start, rows = table.start(*stops), len(table.table)
    assert table.start(*stops) == start and len(table.table) == rows


@given(cases(), stop_sets, st.data())
def test_walking_ends_in_the_state_behind_the_tokens(case, stops, data):
    vocabulary, eos_ids, tokens = case
    table = StopTable(vocabulary, eos_ids)
    start = table.start(*stops)
    states = [start, *(state for state, _ in step_through(table.table, start, tokens))]
    middle = data.draw(st.integers(0, len(tokens)))
    assert table.walk(start, tokens[:middle]) == states[middle]
    assert table.walk(states[middle], tokens[middle:]) == states[-1]


@given(cases(), stop_sets)
def test_how_text_is_cut_into_tokens_does_not_change_what_is_found(case, stops):
    """A token does the strongest of what its bytes, given one at a time, would do."""
    vocabulary, _, tokens = case
    whole = Scanner(*stops, vocabulary, [])
    text = b"".join(vocabulary[t] for t in tokens)
    bytewise = StopTable([bytes([b]) for b in range(256)], [])
    start = bytewise.start(*stops)
    kinds = [kind for _, kind in step_through(bytewise.table, start, text)]
    for token in tokens:
        mine, kinds = kinds[: len(vocabulary[token])], kinds[len(vocabulary[token]) :]
        assert whole.read(token) == max(mine, default=RUNNING)


VOCABULARY = [b"\n", b"\n\n", b"a\n\nb", b"a", b"", b"\n\n\n", b"b\n", b"end", b"\xc3", b"\xa9", b"\n\nend"]


def kinds(step, answer, tokens, eos_ids=()):
    table = StopTable(VOCABULARY, eos_ids)
    start = table.start(step, answer)
    return [kind for _, kind in step_through(table.table, start, [VOCABULARY.index(t) for t in tokens])]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([b"\n", b"\n"], [RUNNING, STEP]),
        ([b"a\n\nb"], [STEP]),
        ([b"b\n", b"\n", b"\n"], [RUNNING, STEP, RUNNING]),
        ([b"\n", b"a", b"\n"], [RUNNING, RUNNING, RUNNING]),
        ([b"\n\n\n", b"\n"], [STEP, STEP]),
        ([b"\n", b"", b"\n"], [RUNNING, RUNNING, STEP]),
    ],
)
def test_a_blank_line_is_found_inside_and_across_tokens(tokens, expected):
    assert kinds(("\n\n",), (), tokens) == expected


def test_a_character_cut_by_two_tokens_is_found():
    assert kinds(("é",), (), [b"\xc3", b"\xa9", b"\xa9"]) == [RUNNING, STEP, RUNNING]


def test_a_token_that_completes_a_step_and_the_answer_ends_the_answer():
    assert kinds(("\n\n",), ("end",), [b"\n\nend", b"\n\n", b"end"]) == [STOP, STEP, STOP]


def test_a_string_that_is_both_kinds_of_stop_ends_the_answer():
    assert kinds(("a", "end"), ("end",), [b"a", b"end"]) == [STEP, STOP]


def test_an_end_of_text_id_ends_whatever_its_bytes_and_begins_afresh():
    eos_ids = [VOCABULARY.index(b"a"), VOCABULARY.index(b"")]
    assert kinds(("\n\n",), (), [b"\n", b"a", b"\n", b"", b"\n", b"\n"], eos_ids) == [RUNNING, EOS, RUNNING, EOS, RUNNING, STEP]


def test_without_stop_strings_only_end_of_text_ids_end():
    assert kinds((), (), [b"\n\n", b"a", b"end"], [VOCABULARY.index(b"end")]) == [RUNNING, RUNNING, EOS]
    assert kinds(("",), ("",), [b"\n\n", b""]) == [RUNNING, RUNNING]
