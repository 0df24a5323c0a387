"""`tts verifier check`: a verifier's figures on solutions whose steps are known to be right or wrong."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from tts import tasks
from tts.calibration import Judged, Report
from tts.meter import Meter
from tts.solver import Solver
from tts.tasks import chain
from tts.tree import Node, Prompt
from tts.verifiers import Checkpoint
from tts.verifiers.likelihood import Likelihood
from tts.verifiers.load import Opened
from tts.verifiers.prm import PRM

SAMPLES = 8
"""Solutions of each question of the chain task."""
NUM_PAGES = 4096


def on_chain(model: str, limit: int, seed: int) -> Iterator[Judged]:
    """Solutions that the policy `zoo:S` draws, their steps' truth known exactly."""
    solver = Solver("zoo:S", model, "chain")
    for _, result in solver.solve_each(chain.natural(limit, seed), "best_of_n", n=SAMPLES, seed=seed):
        question = result.problem.question
        for candidate in result.candidates:
            steps = [step for step in candidate.steps if step.text]
            truth = chain.step_truth(question, "".join(step.text for step in steps))
            if len(truth) == len(steps) > 0:
                scores = [step.score for step in steps]
                yield Judged(question, scores, _prefixes(truth), [len(step.text) for step in steps])


def on_file(model: str, path: Path, task_name: str) -> Iterator[Judged]:
    """Rows of a JSONL file with `question`, `steps` and `labels`: one truth value a step, of that step alone."""
    rows = [_row(path, number + 1, line) for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()) if line]
    opened, task = Opened.load(Checkpoint.of(model)), tasks.find(task_name)

    def prompt(question: str) -> Any:
        return task.render("solve", question, [], {})

    verifier: PRM | Likelihood
    if opened.family is None:
        encode = opened.model.encode
        verifier = Likelihood(opened.model, NUM_PAGES, render=lambda question: encode(prompt(question)))
    else:
        verifier = opened.make(opened.model, prompt, NUM_PAGES)
    for row in rows:
        root = Node(None, (0,), b"", "prompt", 0, Prompt(), order=(0,))
        nodes = [root]
        for text in row["steps"]:
            nodes.append(Node(nodes[-1], (0,), text.encode(), "step", 0, root.prompt))
        verifier.submit(row["question"], nodes[1:], Meter())
        scores: dict[Node, Any] = {}
        while verifier.has_work:
            scores |= dict(verifier.step())
        verifier.close(nodes)
        yield Judged(
            row["question"], [float(scores[n]) for n in nodes[1:]], _prefixes(row["labels"]), list(map(len, row["steps"]))
        )


def show(out: Console, found: Report) -> None:
    """The table."""
    rows = {
        "solutions, questions, steps": f"{found.num_solutions}, {found.num_questions}, {found.num_steps}",
        "steps without a score": str(found.num_invalid),
        "within-question AUC": f"{found.within_question_auc:.3f}",
        "pooled AUC of steps": f"{found.pooled_step_auc:.3f}",
        "ECE": f"{found.ece:.3f}",
        "ECE, held-out questions": f"{found.ece_held_out:.3f}, {found.ece_calibrated:.3f} after an isotonic fit on the others",
        "over-criticism": f"{found.over_criticism:.3f} of right prefixes are called wrong",
        "error neglect": f"{found.error_neglect:.3f} of wrong prefixes are called right",
        "localisation": f"{found.located:.3f} of first errors found in place, {found.displacement:+.2f} steps late",
        "length bias": f"{found.length_bias:+.3f}, rank correlation of score and length among right prefixes",
    }
    for name, value in rows.items():
        out.print(f"{name:>28}  {value}", highlight=False)
    for b in found.bins:
        out.print(
            f"{f'{b.low:.1f} to {b.high:.1f}':>28}  {b.count:6} steps, mean score {b.mean_score:.3f}, right {b.share_right:.3f}"
        )


def as_dict(found: Report) -> dict[str, Any]:
    """Plain values for JSON; NaN is None."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(found).items()}


def _prefixes(truth: list[bool]) -> list[bool]:
    return [all(truth[: i + 1]) for i in range(len(truth))]


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    where = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    kinds = {"question": (str, "a text"), "steps": (list, "a list of texts"), "labels": (list, "a list of true and false")}
    for name, (kind, what) in kinds.items():
        if not isinstance(row, dict) or not isinstance(row.get(name), kind):
            raise ValueError(f"{where}: {name!r} must be {what}")
    if len(row["steps"]) != len(row["labels"]) or not row["steps"]:
        raise ValueError(f"{where}: {len(row['steps'])} steps and {len(row['labels'])} labels; one label a step is needed")
    return row
