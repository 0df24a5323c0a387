"""Recipes of search-and-learn: accepted as they are, refused with all that is wrong with them."""

import pytest

from tts.presets.recipe import KEYS, STRATEGIES, parse
from tts.strategies import find

PUBLISHED = {
    "beam_search": "filter_duplicates: true\napproach: beam_search\nn: 4\nsearch_batch_size: 1  # DO NOT CHANGE!\n",
    "best_of_n": "approach: best_of_n\nn: 4\nsearch_batch_size: 25\nsort_completed: true\nfilter_duplicates: true\n",
    "dvts": "approach: dvts\nn: 4\nsearch_batch_size: 25\n",
}
"""What the published recipes set, each followed by `num_samples` and `seed`; some name models and a null template too."""
ENDING = "num_samples: 10       # REMOVE THIS LINE TO RUN ON THE WHOLE DATASET\nseed: 0"
MODELS = "model_path: Qwen/Qwen2.5-1.5B-Instruct\ncustom_chat_template: null\n"


@pytest.mark.parametrize("approach", PUBLISHED)
@pytest.mark.parametrize("models", ["", MODELS, MODELS + "prm_path: Qwen/Qwen2.5-Math-PRM-7B\n"])
def test_published_recipes_are_accepted_as_they_are(approach, models):
    recipe = parse("# refer to src/sal/config.py for more options\n\n" + models + PUBLISHED[approach] + ENDING)
    assert recipe.strategy == STRATEGIES[approach]
    parameters = find(recipe.strategy).make_parameters(recipe.parameters)
    assert parameters.n == 4 and recipe.sampling == {"temperature": 0.8, "top_p": 1.0, "max_tokens": 2048, "seed": 0}
    assert recipe.template == (None if models else "search-and-learn")
    assert recipe.rows(500) == range(10) and recipe.rows(3) == range(3)
    if approach == "beam_search":
        assert parameters.filter_duplicates and not parameters.sort_completed


def test_defaults_are_those_of_search_and_learn():
    recipe = parse("{}")
    assert (recipe.approach, recipe.n, recipe.seed, recipe.beam_width, recipe.num_iterations) == ("best_of_n", 4, 42, 4, 40)
    assert recipe.model_path.endswith("Llama-3.2-1B-Instruct") and recipe.prm_path.startswith("RLHFlow/")
    assert recipe.rows(500) == range(500) and recipe.prompt.system.startswith("Solve the following math problem")


def test_every_setting_of_a_search_arrives_in_the_strategy():
    text = (
        "approach: beam_search\nsearch_batch_size: 1\nn: 8\nbeam_width: 2\nnum_iterations: 7\nagg_strategy: min\nlookahead: 1\n"
    )
    recipe = parse(text + "sort_completed: true\ntemperature: 1\ntop_p: 0.9\nmax_tokens: 100\ndataset_start: 5\ndataset_end: 9")
    made = find(recipe.strategy).make_parameters(recipe.parameters)
    assert (made.n, made.expand, made.max_steps, made.prune_agg, made.lookahead) == (8, 2, 7, "min", 1)
    assert made.sort_completed and not made.filter_duplicates
    assert recipe.sampling == {"temperature": 1, "top_p": 0.9, "max_tokens": 100, "seed": 42}
    assert recipe.scoring.agg == "min" and recipe.rows(500) == range(5, 9)


@pytest.mark.parametrize(
    ("prm", "is_empty"), [("RLHFlow/X", True), ("Qwen/Qwen2.5-Math-PRM-7B", True), ("peiyi9979/shepherd", False)]
)
def test_the_empty_step_is_scored_with_the_prms_for_which_the_reference_does(prm, is_empty):
    recipe = parse(f"approach: dvts\nprm_path: {prm}")
    assert recipe.parameters["empty_step"] is is_empty


def test_keys_without_effect_are_named_with_their_reason():
    recipe = parse("approach: best_of_n\nsort_completed: true\nbeam_width: 2\nsearch_batch_size: 25\npush_to_hub: true\nn: 4")
    assert set(recipe.without_effect) == {"sort_completed", "beam_width", "search_batch_size", "push_to_hub"}
    assert "best_of_n" in recipe.without_effect["beam_width"] and all(recipe.without_effect.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("beam_with: 4\nsteps: 2", "unknown keys beam_with, steps; it takes approach, model_path"),
        ("n: four\ntop_p: yes", "n must be int, got 'four'; top_p must be float, got True"),
        ("seed: null", "seed must be int, got None"),
        ("num_samples: 1.5", "num_samples must be int or null, got 1.5"),
        ("custom_chat_template: '{{ x }}'", "custom_chat_template must be null, got"),
        ("approach: mcts", "approach must be one of best_of_n, beam_search, dvts, got 'mcts'"),
        ("agg_strategy: mean", "agg_strategy must be one of last, min, prod"),
        ("approach: beam_search", "search_batch_size must be 1 for beam_search, got 25"),
        ("num_samples: -1", "num_samples must be >= 0, got -1"),
        ("- a\n- b", "expected lines 'key: value', got list"),
        ("", "expected lines 'key: value', got NoneType"),
        ("a: [", "not YAML"),
        ("x: !!python/object/apply:os.getcwd []", "not YAML"),
    ],
)
def test_a_bad_recipe_is_one_error_with_all_that_is_wrong(text, message):
    with pytest.raises(ValueError, match="recipe: ") as raised:
        parse(text)
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_system_prompt_of_the_recipe_is_put_to_the_model():
    assert parse("system_prompt: Be brief.").prompt.system == "Be brief."
    assert "n" in KEYS and "given" not in KEYS
