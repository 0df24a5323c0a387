"""Greedy decoding by every engine, against transformers in float32 on the same weights.

On random weights the best two logits are often nearer than bfloat16 can tell apart, so texts part ways at some place; the gap
there says whether it was a tie for the numbers' precision.
"""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.record import append_line
from benchmarks.search.checkpoints import make
from benchmarks.search.run import Setup, ask, lines, question_of
from benchmarks.search.traces import beam

PROMPTS, PROMPT_LEN, COUNT = 4, 64, 64


def run(setup: Setup) -> list[dict[str, Any]]:
    """A row for each engine, appended to `setup.out`: by prompt, the first position that differs and the logit gap there."""
    trace = beam("greedy", 1, 1, 1, COUNT, prompt=PROMPT_LEN, problems=PROMPTS)
    question = question_of(setup, trace) | {"greedy": COUNT}
    judge = Judge(setup)
    rows = []
    for line in lines(setup.pythons, has_verifier=False):
        if line.way == "continuous":
            continue  # the same forward passes as without
        row = {"trace": trace.name, "engine": line.name} | trace.shape() | ask(setup, line, question)
        if "drawn" in row:
            row |= judge.compare(question["trace"]["prompts"], row["drawn"])
        rows.append(setup.with_machine(row))
        append_line(setup.out, rows[-1])
    return rows


class Judge:
    """The model in float32: what it would have drawn in the place of another engine."""

    def __init__(self, setup: Setup):
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(setup.threads)
        policy, _ = make(setup.shape, setup.work)
        self.model = AutoModelForCausalLM.from_pretrained(policy, dtype=torch.float32, attn_implementation="sdpa").eval()

    def compare(self, prompts: list[list[int]], drawn: list[list[int]]) -> dict[str, Any]:
        """Lists with an item a prompt; None where all tokens are the same."""
        found = [self._first_difference(prompt, tokens) for prompt, tokens in zip(prompts, drawn)]
        return {"first_difference": [position for position, _ in found], "logit_gap": [gap for _, gap in found]}

    @torch.inference_mode()
    def _first_difference(self, prompt: list[int], tokens: list[int]) -> tuple[int | None, float | None]:
        """(position, largest logit minus that of the token drawn) where the token is not the largest."""
        logits = self.model(input_ids=torch.tensor([prompt + tokens[:-1]]), logits_to_keep=len(tokens)).logits[0]
        wrong = (logits.argmax(-1) != torch.tensor(tokens)).nonzero()
        if not len(wrong):
            return None, None
        position = int(wrong[0])
        return position, float(logits[position].max() - logits[position, tokens[position]])


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("engine", f"first of {COUNT} tokens that differs, by prompt", "logit gap there", "different tokens drawn")
    for row in rows:
        if "drawn" not in row:
            table.add_row(row["engine"], row["error"], "", "")
            continue
        places = ", ".join("none" if place is None else str(place) for place in row["first_difference"])
        gaps = ", ".join("" if gap is None else f"{gap:.4f}" for gap in row["logit_gap"])
        table.add_row(row["engine"], places, gaps, str(len({token for tokens in row["drawn"] for token in tokens})))
    Console(width=130).print(table)
