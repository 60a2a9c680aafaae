import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from selfalign.evaluation.judge_quality import (
    MEASURES,
    judge_quality,
    length_baseline,
    no_better_than,
    paired_difference,
)
from selfalign.records import Message, RankedPrompt, RankedReply


def ranked_of(prompt_id: str, ranks: Sequence[int], lengths: Sequence[int] | None = None) -> RankedPrompt:
    """A ranked prompt whose replies are called `<prompt_id>/0` and so on, one character long or as given."""
    lengths = lengths or [1] * len(ranks)
    return RankedPrompt(
        prompt_id=prompt_id,
        messages=(Message(role="user", content=prompt_id),),
        replies=tuple(
            RankedReply(reply_id=f"{prompt_id}/{number}", text="x" * length, rank=rank)
            for number, (rank, length) in enumerate(zip(ranks, lengths, strict=True))
        ),
        source="test",
    )


def rewards_of(**by_prompt: Sequence[float | None]) -> dict[str, float | None]:
    return {
        f"{prompt_id}/{number}": reward
        for prompt_id, rewards in by_prompt.items()
        for number, reward in enumerate(rewards)
    }


def values(quality: dict) -> dict[str, float | None]:
    return {name: quality[name]["value"] for name in MEASURES}


def many(count: int, seed: int = 0) -> tuple[list[RankedPrompt], dict[str, float | None]]:
    """Prompts of 2 to 5 replies under a judge that is right more often than not and sometimes unscored."""
    rng = np.random.default_rng(seed)
    ranked, rewards = [], {}
    for number in range(count):
        size = int(rng.integers(2, 6))
        ranked.append(ranked_of(f"p{number}", list(range(size)), list(rng.integers(1, 50, size))))
        for place, reply in enumerate(ranked[-1].replies):
            reward = float(np.clip(round(4 - place + rng.normal(0, 2)), 0, 5))
            rewards[reply.reply_id] = None if rng.random() < 0.05 else reward
    return ranked, rewards


def test_all_measures_by_hand() -> None:
    """Two prompts; replies are listed best first.

    p: rewards 5, 3, 4 and lengths 1, 2, 3. Pairs (0,1) right, (0,2) right, (1,2) wrong; in all three the
    better reply is the shorter one. Spearman: d = 0, 1, 1, so 1 - 6 * 2 / (3 * 8) = 0.5; Kendall
    (2 - 1) / 3.
    q: rewards 5, 5 with lengths 9, 4. The one pair is a tie, so wrong; the better reply is the longer one.
    Constant rewards: correlations are undefined.
    Pairwise 2/4; longer better 0/1; longer worse 2/3; ties 1/4; of three replies with 5 two are the best;
    no prompt matches exactly.
    """
    ranked = [ranked_of("p", [0, 1, 2], [1, 2, 3]), ranked_of("q", [0, 1], [9, 4])]
    quality = judge_quality(ranked, rewards_of(p=[5, 3, 4], q=[5, 5]), parse_rate=0.9)
    assert values(quality) == {
        "pairwise_accuracy": 0.5,
        "pairwise_accuracy_longer_better": 0.0,
        "pairwise_accuracy_longer_worse": pytest.approx(2 / 3),
        "tie_rate": 0.25,
        "five_best": pytest.approx(2 / 3),
        "exact_match": 0.0,
        "spearman": pytest.approx(0.5),
        "kendall_tau_b": pytest.approx(1 / 3),
    }
    assert [quality[name]["n"] for name in MEASURES] == [4, 1, 3, 4, 3, 2, 1, 1]
    assert {key: quality[key] for key in quality if key not in MEASURES} == {
        "parse_rate": 0.9,
        "prompts": 2,
        "prompts_tied": 0,
        "prompts_undefined": 1,
        "pairs": 4,
        "pairs_unscored": 0,
    }


def test_a_perfect_judge_has_one_everywhere_and_no_ties() -> None:
    ranked = [ranked_of("p", [2, 0, 1], [5, 6, 7]), ranked_of("q", [0, 1], [2, 8])]
    quality = judge_quality(ranked, rewards_of(p=[1, 5, 4], q=[5, 2]), parse_rate=1.0)
    found = values(quality)
    assert found.pop("tie_rate") == 0
    assert set(found.values()) == {1.0}
    for name in MEASURES:
        if quality[name]["low"] is not None:
            assert quality[name]["low"] == quality[name]["high"] == quality[name]["value"]


def test_a_constant_judge_is_always_wrong_and_has_no_correlation() -> None:
    ranked = [ranked_of(f"p{number}", [0, 1, 2]) for number in range(5)]
    quality = judge_quality(ranked, rewards_of(**{p.prompt_id: [4, 4, 4] for p in ranked}), parse_rate=1.0)
    assert quality["pairwise_accuracy"]["value"] == quality["exact_match"]["value"] == 0
    assert quality["tie_rate"]["value"] == 1
    for name in ("spearman", "kendall_tau_b"):
        assert quality[name] == {
            "value": None,
            "low": None,
            "high": None,
            "n": 0,
            "reason": "rewards or ranks are constant in every prompt",
        }
    assert quality["prompts_undefined"] == 5
    assert quality["five_best"]["value"] is None


def test_unscored_replies_leave_their_pairs_out_and_are_never_the_worst() -> None:
    """Of p only the pair (0, 1) is scored, and right; q has no scored pair; r is scored and wrong."""
    ranked = [ranked_of("p", [0, 1, 2]), ranked_of("q", [0, 1]), ranked_of("r", [0, 1])]
    rewards = rewards_of(p=[4, 2, None], q=[None, 1], r=[1, 2])
    quality = judge_quality(ranked, rewards, parse_rate=5 / 7)
    assert quality["pairwise_accuracy"]["value"] == 0.5
    assert (quality["pairs"], quality["pairs_unscored"]) == (5, 3)
    assert (quality["exact_match"]["value"], quality["exact_match"]["n"]) == (0.0, 1)
    assert (quality["spearman"]["value"], quality["spearman"]["n"]) == (0.0, 2)
    assert quality["prompts_undefined"] == 1


def test_an_unparsed_judge_has_no_value_but_a_reason_for_each() -> None:
    quality = judge_quality([ranked_of("p", [0, 1])], rewards_of(p=[None, None]), parse_rate=0.0)
    assert set(values(quality).values()) == {None}
    assert all(quality[name]["reason"] for name in MEASURES)
    assert (quality["pairs"], quality["pairs_unscored"], quality["parse_rate"]) == (1, 1, 0.0)


def test_no_prompts_at_all() -> None:
    quality = judge_quality([], {}, parse_rate=None)
    assert set(values(quality).values()) == {None}
    assert quality["prompts"] == quality["pairs"] == 0


def test_human_ties_are_no_pairs_and_all_tied_prompts_count_nowhere() -> None:
    """In p replies 0 and 1 are tied, so two pairs remain; t is tied throughout, though it got a 5."""
    ranked = [ranked_of("p", [0, 0, 1]), ranked_of("t", [0, 0])]
    quality = judge_quality(ranked, rewards_of(p=[3, 3, 1], t=[5, 5]), parse_rate=1.0)
    assert (quality["pairs"], quality["prompts"], quality["prompts_tied"]) == (2, 1, 1)
    assert quality["pairwise_accuracy"]["value"] == quality["exact_match"]["value"] == 1
    assert quality["tie_rate"]["value"] == 0
    assert quality["five_best"]["value"] is None
    assert quality["spearman"]["value"] == pytest.approx(1)


def test_five_best_counts_exact_fives_only_and_shared_first_places() -> None:
    ranked = [ranked_of("p", [0, 0, 1, 1]), ranked_of("q", [1, 0])]
    rewards = rewards_of(p=[5, 4.67, 5, 5], q=[4.99, 5])
    measure = judge_quality(ranked, rewards, parse_rate=1.0)["five_best"]
    assert (measure["value"], measure["n"]) == (0.5, 4)
    assert judge_quality(ranked, rewards, parse_rate=1.0, perfect=4.99)["five_best"]["value"] == 0


def test_a_reply_missing_from_the_rewards_is_an_error_not_unscored() -> None:
    with pytest.raises(KeyError, match="p/1"):
        judge_quality([ranked_of("p", [0, 1])], rewards_of(p=[1]), parse_rate=1.0)


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 4), st.sampled_from([0.0, 1.0, 2.5, 3.0, 4.33, 5.0])), min_size=2, max_size=8
    )
)
def test_correlations_equal_scipy(rows: list[tuple[int, float]]) -> None:
    ranks, rewards = [rank for rank, _ in rows], [reward for _, reward in rows]
    quality = judge_quality([ranked_of("p", ranks)], rewards_of(p=rewards), parse_rate=1.0)
    if len(set(ranks)) == 1 or len(set(rewards)) == 1:
        assert quality["spearman"]["value"] is quality["kendall_tau_b"]["value"] is None
    else:
        human = [-rank for rank in ranks]
        assert quality["spearman"]["value"] == pytest.approx(spearmanr(human, rewards).statistic, abs=1e-12)
        assert quality["kendall_tau_b"]["value"] == pytest.approx(
            kendalltau(human, rewards).statistic, abs=1e-12
        )


def test_intervals_hold_their_value_and_narrow_with_more_prompts() -> None:
    few, many_ = (judge_quality(*many(count), parse_rate=0.95) for count in (30, 480))
    for quality in (few, many_):
        for name in MEASURES:
            assert quality[name]["low"] < quality[name]["value"] < quality[name]["high"]
            assert quality[name]["reason"] is None
    for name in MEASURES:
        assert (many_[name]["high"] - many_[name]["low"]) < 0.5 * (few[name]["high"] - few[name]["low"])


def test_the_interval_is_that_of_a_mean_over_prompts() -> None:
    """One pair a prompt, half of 400 right: the standard error is 0.5 / 20, so 0.5 -+ 1.96 * 0.025."""
    ranked = [ranked_of(f"p{number}", [0, 1]) for number in range(400)]
    rewards = rewards_of(**{p.prompt_id: [number % 2, 0.5] for number, p in enumerate(ranked)})
    measure = judge_quality(ranked, rewards, parse_rate=1.0, bootstrap=4000)["pairwise_accuracy"]
    assert measure["value"] == 0.5
    assert measure["low"] == pytest.approx(0.451, abs=0.005)
    assert measure["high"] == pytest.approx(0.549, abs=0.005)


def test_one_prompt_gives_a_value_and_no_interval() -> None:
    measure = judge_quality([ranked_of("p", [0, 1])], rewards_of(p=[2, 1]), parse_rate=1.0)["exact_match"]
    assert measure == {
        "value": 1.0,
        "low": None,
        "high": None,
        "n": 1,
        "reason": "one prompt gives no interval",
    }


def test_the_result_depends_on_the_seed_and_not_on_the_order_of_prompts() -> None:
    ranked, rewards = many(80)
    quality = judge_quality(ranked, rewards, parse_rate=1.0, seed=1)
    assert judge_quality(ranked[::-1], rewards, parse_rate=1.0, seed=1) == quality
    other = judge_quality(ranked, rewards, parse_rate=1.0, seed=2)
    assert values(other) == values(quality)
    assert other["pairwise_accuracy"] != quality["pairwise_accuracy"]


def test_the_result_is_json() -> None:
    ranked, rewards = many(20)
    for quality in (judge_quality(ranked, rewards, parse_rate=None), length_baseline(ranked)):
        assert json.loads(json.dumps(quality, allow_nan=False)) == quality


def test_the_length_baseline_always_prefers_the_longer_reply() -> None:
    """A reply of five characters, the baseline's reward 5, is no perfect reply."""
    ranked = [ranked_of("p", [0, 1, 2], [5, 2, 9]), ranked_of("q", [0, 1], [4, 4])]
    quality = length_baseline(ranked)
    assert quality["pairwise_accuracy_longer_better"]["value"] == 1
    assert quality["pairwise_accuracy_longer_worse"]["value"] == 0
    assert quality["pairwise_accuracy"]["value"] == quality["tie_rate"]["value"] == 0.25
    assert quality["five_best"]["value"] is quality["parse_rate"] is None


def test_paired_difference_by_hand() -> None:
    """Judge A is right on p, q and r; judge B on p alone and unscored on r: (2 - 1) / 2 pairs."""
    ranked = [ranked_of("p", [0, 1]), ranked_of("q", [0, 1]), ranked_of("r", [0, 1])]
    a = rewards_of(p=[2, 1], q=[2, 1], r=[2, 1])
    b = rewards_of(p=[5, 0], q=[3, 3], r=[4, None])
    assert paired_difference(ranked, a, b) == {
        "value": 0.5,
        "low": 0.0,
        "high": 1.0,
        "n": 2,
        "reason": None,
    }
    assert paired_difference(ranked, b, a)["value"] == -0.5


def test_paired_difference_of_a_judge_with_itself_is_exactly_zero() -> None:
    ranked, rewards = many(50)
    measure = paired_difference(ranked, rewards, rewards)
    assert (measure["value"], measure["low"], measure["high"]) == (0, 0, 0)


def test_paired_difference_is_narrower_than_two_intervals() -> None:
    """B is A with every tenth prompt turned round, so the two mostly err together."""
    ranked, a = many(300)
    turned = {r.reply_id for number, p in enumerate(ranked) if number % 10 == 0 for r in p.replies}
    b = {key: -reward if key in turned and reward is not None else reward for key, reward in a.items()}
    accuracy = judge_quality(ranked, a, parse_rate=1.0)["pairwise_accuracy"]
    difference = paired_difference(ranked, a, b)
    assert difference["low"] < difference["value"] < difference["high"]
    assert difference["high"] - difference["low"] < accuracy["high"] - accuracy["low"]
    assert math.isclose(
        difference["value"],
        accuracy["value"] - judge_quality(ranked, b, parse_rate=1.0)["pairwise_accuracy"]["value"],
    )


def test_paired_difference_without_common_pairs_is_undefined() -> None:
    ranked = [ranked_of("p", [0, 1])]
    measure = paired_difference(ranked, rewards_of(p=[1, None]), rewards_of(p=[None, 1]))
    assert (measure["value"], measure["n"]) == (None, 0)
    assert measure["reason"] == "no pair has two replies scored by both judges"


def accuracy(value: float | None, low: float | None, high: float | None) -> dict[str, Any]:
    return {"pairwise_accuracy": {"value": value, "low": low, "high": high}}


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ((0.6, 0.5, 0.7), "not above"),
        ((0.7, 0.62, 0.8), "not shown"),
        ((0.9, None, None), "not shown"),
        ((0.8, 0.71, 0.9), None),
        ((None, None, None), None),
    ],
)
def test_a_judge_is_held_against_length(judge: tuple[float | None, ...], said: str | None) -> None:
    found = no_better_than(accuracy(*judge), accuracy(0.6, 0.5, 0.7))
    assert found is None if said is None else said in str(found)
