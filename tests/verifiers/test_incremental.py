"""Verifiers that read each step once, against a straightforward re-encoding of every whole text."""

import math

import pytest
import torch
from runs import is_empty, outcomes, requests
from tiny_models import make_folder, make_reward_folder
from transformers import AutoModelForCausalLM
from verifiers import published

from tts import zoo
from tts.engine.model import Model
from tts.engine.policy import Policy
from tts.engine.sampling import Sampling
from tts.request import Request
from tts.search import Search
from tts.strategies import find
from tts.tasks.base import Problem
from tts.verifiers import Checkpoint
from tts.verifiers.likelihood import Likelihood
from tts.verifiers.load import Opened

STRATEGIES = [("best_of_n", {}), ("beam", {}), ("lookahead", {"k": 1})]


class PlainText:
    """A task whose steps end at blanks, so that random text has some; prompts go through the chat template."""

    name, step_stop, max_tokens = "plain", (" ", "e", "\n\n"), 30

    def check(self, question):
        pass

    def render(self, template, question, previous, fields):
        return [{"role": "user", "content": question}]


HEADS = {"trl": "ForTokenClassification", "reward-model": "ForSequenceClassification"}


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def folders(request, tmp_path_factory):
    make = tmp_path_factory.mktemp
    rewards = {name: make_reward_folder(make(name), request.param, head, seed=1) for name, head in HEADS.items()}
    return make_folder(make("policy"), request.param), rewards


def open_verifier(folder, num_pages, max_batch_tokens=32):
    opened = Opened.load(Checkpoint(folder))
    return opened.make(opened.model, None, num_pages, 4, max_batch_tokens)


@pytest.mark.parametrize(("name", "changes"), STRATEGIES)
@pytest.mark.parametrize("num_pages", [2000, 40])
@pytest.mark.parametrize(("family", "reference"), [("trl", published.trl), ("reward-model", published.reward_model)])
def test_scores_in_a_search_equal_a_full_reencoding(folders, name, changes, num_pages, family, reference):
    policy, rewards = folders
    search = Search(Policy(Model.load(policy), 2000, 4, 16, 32), {"prm": open_verifier(rewards[family], num_pages)}, PlainText())
    strategy = find(name)
    made = [
        Request(Problem(q, str(i)), strategy, strategy.make_parameters({"n": 5, **changes}), Sampling(), 0)
        for i, q in enumerate(["the first", "another question", "3"])
    ]
    for outcome in outcomes(search, made):
        for leaf in outcome.leaves:
            for i, node in enumerate(leaf.path):
                expected = reference(rewards[family], outcome.request.problem.question, [n.text for n in leaf.path[: i + 1]])
                assert node.scores["prm"] == pytest.approx(expected, abs=1e-5)
    assert is_empty(search)


def test_verifier_tokens_are_the_new_tokens_of_the_rendered_steps(folders):
    policy, rewards = folders
    judge = open_verifier(rewards["trl"], 2000)
    search = Search(Policy(Model.load(policy), 2000, 4, 16, 32), {"prm": judge}, PlainText())
    strategy = find("beam")
    (outcome,) = outcomes(search, [Request(Problem("the question"), strategy, strategy.make_parameters({"n": 8}), Sampling(), 0)])
    encode = lambda text: judge.model.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    paths = {tuple(step.text for step in node.path) for node in outcome.session.nodes}  # equal ones are read once
    rendered = [encode(path[-1].rstrip("\n")) + encode("\n") for path in paths]
    assert outcome.session.meter.verifier_tokens == len(encode("the question")) + sum(map(len, rendered))


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("max_batch_tokens", [5, 512])
def test_incremental_likelihood_equals_a_full_reencoding(zoo_models, make_search, per_token, max_batch_tokens):
    _, large = zoo_models
    judge = Likelihood(large, 400, 4, max_batch_tokens, per_token=per_token)
    reference = AutoModelForCausalLM.from_pretrained(zoo.path("M"), dtype=torch.float32)
    for name, changes in STRATEGIES:
        for outcome in outcomes(make_search(verifier=judge), requests(name, n=4, count=3, **changes)):
            for leaf in outcome.leaves:
                prompt = list(leaf.root.tokens)
                ids = prompt + [t for node in leaf.path for t in node.tokens]
                logp = torch.log_softmax(reference(torch.tensor([ids])).logits[0].double(), -1)
                each = logp[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
                for node in leaf.path:
                    count = node.num_path_tokens - len(prompt)
                    total = float(each.detach()[len(prompt) - 1 : len(prompt) - 1 + count].sum())
                    expected = math.exp(total / count if per_token else total)
                    assert node.scores["prm"] == pytest.approx(expected, abs=1e-5)
