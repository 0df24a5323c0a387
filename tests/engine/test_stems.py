"""Prompts that begin alike: read once, and nothing else changes."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from runs import answers, is_empty, outcomes, scripted, transcript

from tts.engine import stems
from tts.engine.policy import Policy
from tts.meter import context
from tts.moves import All, Answer, Expand, Prompt, Tokens
from tts.search import Search
from tts.tasks.chain import Chain


class Texts(Chain):
    """Prompts that are texts."""

    def render(self, template, question, previous, fields):
        return fields.get("text", question)


def prompt(text):
    return Prompt(fields=(("text", text),))


def solve(model, run, min_tokens, num_pages=2000, page_size=4, max_rows=16, max_batch_tokens=32):
    search = Search(Policy(model, num_pages, page_size, max_rows, max_batch_tokens), {}, Texts())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stems, "MIN_TOKENS", min_tokens)
        (outcome,) = outcomes(search, [scripted(run)])
    assert is_empty(search) and not search.policy.stems._above and not search.policy.stems._begin
    return outcome


def num_distinct(texts):
    """Tokens (characters) to read: each beginning once, and the last token of each prompt."""
    return len({text[:i] for text in texts for i in range(1, len(text))}) + len(texts)


TEXTS = st.lists(st.text("ab", min_size=1, max_size=12), min_size=1, max_size=8, unique=True)


@settings(max_examples=40)
@given(TEXTS, st.sampled_from([(2000, 4, 32), (40, 4, 20), (26, 8, 16)]))
def test_any_prompts_are_read_once_and_answered_as_if_each_were_alone(zoo_models, texts, sizes):
    num_pages, page_size, max_batch_tokens = sizes
    pool = {"num_pages": num_pages, "page_size": page_size, "max_batch_tokens": max_batch_tokens}

    def run(problem, p):
        return (yield Expand([prompt(text) for text in texts], 2, Tokens(3)))

    shared, alone = (solve(zoo_models[0], run, least, **pool) for least in (1, 1 << 30))
    assert transcript(shared) == transcript(alone)
    meter, plain = shared.session.meter, alone.session.meter
    assert plain.prompt_tokens == sum(map(len, texts))
    assert meter.prompt_tokens == num_distinct(texts)
    assert meter.prompt_tokens + meter.reused_tokens == plain.prompt_tokens + plain.reused_tokens
    assert meter.policy_tokens == plain.policy_tokens


@settings(max_examples=25)
@given(TEXTS, st.lists(st.integers(0, 9), min_size=8, max_size=8), st.sampled_from([(2000, 64), (60, 7)]))
def test_prompts_that_come_while_others_are_read_share_with_them(zoo_models, texts, delays, sizes):
    """Each branch comes with its prompt some passes after the start: stems are split while they are filled and stood on."""
    num_pages, max_batch_tokens = sizes

    def run(problem, p):
        def branch(text, delay):
            if delay:
                yield Expand([prompt("b")], 1, Tokens(delay))
            (leaf,) = yield Expand([prompt("a" * 18 + text)], 1, Answer())
            return leaf

        return (yield All([branch(text, delay) for text, delay in zip(texts, delays)]))

    pool = {"num_pages": num_pages, "max_batch_tokens": max_batch_tokens, "max_rows": min(16, max_batch_tokens)}
    shared, alone = (solve(zoo_models[0], run, least, **pool) for least in (16, 1 << 30))
    assert answers(shared) == answers(alone)
    waited = any(delays[: len(texts)])
    assert shared.session.meter.prompt_tokens == num_distinct(["a" * 18 + text for text in texts]) + waited
    assert shared.session.meter.policy_tokens == alone.session.meter.policy_tokens


def test_attention_of_a_shared_beginning_is_charged_once(zoo_models):
    texts = ["a" * 20 + "b" * 4, "a" * 20 + "c" * 6]

    def run(problem, p):
        return (yield Expand([prompt(text) for text in texts], 1, Tokens(1)))

    meter, per_context = solve(zoo_models[0], run, 16).session.meter, zoo_models[0].attention_flops_per_context
    drawn = context(24, 25) + context(26, 27)
    assert meter.policy_attention_flops == per_context * (context(0, 24) + context(20, 26) + drawn)


def test_a_short_common_beginning_is_not_kept_apart(zoo_models):
    def run(problem, p):
        return (yield Expand([prompt("a" * 10 + x) for x in "bc"], 1, Tokens(1)))

    outcome = solve(zoo_models[0], run, stems.MIN_TOKENS)
    assert outcome.session.meter.prompt_tokens == 22 and not outcome.session.stems
