from collections import Counter
from itertools import combinations
from statistics import fmean, median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfalign.pairs import PairFigures, PairSelection, Strategy, charge_length, make_pairs, pair_health
from selfalign.records import Completion, FinishReason, Message, Prompt, content_id

STRATEGIES: tuple[Strategy, ...] = ("best_worst", "best_random", "all")


def prompt_of(text: str) -> Prompt:
    return Prompt.of([Message(role="user", content=text)], source="test")


def completion_of(
    prompt: Prompt, sample: int, text: str | None = None, finish_reason: FinishReason = "stop"
) -> Completion:
    return Completion(
        completion_id=content_id(prompt.prompt_id, str(sample)),
        prompt_id=prompt.prompt_id,
        sample=sample,
        text=f"answer {sample} to {prompt.prompt_id}" if text is None else text,
        finish_reason=finish_reason,
        num_tokens=10 + sample,
    )


def select(
    prompts: list[Prompt],
    completions: list[Completion],
    rewards: list[float | None],
    *,
    strategy: Strategy = "best_worst",
    min_margin: float = 0.0,
    keep_truncated: bool = False,
    seed: int = 0,
    near_best: float = 0.0,
) -> PairSelection:
    by_id = {c.completion_id: reward for c, reward in zip(completions, rewards, strict=True)}
    return make_pairs(
        prompts,
        completions,
        by_id,
        strategy=strategy,
        min_margin=min_margin,
        keep_truncated=keep_truncated,
        seed=seed,
        near_best=near_best,
    )


def samples_of_pairs(
    rewards: list[float | None], strategy: Strategy, min_margin: float = 0.0, seed: int = 0
) -> list[tuple[int, int]]:
    """The (chosen, rejected) sample numbers for one prompt with these rewards."""
    prompt = prompt_of("one")
    completions = [completion_of(prompt, sample) for sample in range(len(rewards))]
    number = {c.completion_id: c.sample for c in completions}
    selection = select([prompt], completions, rewards, strategy=strategy, min_margin=min_margin, seed=seed)
    return [(number[pair.chosen_id], number[pair.rejected_id]) for pair in selection.pairs]


@pytest.mark.parametrize("count", [10, 11, 500, 4000])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_pair_crosses_prompts_however_many_there_are(count: int, strategy: Strategy) -> None:
    rng = np.random.default_rng(count)
    prompts = [prompt_of(f"question {number}") for number in range(count)]
    completions = [completion_of(prompt, sample) for prompt in prompts for sample in range(4)]
    completions = [completions[index] for index in rng.permutation(len(completions))]
    rewards: list[float | None] = [float(c.sample) for c in completions]
    prompts = [prompts[index] for index in rng.permutation(count)]
    selection = select(prompts, completions, rewards, strategy=strategy)
    messages = {prompt.prompt_id: prompt.messages for prompt in prompts}
    for pair in selection.pairs:
        assert pair.chosen.endswith(f" to {pair.prompt_id}")
        assert pair.rejected.endswith(f" to {pair.prompt_id}")
        assert pair.messages == messages[pair.prompt_id]
    per_prompt = 6 if strategy == "all" else 1
    order = [pair.prompt_id for pair in selection.pairs]
    assert order == [prompt.prompt_id for prompt in prompts for _ in range(per_prompt)]


def test_a_pair_carries_everything_about_its_two_completions() -> None:
    prompt = prompt_of("one")
    low, high = completion_of(prompt, 0, "low"), completion_of(prompt, 1, "high")
    (pair,) = select([prompt], [low, high], [1.0, 3.5]).pairs
    assert pair.model_dump(exclude={"messages"}) == {
        "pair_id": content_id(high.completion_id, low.completion_id),
        "prompt_id": prompt.prompt_id,
        "chosen_id": high.completion_id,
        "rejected_id": low.completion_id,
        "chosen": "high",
        "rejected": "low",
        "reward_chosen": 3.5,
        "reward_rejected": 1.0,
        "margin": 2.5,
        "chosen_tokens": 11,
        "rejected_tokens": 10,
        "weight": 1.0,
        "contrast_id": None,
    }


@pytest.mark.parametrize(
    ("rewards", "strategy", "expected"),
    [
        ([1, 4, 2, 3], "best_worst", [(1, 0)]),
        ([2, 5, 5, 2], "best_worst", [(1, 0)]),
        ([None, 5, 4, None], "best_worst", [(1, 2)]),
        ([3, 3, 3, 3], "best_worst", []),
        ([1, 3, 2], "all", [(1, 2), (1, 0), (2, 0)]),
        ([3, 3, 1], "all", [(0, 2), (1, 2)]),
        ([3, 3, 3], "all", []),
        ([5, 5, 1], "best_random", [(0, 2)]),
        ([2, 2], "best_random", []),
    ],
)
def test_strategies_select_by_hand(
    rewards: list[float | None], strategy: Strategy, expected: list[tuple[int, int]]
) -> None:
    assert samples_of_pairs(rewards, strategy) == expected


def test_best_random_draws_every_lower_one_and_no_other() -> None:
    drawn = Counter(samples_of_pairs([1, 5, 2, 5, 3], "best_random", seed=seed)[0] for seed in range(300))
    assert set(drawn) == {(1, 0), (1, 2), (1, 4)}
    assert min(drawn.values()) > 60


def test_best_random_draws_differently_for_different_prompts_under_one_seed() -> None:
    prompts = [prompt_of(f"question {number}") for number in range(60)]
    completions = [completion_of(prompt, sample) for prompt in prompts for sample in range(4)]
    rewards: list[float | None] = [float(c.sample) for c in completions]
    pairs = select(prompts, completions, rewards, strategy="best_random").pairs
    assert {pair.reward_rejected for pair in pairs} == {0.0, 1.0, 2.0}


def test_min_margin_is_inclusive() -> None:
    assert samples_of_pairs([1, 2, 4], "all", min_margin=2) == [(2, 1), (2, 0)]
    assert samples_of_pairs([1, 2, 4], "best_worst", min_margin=3) == [(2, 0)]
    assert samples_of_pairs([1, 2, 4], "best_worst", min_margin=3.01) == []


def test_a_negative_min_margin_admits_no_equal_rewards() -> None:
    assert samples_of_pairs([2, 2], "all", min_margin=-1) == []


def test_truncated_completions_take_part_only_if_asked_for() -> None:
    prompt = prompt_of("one")
    completions = [
        completion_of(prompt, 0),
        completion_of(prompt, 1, finish_reason="length"),
        completion_of(prompt, 2),
    ]
    rewards: list[float | None] = [1.0, 5.0, 2.0]
    (without,) = select([prompt], completions, rewards).pairs
    (with_truncated,) = select([prompt], completions, rewards, keep_truncated=True).pairs
    assert without.chosen_id == completions[2].completion_id
    assert with_truncated.chosen_id == completions[1].completion_id


@pytest.mark.parametrize(
    ("reason", "completed", "rewards"),
    [
        ("no_completions", [], []),
        ("fewer_than_two_finished", [("a", "stop")], [1]),
        ("fewer_than_two_finished", [("a", "stop"), ("b", "length")], [1, 2]),
        ("fewer_than_two_finished", [("a", "stop"), (" \n", "stop")], [1, 2]),
        ("fewer_than_two_scored", [("a", "stop"), ("b", "stop")], [1, None]),
        ("equal_rewards", [("a", "stop"), ("b", "stop")], [2, 2]),
        ("identical_texts", [("a", "stop"), ("a", "stop")], [1, 2]),
        ("small_margin", [("a", "stop"), ("b", "stop")], [1, 1.4]),
    ],
)
def test_every_reason_for_giving_no_pair(
    reason: str, completed: list[tuple[str, FinishReason]], rewards: list[float | None]
) -> None:
    prompt = prompt_of("one")
    completions = [completion_of(prompt, n, text, finish) for n, (text, finish) in enumerate(completed)]
    for strategy in STRATEGIES:
        selection = select([prompt], completions, rewards, strategy=strategy, min_margin=0.5)
        assert selection == PairSelection([], Counter({reason: 1}))


def test_a_completion_without_text_is_not_finished() -> None:
    prompt = prompt_of("one")
    nothing = Completion(
        completion_id="nothing",
        prompt_id=prompt.prompt_id,
        sample=1,
        text=None,
        finish_reason="prompt_too_long",
        num_tokens=0,
    )
    selection = select([prompt], [completion_of(prompt, 0), nothing], [1, None], keep_truncated=True)
    assert selection.dropped == {"fewer_than_two_finished": 1}


def test_unscored_is_never_the_worst() -> None:
    assert samples_of_pairs([None, 3, 4], "best_worst") == [(2, 1)]
    assert samples_of_pairs([None, 0, None], "all") == []


def test_what_cannot_be_joined_is_refused() -> None:
    prompt, other = prompt_of("one"), prompt_of("other")
    first, second = completion_of(prompt, 0), completion_of(prompt, 1)
    with pytest.raises(ValueError, match=f"{first.completion_id} belongs to prompt {prompt.prompt_id}"):
        select([other], [first], [1])
    with pytest.raises(ValueError, match=f"{first.completion_id} occurs twice"):
        select([prompt], [first, first], [1, 1])
    with pytest.raises(ValueError, match="twin is the second sample 1"):
        select([prompt], [second, second.model_copy(update={"completion_id": "twin"})], [1, 1])
    with pytest.raises(ValueError, match=f"prompt {prompt.prompt_id} occurs twice"):
        select([prompt, prompt], [first], [1])


def test_a_completion_missing_from_the_rewards_is_refused_even_if_unfinished() -> None:
    prompt = prompt_of("one")
    cut = completion_of(prompt, 0, finish_reason="length")
    with pytest.raises(ValueError, match=f"{cut.completion_id} has no entry"):
        make_pairs([prompt], [cut], {}, strategy="all", min_margin=0, keep_truncated=False, seed=0)


candidates = st.tuples(
    st.sampled_from([None, 0.0, 1.0, 1.5, 5.0]), st.sampled_from("abc "), st.sampled_from(["stop", "length"])
)


@given(
    groups=st.lists(st.lists(candidates, max_size=5), max_size=6),
    strategy=st.sampled_from(STRATEGIES),
    keep_truncated=st.booleans(),
    min_margin=st.sampled_from([0.0, 0.5, 1.0]),
    data=st.data(),
)
def test_order_is_irrelevant_pairs_are_valid_and_prompts_add_up(
    groups: list[list[tuple[float | None, str, FinishReason]]],
    strategy: Strategy,
    keep_truncated: bool,
    min_margin: float,
    data: st.DataObject,
) -> None:
    prompts = [prompt_of(f"question {number}") for number in range(len(groups))]
    completions, rewards = [], {}
    for prompt, group in zip(prompts, groups, strict=True):
        for sample, (reward, text, finish_reason) in enumerate(group):
            completions.append(completion_of(prompt, sample, text, finish_reason))
            rewards[completions[-1].completion_id] = reward

    def run(prompts: list[Prompt], completions: list[Completion]) -> PairSelection:
        return make_pairs(
            prompts,
            completions,
            rewards,
            strategy=strategy,
            min_margin=min_margin,
            keep_truncated=keep_truncated,
            seed=7,
        )

    selection = run(prompts, completions)
    assert run(prompts, data.draw(st.permutations(completions))) == selection
    shuffled = run(data.draw(st.permutations(prompts)), completions)
    assert shuffled.dropped == selection.dropped
    assert {pair.pair_id: pair for pair in shuffled.pairs} == {pair.pair_id: pair for pair in selection.pairs}

    with_pairs = {pair.prompt_id for pair in selection.pairs}
    assert len(with_pairs) + selection.dropped.total() == len(prompts)
    assert len({pair.pair_id for pair in selection.pairs}) == len(selection.pairs)
    by_id = {c.completion_id: c for c in completions}
    for pair in selection.pairs:
        assert by_id[pair.chosen_id].prompt_id == by_id[pair.rejected_id].prompt_id == pair.prompt_id
        assert pair.margin > 0
        assert pair.margin >= min_margin
        assert pair.chosen != pair.rejected
        assert keep_truncated or {
            by_id[pair.chosen_id].finish_reason,
            by_id[pair.rejected_id].finish_reason,
        } == {"stop"}


@given(rewards=st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), min_size=2, max_size=6))
def test_all_is_every_strictly_ordered_pair(rewards: list[float]) -> None:
    expected = sum(a != b for a, b in combinations(rewards, 2))
    pairs = samples_of_pairs(list(rewards), "all")
    assert len(set(pairs)) == len(pairs) == expected
    assert all(rewards[chosen] > rewards[rejected] for chosen, rejected in pairs)


def test_health_by_hand() -> None:
    """Margins 1, 7, 6 of one prompt with texts of 4, 2 and 3 characters and 10, 11, 12 tokens."""
    prompt = prompt_of("one")
    texts = ["four", "tw", "thr"]
    completions = [completion_of(prompt, sample, text) for sample, text in enumerate(texts)]
    selection = select([prompt], completions, [7, 6, 0], strategy="all")
    assert [(pair.chosen, pair.rejected) for pair in selection.pairs] == [
        ("four", "tw"),
        ("four", "thr"),
        ("tw", "thr"),
    ]
    assert pair_health(selection.pairs, Counter(small_margin=2, equal_rewards=1)) == {
        "pairs": 3,
        "dropped": {"equal_rewards": 1, "small_margin": 2},
        "mean_margin": pytest.approx(14 / 3),
        "median_margin": 6,
        "mean_chosen_chars": pytest.approx(10 / 3),
        "mean_rejected_chars": pytest.approx(8 / 3),
        "mean_chosen_tokens": pytest.approx(31 / 3),
        "mean_rejected_tokens": pytest.approx(35 / 3),
        "chosen_longer": pytest.approx(2 / 3),
    }


def test_health_of_no_pairs_is_undefined_not_zero() -> None:
    health = pair_health([], Counter(equal_rewards=3))
    assert health.pop("pairs") == 0
    assert health.pop("dropped") == {"equal_rewards": 3}
    assert set(health.values()) == {None}


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, 1.3, 2.5, 5.0]), max_size=4), max_size=8))
def test_figures_taken_prompt_by_prompt_are_those_of_all_pairs(groups: list[list[float]]) -> None:
    """The oracle takes mean and median of lists."""
    figures, pairs, dropped = PairFigures(), [], Counter[str]()
    for number, rewards in enumerate(groups):
        prompt = prompt_of(f"question {number}")
        completions = [
            completion_of(prompt, sample, "x" * (7 * sample % 4)) for sample in range(len(rewards))
        ]
        selection = select([prompt], completions, list(rewards), strategy="all")
        figures.add(selection)
        pairs += selection.pairs
        dropped += selection.dropped
    found = figures.health()
    assert found == pair_health(pairs, dropped)
    assert (found["pairs"], found["dropped"]) == (len(pairs), dropped)
    assert figures.tokens == sum(pair.chosen_tokens + pair.rejected_tokens for pair in pairs)
    margins = [pair.margin for pair in pairs if pair.margin is not None]
    assert found["mean_margin"] == (fmean(margins) if pairs else None)
    assert found["median_margin"] == (median(margins) if pairs else None)
    lengths = [len(pair.rejected) for pair in pairs]
    assert found["mean_rejected_chars"] == (fmean(lengths) if pairs else None)


@pytest.mark.parametrize(
    ("rewards", "near_best", "expected"),
    [
        ([3.0, 5.0, 4.0, 1.0], 0.0, (1, 3)),
        ([3.0, 5.0, 4.0, 1.0], 1.0, (1, 3)),  # 5 has fewer tokens than 4
        ([4.0, 3.0, 5.0, 1.0], 1.0, (0, 3)),
        ([4.0, 3.0, 5.0, 1.0], 0.5, (2, 3)),
        ([4.0, 5.0, None, 4.0], 1.0, (1, 0)),  # the lowest reward is never chosen
    ],
)
@pytest.mark.parametrize("strategy", ["best_worst", "best_random"])
def test_the_shortest_near_the_best_is_chosen(
    rewards: list[float | None], near_best: float, expected: tuple[int, int], strategy: Strategy
):
    """Sample k of a prompt has 10 + k tokens."""
    prompt = prompt_of("one")
    completions = [completion_of(prompt, sample) for sample in range(4)]
    (pair,) = select([prompt], completions, rewards, strategy=strategy, near_best=near_best).pairs
    sample_of = {completion.completion_id: completion.sample for completion in completions}
    assert sample_of[pair.chosen_id] == expected[0]
    if strategy == "best_worst":
        assert sample_of[pair.rejected_id] == expected[1]
    assert pair.margin is not None
    assert pair.margin > 0


def test_length_is_charged_by_the_token():
    completions = [completion_of(prompt_of("one"), sample) for sample in range(3)]
    ids = [completion.completion_id for completion in completions]
    charged = charge_length(dict(zip(ids, [5.0, None, 2.0], strict=True)), completions, 0.1)
    assert charged == {ids[0]: pytest.approx(4.0), ids[1]: None, ids[2]: pytest.approx(0.8)}
    assert charge_length({ids[0]: 5.0}, completions, 0.0) == {ids[0]: 5.0}
