"""Preference pairs: which two completions of a prompt the next policy learns from.

Everything is joined by key. A completion finds its prompt by `prompt_id` and its reward by
`completion_id`, so the order in which records arrive changes nothing.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Literal, NamedTuple

import numpy as np

from selfalign.records import Completion, PreferencePair, Prompt, content_id

Strategy = Literal["best_worst", "best_random", "all"]
_SUMS = ("chosen_chars", "rejected_chars", "chosen_tokens", "rejected_tokens", "chosen_longer")


@dataclass(frozen=True)
class PairSelection:
    """The pairs, and the prompts that gave none."""

    pairs: list[PreferencePair]
    """In the order of the prompts; within a prompt by reward of the chosen, then of the rejected, highest
    first, equal rewards by sample number."""
    dropped: Counter[str]
    """Prompts without a pair, by the reasons that `make_pairs` lists. Together with the prompts that have
    a pair these are all prompts."""


class _Candidate(NamedTuple):
    """A completion that can stand in a pair."""

    reward: float
    sample: int
    completion_id: str
    text: str
    num_tokens: int


def make_pairs(
    prompts: Iterable[Prompt],
    completions: Iterable[Completion],
    rewards: Mapping[str, float | None],
    *,
    strategy: Strategy,
    min_margin: float,
    keep_truncated: bool,
    seed: int,
    near_best: float = 0.0,
) -> PairSelection:
    """Pair completions of the same prompt, the one with the higher reward as chosen.

    A completion takes part if it is finished (reason "stop"), its text is not blank and its reward is not
    `None`. Of these the strategy selects: `best_worst` the highest against the lowest reward;
    `best_random` the highest against one drawn from all lower ones; `all` every two of unequal reward. Where
    several share the highest or lowest reward, the lowest sample number stands for them. A selected pair is
    then kept if its texts differ and its margin is large enough; no other pair replaces it.

    A prompt without a pair is counted once, under the first of these that holds: `no_completions`,
    `fewer_than_two_finished`, `fewer_than_two_scored`, `equal_rewards`, `identical_texts`, `small_margin`.

    Args:
        prompts: Each id once.
        completions: Of these prompts, in any order.
        rewards: Reward of every completion by `completion_id`; `None` is unscored.
        strategy: Which completions to pair.
        min_margin: Smallest margin of a pair, in points of reward, inclusive. The margin must be above 0 in
            any case.
        keep_truncated: Whether completions cut off by the token limit take part too.
        seed: Of the draw in `best_random`, which depends on it and the prompt's id alone.
        near_best: Points of reward below the highest within which the completion of the fewest tokens is
            chosen, as long as it is above the lowest; not for `all`.

    Raises:
        ValueError: An id, or a sample number of a prompt, occurs twice; a completion's prompt is unknown; or
            `rewards` does not know a completion.

    Source: 2401.10020, section 2.3 (best against worst, equal rewards discarded). The rest is our choice,
    because identical, unscored or cut-off texts say nothing about what is preferred.
    """
    prompts = list(prompts)
    by_prompt = _by_prompt(prompts, completions, rewards)
    finish_reasons = {"stop", "length"} if keep_truncated else {"stop"}
    pairs: list[PreferencePair] = []
    dropped: Counter[str] = Counter()
    for prompt in prompts:
        completed = by_prompt[prompt.prompt_id]
        finished = [(c, c.text) for c in completed if c.text and c.text.strip()]
        finished = [(c, text) for c, text in finished if c.finish_reason in finish_reasons]
        scored = [
            _Candidate(reward, c.sample, c.completion_id, text, c.num_tokens)
            for c, text in finished
            if (reward := rewards[c.completion_id]) is not None
        ]
        selected = _select(scored, strategy, near_best, draw=int(content_id(str(seed), prompt.prompt_id), 16))
        different = [(chosen, rejected) for chosen, rejected in selected if chosen.text != rejected.text]
        kept = [pair for pair in different if pair[0].reward - pair[1].reward >= min_margin]
        pairs += [_pair(prompt, chosen, rejected) for chosen, rejected in kept]
        if not kept:
            steps = {
                "no_completions": completed,
                "fewer_than_two_finished": finished[1:],
                "fewer_than_two_scored": scored[1:],
                "equal_rewards": selected,
                "identical_texts": different,
                "small_margin": kept,
            }
            dropped[next(reason for reason, left in steps.items() if not left)] += 1
    return PairSelection(pairs, dropped)


class PairFigures:
    """Figures of pairs, taken as the pairs are made; of each nothing but its margin is kept.

    Source: our choice, because answers that grow every iteration show first in the lengths of the pairs.
    """

    def __init__(self) -> None:
        """Begin with no pairs."""
        self.pairs = 0
        self.dropped: Counter[str] = Counter()
        self._margins = array("d")
        self._sums = dict.fromkeys(_SUMS, 0)

    @property
    def tokens(self) -> int:
        """Return the tokens of both sides of all pairs."""
        return self._sums["chosen_tokens"] + self._sums["rejected_tokens"]

    def add(self, selection: PairSelection) -> None:
        """Take in the pairs and dropped prompts of one prompt or more."""
        self.dropped.update(selection.dropped)
        self.pairs += len(selection.pairs)
        for pair in selection.pairs:
            if pair.margin is not None:
                self._margins.append(pair.margin)
            self._sums["chosen_chars"] += len(pair.chosen)
            self._sums["rejected_chars"] += len(pair.rejected)
            self._sums["chosen_tokens"] += pair.chosen_tokens
            self._sums["rejected_tokens"] += pair.rejected_tokens
            self._sums["chosen_longer"] += len(pair.chosen) > len(pair.rejected)

    def health(self) -> dict[str, object]:
        """Return the figures, JSON-ready; see `pair_health`."""
        means = {name: total / self.pairs if self.pairs else None for name, total in self._sums.items()}
        longer = means.pop("chosen_longer")
        return {
            "pairs": self.pairs,
            "dropped": dict(sorted(self.dropped.items())),
            "mean_margin": fmean(self._margins) if self._margins else None,
            "median_margin": float(np.median(self._margins)) if self._margins else None,
            **{f"mean_{name}": mean for name, mean in means.items()},
            "chosen_longer": longer,
        }


def pair_health(pairs: Sequence[PreferencePair], dropped: Mapping[str, int]) -> dict[str, object]:
    """Summarise the pairs of an iteration, JSON-ready.

    Margins are in points of reward, lengths in characters or tokens. `chosen_longer` is the share of pairs
    whose chosen text has more characters than the rejected one; equal lengths are not longer. Means, median
    and share are `None` without pairs.
    """
    figures = PairFigures()
    figures.add(PairSelection(list(pairs), Counter(dropped)))
    return figures.health()


def _by_prompt(
    prompts: Sequence[Prompt], completions: Iterable[Completion], rewards: Mapping[str, float | None]
) -> dict[str, list[Completion]]:
    """Return the completions of each prompt in the order of their sample numbers."""
    samples: dict[str, dict[int, Completion]] = {}
    for prompt in prompts:
        if prompt.prompt_id in samples:
            raise ValueError(f"prompt {prompt.prompt_id} occurs twice")
        samples[prompt.prompt_id] = {}
    seen: set[str] = set()
    for completion in completions:
        name = f"completion {completion.completion_id}"
        if completion.completion_id in seen:
            raise ValueError(f"{name} occurs twice")
        if completion.prompt_id not in samples:
            raise ValueError(f"{name} belongs to prompt {completion.prompt_id}, which is unknown")
        if completion.sample in samples[completion.prompt_id]:
            raise ValueError(f"{name} is the second sample {completion.sample} of {completion.prompt_id}")
        if completion.completion_id not in rewards:
            raise ValueError(f"{name} has no entry in the rewards; an unscored one has the entry None")
        seen.add(completion.completion_id)
        samples[completion.prompt_id][completion.sample] = completion
    return {prompt_id: [of[sample] for sample in sorted(of)] for prompt_id, of in samples.items()}


def _select(
    candidates: Sequence[_Candidate], strategy: Strategy, near_best: float, draw: int
) -> list[tuple[_Candidate, _Candidate]]:
    """Return the (chosen, rejected) that the strategy selects; none where all rewards are equal."""
    ranked = sorted(candidates, key=lambda candidate: (-candidate.reward, candidate.sample))
    ordered = [(high, low) for high, low in combinations(ranked, 2) if high.reward > low.reward]
    if strategy == "all" or not ordered:
        return ordered
    best, worst = ranked[0].reward, ranked[-1].reward
    near = [c for c in ranked if c.reward > worst and c.reward >= best - near_best]
    chosen = min(near, key=lambda c: c.num_tokens) if near_best else ranked[0]
    if strategy == "best_worst":
        return [(chosen, min(candidates, key=lambda candidate: (candidate.reward, candidate.sample)))]
    lower = [low for low in ranked if low.reward < chosen.reward]
    return [(chosen, lower[draw % len(lower)])]


def charge_length(
    rewards: Mapping[str, float | None], completions: Iterable[Completion], cost: float
) -> dict[str, float | None]:
    """Return the rewards less what the length of each completion costs; unscored stays unscored.

    Args:
        rewards: Of every completion, by `completion_id`.
        completions: In any order.
        cost: Points of reward a token.

    Source: our choice, because a judge that favours length makes answers grow with every iteration.
    """
    tokens = {completion.completion_id: completion.num_tokens for completion in completions}
    return {
        name: None if reward is None else reward - cost * tokens[name] for name, reward in rewards.items()
    }


def _pair(prompt: Prompt, chosen: _Candidate, rejected: _Candidate) -> PreferencePair:
    """Return the record of a pair."""
    return PreferencePair(
        pair_id=content_id(chosen.completion_id, rejected.completion_id),
        prompt_id=prompt.prompt_id,
        messages=prompt.messages,
        chosen_id=chosen.completion_id,
        rejected_id=rejected.completion_id,
        chosen=chosen.text,
        rejected=rejected.text,
        reward_chosen=chosen.reward,
        reward_rejected=rejected.reward,
        margin=chosen.reward - rejected.reward,
        chosen_tokens=chosen.num_tokens,
        rejected_tokens=rejected.num_tokens,
    )
