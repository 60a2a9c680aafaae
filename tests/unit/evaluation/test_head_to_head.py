import json
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfalign.comparing import Comparison
from selfalign.evaluation import length_control
from selfalign.evaluation.head_to_head import Outcome, compared, head_to_head, place_bias, preference_of

OWN = {"own1": "aaaa", "own2": "aa", "own3": ""}
OTHER = {"other1": "b", "other2": "bbb", "other3": "bb"}


@pytest.fixture(scope="module", autouse=True)
def few_resamples():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(length_control, "RESAMPLES", 20)
        yield


def comparison(one_first, one_second, one_id="own1", other_id="other1", prompt_id="p1"):
    return Comparison(
        comparison_id=f"{one_id} {other_id}",
        prompt_id=prompt_id,
        one_id=one_id,
        other_id=other_id,
        one_first=one_first,
        one_second=one_second,
    )


def outcome(prompt_id, preference, length=10, other_length=10, reason="no_answer"):
    return Outcome(
        prompt_id=prompt_id,
        preference=preference,
        reason=reason if preference is None else None,
        length=length,
        other_length=other_length,
    )


@pytest.mark.parametrize(
    ("one_first", "one_second", "hard", "soft"),
    [
        (0.9, 0.7, 1.0, 0.8),
        (0.2, 0.4, 0.0, 0.3),
        (1.0, 0.0, 0.5, 0.5),
        (0.9, 0.3, 0.5, 0.6),
        (0.5, 0.9, 0.5, 0.7),
        (None, 0.9, None, None),
        (0.9, None, None, None),
        (None, None, None, None),
    ],
)
def test_two_orders_make_one_preference(one_first, one_second, hard, soft):
    asked = comparison(one_first, one_second)
    assert preference_of(asked, soft=False) == hard
    assert preference_of(asked, soft=True) == (None if soft is None else pytest.approx(soft))


@pytest.mark.parametrize(
    ("one_first", "one_second", "by_place"),
    [
        (0.9, 0.3, True),
        (0.1, 0.7, True),
        (0.9, 0.7, False),
        (0.2, 0.4, False),
        (0.5, 0.9, False),
        (None, 0.1, False),
    ],
)
def test_a_judge_that_names_one_place_twice_looks_at_the_place(one_first, one_second, by_place):
    assert comparison(one_first, one_second).by_place == by_place


def test_a_judge_that_only_looks_at_the_place_decides_nothing():
    texts = {**OWN, **OTHER, "own3": "bb"}
    rows = [comparison(0.9, 0.1), comparison(0.9, 0.8, "own2", "other2", "p2")]
    same = comparison(0.9, 0.1, "own3", "other3", "p3")
    assert place_bias([*rows, same], texts) == (1, 2)
    assert place_bias([same, comparison(None, 0.1)], texts) == (0, 0)


def test_comparisons_count_for_the_first_model_whichever_way_round_they_are():
    asked = [
        comparison(0.9, 0.8),
        comparison(0.9, 0.8, "other2", "own2", "p2"),
        comparison(None, 0.8, "other3", "own3", "p3"),
        comparison(None, None, "own3", "other3", "p3"),
        comparison(0.8, 0.2, "other2", "own2", "p2"),
    ]
    found = compared(asked, OWN, OTHER)
    assert [(o.prompt_id, o.preference, o.reason, o.length, o.other_length) for o in found] == [
        ("p1", 1.0, None, 4, 1),
        ("p2", 0.0, None, 2, 3),
        ("p3", None, "one_order", 0, 2),
        ("p3", None, "no_answer", 0, 2),
        ("p2", 0.5, None, 2, 3),
    ]


def test_a_comparison_of_other_models_is_refused():
    for ids in (("own1", "own2"), ("other1", "third"), ("third", "own1")):
        with pytest.raises(ValueError, match="is not between these two models"):
            compared([comparison(0.9, 0.9, *ids)], OWN, OTHER)


def test_a_table_by_hand():
    """Two wins, a tie, a loss: (1 + 1 + 0.5 + 0) / 4 = 0.625; the lengths of the decided four alone.

    Lengths (10 + 20 + 30 + 40) / 4 = 25 and (20 + 10 + 40 + 30) / 4 = 25.
    """
    outcomes = [
        outcome("a", 1.0, 10, 20),
        outcome("b", 1.0, 20, 10),
        outcome("c", 0.5, 30, 40),
        outcome("d", 0.0, 40, 30),
        outcome("e", None, 999, 1),
        outcome("f", None, 999, 1, "one_order"),
        outcome("g", None, None, 1, "no_output"),
        outcome("h", None),
    ]
    result = head_to_head(outcomes)
    assert {name: result[name] for name in result if name not in ("win_rate", "length_controlled")} == {
        "wins": 2,
        "ties": 1,
        "losses": 1,
        "undecided": {"no_answer": 2, "no_output": 1, "one_order": 1},
        "mean_length": 25,
        "other_mean_length": 25,
    }
    rate = result["win_rate"]
    assert (rate["value"], rate["n"], rate["reason"]) == (0.625, 4, None)
    assert 0 <= rate["low"] < 0.625 < rate["high"] <= 1
    # Wins and losses are as often longer as shorter, so length takes nothing away.
    assert result["length_controlled"]["value"] == pytest.approx(0.625, abs=0.01)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_judge_that_says_nothing_gives_no_number():
    for outcomes in ([], [outcome("a", None), outcome("b", None)]):
        result = head_to_head(outcomes)
        assert (result["wins"], result["ties"], result["losses"]) == (0, 0, 0)
        assert result["undecided"] == ({"no_answer": 2} if outcomes else {})
        for name in ("win_rate", "length_controlled"):
            assert result[name]["value"] is None
            assert result[name]["n"] == 0
            assert result[name]["reason"] == "no prompt is decided"
        assert result["mean_length"] is None
        assert result["other_mean_length"] is None


def test_several_outcomes_of_a_prompt_are_drawn_together():
    outcomes = [outcome(f"p{i}", 1.0 if i % 3 else 0.0, 10 + i, 25) for i in range(30)]
    once = head_to_head(outcomes)["win_rate"]
    thrice = head_to_head(outcomes * 3)["win_rate"]
    assert thrice["n"] == 90
    assert [thrice[end] for end in ("low", "high")] == pytest.approx([once[end] for end in ("low", "high")])


OUTCOMES = st.lists(
    st.tuples(
        st.integers(0, 6),
        st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1)),
        st.integers(0, 500),
        st.integers(0, 500),
    ),
    max_size=12,
).map(lambda rows: [outcome(f"p{number}", *rest) for number, *rest in rows])


@settings(max_examples=40)
@given(OUTCOMES)
def test_swapping_the_models_mirrors_the_table(outcomes):
    swapped = [
        outcome(o.prompt_id, None if o.preference is None else 1 - o.preference, o.other_length, o.length)
        for o in outcomes
    ]
    one, other = head_to_head(outcomes), head_to_head(swapped)
    assert (one["wins"], one["ties"], one["losses"]) == (other["losses"], other["ties"], other["wins"])
    assert one["undecided"] == other["undecided"]
    assert one["mean_length"] == other["other_mean_length"]
    for name in ("win_rate", "length_controlled"):
        assert one[name]["reason"] == other[name]["reason"]
        for end, opposite in (("value", "value"), ("low", "high"), ("high", "low")):
            if one[name][end] is None:
                assert other[name][opposite] is None
            else:
                assert one[name][end] == pytest.approx(1 - other[name][opposite], abs=1e-4)


@settings(max_examples=40)
@given(OUTCOMES, st.randoms(use_true_random=False))
def test_undecided_outcomes_and_order_change_no_number(outcomes, random):
    result = head_to_head(outcomes)
    sound = [o.preference for o in outcomes if o.preference is not None]
    assert result["win_rate"]["value"] == (pytest.approx(fmean(sound)) if sound else None)
    more = [*outcomes, outcome("p0", None, 400, 3), outcome("new", None)]
    random.shuffle(more)
    again = head_to_head(more)
    assert sum(again.pop("undecided").values()) == sum(result.pop("undecided").values()) + 2
    assert again == result


def test_an_outcome_says_either_who_or_why_not():
    with pytest.raises(ValueError, match="either a preference or a reason"):
        Outcome(prompt_id="p", preference=None, reason=None, length=1, other_length=1)
    with pytest.raises(ValueError, match="either a preference or a reason"):
        Outcome(prompt_id="p", preference=0.5, reason="no_answer", length=1, other_length=1)
    with pytest.raises(ValueError, match="between two texts"):
        outcome("p", 1.0, None, 1)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        outcome("p", 1.5)
