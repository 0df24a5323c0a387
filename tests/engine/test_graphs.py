"""Captured decode passes, with a capture that runs the pass again: batches filled up to their bucket change nothing."""

import pytest
import torch
from runs import is_empty, outcomes, requests, transcript

from tts.engine.graphs import Bucket
from tts.engine.policy import Policy
from tts.search import Search
from tts.tasks.chain import Chain
from tts.verifiers.likelihood import Likelihood


def run_again(run):
    """As a capture does: the pass runs before, and each replay computes it from what its inputs hold then."""
    run()
    return run


def make(zoo_models, capture, num_pages=4000, max_rows=256):
    policy = Policy(zoo_models[0], num_pages, 8, max_rows, 512, capture)
    policy.kv.pool.fill_(float("nan"))
    return Search(policy, {"prm": Likelihood(zoo_models[1], 4000, 8, 512)}, Chain()), policy


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("name, n, max_rows, num_pages", [("beam", 8, 256, 4000), ("best_of_n", 5, 3, 60)])
def test_captured_passes_draw_the_same_tokens_with_the_same_scores(
    zoo_models, monkeypatch, name, n, max_rows, num_pages, backend
):
    monkeypatch.setattr(zoo_models[0], "backend", backend)  # of append, attend and sample
    made = requests(name, count=2 if backend else 6, n=n)
    expected = outcomes(make(zoo_models, None, num_pages, max_rows)[0], made)
    search, policy = make(zoo_models, run_again, num_pages, max_rows)
    assert [transcript(o) for o in outcomes(search, made)] == [transcript(o) for o in expected]
    assert policy.graphs.buckets and is_empty(search)


def test_what_fills_a_batch_up_writes_no_keys_and_values(zoo_models):
    """Five rows in a bucket of six: a slot that no row owned still holds what was there before."""
    search, policy = make(zoo_models, run_again)
    outcomes(search, requests("best_of_n", count=1, n=5))
    assert {bucket.rows for bucket in policy.graphs.buckets} >= {6}
    written = ~policy.kv.pool.isnan().all(-1)  # by layer, keys or values, head, page, slot
    assert written.any() and torch.equal(written.any(0).any(0).any(0), written.all(0).all(0).all(0))
    assert not written[..., policy.kv.peak_pages :, :].any()


def test_a_bucket_holds_its_batch_and_wastes_less_than_a_third_of_its_rows():
    for rows in range(1, 600):
        bucket = Bucket.of(rows, 2 * rows - 1, 300)
        assert rows <= bucket.rows <= max(rows, (rows - 1) * 3 / 2)
        assert bucket.items == 2 * bucket.rows and bucket.spans == 512
    assert [Bucket.of(rows, 1, 1).rows for rows in (1, 2, 3, 4, 5, 7, 9, 13, 17, 25)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    assert len({Bucket.of(rows, 1, 1) for rows in range(1, 513)}) == 18
    assert Bucket.of(3, 100, 1).items == 128
