"""The record of a search: what was answered to each move. Fed back, it gives the same result with no model loaded.

A record is plain values, fit for JSON: the strategy with its parameters, the problem, a table of nodes, and one entry a move. The
scores of an entry are those that its `Score` made known, so that a strategy sees every score when it saw it first.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tts.moves import All, Allocate, Drop, Embed, Expand, Move, Score
from tts.strategies import SearchProblem, Strategy, find
from tts.tree import Node, Prompt

if TYPE_CHECKING:
    from tts.tasks.base import Task

VERSION = 1


@dataclass(eq=False)
class Answered:
    """A move and its result; for an `All` also the records of its branches, None for those that were cut short."""

    move: Move
    result: Any
    branches: list[list[Answered] | None] | None = None
    nodes: list[Any] = field(init=False)
    """Those of the move. Copied, as the result is: a strategy may go on to change the lists that it gave and got."""

    def __post_init__(self) -> None:
        self.nodes = list(getattr(self.move, "nodes", ()))
        if isinstance(self.result, list):
            self.result = list(self.result)


def dump(strategy: Strategy, parameters: Any, question: str, id: str, seed: int, log: Sequence[Answered]) -> dict[str, Any]:
    """The record of a finished search as plain values."""
    writer = _Writer()
    entries = writer.entries(log)
    return {
        "version": VERSION,
        "strategy": strategy.name,
        "parameters": asdict(parameters),
        "problem": {"question": question, "id": id, "seed": seed},
        "nodes": writer.rows,
        "moves": entries,
    }


def replay(record: dict[str, Any], task: Task) -> list[Node]:
    """Run the recorded strategy on its record; gives its answers, equal to those of the search in tokens, ends and scores.

    Raises `ValueError` where the record is of another version, or the strategy asks for something that it did not ask then.
    """
    if record.get("version") != VERSION:
        raise ValueError(f"record has version {record.get('version')!r}; this package replays version {VERSION}")
    strategy = find(record["strategy"])
    problem = SearchProblem(**record["problem"], task=task)
    generator = strategy.run(problem, strategy.make_parameters(record["parameters"]))
    return _Reader(record["nodes"]).drive(generator, record["moves"])


class _Writer:
    """Numbers nodes as they are met, parents first."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._ids: dict[Node, int] = {}
        self._scored: set[tuple[str, Node]] = set()

    def entries(self, log: Sequence[Answered]) -> list[dict[str, Any]]:
        return [{"move": type(a.move).__name__, **self._result(a)} for a in log]

    def _result(self, answered: Answered) -> dict[str, Any]:
        move, result = answered.move, answered.result
        if isinstance(move, Expand):
            return {"nodes": [self._id(node) for node in result]}
        if isinstance(move, Score):
            steps = dict.fromkeys(step for node in answered.nodes for step in node.path if (move.by, step) not in self._scored)
            self._scored.update((move.by, step) for step in steps)
            return {"by": move.by, "scores": [[self._id(step), _plain(step.scores[move.by])] for step in steps]}
        if isinstance(move, Allocate):
            return {"widths": list(result)}
        if isinstance(move, Embed):
            return {"states": [[float(x) for x in state] for state in result]}
        if isinstance(move, All):
            logs = answered.branches or []
            return {"branches": [None if log is None else self.entries(log) for log in logs]}
        return {}

    def _id(self, node: Node) -> int:
        if node not in self._ids:
            parent = -1 if node.parent is None else self._id(node.parent)
            previous = [self._id(x) for x in node.prompt.previous] if parent < 0 else []
            self._ids[node] = len(self.rows)
            self.rows.append(
                {
                    "parent": parent,
                    "tokens": list(map(int, node.tokens)),
                    "bytes": node.data.hex(),
                    "end": node.end,
                    "key": node.key,
                    "num_forced": node.num_forced,
                    "cost": node.cost,
                    "logprobs": [_plain(x) for x in node.logprobs],
                    "stats": {name: [_plain(x) for x in values] for name, values in node.stats.items()},
                }
            )
            if parent < 0:
                prompt = {"template": node.prompt.template, "previous": previous, "model": node.prompt.model}
                self.rows[-1]["prompt"] = prompt | {"fields": [[name, value] for name, value in node.prompt.fields]}
        return self._ids[node]


class _Reader:
    """Answers the moves of a generator with what the record says."""

    def __init__(self, rows: Sequence[dict[str, Any]]):
        self.nodes: list[Node] = []
        for row in rows:
            parent = None if row["parent"] < 0 else self.nodes[row["parent"]]
            self.nodes.append(
                Node(
                    parent,
                    tuple(row["tokens"]),
                    bytes.fromhex(row["bytes"]),
                    row["end"],
                    row["key"],
                    self._prompt(row["prompt"]) if parent is None else parent.prompt,
                    row["num_forced"],
                    row["cost"],
                    tuple(map(_number, row["logprobs"])),
                    stats={name: tuple(map(_number, values)) for name, values in row["stats"].items()},
                    order=(len(self.nodes),) if parent is None else (),
                )
            )

    def _prompt(self, row: dict[str, Any]) -> Prompt:
        previous = tuple(self.nodes[i] for i in row["previous"])
        return Prompt(row["template"], previous, row["model"], tuple((name, value) for name, value in row["fields"]))

    def drive(self, generator: Generator[Any, Any, Any], entries: Sequence[dict[str, Any]]) -> Any:
        result: Any = None
        for entry in [*entries, None]:
            try:
                move = generator.send(result)
            except StopIteration as stop:
                if entry is not None:
                    raise ValueError(f"the strategy ended where its record goes on with {entry['move']}") from None
                return stop.value
            if entry is None or entry["move"] != type(move).__name__:
                recorded = "is at its end" if entry is None else f"has {entry['move']}"
                raise ValueError(f"the strategy asks for {type(move).__name__} where its record {recorded}")
            result = self._answer(move, entry)

    def _answer(self, move: Move, entry: dict[str, Any]) -> Any:
        if isinstance(move, Expand):
            return [self.nodes[i] for i in entry["nodes"]]
        if isinstance(move, Score):
            for i, score in entry["scores"]:
                self.nodes[i].set_score(entry["by"], _number(score))
            return [node.scores[move.by] for node in move.nodes]
        if isinstance(move, Allocate):
            return entry["widths"]
        if isinstance(move, Embed):
            import numpy as np

            return [np.array(state, np.float32) for state in entry["states"]]
        if isinstance(move, All):
            pairs = zip(move.branches, entry["branches"])
            return [None if entries is None else self.drive(branch, entries) for branch, entries in pairs]
        assert isinstance(move, Drop)
        return None


def _plain(value: float) -> float | str:
    """JSON has no word for a number that is not finite."""
    return float(value) if math.isfinite(value) else str(float(value))


def _number(value: float | str) -> float:
    return float(value)
