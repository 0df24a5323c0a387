"""Settings for every test: quick, deterministic, offline."""

import importlib.util
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # without a GPU the Triton kernels run interpreted, on CPU tensors
    if importlib.util.find_spec("triton"):
        import interpreted

        interpreted.prepare()

hypothesis.settings.register_profile("quick", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("quick")
torch.set_num_threads(1)  # tiny work: a second thread only adds waiting, above all on a busy machine


def pytest_addoption(parser):
    parser.addoption(
        "--kernel-cases",
        type=int,
        default=25,
        metavar="N",
        help="random calls of each op in tests/kernels/test_random.py (default 25; a full run takes 20000)",
    )
    parser.addoption(
        "--search-cases",
        type=int,
        default=15,
        metavar="N",
        help="random parameters of each strategy in tests/strategies/test_properties.py (default 15; a full run takes 500)",
    )


@pytest.fixture(scope="session")
def zoo_models():
    """The shipped policy S and model M, loaded once."""
    from tts.engine.model import Model

    return Model.load("zoo:S"), Model.load("zoo:M")


@pytest.fixture(scope="session")
def make_search(zoo_models):
    """A search on the zoo with pools and batches of any size: `make_search(num_pages=..., max_rows=...)`."""
    from tts.engine.policy import Policy
    from tts.search import Search
    from tts.tasks.chain import Chain
    from tts.verifiers.likelihood import Likelihood

    def make(num_pages=4000, page_size=8, max_rows=256, max_batch_tokens=512, verifier=None, verifier_pages=None, models=None):
        small, large = zoo_models
        policy = Policy(small, num_pages, page_size, max_rows, max_batch_tokens)
        judge = verifier or Likelihood(large, verifier_pages or num_pages, page_size, max_batch_tokens)
        others = {name: Policy(model, num_pages, page_size, max_rows, max_batch_tokens) for name, model in (models or {}).items()}
        return Search(policy, {"prm": judge}, Chain(), others)

    return make
