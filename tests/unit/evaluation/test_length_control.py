import math
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.evaluation import length_control
from selfalign.evaluation.length_control import length_controlled

PREFERENCES = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    """Tests that look at the width of an interval ask for more of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(length_control, "RESAMPLES", 20)
        yield


def judged(*, offset, length_effect, shift, n=805, seed=0):
    """Verdicts of a judge of known quality offset and length effect, both in logits, drawn for n prompts.

    The first model's completions are `shift` longer on average, in standard deviations.
    """
    rng = np.random.default_rng(seed)
    differences = rng.normal(800.0 * shift, 800.0, n)
    logits = offset + length_effect * np.tanh(differences / differences.std())
    return (rng.random(n) < 1 / (1 + np.exp(-logits))).astype(float).tolist(), differences.tolist()


def values(found, *names):
    return [found[name] for name in names]


def test_a_case_by_hand():
    """Half of the prompts have a difference of d, half of -d: the deviation is d, the terms are +-tanh(1).

    With two lengths the model fits both shares exactly: 0.9 where longer, 0.6 where shorter.
    logit 0.9 = ln 9 = 2.19722 and logit 0.6 = ln 1.5 = 0.40547.
    intercept = (2.19722 + 0.40547) / 2 = 1.30134; 1 / (1 + exp(-1.30134)) = 0.78606
    coefficient = (2.19722 - 0.40547) / 2 / tanh(1) = 0.89588 / 0.76159 = 1.17632
    The plain win rate is 0.75. The 20,000 prompts leave nothing of the ridge.
    """
    n = 10_000
    preferences = [1.0] * (9 * n // 10) + [0.0] * (n // 10) + [1.0] * (6 * n // 10) + [0.0] * (4 * n // 10)
    found = length_controlled(preferences, [700.0] * n + [-700.0] * n, seed=0)
    assert found["value"] == pytest.approx(0.78606, abs=1e-4)
    assert found["length_coefficient"] == pytest.approx(1.17632, abs=1e-3)
    assert (found["n"], found["reason"]) == (2 * n, None)


def test_without_any_difference_in_length_it_is_the_win_rate():
    found = length_controlled([1.0, 1.0, 0.5, 0.0] * 500, [0] * 2000, seed=0)
    assert found["value"] == pytest.approx(0.625, abs=1e-4)
    assert found["length_coefficient"] == 0


def test_a_judge_that_only_counts_length_gives_half():
    """Over 20 draws: plain win rates of about 69 % for the longer model, 50 % once length is held equal."""
    controlled, plain = [], []
    for seed in range(20):
        preferences, differences = judged(offset=0, length_effect=2, shift=0.8, seed=seed)
        controlled.append(length_controlled(preferences, differences, seed=0)["value"])
        plain.append(fmean(preferences))
    assert fmean(plain) > 0.65
    assert fmean(controlled) == pytest.approx(0.5, abs=0.015)
    assert all(0.42 < value < 0.58 for value in controlled)


def test_a_judge_that_picks_the_longer_without_fail_gives_about_half():
    controlled, plain = [], []
    for seed in range(20):
        differences = np.random.default_rng(seed).normal(480, 800, 805)
        preferences = (differences > 0).astype(float).tolist()
        found = length_controlled(preferences, differences.tolist(), seed=0)
        controlled.append(found["value"])
        plain.append(fmean(preferences))
        assert found["length_coefficient"] > 5
    assert fmean(plain) > 0.7
    assert fmean(controlled) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("offset", [-1.0, 0.0, 0.5])
@pytest.mark.parametrize("length_effect", [-1.0, 0.0, 1.5])
def test_a_known_offset_is_found_whatever_the_length_effect(offset, length_effect):
    """The mean of 20 draws is within three of its standard errors; a draw's is about 0.02."""
    truth = 1 / (1 + math.exp(-offset))
    found = [
        length_controlled(*judged(offset=offset, length_effect=length_effect, shift=0.5, seed=seed), seed=0)
        for seed in range(20)
    ]
    rates = [each["value"] for each in found]
    assert fmean(rates) == pytest.approx(truth, abs=3 * np.std(rates) / math.sqrt(20))
    assert np.std(rates) < 0.03
    assert fmean(each["length_coefficient"] for each in found) == pytest.approx(length_effect, abs=0.2)


def test_the_interval_is_as_wide_as_the_estimates_scatter(monkeypatch):
    """A 95 % interval spans 2 x 1.96 standard deviations of what new draws of verdicts and lengths give."""
    case = {"offset": 0.5, "length_effect": 1, "shift": 0.5, "n": 200}
    monkeypatch.setattr(length_control, "RESAMPLES", 1)
    scatter = np.std([length_controlled(*judged(**case, seed=i), seed=0)["value"] for i in range(300)])
    monkeypatch.setattr(length_control, "RESAMPLES", 300)
    found = [length_controlled(*judged(**case, seed=i), seed=0) for i in range(8)]
    assert fmean(each["high"] - each["low"] for each in found) == pytest.approx(3.92 * scatter, rel=0.1)


def test_several_verdicts_on_one_prompt_are_drawn_together(monkeypatch):
    """Stating every verdict three times adds no knowledge, so the interval must not shrink."""
    monkeypatch.setattr(length_control, "RESAMPLES", 300)
    preferences, differences = judged(offset=0.5, length_effect=1, shift=0.2, n=300)
    once = length_controlled(preferences, differences, seed=1)
    thrice = length_controlled(preferences * 3, differences * 3, seed=1, clusters=[*range(300)] * 3)
    ends = ("value", "low", "high")
    assert values(thrice, *ends) == pytest.approx(values(once, *ends), abs=2e-3)
    assert thrice["n"] == 900


@settings(max_examples=40)
@given(st.lists(st.tuples(PREFERENCES, st.integers(-3000, 3000)), min_size=2, max_size=12))
def test_swapping_the_models_mirrors_the_result(rows):
    preferences, differences = [row[0] for row in rows], [row[1] for row in rows]
    found = length_controlled(preferences, differences, seed=3)
    mirrored = length_controlled([1 - p for p in preferences], [-d for d in differences], seed=3)
    assert mirrored["reason"] == found["reason"]
    if found["value"] is not None:
        assert values(mirrored, "value", "low", "high") == pytest.approx(
            [1 - found[name] for name in ("value", "high", "low")], abs=1e-4
        )
        assert mirrored["length_coefficient"] == pytest.approx(found["length_coefficient"], abs=1e-3)
        assert 0 < found["low"] <= found["high"] < 1


def test_the_unit_of_length_makes_no_difference():
    preferences, differences = judged(offset=0.5, length_effect=1, shift=0.5, n=100)
    found = length_controlled(preferences, differences, seed=0)
    assert length_controlled(preferences, [d / 4 for d in differences], seed=0) == pytest.approx(found)


def test_a_model_that_always_wins_has_nearly_one_and_one_that_always_ties_half():
    differences = [100, -50, 30, -10]
    assert 0.98 < length_controlled([1.0] * 4, differences, seed=0)["value"] < 1
    assert values(length_controlled([0.5] * 4, differences, seed=0), "value", "low", "high") == [0.5] * 3


@pytest.mark.parametrize(
    ("preferences", "differences", "reason"),
    [
        ([], [], "no prompt is decided"),
        ([1.0, 0.0], [10, 200], "one model is longer at every prompt, so equal length is never seen"),
        ([1.0, 0.0], [-10, -10], "one model is longer at every prompt, so equal length is never seen"),
    ],
)
def test_where_nothing_can_be_said_there_is_a_reason(preferences, differences, reason):
    assert length_controlled(preferences, differences, seed=0) == {
        "value": None,
        "low": None,
        "high": None,
        "n": len(preferences),
        "reason": reason,
        "length_coefficient": None,
    }


def test_one_prompt_has_no_interval():
    found = length_controlled([1.0, 0.5], [10, -10], seed=0, clusters=["p", "p"])
    assert values(found, "low", "high", "reason") == [None, None, "one prompt gives no interval"]
    assert found["value"] > 0.5


def test_lists_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match="2 preferences and 1 differences"):
        length_controlled([1.0, 0.0], [3], seed=0)
