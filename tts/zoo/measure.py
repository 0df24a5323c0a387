"""What the shipped models can do: ``python -m tts.zoo.measure NAME [--judges NAME ...] [--questions 300] [--samples 64]``.

Plain transformers and no search: the figures that a search with the same samples should reach or beat.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any

import torch
import transformers

from tts import zoo
from tts.tasks.base import Problem
from tts.tasks.chain import END, Chain, natural, step_truth

TASK = Chain()


class Solver:
    """A model folder with its tokenizer, asked in batches of equally long questions so that nothing is padded in front."""

    def __init__(self, folder: Path) -> None:
        self.model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def solutions(self, questions: Sequence[str], temperature: float) -> list[str]:
        """One solution for each of `questions`, all of the same length; temperature 0 is greedy."""
        choice = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        ids = self.tokenizer(list(questions), return_tensors="pt").input_ids
        out = self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TASK.max_tokens, **choice)
        texts = self.tokenizer.batch_decode(out[:, ids.shape[1] :])
        return [text.partition(END)[0] + END * (END in text) for text in texts]

    @torch.inference_mode()
    def log_likelihoods(self, question: str, solutions: Sequence[str]) -> torch.Tensor:
        """Total log-likelihood f32[N] of each of `solutions` given `question`."""
        ids = self.tokenizer([question + s for s in solutions], padding=True, padding_side="right", return_tensors="pt").input_ids
        start = len(question)
        targets = ids[:, start:]
        logps = self.model(ids[:, :-1], logits_to_keep=targets.shape[1]).logits.log_softmax(-1)
        taken = logps.gather(-1, targets[..., None])[..., 0]
        return taken.masked_fill(targets == self.tokenizer.pad_token_id, 0.0).sum(1)


def _same_length(problems: Sequence[Problem]) -> Iterator[list[Problem]]:
    groups: dict[int, list[Problem]] = defaultdict(list)
    for problem in problems:
        groups[problem.meta["steps"]].append(problem)
    yield from (groups[steps] for steps in sorted(groups))


def sample_all(solver: Solver, problems: Sequence[Problem], num_samples: int, temperature: float) -> dict[str, list[str]]:
    """`num_samples` solutions of every problem by its id."""
    found: dict[str, list[str]] = {}
    for group in _same_length(problems):
        texts = solver.solutions([p.question for p in group for _ in range(num_samples)], temperature)
        found |= {p.id: texts[i * num_samples : (i + 1) * num_samples] for i, p in enumerate(group)}
    return found


def _is_right(problem: Problem, text: str) -> bool:
    return TASK.extract(text) == problem.gold


def _is_true(problem: Problem, text: str) -> bool:
    return all(step_truth(problem.question, text))


def _share(hits: Sequence[float]) -> float:
    return round(sum(hits) / len(hits), 4)


def by_steps(problems: Sequence[Problem], scores: dict[str, float]) -> dict[str, float]:
    """The mean score of all problems and of those of each length."""
    lengths = {str(g[0].meta["steps"]): _share([scores[p.id] for p in g]) for g in _same_length(problems)}
    return {"all": _share([scores[p.id] for p in problems])} | lengths


def pass_at_1(problems: Sequence[Problem], samples: dict[str, list[str]]) -> dict[str, float]:
    """The share of right answers, overall and by number of steps."""
    return by_steps(problems, {p.id: sum(_is_right(p, t) for t in samples[p.id]) / len(samples[p.id]) for p in problems})


def coverage(problems: Sequence[Problem], samples: dict[str, list[str]], k: int) -> float:
    """pass@k: the chance that k of a problem's samples, drawn without replacement, hold a right one."""

    def miss(problem: Problem) -> float:
        texts = samples[problem.id]
        wrong = sum(not _is_right(problem, t) for t in texts)
        return comb(wrong, k) / comb(len(texts), k)

    return _share([1 - miss(p) for p in problems])


def majority(problems: Sequence[Problem], samples: dict[str, list[str]]) -> float:
    """The share of problems whose most frequent answer is right; of equally frequent ones the first sampled counts."""

    def vote(texts: Sequence[str]) -> str | None:
        answers = [a for a in map(TASK.extract, texts) if a is not None]
        return Counter(answers).most_common(1)[0][0] if answers else None

    return _share([vote(samples[p.id]) == p.gold for p in problems])


def best_of(problems: Sequence[Problem], samples: dict[str, list[str]], judge: Solver) -> float:
    """The share of problems whose sample of the highest likelihood under `judge` is right."""

    def best(problem: Problem) -> str:
        texts = samples[problem.id]
        return texts[int(judge.log_likelihoods(problem.question, texts).argmax())]

    return _share([_is_right(p, best(p)) for p in problems])


def chance_coverage(problems: Sequence[Problem], k: int, knows_start: bool) -> float:
    """pass@k of blind guessing: six random digits, or the start copied where the answer holds it and the rest guessed."""

    def states_to_guess(problem: Problem) -> int:
        return min(3, problem.meta["steps"]) if knows_start else 3

    return round(sum(1 - (1 - 0.01 ** states_to_guess(p)) ** k for p in problems) / len(problems), 6)


def figures(
    solver: Solver, problems: Sequence[Problem], num_samples: int, temperature: float, judges: Mapping[str, Solver]
) -> dict[str, Any]:
    """All figures of `solver`; each of `judges` picks by likelihood among the same samples."""
    greedy = sample_all(solver, problems, 1, temperature=0.0)
    samples = sample_all(solver, problems, num_samples, temperature)
    return {
        "greedy": pass_at_1(problems, greedy),
        "pass@1": pass_at_1(problems, samples),
        "coverage": {str(k): coverage(problems, samples, k) for k in (1, 4, 16, 64) if k <= num_samples},
        "majority": majority(problems, samples),
        "best of by likelihood": {name: best_of(problems, samples, judge) for name, judge in judges.items()},
        "chance coverage": chance_coverage(problems, num_samples, knows_start=False),
        "chance coverage, start copied": chance_coverage(problems, num_samples, knows_start=True),
        "unparsable": _share([TASK.extract(t) is None for p in problems for t in samples[p.id]]),
        "right answer, wrong steps": _share([_is_right(p, t) and not _is_true(p, t) for p in problems for t in samples[p.id]]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tts.zoo.measure", description="Figures of a shipped model.")
    parser.add_argument("model", type=_folder, help=f"{', '.join(zoo.names())} or a folder")
    parser.add_argument("--judges", nargs="*", default=[], help="models whose likelihood picks the best sample")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", action="store_true", help="keep the figures in the model's data sheet")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    measured = {"natural questions": args.questions, "seed": args.seed, "samples": args.samples, "temperature": args.temperature}
    judges = {name: Solver(_folder(name)) for name in args.judges}
    measured |= figures(Solver(args.model), natural(args.questions, args.seed), args.samples, args.temperature, judges)
    print(json.dumps(measured, indent=2))
    if args.write:
        sheet = args.model / "DATASHEET.json"
        sheet.write_text(json.dumps(json.loads(sheet.read_text()) | {"figures": measured}, indent=2) + "\n")


def _folder(name: str) -> Path:
    return zoo.path(name) if name in zoo.names() else Path(name)


if __name__ == "__main__":
    main()
