"""`Allocate` on the `prune` op: one segmented kernel for the selections of all problems that are ready."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

import tts_kernels
from tts.engine.sampling import root_key
from tts.engine.session import Session
from tts.moves import Allocate, Proportional, Resample, Rule, Softmax, Top


@dataclass
class Segment:
    """One selection: the rows of one group of one `Allocate`."""

    rows: list[int]
    values: list[float]
    total: int
    keep: int
    key: int


def kernel_rule(rule: Rule) -> tuple[str, float]:
    """The `prune` op's name and temperature for a rule."""
    if isinstance(rule, Softmax):
        return "softmax", rule.temperature
    if isinstance(rule, Resample):
        return rule.scheme, 1.0
    return "proportional" if isinstance(rule, Proportional) else "top", 1.0


def segments(session: Session, move: Allocate) -> list[Segment]:
    """The selections of one move. Raises `ValueError` where values, groups and totals do not pair up."""
    values = [node.value() for node in move.nodes] if move.values is None else move.values
    groups = [0] * len(move.nodes) if move.groups is None else list(move.groups)
    if not len(values) == len(groups) == len(move.nodes):
        raise ValueError(f"Allocate: {len(move.nodes)} nodes, {len(values)} values, {len(groups)} groups: the numbers must agree")
    names = list(dict.fromkeys(groups))
    totals = [move.total] * len(names) if isinstance(move.total, int) else list(move.total)
    if len(totals) != len(names):
        raise ValueError(f"Allocate: {len(names)} groups, {len(totals)} totals: give one total a group, or one for all")
    keep = move.rule.k if isinstance(move.rule, Top) else 0
    made = []
    for name, total in zip(names, totals):
        rows = [i for i, group in enumerate(groups) if group == name]
        key = root_key(session.seed, session.id, "allocate", [(move.nodes[i].key, move.nodes[i].depth) for i in rows])
        made.append(Segment(rows, [values[i] for i in rows], total, keep, key))
    return made


def allocate(moves: Sequence[tuple[Allocate, list[Segment]]]) -> list[list[int]]:
    """The widths of many moves, one `prune` for each rule among them."""
    by_rule: dict[tuple[str, float], list[int]] = {}
    for i, (move, _) in enumerate(moves):
        by_rule.setdefault(kernel_rule(move.rule), []).append(i)
    given = [[0] * len(move.nodes) for move, _ in moves]
    for (rule, temperature), members in by_rule.items():
        widths = iter(_prune([segment for i in members for segment in moves[i][1]], rule, temperature))
        for i in members:
            for row in (row for segment in moves[i][1] for row in segment.rows):
                given[i][row] = next(widths)
    return given


def _prune(parts: list[Segment], rule: str, temperature: float) -> list[int]:
    """Widths of all segments' rows."""
    sizes = torch.tensor([0, *(len(s.rows) for s in parts)])
    pruned = tts_kernels.prune(
        torch.tensor([v for s in parts for v in s.values], dtype=torch.float32),
        sizes.cumsum(0).int(),
        torch.tensor([s.total for s in parts], dtype=torch.int32),
        torch.tensor([s.keep for s in parts], dtype=torch.int32),
        torch.tensor([s.key for s in parts]),
        rule,
        float(temperature),
        sum(s.total for s in parts),
    )
    return pruned.widths.tolist()
