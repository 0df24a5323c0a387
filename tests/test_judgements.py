"""Judgements read as numbers, votes counted, and the judge as a generator, all on scripted texts."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tts.judge import Jury, judge
from tts.judgements import (
    Verdict,
    best_by_meta,
    boxed_choice,
    boxed_scores,
    last_box,
    pairwise,
    rank,
    tie_rate,
    total,
    unshuffled,
    yes_or_no,
)
from tts.moves import Expand, Score
from tts.strategies import SearchProblem
from tts.tasks.math import Math
from tts.tree import Node, Prompt


@pytest.mark.parametrize(
    ("text", "count", "scores"),
    [
        (r"so \boxed{8, 3}", 2, [8, 3]),
        (r"\boxed{8,3}.", 2, [8, 3]),
        (r"an example: \boxed{1, 1}; in the end \boxed{ 10 , 2 }", 2, [10, 2]),
        (r"\boxed{8/10, 3 / 10}", 2, [8, 3]),
        (r"\boxed{8.0, 3.00}", 2, [8, 3]),
        (r"$\boxed{[8, 3]}$", 2, [8, 3]),
        (r"\boxed{8,\, 3}", 2, [8, 3]),
        (r"\boxed{7}", 1, [7]),
        (r"\boxed{7}", 2, None),
        (r"\boxed{7, 8, 9}", 2, None),
        (r"\boxed{0, 8}", 2, None),
        (r"\boxed{11, 8}", 2, None),
        (r"\boxed{7.5, 8}", 2, None),
        (r"\boxed{-7, 8}", 2, None),
        (r"\boxed{seven, 8}", 2, None),
        (r"\boxed{}", 1, None),
        ("7, 8", 2, None),
        ("", 1, None),
        (r"\boxed{3, 4} and then \boxed{7, 8", 2, None),
    ],
)
def test_scores_are_those_of_the_last_box_or_none(text, count, scores):
    assert boxed_scores(text, count) == scores


@given(st.lists(st.sampled_from(["\\boxed{", "}", "8", ",", " ", "é"]), max_size=60).map("".join))
def test_the_last_box_is_found_as_a_plain_search_finds_it(text):
    parts = text.split("\\boxed{")
    expected = None if len(parts) == 1 or "}" not in parts[-1] else parts[-1].split("}")[0]
    assert last_box(text) == expected


def test_reading_a_long_text_is_linear():
    class Counting(str):
        steps = 0

        def find(self, *args):
            Counting.steps += 1
            return str.find(self, *args)

        def rfind(self, *args):
            Counting.steps += 1
            return str.rfind(self, *args)

    assert last_box(Counting("\\boxed{" * 100_000)) is None
    assert Counting.steps == 2


@pytest.mark.parametrize(("text", "choice"), [(r"\boxed{1}", 0), (r"\boxed{2}", 1), (r"\boxed{3}", None), ("1", None)])
def test_a_choice_of_two(text, choice):
    assert boxed_choice(text) == choice


@pytest.mark.parametrize(
    ("text", "found"),
    [("Yes", True), ("no, wait ... YES.", True), ("Yes? No", False), ("yesterday, nobody", None), ("", None)],
)
def test_the_last_yes_or_no_counts(text, found):
    assert yes_or_no(text) is found


@given(st.permutations(range(5)))
def test_shuffling_is_undone(order):
    shown = [10 * response for response in order]
    assert unshuffled(shown, order) == [0, 10, 20, 30, 40]


def test_votes_are_summed_and_no_vote_is_not_a_zero():
    assert total([[8, 3], [5, 9], [6, 6]], 2) == [19, 18]
    assert all(math.isnan(score) for score in total([], 2))


def test_meta_keeps_the_best_finite_values_and_of_equals_the_first():
    assert best_by_meta([0.1, 0.9, math.nan, 0.9, 0.9], 2) == [1, 3]
    assert best_by_meta([math.nan, math.inf], 2) == []
    assert best_by_meta([0.3], 4) == [0]


def test_pairs_are_won_by_majority_and_even_ones_count_half():
    assert pairwise({(0, 1): [0, 0, 1], (0, 2): [1, 0], (1, 2): []}, 3) == [1.5, 0.0, 0.5]
    assert all(math.isnan(score) for score in pairwise({(0, 1): []}, 2))


def test_ties_are_broken_by_the_seed_and_the_tie_rate_counts_them():
    firsts = Counter(rank([5.0, 7.0, 7.0, math.nan], random.Random(seed))[0] for seed in range(200))
    assert set(firsts) == {1, 2} and min(firsts.values()) > 60
    assert rank([5.0, 7.0, 7.0, math.nan], random.Random(3)) == rank([5.0, 7.0, 7.0, math.nan], random.Random(3))
    assert all(rank([5.0, 7.0, 7.0, math.nan], random.Random(seed))[-1] == 3 for seed in range(20))
    tied, clear = Verdict([7, 7], [0, 1], 1, 0, 1), Verdict([7, 8], [1, 0], 1, 0, 1)
    none = Verdict([math.nan, math.nan], [0, 1], 0, 1, 0)
    assert tie_rate([tied, clear, none, tied]) == 0.5


# ---- the generator, on a judge whose words are given


def make_responses(*texts):
    root = Node(None, (1,), b"", "prompt", 0, Prompt())
    return [Node(root, (1,), text.encode(), "stop", i, root.prompt) for i, text in enumerate(texts)]


class ScriptedJudge:
    """Answers the moves of `judge`: `say(shown texts, sample number)` is a judgement, `rate(judgement)` a scalar score."""

    def __init__(self, say, rate=len):
        self.say, self.rate = say, rate
        self.prompts, self.said, self.scored = [], [], []

    def run(self, responses, **settings):
        generator = judge(SearchProblem("1+1?", "0", 7, Math()), responses, Jury(**settings))
        result = None
        while True:
            try:
                move = generator.send(result)
            except StopIteration as stop:
                return stop.value
            result = self.expand(move) if isinstance(move, Expand) else self.score(move)

    def expand(self, move):
        assert len(set(move.nodes)) == len(move.nodes), "equal prompts are one prompt"
        nodes = []
        for prompt, width in zip(move.nodes, move.widths):
            assert prompt.model == "grm" and prompt.template == "judge"
            self.prompts += [prompt] * bool(width)
            for _ in range(width):
                text = self.say([node.text for node in prompt.previous], len(self.said))
                self.said.append(text)
                root = Node(None, (1,), b"", "prompt", 0, prompt)
                nodes.append(Node(root, (1,), text.encode(), "stop", len(self.said), prompt))
        return nodes

    def score(self, move):
        assert isinstance(move, Score)
        assert move.context == "prompt" or not move.nodes
        self.scored.append((move.by, len(move.nodes)))
        return [self.rate(node.text) for node in move.nodes]


QUALITY = {"good": 9, "fair": 6, "bad": 2}


def boxed(values):
    return "critique \\boxed{" + ", ".join(map(str, values)) + "}"


def by_quality(shown, sample):
    return boxed(QUALITY[text] for text in shown)


def test_listwise_scores_are_summed_over_shuffled_samples_with_the_shuffling_undone():
    scripted = ScriptedJudge(by_quality)
    verdict = scripted.run(make_responses("bad", "good", "fair"), k=8)
    assert verdict.scores == [16, 72, 48] and verdict.ranking == [1, 2, 0]
    assert (verdict.num_read, verdict.num_dropped, verdict.num_counted) == (8, 0, 8)
    assert len({tuple(prompt.previous) for prompt in scripted.prompts}) == len(scripted.prompts) > 1
    assert len(scripted.said) == 8


def test_position_bias_is_averaged_out_by_shuffling_and_stays_in_without_it():
    def likes_the_first(shown, sample):
        return boxed([9] + [3] * (len(shown) - 1))

    responses = make_responses("bad", "good")
    assert ScriptedJudge(likes_the_first).run(responses, k=6, shuffle=False).scores == [54, 18]
    shuffled = ScriptedJudge(likes_the_first).run(responses, k=64).scores
    assert sum(shuffled) == 64 * 12 and abs(shuffled[0] - shuffled[1]) < 64 * 3


def test_samples_that_cannot_be_read_are_dropped_and_counted():
    def say(shown, sample):
        return ["no box", boxed([5]), boxed([5, 11]), by_quality(shown, sample)][sample % 4]

    verdict = ScriptedJudge(say).run(make_responses("bad", "good"), k=8)
    assert verdict.scores == [4, 18] and (verdict.num_read, verdict.num_dropped) == (2, 6)


def test_without_any_readable_sample_no_response_has_a_score():
    verdict = ScriptedJudge(lambda shown, sample: "who knows").run(make_responses("bad", "good"), k=3)
    assert all(math.isnan(score) for score in verdict.scores)
    assert (verdict.num_read, verdict.num_dropped, verdict.is_tie) == (0, 3, False)


def test_the_meta_reward_model_sees_the_readable_samples_and_the_best_are_counted():
    def say(shown, sample):
        return "x" * sample + (by_quality(shown, sample) if sample != 5 else "")

    scripted = ScriptedJudge(say, rate=lambda text: text.count("x"))
    verdict = scripted.run(make_responses("bad", "good"), k=6, k_meta=2, shuffle=False)
    assert scripted.scored == [("meta", 0), ("meta", 5)]
    assert verdict.scores == [4, 18] and (verdict.num_read, verdict.num_dropped, verdict.num_counted) == (5, 1, 2)


def test_pairwise_asks_both_ways_round_and_counts_pairs_won():
    def say(shown, sample):
        return boxed([1 if QUALITY[shown[0]] > QUALITY[shown[1]] else 2])

    scripted = ScriptedJudge(say)
    verdict = scripted.run(make_responses("bad", "good", "fair"), way="pairwise", k=4)
    assert verdict.scores == [0.0, 2.0, 1.0] and verdict.ranking == [1, 2, 0]
    assert len(scripted.said) == 12 and len(scripted.prompts) == 6


def test_verdicts_are_the_share_of_yes():
    def say(shown, sample):
        return "Yes" if shown == ["good"] or sample % 4 == 0 else ["No", "perhaps"][sample % 4 == 3]

    verdict = ScriptedJudge(say).run(make_responses("bad", "good"), way="verdict", k=4)
    assert verdict.scores == pytest.approx([1 / 3, 1.0]) and verdict.num_dropped == 1


def test_semi_scalar_is_the_mean_of_a_scalar_head_on_critiques():
    scripted = ScriptedJudge(lambda shown, sample: shown[0], rate=lambda text: QUALITY[text] / 10)
    verdict = scripted.run(make_responses("bad", "good"), way="semi-scalar", k=2)
    assert verdict.scores == pytest.approx([0.2, 0.9]) and scripted.scored == [("meta", 0), ("meta", 4)]


def test_a_judge_of_one_response_asks_one_prompt():
    scripted = ScriptedJudge(by_quality)
    assert scripted.run(make_responses("good"), k=5).scores == [45]
    assert len(scripted.prompts) == 1 and len(scripted.said) == 5


def test_an_unknown_way_is_one_error():
    with pytest.raises(ValueError, match="unknown way to judge 'coin'; there are listwise, pairwise, verdict, semi-scalar"):
        ScriptedJudge(by_quality).run(make_responses("good"), way="coin")


@pytest.mark.parametrize("way", ["listwise", "pairwise", "verdict", "semi-scalar"])
def test_the_judges_prompt_shows_question_and_responses_in_order(way):
    (message,) = Math().render("judge", "1+1?", ["first", "second"], {"way": way})
    text = message["content"]
    assert message["role"] == "user"
    assert text.index("1+1?") < text.index("first") < text.index("second")
