"""Rebuild a shipped model from a seed: ``python -m tts.zoo.train NAME [--out DIR] [--seed S]``.

The models are Llama models of two layers with one token per character, trained from scratch on fresh questions of the task
chain and their correct solutions. The loss is taken on the solution only: a question's characters are random.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import tokenizers
import torch
import transformers
from torch.nn.functional import cross_entropy

from tts.tasks.chain import ALPHABET, END, EXAMPLE, MAX_STEPS, sample, solve

THREADS = 1  # sums are split by thread: with one, the weights do not depend on the number of cores
PAD = "<pad>"
TOKEN_IDS = {token: i for i, token in enumerate([PAD, *ALPHABET])}


@dataclass(frozen=True)
class Recipe:
    """All that defines a model besides its seed."""

    hidden: int
    intermediate: int
    heads: int
    layers: int
    tokens: int
    """Training tokens, questions included."""
    batch_tokens: int = 1024
    learning_rate: float = 5e-3
    warmup: float = 0.03
    """Share of the updates in which the learning rate rises; then it falls to zero along a cosine."""
    weight_decay: float = 0.01


RECIPES = {
    "S": Recipe(hidden=48, intermediate=112, heads=3, layers=2, tokens=3_300_000),
    "M": Recipe(hidden=64, intermediate=176, heads=4, layers=2, tokens=10_000_000),
}


def build_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token per character of the task; a character outside it is an error and not an unknown token."""
    characters = tokenizers.Tokenizer(tokenizers.models.WordLevel(TOKEN_IDS, unk_token="<unk>"))  # not in the vocabulary
    characters.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated")
    characters.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=characters, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False, model_max_length=128
    )


def build_model(recipe: Recipe, seed: int) -> transformers.LlamaForCausalLM:
    """A freshly initialised model; the same `seed` gives the same weights, and torch's generator is left as it was."""
    config = transformers.LlamaConfig(
        vocab_size=len(TOKEN_IDS),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        num_hidden_layers=recipe.layers,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        initializer_range=recipe.hidden**-0.5,
        bos_token_id=None,
        eos_token_id=TOKEN_IDS[END],
        pad_token_id=TOKEN_IDS[PAD],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(config)


def batches(recipe: Recipe, seed: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Endless pairs of token ids i64[B, T] and the length of the questions in them.

    All rows of a batch have the same number of steps, hence the same length: nothing is padded and nothing masked.
    """
    rng = random.Random(f"chain training {seed}")
    while True:
        steps = rng.randint(1, MAX_STEPS)
        num_rows = recipe.batch_tokens // (12 * steps + 12)  # 3 + 9 characters a step, 4 + 8 around them
        questions = [sample(rng, steps, training=True) for _ in range(num_rows)]
        ids = torch.tensor([[TOKEN_IDS[c] for c in question + solve(question)] for question in questions])
        yield ids, len(questions[0])


def learning_rate(recipe: Recipe, progress: float) -> float:
    """The rate after a share `progress` in [0, 1] of the training tokens."""
    if progress < recipe.warmup:
        return recipe.learning_rate * progress / recipe.warmup
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - recipe.warmup) / (1 - recipe.warmup)))


def solution_loss(model: transformers.LlamaForCausalLM, ids: torch.Tensor, question_len: int) -> torch.Tensor:
    """Mean negative log-likelihood of the solutions' characters."""
    targets = ids[:, question_len:]
    logits = model(ids[:, :-1], logits_to_keep=targets.shape[1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), targets.flatten())


def train(recipe: Recipe, seed: int) -> tuple[transformers.LlamaForCausalLM, list[float]]:
    """Train a new model on `recipe.tokens` tokens; returns it with the loss of every update."""
    model = build_model(recipe, seed).train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    stream, losses, seen = batches(recipe, seed), [], 0
    while seen < recipe.tokens:
        ids, question_len = next(stream)
        seen += ids.numel()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, min(1.0, seen / recipe.tokens))
        loss = solution_loss(model, ids, question_len)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if len(losses) % 500 == 0:
            print(f"{seen / 1e6:6.2f} M tokens  loss {sum(losses[-500:]) / 500:.4f}", flush=True)
    return model.eval(), losses


def write(folder: Path, model: transformers.LlamaForCausalLM, sheet: dict) -> None:
    """Save a transformers folder and its data sheet."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes for the owner only; a package is read by others
    (folder / "DATASHEET.json").write_text(json.dumps(sheet, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tts.zoo.train", description="Rebuild a shipped model from a seed.")
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--out", type=Path, help="folder to write (default: the shipped one)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    began = time.perf_counter()
    model, losses = train(RECIPES[args.name], args.seed)
    sheet = {
        "name": args.name,
        "command": f"python -m tts.zoo.train {args.name} --seed {args.seed}",
        "task": "chain",
        "data": "fresh questions of the task chain with 1 to 8 steps (equally many tokens of each length), operations + - * with "
        "weights .50 .33 .17, operand k with weight k^-1.2, and their correct solutions; one example: "
        f"{EXAMPLE}{solve(EXAMPLE)}",
        "seed": args.seed,
        "recipe": asdict(RECIPES[args.name]),
        "parameters": sum(p.numel() for p in model.parameters()),
        "updates": len(losses),
        "final_loss": round(sum(losses[-100:]) / len(losses[-100:]), 4),
        "seconds": round(time.perf_counter() - began),
        "processor_seconds": round(time.process_time()),
        "threads": THREADS,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__},
    }
    write(args.out or Path(__file__).parent / "weights" / args.name, model, sheet)


if __name__ == "__main__":
    main()
