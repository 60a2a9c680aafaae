from statistics import mean, stdev

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.evaluation.bootstrap import mean_interval

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30)


def test_nothing_has_no_mean_and_one_value_no_interval():
    assert mean_interval([], seed=0) == {"value": None, "low": None, "high": None, "n": 0}
    assert mean_interval([0.0], seed=0) == {"value": 0.0, "low": None, "high": None, "n": 1}


def test_equal_values_have_an_interval_of_no_width():
    assert mean_interval([0.5] * 7, seed=0) == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 7}


@given(NUMBERS, st.integers(0, 2**63 - 1))
def test_the_mean_lies_between_the_values_and_the_interval_too(values, seed):
    found = mean_interval(values, seed=seed)
    assert found["n"] == len(values)
    assert found["value"] == pytest.approx(mean(values), abs=1e-6)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= found["low"] <= found["high"] <= max(values) + slack
    assert mean_interval(values, seed=seed) == found


def test_the_interval_is_that_of_a_mean():
    """Of many values the percentile interval is near mean +- 1.96 standard errors."""
    values = np.random.default_rng(3).normal(2.0, 1.5, 400).tolist()
    found = mean_interval(values, seed=1)
    error = stdev(values) / 20
    assert found["low"] == pytest.approx(mean(values) - 1.96 * error, abs=0.15 * error)
    assert found["high"] == pytest.approx(mean(values) + 1.96 * error, abs=0.15 * error)
    assert mean_interval(values, seed=2) != found


def test_it_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(5)
    intervals = [mean_interval(draw.random(40).tolist(), seed=i) for i in range(200)]
    assert 0.88 <= mean(found["low"] <= 0.5 <= found["high"] for found in intervals) <= 0.99


def test_several_values_of_one_prompt_are_drawn_together():
    """Stating every value three times adds no knowledge, so the interval must not shrink."""
    values = np.random.default_rng(3).random(40).tolist()
    once = mean_interval(values, seed=1)
    thrice = mean_interval(values * 3, seed=1, clusters=[*range(40)] * 3)
    assert thrice["n"] == 120
    assert [thrice[key] for key in ("value", "low", "high")] == pytest.approx(
        [once[key] for key in ("value", "low", "high")]
    )


def test_values_of_a_single_prompt_have_no_interval():
    found = mean_interval([1.0, 2.0], seed=0, clusters=["p", "p"])
    assert found == {"value": 1.5, "low": None, "high": None, "n": 2}
