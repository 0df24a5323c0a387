"""The stop table against a scanner that looks at one byte after the other."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tts.engine.stops import EOS, KIND_SHIFT, RUNNING, STEP, STOP, StopTable
from tts_kernels.sample import STATE_MASK

# Few letters, so that stops overlap; the last one has two bytes, so that tokens can cut it.
ALPHABETS = ["a", "ab", "ab", "ab\n", "\né", "abcé"]


@st.composite
def cases(draw):
    """(token bytes, end-of-text ids, [(step stops, answer stops), ...]): every byte alone is a token, some others are longer."""
    letters = draw(st.sampled_from(ALPHABETS))
    single = [bytes([byte]) for byte in letters.encode()]
    longer = draw(st.lists(st.lists(st.sampled_from([*single, b"x"]), max_size=5).map(b"".join), max_size=6))
    stops = st.text(letters, min_size=1, max_size=5)
    sets = st.tuples(st.lists(stops, min_size=1, max_size=3).map(tuple), st.lists(stops, max_size=2).map(tuple))
    vocabulary = [*single, *longer]
    eos_ids = draw(st.lists(st.integers(0, len(vocabulary) - 1), max_size=2, unique=True))
    return vocabulary, eos_ids, draw(st.lists(sets, min_size=1, max_size=4))


def sequences(vocabulary):
    return st.lists(st.integers(0, len(vocabulary) - 1), max_size=30)


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


@settings(max_examples=100)
@given(cases(), st.data())
def test_the_table_finds_what_a_naive_scanner_finds(case, data):
    vocabulary, eos_ids, (stops, *_) = case
    table, scanner = StopTable(vocabulary, eos_ids), Scanner(*stops, vocabulary, eos_ids)
    start = table.start(*stops)
    tokens = data.draw(sequences(vocabulary))
    for token, (_, kind) in zip(tokens, step_through(table.table, start, tokens), strict=True):
        assert kind == scanner.read(token)


@settings(max_examples=200)
@given(cases())
def test_each_state_stands_for_one_past_and_moves_as_a_scanner_with_that_past(case):
    """Every state that tokens can lead to, and every token in it: not a sample of sequences but all of them."""
    vocabulary, eos_ids, (stops, *_) = case
    table, scanner = StopTable(vocabulary, eos_ids), Scanner(*stops, vocabulary, eos_ids)
    state_of = {b"": table.start(*stops)}
    waiting = [b""]
    while waiting:
        past = waiting.pop()
        for token in range(len(vocabulary)):
            scanner.pending = past
            kind = scanner.read(token)
            ((state, found),) = step_through(table.table, state_of[past], [token])
            assert found == kind
            if scanner.begun not in state_of:
                state_of[scanner.begun] = state
                waiting.append(scanner.begun)
            assert state_of[scanner.begun] == state
    assert len(set(state_of.values())) == len(state_of)


@settings(max_examples=100)
@given(cases())
def test_sets_in_one_table_do_not_disturb_each_other(case):
    """Each set has the rows of a table of its own, whatever was entered before and after it."""
    vocabulary, eos_ids, sets = case
    shared = StopTable(vocabulary, eos_ids)
    for i, stops in enumerate(sets):
        before = shared.table.copy()
        start = shared.start(*stops)
        assert start == (shared.start(*stops) if stops in sets[:i] else len(before))
        assert np.array_equal(shared.table[: len(before)], before)
    assert len(shared.table) == sum(len(own_table(vocabulary, eos_ids, stops)) for stops in set(sets))
    for stops in sets:
        own, offset = own_table(vocabulary, eos_ids, stops), shared.start(*stops)
        rows = shared.table[offset : offset + len(own)]
        assert np.array_equal(rows & STATE_MASK, (own & STATE_MASK) + offset)
        assert np.array_equal(rows >> KIND_SHIFT, own >> KIND_SHIFT)


def own_table(vocabulary, eos_ids, stops):
    table = StopTable(vocabulary, eos_ids)
    assert table.start(*stops) == 0
    return table.table


@given(cases(), st.data())
def test_walking_ends_in_the_state_behind_the_tokens(case, data):
    vocabulary, eos_ids, sets = case
    table = StopTable(vocabulary, eos_ids)
    start = [table.start(*stops) for stops in sets][-1]
    tokens = data.draw(sequences(vocabulary))
    states = [start, *(state for state, _ in step_through(table.table, start, tokens))]
    middle = data.draw(st.integers(0, len(tokens)))
    assert table.walk(start, tokens[:middle]) == states[middle]
    assert table.walk(states[middle], tokens[middle:]) == states[-1]


@given(cases(), st.data())
def test_a_token_does_the_strongest_of_what_its_bytes_would_do_one_by_one(case, data):
    vocabulary, _, (stops, *_) = case
    tokens = data.draw(sequences(vocabulary))
    by_token, by_byte = StopTable(vocabulary, []), StopTable([bytes([b]) for b in range(256)], [])
    start, state = by_token.start(*stops), by_byte.start(*stops)
    for token, (_, kind) in zip(tokens, step_through(by_token.table, start, tokens), strict=True):
        done = step_through(by_byte.table, state, vocabulary[token])
        state = done[-1][0] if done else state
        assert kind == max((k for _, k in done), default=RUNNING)


VOCABULARY = [b"\n", b"\n\n", b"a\n\nb", b"a", b"", b"\n\n\n", b"b\n", b"end", b"\xc3", b"\xa9", b"\n\nend"]


def kinds(step, answer, tokens, eos_ids=()):
    """What each token did."""
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
