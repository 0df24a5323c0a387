"""The meter's FLOPs against torch's counter, against a transcript, and what must be charged although nothing came of it."""

import math

import pytest
from runs import answers, outcomes, requests
from transformers import AutoModelForCausalLM
from transformers.models.mixtral import MixtralConfig

from tts.engine.flops import counted
from tts.engine.model import Model, active_parameters
from tts.engine.policy import Policy
from tts.engine.sampling import Sampling
from tts.meter import context
from tts.moves import Answer, Expand
from tts.request import Request
from tts.search import Search
from tts.strategies import Strategy, find
from tts.tasks.base import Problem
from tts.tasks.chain import Chain
from tts.verifiers.base import Function
from tts.verifiers.likelihood import Likelihood


@pytest.fixture(scope="module")
def reference_models():
    return tuple(Model.load(name, backend="reference") for name in ("zoo:S", "zoo:M"))


def multiplied_parameters(model):
    """Those that are weights of matrix products in every token's forward pass: all matrices but the embeddings and the head."""
    config, head_dim = model.config, model.head_dim
    heads = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * head_dim * config.hidden_size
    return config.num_hidden_layers * (heads + 3 * config.hidden_size * config.intermediate_size)


def test_counted_flops_are_the_nominal_ones_but_for_embeddings_logits_and_attention(reference_models):
    policy_model, verifier_model = reference_models
    policy = Policy(policy_model, 400, 8, 64, 512)
    search = Search(policy, {"prm": Likelihood(verifier_model, 400, 8, 512)}, Chain())
    with counted(*reference_models) as counter:
        found = outcomes(search, requests("beam", n=4, count=1))
    meter = sum((o.session.meter for o in found), start=type(found[0].session.meter)())
    # A token that ends its branch is drawn and never forwarded; one whose logits are needed again is forwarded twice.
    forwarded = meter.prompt_tokens + meter.policy_tokens
    products = 2 * (
        multiplied_parameters(policy_model) * forwarded + multiplied_parameters(verifier_model) * meter.verifier_tokens
    )
    vocabulary = 2 * policy_model.config.vocab_size * policy_model.config.hidden_size
    vocabulary_read = 2 * verifier_model.config.vocab_size * verifier_model.config.hidden_size
    logits = vocabulary * meter.policy_tokens + vocabulary_read * meter.verifier_tokens
    assert products * 0.9 < counter.flops_counted < products + logits + 1.1 * meter.attention_flops
    assert counter.flops_counted == pytest.approx(meter.flops_nominal + meter.attention_flops, rel=0.2)
    assert meter.flops == meter.flops_nominal == meter.policy_flops + meter.verifier_flops


def test_a_prefill_alone_is_counted_to_the_operation(reference_models):
    model = reference_models[0]
    num_tokens = len(model.encode("Q94a-3b+2;"))
    with counted(model) as counter:
        outcomes(Search(Policy(model, 400, 8, 64, 512), {}, Chain()), [short_request()])
    # The prompt is forwarded, one token is drawn from its last row.
    attention = 4 * model.config.num_hidden_layers * model.config.num_attention_heads * model.head_dim * num_tokens**2
    masked = 4 * model.config.num_hidden_layers * model.config.num_attention_heads * model.head_dim * context(0, num_tokens)
    fixed = 2 * multiplied_parameters(model) * num_tokens + 2 * model.config.vocab_size * model.config.hidden_size
    angles = model.head_dim * num_tokens  # of the rotary embedding: a matrix product in some versions of transformers
    assert fixed + masked <= counter.flops_counted <= fixed + attention + angles


def short_request():
    """One token of one answer."""

    def one(problem, p):
        return (yield Expand([problem.root], 1, Answer()))

    parameters = find("best_of_n").make_parameters({"n": 1})
    return Request(
        Problem("Q94a-3b+2;"), Strategy("one", "", type(parameters), one, False), parameters, Sampling(max_tokens=1), 0
    )


def test_counting_with_kernels_that_torch_cannot_see_into_is_refused(zoo_models):
    with pytest.raises(ValueError, match="load .* with backend='reference', it has None"), counted(zoo_models[0]):
        pass


def test_attention_is_stated_apart_and_follows_from_the_transcript(make_search, zoo_models):
    small, large = zoo_models
    for outcome in outcomes(make_search(), requests("beam", n=8)):
        session, meter = outcome.session, outcome.session.meter
        nodes = [*session.roots.values(), *session.nodes]
        spans = {x: context(x.num_path_tokens - len(x.tokens), x.num_path_tokens) for x in nodes}
        assert meter.policy_attention_flops == small.attention_flops_per_context * sum(spans.values())
        # Steps that were scored and the prompt, equal paths once.
        read = {tuple(tuple(s.tokens) for s in x.path): x for x in nodes if x.parent is None or x.scores}.values()
        assert meter.verifier_attention_flops == large.attention_flops_per_context * sum(spans[x] for x in read)
        assert meter.attention_flops == meter.search_cost()["attention_flops"] > 0


@pytest.mark.parametrize(("begin", "end"), [(0, 0), (0, 1), (3, 3), (2, 7)])
def test_the_context_of_a_run_of_tokens_is_the_sum_of_their_positions(begin, end):
    assert context(begin, end) == sum(range(begin + 1, end + 1))


# ---- charged although nothing came of it


def test_discarded_rollouts_are_charged_to_policy_and_verifier(make_search):
    plain = outcomes(make_search(), requests("search_and_learn_beam", n=4, expand=2))
    rolled = outcomes(make_search(), requests("search_and_learn_beam", n=4, expand=2, lookahead=2, score_lookahead=False))
    scored = outcomes(make_search(), requests("lookahead", n=4, expand=2, k=2))
    assert [answers(o) for o in plain] == [answers(o) for o in rolled]
    for one, other in zip(plain, rolled):
        assert other.session.meter.policy_tokens > one.session.meter.policy_tokens
        assert other.session.meter.verifier_tokens == one.session.meter.verifier_tokens
    for outcome in scored:
        kept = {id(x) for leaf in outcome.leaves for x in leaf.path}
        discarded = sum(x.cost for x in outcome.session.nodes if id(x) not in kept)
        assert outcome.session.meter.policy_tokens >= discarded > 0
        assert outcome.session.meter.policy_tokens == sum(x.cost for x in outcome.session.nodes)


def test_an_answer_that_cannot_be_read_costs_what_was_drawn(make_search):
    made = [Request(r.problem, r.strategy, r.parameters, Sampling(max_tokens=5), 0) for r in requests("best_of_n", n=4)]
    for outcome in outcomes(make_search(), made):
        texts = [leaf.solution for leaf in outcome.leaves]
        assert all(Chain().extract(text) is None for text in texts)
        assert outcome.session.meter.policy_tokens == 20 and outcome.session.meter.flops > 0


def test_scores_that_are_no_numbers_cost_the_policy_its_tokens(make_search):
    search = make_search(verifier=Function(lambda question, steps: [math.nan] * len(steps)))
    for outcome in outcomes(search, requests("beam", n=4)):
        assert outcome.session.meter.policy_tokens == sum(x.cost for x in outcome.session.nodes) > 0


def test_what_is_read_again_is_charged_apart_from_the_search(make_search, zoo_models):
    large, small = make_search(), make_search(num_pages=24, verifier_pages=24)
    made = requests("beam", n=8)
    for one, other in zip(outcomes(large, made), outcomes(small, made)):
        assert one.session.meter.search_cost() == other.session.meter.search_cost()
        assert one.session.meter.reprefilled_flops == 0
    again = [o.session.meter for o in outcomes(make_search(num_pages=24, verifier_pages=24), made)]
    rates = sorted(model.flops_per_token for model in zoo_models)
    for meter in again:
        assert rates[0] * meter.reprefilled_tokens <= meter.reprefilled_flops <= rates[1] * meter.reprefilled_tokens
    assert sum(meter.reprefilled_flops for meter in again) > 0


def test_a_mixture_of_experts_is_charged_for_the_experts_that_a_token_is_sent_to():
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "num_experts_per_tok": 2}
    dense, mixture = (AutoModelForCausalLM.from_config(MixtralConfig(**sizes, num_local_experts=n)) for n in (2, 6))
    router = 2 * 32 * (6 - 2)  # it looks at every expert
    assert active_parameters(dense) == sum(p.numel() for p in dense.parameters())
    assert active_parameters(mixture) == active_parameters(dense) + router
