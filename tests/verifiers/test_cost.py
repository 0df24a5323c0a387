"""What verifying costs: the new tokens of the rendered input, whatever the width and the number of steps; never logits of all."""

import pytest
import torch
from tiny_models import make_folder
from verifiers.scored_trees import drain, make_child, make_root
from verifiers.test_families import CASES, make_family_folder, open_verifier

from tts.engine.weights import Weights
from tts.meter import Meter

WIDTH, STEPS, EXPAND = 64, 12, 4


def beam_search(verifier, question):
    """64 beams of 12 steps, the best 16 kept and expanded fourfold at each; gives all nodes by step and the meter."""
    root, meter = make_root(), Meter()
    parents, rounds = [root] * WIDTH, []
    for depth in range(STEPS):
        nodes = [make_child(parent, f"step {depth} of {i} {'so' * (i % 3)}\n\n") for i, parent in enumerate(parents)]
        verifier.submit(question, nodes, meter)
        drain(verifier)
        rounds.append(nodes)
        best = sorted(nodes, key=lambda n: -n.scores["prm"])[: WIDTH // EXPAND]
        parents = [parent for parent in best for _ in range(EXPAND)]
    verifier.close([root, *(node for nodes in rounds for node in nodes)])
    return rounds, meter


def texts(node):
    return [n.text for n in node.path]


def shared(a, b):
    """Length of the longest common prefix."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


@pytest.mark.parametrize("name", [name for name, options, _ in CASES if not options])
def test_64_beams_of_12_steps_cost_the_new_tokens_only(tmp_path, name):
    verifier = open_verifier(make_family_folder(tmp_path, name), "genrm" if name == "genrm" else "auto", num_pages=20_000)
    family, question = verifier.family, "What is 1 + 2?"
    rounds, meter = beam_search(verifier, question)
    prompt = shared(family.tokens(question, ["0"]), family.tokens(question, ["x"]))
    expected = prompt
    for nodes in rounds:
        for node in nodes:
            ids = family.tokens(question, texts(node))
            above = family.tokens(question, texts(node.parent)) if node.parent.parent else ids[:prompt]
            suffix = family.readout(question, texts(node))
            expected += len(ids) - shared(ids, above) + (len(suffix) - shared(suffix, ids) if suffix else 0)
    assert meter.verifier_tokens == expected
    assert meter.reprefilled_tokens == 0
    whole = sum(len(family.readout(question, texts(n)) or family.tokens(question, texts(n))) for nodes in rounds for n in nodes)
    assert whole > 2.5 * expected


def test_what_is_queued_goes_in_passes_of_about_one_size(tmp_path, monkeypatch):
    verifier = open_verifier(make_family_folder(tmp_path, "trl"), max_batch_tokens=64)
    sizes, forward = [], verifier.model.forward
    monkeypatch.setattr(verifier.model, "forward", lambda ragged: sizes.append(len(ragged.tokens)) or forward(ragged))
    root = make_root()
    verifier.submit("What is 1 + 2?", [root], Meter())
    drain(verifier)
    sizes.clear()
    verifier.submit("What is 1 + 2?", [make_child(root, f"step {i}\n\n") for i in range(10)], Meter())
    drain(verifier)
    assert len(sizes) == -(-sum(sizes) // 64) > 1
    assert max(sizes) - min(sizes) <= len(sizes)


def test_logits_of_all_tokens_never_exist(tmp_path, monkeypatch):
    """A reward model's language-model head is not even loaded; a likelihood's logits are made in pieces of rows."""
    verifier = open_verifier(make_family_folder(tmp_path, "rlhflow"))
    assert verifier.model.inner.get_output_embeddings() is None
    assert verifier._head.weight.shape[0] == 2
    judge = open_verifier(make_folder(tmp_path / "other", "llama"), max_batch_tokens=512)
    monkeypatch.setattr("tts.verifiers.likelihood.LOGIT_BYTES", 8 * 4 * judge.model.config.vocab_size)
    rows = []
    logits = judge.model.logits
    monkeypatch.setattr(judge.model, "logits", lambda states: rows.append(len(states)) or logits(states))
    root = make_root()
    root.tokens = torch.arange(5).tolist()
    node = make_child(root, "a long step")
    node.tokens = list(range(50, 150))
    judge.submit("", [node], Meter())
    drain(judge)
    assert sum(rows) == 100 and max(rows) == 8


def test_a_reward_model_s_head_is_charged_like_its_trunk(tmp_path):
    folder = make_family_folder(tmp_path, "trl")
    weights = Weights(str(folder))
    num_parameters = sum(weights.tensor(name).numel() for name in weights.files)  # all of the checkpoint: trunk and head
    meter, root = Meter(), make_root()
    verifier = open_verifier(folder)
    verifier.submit("What is 1 + 2?", [make_child(root, "a step\n\n")], meter)
    drain(verifier)
    assert meter.verifier_tokens > 0
    assert meter.verifier_flops == 2 * num_parameters * meter.verifier_tokens
