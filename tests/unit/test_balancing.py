from collections import Counter

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata

from selfalign.balancing import balance_lengths, balance_scores, score_counts
from selfalign.records import Message, SFTExample, content_id


def example(number: int, score: int | None) -> SFTExample:
    return SFTExample(
        example_id=content_id(str(number)),
        prompt_id="p",
        messages=(Message(role="user", content="judge"),),
        completion=f"Score: {score}",
        kind="eft",
        score=score,
        reply_id=f"reply {number}",
        source="test",
    )


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({4: 10, 5: 3, 0: 1}, {"0": 1, "4": 3, "5": 3}),
        ({4: 10}, {"4": 10}),
        ({4: 5, 3: 5, 1: 1}, {"1": 1, "3": 5, "4": 5}),
        ({2: 7, 3: 1}, {"2": 1, "3": 1}),
        ({}, {}),
    ],
)
def test_only_the_most_common_score_is_sampled_down(counts: dict[int, int], expected: dict[str, int]) -> None:
    scores = [score for score, count in counts.items() for _ in range(count)]
    examples = [example(number, score) for number, score in enumerate(scores)]
    kept, dropped = balance_scores(examples, seed=0)
    assert score_counts(kept) == expected
    assert len(kept) + dropped.total() == len(examples)
    assert kept == [e for e in examples if e in kept]
    assert set(dropped) <= {"score_balance"}


def test_which_examples_go_depends_on_the_seed_and_not_on_the_order() -> None:
    examples = [example(number, 4 if number < 30 else 5) for number in range(40)]

    def ids(examples: list[SFTExample], seed: int) -> set[str]:
        return {e.example_id for e in balance_scores(examples, seed=seed)[0]}

    assert ids(examples, 0) == ids(examples[::-1], 0) != ids(examples, 1)


def correlation(examples: list[SFTExample], kept: list[SFTExample], lengths: dict[str, int]) -> float:
    """Pearson of score and of the rank that the length had among all examples."""
    ranks = rankdata([lengths[str(e.reply_id)] for e in examples])
    by_reply = {e.reply_id: rank for e, rank in zip(examples, ranks, strict=True)}
    return float(pearsonr([e.score for e in kept], [by_reply[e.reply_id] for e in kept]).statistic)


def length_biased(count: int, strength: float) -> tuple[list[SFTExample], dict[str, int]]:
    rng = np.random.default_rng(3)
    lengths = {f"reply {number}": int(length) for number, length in enumerate(rng.integers(1, 2000, count))}
    noise = rng.normal(0, 600, count)
    scores = [
        int(np.clip((strength * n + e) / 400, 0, 5)) for n, e in zip(lengths.values(), noise, strict=True)
    ]
    return [example(number, score) for number, score in enumerate(scores)], lengths


def test_lengths_are_balanced_to_the_bound_and_most_examples_stay() -> None:
    examples, lengths = length_biased(3000, strength=0.5)
    assert correlation(examples, examples, lengths) > 0.3
    kept, dropped = balance_lengths(examples, lengths, bound=0.02)
    assert abs(correlation(examples, kept, lengths)) <= 0.02
    assert 1500 < len(kept) == 3000 - dropped["length_balance"]
    ids = {e.example_id for e in kept}
    assert kept == [e for e in examples if e.example_id in ids]


def test_each_step_drops_the_example_that_helps_most() -> None:
    examples, lengths = length_biased(25, strength=1.0)
    left = list(examples)
    while abs(correlation(examples, left, lengths)) > 0.1:
        options = [[e for e in left if e is not gone] for gone in left]
        left = min(options, key=lambda option: abs(correlation(examples, option, lengths)))
    kept, _ = balance_lengths(examples, lengths, bound=0.1)
    assert 4 <= len(kept) < 25
    assert kept == left


def test_what_is_dropped_for_length_does_not_depend_on_the_order() -> None:
    examples, lengths = length_biased(200, strength=0.5)
    shuffled = [examples[index] for index in np.random.default_rng(0).permutation(len(examples))]
    kept, _ = balance_lengths(examples, lengths, bound=0.02)
    shuffled_kept, _ = balance_lengths(shuffled, lengths, bound=0.02)
    assert {e.example_id for e in kept} == {e.example_id for e in shuffled_kept}


@pytest.mark.parametrize(
    ("scores", "lengths"),
    [
        ([], []),
        ([3], [10]),
        ([1, 2, 3], [1, 2, 3]),
        ([4, 4, 4, 4, 4], [1, 2, 3, 4, 5]),
        ([1, 2, 3, 4, 5], [7, 7, 7, 7, 7]),
        ([1, 2, 1, 2], [1, 1, 2, 2]),
    ],
)
def test_few_constant_or_balanced_examples_stay_whole(scores: list[int], lengths: list[int]) -> None:
    examples = [example(number, score) for number, score in enumerate(scores)]
    by_reply = {f"reply {number}": length for number, length in enumerate(lengths)}
    assert balance_lengths(examples, by_reply, bound=0.02) == (examples, Counter())


def test_balancing_lengths_never_empties() -> None:
    examples = [example(number, number) for number in range(6)]
    kept, dropped = balance_lengths(examples, {f"reply {number}": number for number in range(6)}, bound=0.02)
    assert (len(kept), dropped) == (3, {"length_balance": 3})


def test_score_counts_are_in_order_of_score_and_need_a_score() -> None:
    assert list(score_counts([example(0, 4), example(1, 0), example(2, 4)]).items()) == [("0", 1), ("4", 2)]
    with pytest.raises(ValueError, match="states no score"):
        score_counts([example(0, None)])
