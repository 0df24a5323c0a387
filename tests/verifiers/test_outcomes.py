"""What a verifier does when it cannot give a score: one clear error, or a recorded outcome; never a silent 0."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_folder, make_reward_folder, make_tokenizer
from verifiers.scored_trees import drain, make_child, make_root
from verifiers.test_families import make_family_folder, open_verifier

from tts.meter import Meter
from tts.solver import Solver
from tts.tasks.chain import EXAMPLE
from tts.verifiers import Checkpoint
from tts.verifiers.base import Function, Invalid
from tts.verifiers.load import Opened, family_of
from tts.verifiers.statistics import Statistic


def scored(verifier, *texts):
    """The nodes of a chain of steps, scored."""
    root = make_root()
    nodes = [root]
    for text in texts:
        nodes.append(make_child(nodes[-1], text))
    verifier.submit("why?", nodes[1:], Meter())
    drain(verifier)
    return nodes[1:]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([0.5], "gave 1 scores for 2 steps"),
        ([0.5, 0.5, 0.5], "gave 3 scores for 2 steps"),
        ([0.5, math.nan], "gave nan"),
        ([0.5, math.inf], "gave inf"),
        ([0.5, "good"], "gave 'good', which is not a number"),
        ([0.5, None], "gave None, which is not a number"),
    ],
)
def test_a_functions_wrong_answer_is_an_invalid_score_that_says_why(given, reason):
    nodes = scored(Function(lambda question, steps: given if len(steps) == 2 else [0.5]), "a", "b")
    assert nodes[0].scores["prm"] == 0.5
    assert isinstance(nodes[1].scores["prm"], Invalid) and reason in nodes[1].scores["prm"].reason


def test_any_number_of_a_function_is_a_score():
    nodes = scored(Function(lambda question, steps: torch.full((len(steps),), 0.25)), "a", "b")
    assert [node.scores["prm"] for node in nodes] == [0.25, 0.25]


def test_an_invalid_score_is_in_the_result_with_its_reason():
    solver = Solver(verifier=lambda question, steps: [0.5] * len(steps) if len(steps) < 3 else [0.5])
    result = solver.solve(EXAMPLE, "best_of_n", n=2)
    step = result.candidates[0].steps[2]
    assert math.isnan(step.score) and "gave 1 scores for 3 steps" in step.invalid
    assert result.as_dict()["candidates"][0]["steps"][2]["score"] is None
    json.dumps(result.as_dict(), allow_nan=False)


def test_a_head_that_gives_nan_makes_invalid_scores(tmp_path):
    folder = Path(make_reward_folder(tmp_path, "qwen2", "ForTokenClassification"))
    tensors = load_file(folder / "model.safetensors")
    tensors["score.bias"][0] = math.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (node,) = scored(open_verifier(str(folder)), "step")
    assert math.isnan(node.scores["prm"]) and "the head gave nan" in node.scores["prm"].reason


@pytest.mark.parametrize(
    ("head", "family", "tensor"),
    [
        ("ForTokenClassification", "trl", "score.weight"),
        ("ForProcessRewardModel", "qwen-math-prm", "score.2.weight"),
        ("ForPrmModel", "skywork", "v_head.summary.weight"),
    ],
)
def test_a_missing_head_is_one_error_that_names_its_tensor(tmp_path, head, family, tensor):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<|bos|>", "extra_special_tokens": ["<extra_0>"]})
    folder = Path(make_reward_folder(tmp_path, "qwen2", head, tokenizer=tokenizer))
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n != tensor}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"family {family} reads its head from the tensor '{tensor}'"):
        open_verifier(str(folder))


def test_a_head_with_too_few_labels_is_one_error(tmp_path):
    folder = make_reward_folder(tmp_path, "qwen2", "ForSequenceClassification")
    with pytest.raises(ValueError, match="family trl reads label 1, and the head has 1"):
        open_verifier(folder, "trl")


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("qwen-math-prm", "needs the token '<extra_0>', which its tokenizer does not have"),
        ("skywork", "begins with the tokenizer's bos token, and there is none"),
        ("math-shepherd", "needs a token for 'ки'"),
    ],
)
def test_a_missing_special_token_is_one_error(tmp_path, family, message):
    with pytest.raises(ValueError, match=message):
        open_verifier(make_folder(tmp_path, "llama"), family)


@pytest.mark.parametrize("family", ["rlhflow", "reward-model"])
def test_a_missing_chat_template_is_one_error(tmp_path, family):
    verifier = open_verifier(make_reward_folder(tmp_path / "a", "llama", "ForSequenceClassification"), "reward-model")
    if family == "rlhflow":
        verifier = open_verifier(make_folder(tmp_path / "b", "llama"), family)
    verifier.model.tokenizer.chat_template = None
    with pytest.raises(ValueError, match=f"family {family} needs a chat template"):
        verifier.check("why?", 3, 10)


def test_an_input_beyond_the_window_is_an_invalid_score_and_the_steps_before_keep_theirs(tmp_path):
    folder = make_reward_folder(tmp_path, "qwen2", "ForTokenClassification", max_position_embeddings=36)
    verifier = open_verifier(folder)
    nodes = scored(verifier, "0123456789", "0123456789", "0123456789", "0")
    assert [math.isfinite(node.scores["prm"]) for node in nodes] == [True, True, False, False]
    assert "the input of step 3 has 37 tokens" in nodes[2].scores["prm"].reason
    assert "reads 36 at most" in nodes[2].scores["prm"].reason


def test_a_run_that_cannot_fit_the_window_is_refused_before_it_starts(tmp_path):
    folder = make_reward_folder(tmp_path, "qwen2", "ForTokenClassification", max_position_embeddings=40)
    with pytest.raises(ValueError, match="window of .*, 40: lower max_tokens to"):
        open_verifier(folder).check("why?", 3, 100)


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("qwen", {}, "unknown verifier family 'qwen'; there are genrm, math-shepherd, qwen-math-prm"),
        ("trl", {"seperator": ";"}, "family trl has no option seperator; it has separator"),
    ],
)
def test_an_unknown_family_or_option_is_one_error(family, options, message):
    with pytest.raises(ValueError, match=message):
        family_of(Checkpoint("zoo:M", family, options))


def test_a_checkpoint_of_no_known_family_lists_the_names(tmp_path):
    folder = make_reward_folder(tmp_path, "llama", "ForSequenceClassification")
    config = Path(folder) / "config.json"
    config.write_text(config.read_text().replace("LlamaForSequenceClassification", "LlamaForRegret"))
    with pytest.raises(ValueError, match=r"\['LlamaForRegret'\] belong to no known family; name one: genrm, math-shepherd"):
        family_of(Checkpoint(folder))
    assert family_of(Checkpoint.of(f"reward-model:{folder}")) == "reward-model"


def test_remote_code_is_an_error_that_names_the_opt_in_and_nothing_is_run(tmp_path):
    folder = Path(make_reward_folder(tmp_path, "llama", "ForPrmModel"))
    facts = json.loads((folder / "config.json").read_text())
    facts |= {"model_type": "new", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "mine.py").write_text("raise SystemExit('this code was run')")
    with pytest.raises(ValueError, match="give trust_remote_code=True for this model"):
        Opened.load(Checkpoint(str(folder), "skywork"))


def test_code_beside_a_checkpoint_that_transformers_knows_is_not_run(tmp_path):
    folder = Path(make_family_folder(tmp_path, "qwen-math-prm"))
    facts = json.loads((folder / "config.json").read_text())
    facts["auto_map"] = {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}
    (folder / "config.json").write_text(json.dumps(facts))
    (folder / "mine.py").write_text("raise SystemExit('this code was run')")
    (node,) = scored(open_verifier(str(folder)), "step")
    assert 0 < node.scores["prm"] < 1


def test_raw_rewards_are_the_logits_of_the_sigmoid_ones(tmp_path):
    folder = make_reward_folder(tmp_path, "llama", "ForSequenceClassification")
    (raw,), (squashed,) = (scored(open_verifier(folder, name), "it is 4") for name in ("reward-model-raw", "reward-model"))
    assert torch.sigmoid(torch.tensor(raw.scores["prm"])).item() == pytest.approx(squashed.scores["prm"], abs=1e-6)


@pytest.mark.parametrize("num_passes", [0, 1, 2, 100])
def test_branches_that_are_cancelled_leave_the_others_scores_as_they_are(tmp_path, num_passes):
    folder = make_reward_folder(tmp_path, "llama", "ForSequenceClassification")
    alone = scored(open_verifier(folder), "the same", "kept")[-1].scores["prm"]
    verifier, root = open_verifier(folder, max_batch_tokens=8), make_root()
    first = make_child(root, "the same")
    gone, kept = make_child(first, "gone"), make_child(first, "kept")
    verifier.submit("why?", [first, gone, kept], Meter())
    ready = [pair for _ in range(num_passes) if verifier.has_work for pair in verifier.step()]
    verifier.close([gone])
    while verifier.has_work:
        ready += verifier.step()
    assert dict(ready)[kept] == alone
    later = make_child(first, "gone")
    verifier.submit("why?", [later], Meter())
    drain(verifier)
    assert math.isfinite(later.scores["prm"])
    verifier.close([root, first, kept, later])
    verifier.kv.check()
    assert verifier.kv.num_used_pages == 0


# ---- the sampler's statistics


def node_with(name, *values):
    nodes = [make_root()]
    for part in values:
        nodes.append(make_child(nodes[-1], "x"))
        nodes[-1].stats[name] = part
    return nodes[1:]


def test_self_certainty_is_the_mean_over_the_branchs_drawn_tokens():
    nodes = node_with("certainty", (1.0, math.nan, 2.0), (6.0,))
    verifier = Statistic("self-certainty")
    verifier.submit("", nodes, Meter())
    assert [score for _, score in verifier.step()] == [1.5, 3.0]


def test_confidence_is_the_lowest_sliding_window():
    nodes = node_with("confidence", (4.0, 2.0), (0.0, 6.0, 6.0))
    verifier = Statistic("confidence", window=2)
    verifier.submit("", nodes, Meter())
    assert [score for _, score in verifier.step()] == [3.0, 1.0]


def test_a_branch_without_statistics_or_drawn_tokens_is_invalid():
    verifier = Statistic("confidence")
    verifier.submit("", [*node_with("certainty", (1.0,)), *node_with("confidence", (math.nan,))], Meter())
    reasons = [score.reason for _, score in verifier.step()]
    assert "kept no confidence" in reasons[0] and "no token of this branch was drawn" in reasons[1]


@pytest.mark.parametrize("name", ["self-certainty", "confidence"])
def test_the_search_asks_the_sampler_for_what_a_verifier_reads(name):
    result = Solver(verifier=name).solve(EXAMPLE, "beam", n=4)
    scores = [score for candidate in result.candidates for score in candidate.scores]
    assert scores and all(math.isfinite(score) and score >= 0 for score in scores)
