"""Finding stop strings in a stream of tokens: an automaton over bytes, compiled to a table over tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tts_kernels.sample import EOS, KIND_SHIFT, RUNNING, STATE_MASK, STEP, STOP

__all__ = ["EOS", "KIND_SHIFT", "RUNNING", "STEP", "STOP", "StopTable"]


def _automaton(patterns: Sequence[tuple[bytes, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Aho-Corasick: `(goto i32[A,256], kind i32[A])`; state 0 is the start, `kind` what is complete on entering a state."""
    children: list[dict[int, int]] = [{}]
    kind = [RUNNING]
    for text, what in patterns:
        state = 0
        for byte in text:
            if byte not in children[state]:
                children[state][byte] = len(children)
                children.append({})
                kind.append(RUNNING)
            state = children[state][byte]
        kind[state] = max(kind[state], what)
    goto, fail = np.zeros((len(children), 256), np.int32), [0] * len(children)
    queue = [0]
    for state in queue:  # breadth first: a state's failure link is complete before its children are looked at
        goto[state] = goto[fail[state]] if state else 0
        for byte, child in children[state].items():
            fail[child] = int(goto[state, byte]) if state else 0
            kind[child] = max(kind[child], kind[fail[child]])
            queue.append(child)
        for byte, child in children[state].items():
            goto[state, byte] = child
    return goto, np.array(kind, np.int32)


class StopTable:
    """`next_state i32[A,V]` of the `sample` op for any number of sets of stop strings, one after the other.

    `start(step, answer)` gives the start state of a set and enters it when it is new. A match begins afresh after a match, so
    matches never overlap; a token that completes several stops counts once, as the strongest. A token may complete a stop and
    go on: its node ends with that token, and the text behind the stop stays in it.
    """

    def __init__(self, token_bytes: Sequence[bytes], eos_ids: Sequence[int]):
        self._token_bytes, self._eos_ids = token_bytes, list(eos_ids)
        self._starts: dict[tuple[tuple[str, ...], tuple[str, ...]], int] = {}
        self.table = np.zeros((0, len(token_bytes)), np.int32)

    def start(self, step: tuple[str, ...], answer: tuple[str, ...]) -> int:
        if (step, answer) not in self._starts:
            self._starts[step, answer] = len(self.table)
            self.table = np.concatenate([self.table, self._compile(step, answer) + np.int32(len(self.table))])
        return self._starts[step, answer]

    def walk(self, state: int, tokens: Sequence[int]) -> int:
        """The state behind given tokens; what they completed is ignored."""
        for token in tokens:
            state = int(self.table[state, token]) & STATE_MASK
        return state

    def _compile(self, step: tuple[str, ...], answer: tuple[str, ...]) -> np.ndarray:
        patterns = [(s.encode(), STEP) for s in step if s] + [(s.encode(), STOP) for s in answer if s]
        goto, kind = _automaton(patterns)
        table = np.zeros((len(goto), len(self._token_bytes)), np.int32)
        alphabet = {byte for text, _ in patterns for byte in text}
        # A token without a byte of any pattern leads every state back to the start.
        touching = [t for t, data in enumerate(self._token_bytes) if not alphabet.isdisjoint(data)]
        width = max((len(self._token_bytes[t]) for t in touching), default=0)
        data = np.full((len(touching), width), -1, np.int32)
        for i, t in enumerate(touching):
            data[i, : len(self._token_bytes[t])] = list(self._token_bytes[t])
        for begin in range(len(goto)):
            table[begin, touching] = self._run(goto, kind, data, begin)
        empty = [t for t, text in enumerate(self._token_bytes) if not text]
        table[:, empty] = np.arange(len(goto), dtype=np.int32)[:, None]
        table[:, self._eos_ids] = EOS << KIND_SHIFT
        return table

    @staticmethod
    def _run(goto: np.ndarray, kind: np.ndarray, data: np.ndarray, begin: int) -> np.ndarray:
        """Where each token, a row of `data`, leads from state `begin`; all tokens walk their bytes side by side."""
        state, hit = np.full(len(data), begin, np.int32), np.zeros(len(data), np.int32)
        for column in data.T:
            alive = column >= 0
            state = np.where(alive, goto[state, column], state)
            reached = np.where(alive, kind[state], RUNNING)
            hit = np.maximum(hit, reached)
            state = np.where(reached > RUNNING, 0, state)
        return state | (hit << KIND_SHIFT)
