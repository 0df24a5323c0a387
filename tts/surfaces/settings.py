"""What the options of a command come to: a recipe's values where the command line says nothing, else its own defaults."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from tts.presets.columns import Scoring
from tts.presets.recipe import Recipe, parse
from tts.strategies import find
from tts.tasks import Problem

MAX_LIMIT = 100_000
BOOLEANS = {"true": True, "false": False}
NOT_ON_CHAIN = ("model_path", "prm_path", "max_tokens", "system_prompt", "custom_chat_template")
"""Keys of a recipe that the task chain replaces: it has models and prompts of its own."""


def read_recipe(path: str | None) -> Recipe | None:
    """The recipe in a file, if one is given."""
    if path is None:
        return None
    try:
        return parse(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--recipe {path}: cannot be read: {error}") from error


def without_effect(recipe: Recipe, task: str) -> str:
    """One line on the recipe's keys that change nothing, and why; empty if all have their effect."""
    reasons = dict(recipe.without_effect)
    if task == "chain":
        reasons |= {key: "the task chain has its own" for key in NOT_ON_CHAIN if key in recipe.given}
    return "; ".join(f"{key} ({reason})" for key, reason in reasons.items())


def search_options(recipe: Recipe | None, strategy: str, is_chain: bool, **given: Any) -> dict[str, Any]:
    """Options of `Solver.solve` but for the strategy's parameters: those given that are not None, the recipe's below them."""
    options: dict[str, Any] = {}
    if recipe is not None:
        options = recipe.sampling | {"select": "weighted", "answer_agg": "last"}
        if is_chain:
            del options["max_tokens"]
    return options | {name: value for name, value in given.items() if value is not None}


def parameters(strategy: str, given: list[str] | None, n: int | None, recipe: Recipe | None) -> dict[str, Any]:
    """The strategy's parameters from NAME=VALUE texts, over the recipe's; its dataclass is the only list of names and types."""
    chosen = find(strategy)
    types = typing.get_type_hints(chosen.parameters)
    values: dict[str, Any] = dict(recipe.parameters) if recipe is not None and strategy == recipe.strategy else {}
    values |= {"n": n} if n is not None else {} if "n" in values else {"n": 16}
    values |= typed(given, types)
    chosen.make_parameters(values)
    return values


def scoring(given: list[str] | None, recipe: Recipe | None) -> tuple[Scoring, list[str]]:
    """How the columns of search-and-learn choose, and the NAME=VALUE texts that are not about that."""
    types = typing.get_type_hints(Scoring)
    own = [text for text in given or [] if text.partition("=")[0] in types]
    base = recipe.scoring if recipe is not None else Scoring()
    return dataclasses.replace(base, **typed(own, types)), [text for text in given or [] if text not in own]


def typed(given: list[str] | None, types: dict[str, Any]) -> dict[str, Any]:
    """NAME=VALUE texts as values of these types; a name that is not among them stays a text, for its owner to refuse."""
    values: dict[str, Any] = {}
    for text in given or []:
        name, _, value = text.partition("=")
        kind = types.get(name, str)
        try:
            values[name] = BOOLEANS[value] if kind is bool else kind(value)
        except (ValueError, KeyError) as error:
            allowed = " or ".join(BOOLEANS) if kind is bool else kind.__name__
            raise ValueError(f"--set {text}: {name} must be {allowed}") from error
    return values


def check_limit(limit: int | None) -> None:
    """Raise `ValueError` for a number of questions out of range."""
    if limit is not None and not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"--limit must be in [1, {MAX_LIMIT}], got {limit}")


def widths(text: str | None) -> list[int]:
    """`4,16,64` as numbers; none given: none."""
    try:
        return list(dict.fromkeys(int(part) for part in text.split(","))) if text is not None else []
    except ValueError as error:
        raise ValueError(f"--n {text}: expected whole numbers with commas between") from error


def problems(task: str, data: str | None, limit: int | None, seed: int, recipe: Recipe | None) -> list[Problem]:
    """The questions: a JSON-lines file's, or the natural test set of chain; of those what the recipe asks for."""
    check_limit(limit)
    if data is None and task != "chain":
        raise ValueError(f"tts eval has no dataset for task {task!r}; it has chain. Give a JSON-lines file with --data")
    asked = recipe or Recipe()
    if limit is not None:
        asked = dataclasses.replace(asked, num_samples=limit)
    if data is not None:
        found = read_problems(data)
    else:
        from tts.tasks import chain

        found = chain.natural(max(limit or 100, asked.num_samples or 0, asked.dataset_end or 0), seed)
    chosen = [found[i] for i in asked.rows(len(found))]
    if not chosen:
        raise ValueError(f"none of the {len(found)} questions are asked for: check dataset_start, dataset_end and num_samples")
    return chosen


def read_problems(path: str) -> list[Problem]:
    """Problems of a JSON-lines file with the columns `problem`, `answer` and, if there, `unique_id`: MATH-500 has them."""
    found = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--data {path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            found.append(Problem(row["problem"], id=str(row.get("unique_id", number)), gold=str(row["answer"])))
        except (json.JSONDecodeError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"--data {path}, line {number}: expected an object with problem and answer: {error}") from error
    return found
