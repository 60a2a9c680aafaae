"""How well a judge's rewards follow the human order of replies, beside how well plain length does.

A pair is two replies of a prompt, one of which people preferred; human ties are no pairs. What can't be
defined is `None` with a reason. Intervals are percentile bootstrap intervals (95 %) over prompts,
because the replies of a prompt are not independent of each other.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import TypedDict

from selfalign.records import RankedPrompt

# Each measure with the reason for having no value. The value is a sum over prompts divided by another one.
_UNDEFINED = {
    "pairwise_accuracy": "no pair has two scored replies",
    "pairwise_accuracy_longer_better": "no scored pair has the longer reply as the better",
    "pairwise_accuracy_longer_worse": "no scored pair has the longer reply as the worse",
    "tie_rate": "no pair has two scored replies",
    "five_best": "no reply has the perfect reward",
    "exact_match": "no prompt has all replies scored",
    "spearman": "rewards or ranks are constant in every prompt",
    "kendall_tau_b": "rewards or ranks are constant in every prompt",
}
MEASURES = tuple(_UNDEFINED)


class Measure(TypedDict):
    """A measure with its interval, JSON-ready."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Units behind the value: pairs, replies or prompts."""
    reason: str | None
    """Why value or interval is `None`; `None` where both are there."""


def judge_quality(
    ranked: Sequence[RankedPrompt],
    rewards: Mapping[str, float | None],
    *,
    parse_rate: float | None,
    perfect: float = 5.0,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the agreement of a judge with people on human-ranked replies.

    The result has a `Measure` under each name of `MEASURES`:

    - `pairwise_accuracy`: share of pairs in which the preferred reply has the higher reward; an equal
      reward is wrong. Units are pairs whose replies are both scored.
    - `pairwise_accuracy_longer_better`, `..._longer_worse`: the same over the pairs whose preferred reply
      has more, or fewer, characters than the other; equal lengths are in neither.
    - `tie_rate`: share of pairs with equal rewards.
    - `five_best`: of the replies with the perfect reward, the share that people ranked best.
    - `exact_match`: share of prompts whose every pair is right, among those whose replies are all scored.
    - `spearman`, `kendall_tau_b`: mean over prompts of the correlation of rewards and human order, -1 to 1,
      over scored replies, where neither is constant.

    Beside them stand `parse_rate` as given, and the counts `prompts` (measured), `prompts_tied` (left out of
    everything, because people tied all replies), `prompts_undefined` (without correlations), `pairs` (all)
    and `pairs_unscored` (left out, because a reply is unscored).

    Args:
        ranked: Prompts with human-ranked replies, in any order.
        rewards: Reward of every reply by `reply_id`; `None` is unscored.
        parse_rate: Share of the judge calls that gave a score; `None` where nothing was parsed.
        perfect: The best reward there is, for `five_best`; only rewards equal to it count.
        bootstrap: Number of resamples, 1 or more.
        seed: Of the resamples.

    Raises:
        KeyError: A reply has no entry in `rewards`.

    Source: 2401.10020, section 3.1.2, for the five measures. Wrong ties, the split by length and the
    intervals are our choice, because a judge that ties or measures length otherwise looks like a good one.
    """
    measured = [prompt for prompt in ranked if len({reply.rank for reply in prompt.replies}) > 1]
    tallies = [_tally(prompt, rewards, perfect) for prompt in sorted(measured, key=lambda p: p.prompt_id)]
    measures = {
        name: _measure([tally[name] for tally in tallies], reason, bootstrap, seed)
        for name, reason in _UNDEFINED.items()
    }
    pairs = sum(int(np.sum(_signs([-reply.rank for reply in prompt.replies]) > 0)) for prompt in measured)
    return {
        **measures,
        "parse_rate": parse_rate,
        "prompts": len(measured),
        "prompts_tied": len(ranked) - len(measured),
        "prompts_undefined": len(measured) - measures["spearman"]["n"],
        "pairs": pairs,
        "pairs_unscored": pairs - measures["pairwise_accuracy"]["n"],
    }


def length_baseline(
    ranked: Sequence[RankedPrompt], *, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return the result of `judge_quality` for a judge whose reward is the length in characters.

    No length is perfect, so `five_best` is undefined, and so is the parse rate.
    """
    lengths = {reply.reply_id: float(len(reply.text)) for prompt in ranked for reply in prompt.replies}
    return judge_quality(ranked, lengths, parse_rate=None, perfect=math.inf, bootstrap=bootstrap, seed=seed)


def no_better_than(judge: Mapping[str, Any], length: Mapping[str, Any]) -> str | None:
    """Say that a judge is not shown to be better than length, by their pairwise accuracies; or `None`."""
    accuracy, baseline = judge["pairwise_accuracy"], length["pairwise_accuracy"]
    if accuracy["value"] is None or baseline["value"] is None:
        return None
    if accuracy["value"] <= baseline["value"]:
        return "pairwise accuracy is not above that of plain length: counting characters would judge as well"
    if accuracy["low"] is None or baseline["high"] is None or accuracy["low"] <= baseline["high"]:
        return "not shown to judge better than plain length: the intervals of their accuracies overlap"
    return None


def paired_difference(
    ranked: Sequence[RankedPrompt],
    rewards_a: Mapping[str, float | None],
    rewards_b: Mapping[str, float | None],
    *,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Measure:
    """Measure how much higher the pairwise accuracy of judge A is than that of judge B.

    Both are taken over the pairs whose replies both judges scored, and in each resample over the same
    prompts, so the interval is narrower than those of two separate accuracies.

    Args:
        ranked: Prompts with human-ranked replies, in any order.
        rewards_a: Rewards of judge A by `reply_id`; `None` is unscored.
        rewards_b: Rewards of judge B.
        bootstrap: Number of resamples, 1 or more.
        seed: Of the resamples.

    Raises:
        KeyError: A reply has no entry in either.

    Source: our choice, because two judges measured on the same prompts err on the same hard ones.
    """
    ids = [reply.reply_id for prompt in ranked for reply in prompt.replies]
    both = {i for i in ids if rewards_a[i] is not None and rewards_b[i] is not None}
    a, b = ({i: rewards[i] if i in both else None for i in ids} for rewards in (rewards_a, rewards_b))
    terms = []
    for prompt in sorted(ranked, key=lambda p: p.prompt_id):
        right_a, pairs = _tally(prompt, a, math.inf)["pairwise_accuracy"]
        right_b, _ = _tally(prompt, b, math.inf)["pairwise_accuracy"]
        terms.append((right_a - right_b, pairs))
    return _measure(terms, "no pair has two replies scored by both judges", bootstrap, seed)


def _tally(
    prompt: RankedPrompt, rewards: Mapping[str, float | None], perfect: float
) -> dict[str, tuple[float, float]]:
    """Return what a prompt adds to numerator and denominator of each measure."""
    scored = [(reply, reward) for reply in prompt.replies if (reward := rewards[reply.reply_id]) is not None]
    human = _signs([-reply.rank for reply, _ in scored])
    judge = _signs([reward for _, reward in scored])
    length = _signs([len(reply.text) for reply, _ in scored])
    # `human` is positive at (i, j) where people preferred i to j: each pair once, the better reply first.
    pairs, right = human > 0, judge > 0
    complete = len(scored) == len(prompt.replies)
    return {
        "pairwise_accuracy": _part(pairs, right),
        "pairwise_accuracy_longer_better": _part(pairs & (length > 0), right),
        "pairwise_accuracy_longer_worse": _part(pairs & (length < 0), right),
        "tie_rate": _part(pairs, judge == 0),
        "five_best": _part(
            np.array([reward == perfect for _, reward in scored], dtype=bool),
            np.array([reply.rank == 0 for reply, _ in scored], dtype=bool),
        ),
        "exact_match": (float(complete and right[pairs].all()), float(complete)),
        # Spearman's rho and Kendall's tau-b are the cosines of row sums of signs, and of signs.
        "spearman": _cosine(human.sum(axis=1), judge.sum(axis=1)),
        "kendall_tau_b": _cosine(human, judge),
    }


def _signs(values: ArrayLike) -> NDArray[np.float64]:
    """Return the signs of values[i] - values[j], shape (n, n)."""
    column = np.asarray(values, dtype=np.float64)
    signs: NDArray[np.float64] = np.sign(column[:, None] - column)
    return signs


def _part(units: NDArray[np.bool_], hits: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the number of units that are hits, and the number of units."""
    return float(np.sum(units & hits)), float(np.sum(units))


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float]:
    """Return the cosine of two arrays and 1, or two zeros where it is undefined."""
    norms = float(np.sum(a**2) * np.sum(b**2))
    return (float(np.sum(a * b)) / math.sqrt(norms), 1.0) if norms > 0 else (0.0, 0.0)


def _measure(terms: Iterable[tuple[float, float]], undefined: str, bootstrap: int, seed: int) -> Measure:
    """Return the ratio of summed numerators and denominators, one of each a prompt, with its interval.

    Resampled are the prompts with a denominator above 0; fewer than two of them give no interval.
    """
    sums = np.array([term for term in terms if term[1] > 0], dtype=float).reshape(-1, 2)
    if len(sums) == 0:
        return Measure(value=None, low=None, high=None, n=0, reason=undefined)
    numerator, n = sums.sum(axis=0)
    value = float(numerator / n)
    if len(sums) == 1:
        return Measure(value=value, low=None, high=None, n=int(n), reason="one prompt gives no interval")
    rng = np.random.default_rng(seed)
    sizes = [min(100, bootstrap - start) for start in range(0, bootstrap, 100)]  # chunks bound the memory
    draws = (rng.integers(len(sums), size=(size, len(sums))) for size in sizes)
    resampled = np.concatenate([sums[drawn].sum(axis=1) for drawn in draws])
    low, high = np.percentile(resampled[:, 0] / resampled[:, 1], [2.5, 97.5])
    return Measure(value=value, low=float(low), high=float(high), n=int(n), reason=None)
