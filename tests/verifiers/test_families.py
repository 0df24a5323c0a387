"""Every family of reward models on the incremental engine against its published procedure, which encodes everything again."""

import pytest
from tiny_models import make_folder, make_reward_folder, make_sentencepiece_like_tokenizer, make_tokenizer
from verifiers import published
from verifiers.scored_trees import score_tree

from tts.engine.model import Model
from tts.verifiers import Checkpoint
from tts.verifiers.families import FAMILIES
from tts.verifiers.likelihood import Likelihood
from tts.verifiers.load import Opened

SYSTEM = "be brief"


def tokenizer_with(**special):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens(special)
    return tokenizer


def make_family_folder(path, name):
    """A checkpoint as that family's are: architecture, head, special tokens, template, and a name that tells."""
    folder = path / {"math-shepherd": "math-shepherd-tiny", "rlhflow": "tiny-PRM-Deepseek-Data"}.get(name, name)
    extra = {"extra_special_tokens": ["<|start|>", "<extra_0>"]}
    made = {
        "math-shepherd": lambda: make_folder(
            folder, "mistral", tokenizer=make_sentencepiece_like_tokenizer(), sliding_window=4096
        ),
        "rlhflow": lambda: make_folder(folder, "llama"),
        "qwen-math-prm": lambda: make_reward_folder(folder, "qwen2", "ForProcessRewardModel", tokenizer=tokenizer_with(**extra)),
        "skywork": lambda: make_reward_folder(folder, "qwen2", "ForPrmModel", tokenizer=tokenizer_with(bos_token="<|bos|>")),
        "trl": lambda: make_reward_folder(folder, "qwen2", "ForTokenClassification"),
        "genrm": lambda: make_folder(folder, "qwen3"),
        "reward-model": lambda: make_reward_folder(folder, "llama", "ForSequenceClassification"),
    }
    return made[name]()


@pytest.fixture(scope="module")
def family_folder(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            made[name] = make_family_folder(tmp_path_factory.mktemp("family"), name)
        return made[name]

    return get


CASES = [
    ("math-shepherd", {}, published.math_shepherd),
    ("rlhflow", {}, published.rlhflow),
    ("qwen-math-prm", {}, published.qwen_math),
    ("skywork", {}, published.skywork),
    ("trl", {}, published.trl),
    ("reward-model", {}, published.reward_model),
    ("genrm", {}, published.genrm),
    (
        "math-shepherd",
        {"as_published": True, "system": SYSTEM},
        lambda *x: published.math_shepherd_as_published(*x, SYSTEM),
    ),
    ("rlhflow", {"as_published": True}, published.rlhflow_as_published),
    ("qwen-math-prm", {"as_published": True}, published.qwen_math_as_published),
    ("skywork", {"as_published": True}, published.skywork_as_published),
]


def open_verifier(folder, family="auto", options=(), num_pages=3000, max_batch_tokens=64):
    opened = Opened.load(Checkpoint(folder, family, dict(options)))
    return opened.make(opened.model, None, num_pages, 4, max_batch_tokens)


@pytest.mark.parametrize("num_pages", [3000, 150])
@pytest.mark.parametrize(("name", "options", "reference"), CASES, ids=[f"{n}{'-as-published' * bool(o)}" for n, o, _ in CASES])
def test_scores_equal_the_published_procedure(family_folder, name, options, reference, num_pages):
    folder = family_folder(name)
    verifier = open_verifier(folder, "genrm" if name == "genrm" else "auto", options, num_pages)
    assert verifier.family.name == name  # by the checkpoint alone, but for the one that any chat model can be
    question = "What is 1 + 2?"
    for node in score_tree(verifier, question, seed=num_pages):
        expected = reference(folder, question, [n.text for n in node.path])
        assert node.scores["prm"] == pytest.approx(expected, abs=1e-4, nan_ok=True)


def test_every_family_is_tested():
    assert {name for name, *_ in CASES} | {"reward-model-raw"} == set(FAMILIES)


@pytest.mark.parametrize("num_pages", [3000, 150])
def test_likelihood_with_another_tokenizer_is_that_of_the_whole_text(tmp_path, num_pages):
    folder = make_folder(tmp_path, "llama")
    model = Model.load(folder)
    verifier = Likelihood(model, num_pages, 4, 64, render=lambda question: model.encode([{"role": "user", "content": question}]))
    prompt = model.encode([{"role": "user", "content": "why?"}])
    for node in score_tree(verifier, "why?", seed=1):
        assert node.scores["prm"] == pytest.approx(published.likelihood(folder, prompt, node.solution), rel=1e-3)
