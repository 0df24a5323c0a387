"""Recipes of huggingface/search-and-learn: its YAML files as they are, as requests of ours.

Keys, defaults and meanings are those of `Config` in its `src/sal/config.py` (commit 6f81cac). Differences that stay: `max_tokens`
bounds a whole answer here and one step there, the search's seed makes other draws, and a string as `custom_chat_template` is
refused, for a template is code.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from tts.presets.columns import Scoring
from tts.tasks.prompts import PROMPTS, Prompt

STRATEGIES = {"best_of_n": "best_of_n", "beam_search": "search_and_learn_beam", "dvts": "search_and_learn_dvts"}
"""Our strategy for each of its approaches."""

EMPTY_STEP_PRMS = ("rlhflow", "qwen2.5-math-prm")
"""PRMs, by a part of their names, whose input search-and-learn ends with an empty step (`Rules.empty_step`)."""

_NO_PUSH = "results are printed, nothing is pushed to a hub"
_BATCHES = "batches change speed here, never a result"
_NO_EFFECT: Mapping[str, str] = {
    "gpu_memory_utilization": "memory is given by --kv-bytes",
    "output_dir": "results are printed",
    "num_proc": "one process scores",
    "push_to_hub": _NO_PUSH,
    "hub_dataset_id": _NO_PUSH,
    "hub_dataset_private": _NO_PUSH,
    "overwrite_hub_revision": _NO_PUSH,
    "apply_voting": "search-and-learn reads it nowhere; votes are always there",
    "dataset_name": "questions are given on the command line",
    "dataset_config": "questions are given on the command line",
    "dataset_split": "questions are given on the command line",
    "prm_batch_size": _BATCHES,
    "search_batch_size": _BATCHES,
}
_SEARCH_ONLY = ("beam_width", "num_iterations", "lookahead")
_BEAM_ONLY = ("filter_duplicates", "sort_completed")


@dataclass(frozen=True)
class Recipe:
    """One recipe, valid. `given` are the keys that the file sets; the others have search-and-learn's defaults."""

    given: tuple[str, ...] = ()

    approach: str = "best_of_n"
    model_path: str = "meta-llama/Llama-3.2-1B-Instruct"
    gpu_memory_utilization: float = 0.5
    prm_path: str = "RLHFlow/Llama3.1-8B-PRM-Deepseek-Data"

    output_dir: str | None = None
    num_proc: int | None = None
    push_to_hub: bool = False
    hub_dataset_id: str | None = None
    hub_dataset_private: bool = False
    overwrite_hub_revision: bool = False
    apply_voting: bool = True

    dataset_name: str = "HuggingFaceH4/MATH-500"
    dataset_config: str | None = None
    dataset_split: str = "test"
    dataset_start: int | None = None
    dataset_end: int | None = None
    num_samples: int | None = None

    system_prompt: str = PROMPTS["search-and-learn"].system
    custom_chat_template: None = None
    """Null is the model's own chat template; without the key it is search-and-learn's (`template`)."""

    n: int = 4
    temperature: float = 0.8
    top_p: float = 1.0
    prm_batch_size: int = 4
    search_batch_size: int = 25
    seed: int = 42
    max_tokens: int = 2048
    agg_strategy: str = "last"

    beam_width: int = 4
    num_iterations: int = 40
    lookahead: int = 0
    filter_duplicates: bool = False
    sort_completed: bool = False

    @property
    def strategy(self) -> str:
        """The name of our strategy that follows the recipe's rules."""
        return STRATEGIES[self.approach]

    @property
    def parameters(self) -> dict[str, Any]:
        """The strategy's parameters."""
        if self.approach == "best_of_n":
            return {"n": self.n}
        shared = {
            "n": self.n,
            "expand": self.beam_width,
            "max_steps": self.num_iterations,
            "prune_agg": self.agg_strategy,
            "lookahead": self.lookahead,
            "empty_step": any(name in self.prm_path.lower() for name in EMPTY_STEP_PRMS),
        }
        if self.approach == "dvts":
            return shared
        return shared | {"filter_duplicates": self.filter_duplicates, "sort_completed": self.sort_completed}

    @property
    def sampling(self) -> dict[str, Any]:
        """How tokens are drawn, as options of `Solver.solve`."""
        names = ("temperature", "top_p", "max_tokens", "seed")
        return {name: getattr(self, name) for name in names}

    @property
    def scoring(self) -> Scoring:
        """How its output columns choose answers."""
        return Scoring(agg=self.agg_strategy)

    @property
    def prompt(self) -> Prompt:
        """The system prompt, as a preset of the task `math`."""
        known = PROMPTS["search-and-learn"]
        return known if self.system_prompt == known.system else Prompt(self.system_prompt, "a recipe")

    @property
    def template(self) -> str | None:
        """The chat template's name in `tts.tasks.prompts.TEMPLATES`; None is the model's own."""
        return None if "custom_chat_template" in self.given else "search-and-learn"

    @property
    def without_effect(self) -> dict[str, str]:
        """The keys that the file sets and that change nothing here, each with the reason."""
        reasons = dict(_NO_EFFECT)
        if self.approach == "best_of_n":
            reasons |= dict.fromkeys(_SEARCH_ONLY, "best_of_n does not search")
        if self.approach != "beam_search":
            reasons |= dict.fromkeys(_BEAM_ONLY, f"{self.approach} does not read it")
        if (self.dataset_start is None) != (self.dataset_end is None):
            reasons |= dict.fromkeys(("dataset_start", "dataset_end"), "search-and-learn reads them only together")
        return {key: reasons[key] for key in self.given if key in reasons}

    def rows(self, count: int) -> range:
        """Which of `count` dataset rows it asks for: `dataset_start` to `dataset_end`, and of those the first `num_samples`."""
        rows = range(count)
        if self.dataset_start is not None and self.dataset_end is not None:
            rows = rows[self.dataset_start : self.dataset_end]
        return rows if self.num_samples is None else rows[: self.num_samples]


def parse(text: str) -> Recipe:
    """The recipe in a YAML text. One `ValueError` with all that is wrong with it: unknown keys, types, values."""
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"recipe: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"recipe: expected lines 'key: value', got {type(values).__name__}")
    types = {name: kind for name, kind in typing.get_type_hints(Recipe).items() if name != "given"}
    unknown = [str(key) for key in values if key not in types]
    wrong = {key: value for key, value in values.items() if _is_wrong(key, value, types)}
    errors = [f"unknown keys {', '.join(unknown)}; it takes {', '.join(types)}"] if unknown else []
    errors += [f"{key} must be {_describe(types[key])}, got {value!r}" for key, value in wrong.items()]
    if errors:
        raise ValueError("recipe: " + "; ".join(errors))
    recipe = Recipe(given=tuple(values), **values)
    errors = _value_errors(recipe)
    if errors:
        raise ValueError("recipe: " + "; ".join(errors))
    return recipe


def _is_wrong(key: Any, value: Any, types: Mapping[str, Any]) -> bool:
    if key not in types:
        return False
    allowed = typing.get_args(types[key]) or (types[key],)
    if isinstance(value, bool):
        return bool not in allowed
    return not isinstance(value, (*allowed, int) if float in allowed else allowed)


def _describe(kind: Any) -> str:
    names = [getattr(x, "__name__", str(x)) for x in typing.get_args(kind) or (kind,)]
    return " or ".join("null" if name == "NoneType" else name for name in names)


def _value_errors(recipe: Recipe) -> list[str]:
    errors = []
    if recipe.approach not in STRATEGIES:
        errors.append(f"approach must be one of {', '.join(STRATEGIES)}, got {recipe.approach!r}")
    if recipe.agg_strategy not in ("last", "min", "prod"):
        errors.append(f"agg_strategy must be one of last, min, prod, got {recipe.agg_strategy!r}")
    if recipe.approach == "beam_search" and recipe.search_batch_size != 1:
        errors.append(f"search_batch_size must be 1 for beam_search, got {recipe.search_batch_size}")
    for name in ("dataset_start", "dataset_end", "num_samples"):
        value = getattr(recipe, name)
        if value is not None and value < 0:
            errors.append(f"{name} must be >= 0, got {value}")
    return errors


KEYS = tuple(field.name for field in dataclasses.fields(Recipe) if field.name != "given")
"""Every key of a recipe."""
