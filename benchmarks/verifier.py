"""Scoring beams step by step: the incremental engine against the published procedure, which encodes every whole text again."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2Model

from benchmarks.record import append_line, machine
from tts.engine.model import Model
from tts.engine.weights import Weights
from tts.meter import Meter
from tts.tree import Node, Prompt
from tts.verifiers.families import Family, Head
from tts.verifiers.prm import PRM

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512},
    "Qwen2.5-0.5B shape": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "vocab_size": 151936,
    },
}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


@dataclass
class Numbers(Family):
    """Texts are token ids; the label is the second of two at the last token: no tokenizer is measured."""

    label = 1

    def tokens(self, question: str, steps: Sequence[str]) -> list[int]:
        return [int(word) if word.isdigit() else 1 for text in (question, *steps) for word in text.split()]

    def bind(self, model: Model) -> None:
        self.model = model

    def head(self, weights: Weights) -> Head:
        torch.manual_seed(1)
        return Head(torch.randn(2, self.model.config.hidden_size) * 0.1)


@dataclass
class Setting:
    shape: str
    dtype: torch.dtype
    width: int
    steps: int
    step_tokens: int
    prompt_tokens: int

    def texts(self) -> tuple[str, list[list[str]]]:
        """The question, and the steps of each beam: every beam a chain of its own, nothing shared but the question."""
        draw = torch.Generator().manual_seed(0)
        vocab = SHAPES[self.shape]["vocab_size"]

        def piece(count: int) -> str:
            return " ".join(map(str, torch.randint(1, vocab, (count,), generator=draw).tolist()))

        return piece(self.prompt_tokens), [[piece(self.step_tokens) for _ in range(self.steps)] for _ in range(self.width)]


def run(out: Path, repeats: int, quick: bool) -> list[dict[str, Any]]:
    """A row a model, appended to `out`: seconds of the incremental engine and of the published procedure."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    settings = [Setting("tiny", torch.float32, width=16, steps=12, step_tokens=32, prompt_tokens=64)]
    if not quick:
        settings.append(Setting("Qwen2.5-0.5B shape", torch.bfloat16, width=2, steps=12, step_tokens=16, prompt_tokens=32))
    rows = []
    for setting in settings:
        row = measure(setting, repeats) | machine()
        append_line(out, row)
        rows.append(row)
    return rows


@torch.inference_mode()
def measure(setting: Setting, repeats: int) -> dict[str, Any]:
    stock, inner = _model(setting), _model(setting)
    ours = Model(inner, None, setting.shape)
    verifier = PRM(
        ours, Numbers(), num_pages=2 * setting.width * (setting.prompt_tokens + setting.steps * setting.step_tokens) // 16
    )
    question, beams = setting.texts()
    head = verifier._head.weight.to(setting.dtype)
    variants: dict[str, Callable[[], tuple[list[float], int]]] = {
        "incremental": lambda: _incremental(verifier, question, beams),
        "published": lambda: _published(stock, head, question, beams),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    tokens, scores = {}, {}
    for _ in range(repeats):
        for name, variant in variants.items():  # in turn, so that a busy machine disturbs all alike
            started = time.perf_counter()
            scores[name], tokens[name] = variant()
            seconds[name].append(time.perf_counter() - started)
    error = max(abs(a - b) for name in variants for a, b in zip(scores[name], scores["incremental"]))
    median = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "benchmark": "verifier",
        "model": setting.shape,
        "dtype": str(setting.dtype).removeprefix("torch."),
        "width": setting.width,
        "steps": setting.steps,
        "step_tokens": setting.step_tokens,
        "prompt_tokens": setting.prompt_tokens,
        "seconds": seconds,
        "tokens": tokens,
        "speedup": {name: median[name] / median["incremental"] for name in variants},
        "max_error": error,
        "is_correct": error <= TOLERANCE[setting.dtype],
        "load": os.getloadavg()[0],
    }


def _model(setting: Setting) -> Qwen2Model:
    """The same random weights each time."""
    torch.manual_seed(0)
    config = Qwen2Config(**SHAPES[setting.shape], num_key_value_heads=2, max_position_embeddings=4096, attn_implementation="sdpa")
    return Qwen2Model(config).to(setting.dtype).eval()


def _incremental(verifier: PRM, question: str, beams: Sequence[Sequence[str]]) -> tuple[list[float], int]:
    """Scores of all beams after the last step, and the tokens read."""
    meter, scores = Meter(), {}
    root = Node(None, (0,), b"", "prompt", 0, Prompt(), order=(0,))
    leaves, made = [root] * len(beams), []
    for step in range(len(beams[0])):
        leaves = [Node(leaf, (0,), beam[step].encode(), "step", 0, leaf.prompt) for leaf, beam in zip(leaves, beams)]
        made += leaves
        verifier.submit(question, leaves, meter)
        while verifier.has_work:
            scores |= dict(verifier.step())
    verifier.close([root, *made])
    return [float(scores[leaf]) for leaf in leaves], meter.verifier_tokens


def _published(model: Qwen2Model, head: torch.Tensor, question: str, beams: Sequence[Sequence[str]]) -> tuple[list[float], int]:
    """Every step: all texts as one batch through the whole model, both labels at every token."""
    num_tokens = 0
    for step in range(len(beams[0])):
        ids = torch.tensor([[int(n) for text in (question, *beam[: step + 1]) for n in text.split()] for beam in beams])
        num_tokens += ids.numel()
        logits = model(input_ids=ids, use_cache=False).last_hidden_state @ head.T
        scores = logits.float().softmax(-1)[:, -1, 1]
    return scores.tolist(), num_tokens


def show(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        print(f"{row['model']}, {row['dtype']}, {row['width']} beams x {row['steps']} steps of {row['step_tokens']} tokens")
        for name, times in row["seconds"].items():
            ratio = f"{row['speedup'][name]:.1f} x ours"
            print(f"  {name:22} {statistics.median(times):8.2f} s  {row['tokens'][name]:9,} tokens  {ratio}")
        print(f"  largest difference of scores {row['max_error']:.2g}: {'right' if row['is_correct'] else 'WRONG'}")
