"""The engine against transformers' own `generate`: the same greedy tokens, however branches are batched and forked."""

import pytest
import torch
from tiny_models import make_folder
from transformers import AutoModelForCausalLM

from tts.engine.model import Model
from tts.engine.policy import Policy
from tts.engine.sampling import Sampling
from tts.engine.session import Session
from tts.moves import Answer, Expand, Steps, Tokens
from tts.tree import Prompt

MAX_TOKENS = 24
CASES = [("llama", 1), ("llama", 2), ("qwen2", 7), ("qwen3", 2), ("mistral", 2), ("mistral", 7), ("qwen2", 1)]
PROMPTS = ["the", "a quick brown fox", "x", "12 + 34 = ", "the thing\n\nthat", "zebra " * 9, "??", "one two three four"]


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c[0]}-gqa{c[1]}")
def folder(request, tmp_path_factory):
    architecture, group = request.param
    return make_folder(tmp_path_factory.mktemp("model"), architecture, group)


@pytest.fixture(scope="module")
def expected(folder):
    """Greedy continuations of the prompts by transformers alone, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = Model.load(folder).tokenizer
    outputs = []
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        out = model.generate(ids, max_new_tokens=MAX_TOKENS, do_sample=False)
        outputs.append(out[0, ids.shape[1] :].tolist())
    return outputs


def session(prompt, index=0, step_stop=("\n\n",), max_tokens=MAX_TOKENS):
    return Session(str(index), 0, Sampling(temperature=0.0), max_tokens, step_stop, lambda _: prompt, index)


def run(policy, tickets):
    """Step until all tickets are complete; their results in order."""
    left = set(tickets)
    while left:
        left -= set(policy.step())
    return [t.results for t in tickets]


def tokens(leaf):
    return [t for node in leaf.path for t in node.tokens]


def test_whole_answers_of_ragged_prompts_equal_generate(folder, expected):
    policy = Policy(Model.load(folder), num_pages=400, page_size=4, max_batch_tokens=1024)
    tickets = [policy.expand(session(p, i), Expand([Prompt()], 1, Answer())) for i, p in enumerate(PROMPTS)]
    assert [tokens(leaf) for (leaf,) in run(policy, tickets)] == expected


def test_forking_at_every_step_equals_generate(folder, expected):
    """Four children of every node, one of them goes on: the branch must not notice its siblings."""
    policy = Policy(Model.load(folder), num_pages=400, page_size=4, max_batch_tokens=1024)
    sessions = [session(p, i) for i, p in enumerate(PROMPTS)]
    live = [(i, Prompt()) for i in range(len(PROMPTS))]
    ended = {}
    while live:
        tickets = [policy.expand(sessions[i], Expand([source], 4, Tokens(3))) for i, source in live]
        leaves = [(i, results[(i + 1) % 4]) for (i, _), results in zip(live, run(policy, tickets))]
        ended |= {i: leaf for i, leaf in leaves if leaf.is_done}
        live = [(i, leaf) for i, leaf in leaves if not leaf.is_done]
    assert [tokens(ended[i]) for i in range(len(PROMPTS))] == expected
    for s in sessions:
        policy.close(s)
    policy.kv.check()
    assert policy.kv.num_used_pages == 0


def test_a_fork_inside_a_node_equals_generate(folder, expected):
    """A whole answer is decoded into one KV node and split at its steps; going on from an inner step repeats the rest."""
    policy = Policy(Model.load(folder), num_pages=400, page_size=4, max_batch_tokens=1024)
    # Single letters end steps here, so that random text has some.
    stops = tuple("aeiou0123456789 ")
    for i, prompt in enumerate(PROMPTS):
        s = session(prompt, i, stops)
        ((leaf,),) = run(policy, [policy.expand(s, Expand([Prompt()], 1, Answer()))])
        assert tokens(leaf) == expected[i]
        for node in leaf.path[:-1]:
            before = sum(len(n.tokens) for n in node.path)
            ((again,),) = run(policy, [policy.expand(s, Expand([node], 1, Answer()))])
            assert tokens(again)[before:] == expected[i][before:]
        policy.close(s)
    assert policy.kv.num_used_pages == 0


@pytest.mark.parametrize("num_pages", [24, 40])
def test_a_small_pool_preempts_and_still_equals_generate(folder, expected, num_pages):
    """The longest branch alone needs 21 pages."""
    policy = Policy(Model.load(folder), num_pages=num_pages, page_size=4, max_rows=8, max_batch_tokens=16)
    sessions = [session(p, i) for i, p in enumerate(PROMPTS)]
    tickets = [policy.expand(s, Expand([Prompt()], 2, Answer())) for s in sessions]
    for (one, two), tokens_expected in zip(run(policy, tickets), expected):
        assert tokens(one) == tokens(two) == tokens_expected
    policy.kv.check()
    for s in sessions:
        policy.close(s)
    assert policy.kv.num_used_pages == 0


def test_steps_of_two_make_chains_with_the_same_tokens(folder, expected):
    policy = Policy(Model.load(folder), num_pages=400, page_size=4, max_batch_tokens=1024)
    stops = tuple("aeiou0123456789 ")
    s = session(PROMPTS[1], 1, stops)
    node = Prompt()
    while isinstance(node, Prompt) or not node.is_done:
        ((node,),) = run(policy, [policy.expand(s, Expand([node], 1, Steps(2)))])
    assert tokens(node) == expected[1]
