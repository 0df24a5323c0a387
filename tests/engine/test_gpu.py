"""The engine on the GPU's kernels: on a GPU where there is one, else interpreted."""

import pytest
import torch
from runs import answers, is_empty, outcomes

import tts_kernels
from tts.engine.graphs import capture_on
from tts.engine.model import Model
from tts.engine.policy import Policy
from tts.engine.sampling import Sampling
from tts.request import Request
from tts.search import Search
from tts.strategies import find
from tts.tasks.chain import Chain, natural
from tts.verifiers.base import Function

pytestmark = pytest.mark.skipif(
    "triton" not in tts_kernels.attend.backends,
    reason=f"no Triton backend: {tts_kernels.attend.missing.get('triton')}",
)
HAS_GPU = torch.cuda.is_available()


def search(device, is_triton, capture=None):
    model = Model.load("zoo:S", device=device, dtype="float32")
    model.backend = "triton" if is_triton else None  # of append, attend and sample; linear layers are the device's
    return Search(Policy(model, 100, 8, 4, 64, capture), {"prm": Function(lambda question, steps: [1.0] * len(steps))}, Chain())


def test_a_search_on_the_triton_kernels_draws_the_tokens_of_the_cpu_s():
    strategy = find("best_of_n")
    made = [Request(natural(1, 3)[0], strategy, strategy.make_parameters({"n": 2}), Sampling(max_tokens=5), 3)]
    expected = outcomes(search("cpu", is_triton=False), made)
    device = torch.device("cuda" if HAS_GPU else "cpu")
    on_kernels = search(device.type, True, capture_on(device) or (lambda run: run))
    assert [answers(o) for o in outcomes(on_kernels, made)] == [answers(o) for o in expected]
    assert is_empty(on_kernels) and on_kernels.policies["policy"].graphs.buckets
