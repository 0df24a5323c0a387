"""Draws: the distribution, the filters, and agreement of the backends."""

import numpy as np
import pytest
import torch
from cases import kept_distribution, normal, sample_inputs
from conformance import on_the_cpu

from tts_kernels import sample
from tts_kernels.philox import uniform

BACKENDS = on_the_cpu(sample)
FILTERS = [
    {},
    {"temperature": 0.5},
    {"top_k": 7},
    {"top_p": 0.6},
    {"min_p": 0.1},
    {"temperature": 1.7, "top_k": 20, "top_p": 0.8, "min_p": 0.02},
]


def draws(logits, count, backend, seed=0, **settings):
    keys = torch.randint(-(2**63), 2**63 - 1, (count,), generator=torch.Generator().manual_seed(seed))
    settings = {name: [value] * count for name, value in settings.items()}
    return sample(*sample_inputs(logits, [0] * count, key=keys.tolist(), **settings), backend=backend), keys


def upper_tail_of_chi_square(value: float, degrees: int) -> float:
    """Wilson and Hilferty's normal approximation."""
    z = ((value / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / (2 / (9 * degrees)) ** 0.5
    return 0.5 * float(torch.special.erfc(torch.tensor(z / 2**0.5)))


@pytest.mark.skipif("native" not in BACKENDS, reason="the C++ module is not built")
@pytest.mark.parametrize("settings", FILTERS)
def test_a_hundred_thousand_draws_have_the_filtered_distribution(settings):
    logits = normal((1, 50), torch.float32)
    expected = 1e5 * kept_distribution(logits[0].double().numpy(), **settings)
    counts = np.bincount(draws(logits, 100_000, "native", **settings)[0].token, minlength=50)
    assert (counts[expected == 0] == 0).all()
    inside = expected > 0
    chi_square = ((counts - expected)[inside] ** 2 / expected[inside]).sum()
    assert upper_tail_of_chi_square(chi_square, inside.sum() - 1) > 0.01


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("settings", FILTERS)
@pytest.mark.parametrize("vocabulary", [1, 3, 257, 1031])
def test_each_draw_inverts_the_cumulative_distribution_at_its_uniform(backend, settings, vocabulary):
    logits = 2 * normal((1, vocabulary), torch.float32, seed=vocabulary)
    got, keys = draws(logits, 200, backend, **settings)
    cumulative = np.cumsum(kept_distribution(logits[0].double().numpy(), **settings))
    for token, u in zip(got.token.tolist(), uniform(keys, torch.zeros_like(keys)).tolist()):
        low = cumulative[token - 1] if token else 0.0
        assert low - 1e-6 <= u <= cumulative[token] + 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_filters_keep_the_lowest_ids_among_ties(backend):
    logits = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]])
    assert set(draws(logits, 300, backend, top_k=3)[0].token.tolist()) == {1, 2, 4}
    assert set(draws(logits, 300, backend, top_k=7)[0].token.tolist()) == {1, 2, 4, 5, 7, 0, 3}
    # Each of the five ones has mass .164, each zero .060.
    assert set(draws(logits, 300, backend, top_p=0.32)[0].token.tolist()) == {1, 2}
    assert set(draws(logits, 300, backend, top_k=4, top_p=0.74)[0].token.tolist()) == {1, 2, 4}


@pytest.mark.skipif("native" not in BACKENDS, reason="the C++ module is not built")
def test_native_and_reference_differ_only_where_the_uniform_touches_a_boundary():
    rng = np.random.default_rng(0)
    logits = 3 * normal((20, 997), torch.float32)
    row = np.sort(rng.integers(0, 20, 500)).tolist()
    settings = {"temperature": rng.choice([0, 0.3, 1.0, 2.0], 500).tolist(), "top_k": rng.choice([0, 1, 50], 500).tolist()}
    settings |= {"top_p": rng.choice([1.0, 0.9, 0.3], 500).tolist(), "min_p": rng.choice([0, 0.05], 500).tolist()}
    inputs = sample_inputs(logits, row, key=rng.integers(0, 2**62, 500).tolist(), with_statistics=1, **settings)
    native, reference = (sample(*inputs, backend=name) for name in ("native", "reference"))
    differ = (native.token != reference.token).nonzero()[:, 0].tolist()
    assert len(differ) <= 1
    kept = [i for i in range(500) if i not in differ]
    for one, other in zip(native, reference):
        torch.testing.assert_close(one[kept], other[kept], rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.skipif("native" not in BACKENDS, reason="the C++ module is not built")
@pytest.mark.parametrize(
    "settings", [{"top_p": 0.95}, {"top_p": 0.3}, {"top_k": 5000, "top_p": 0.8731}, {"top_k": 20000}, {"min_p": 0.01}]
)
@pytest.mark.parametrize("shape", ["flat", "peaked", "equal", "sampled-are-light", "sampled-are-heavy"])
def test_filters_of_a_large_vocabulary_keep_what_the_definition_keeps(settings, shape):
    """The first 16 of 256 tokens estimate where top-p cuts; they may be unlike the others."""
    vocabulary = 30011
    is_sampled = torch.arange(vocabulary) % 256 < 16
    scale, shift = {"flat": (1, 0), "peaked": (4, 0), "equal": (0, 0), "sampled-are-light": (1, -9), "sampled-are-heavy": (1, 9)}[
        shape
    ]
    logits = scale * normal((1, vocabulary), torch.float32) + shift * is_sampled
    got, keys = draws(logits, 500, "native", **settings)
    cumulative = np.cumsum(kept_distribution(logits[0].double().numpy(), **settings))
    low = np.concatenate([[0.0], cumulative])[got.token.numpy()]
    u = uniform(keys, torch.zeros_like(keys)).numpy()
    assert (low - 2e-5 <= u).all() and (u <= cumulative[got.token.numpy()] + 2e-5).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_are_of_the_untempered_distribution_and_only_on_request(backend):
    logits = normal((1, 300), torch.float32)
    inputs = sample_inputs(logits, [0, 0], temperature=[0.1, 2.0], top_k=[5, 0], with_statistics=1)
    got = sample(*inputs, backend=backend)
    logp = torch.log_softmax(logits[0].double(), -1)
    top, mean = -logp.topk(20).values.mean(), -(logp + np.log(300)).mean()
    torch.testing.assert_close(got.confidence.double(), torch.stack([top, top]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.certainty.double(), torch.stack([mean, mean]), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.logprob.double(), logp[got.token], rtol=1e-6, atol=1e-6)
    without = sample(*inputs[:-1], 0, backend=backend)
    assert without.confidence.isnan().all() and without.certainty.isnan().all()


def test_philox_gives_the_published_word():
    # Random123's known answer for philox4x32-10 with key and counter 0.
    zero = torch.zeros(1, dtype=torch.int64)
    assert uniform(zero, zero).item() == ((0x6627E8D5 >> 8) + 0.5) * 2.0**-24


@pytest.mark.skipif("native" not in BACKENDS, reason="the C++ module is not built")
def test_the_native_philox_has_the_bits_of_the_reference():
    # Equal logits over 2^22 tokens make the token the upper 22 of the uniform's 24 bits.
    generator = torch.Generator().manual_seed(3)
    key, position = (torch.randint(-(2**63), 2**63 - 1, (500,), generator=generator) for _ in range(2))
    got = sample(
        *sample_inputs(torch.zeros(1, 1 << 22), [0] * 500, key=key.tolist(), position=position.tolist()), backend="native"
    )
    assert torch.equal(got.token, (uniform(key, position) * 2**22).long())
