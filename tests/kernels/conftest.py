"""One thread unless a test asks for more: shapes are tiny, and results do not depend on it (test_invariance)."""

import decoder_cases  # noqa: F401 (declares a family)
import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
