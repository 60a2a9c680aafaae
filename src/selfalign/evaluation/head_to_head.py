"""Two models on the same prompts: who was better how often, and how much of that is length.

The verdicts come from a judge that compared in both orders. A prompt without a verdict is
counted with its reason and weighs nothing.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from pydantic import Field, NonNegativeInt, model_validator

from selfalign.comparing import Comparison, win_shares
from selfalign.evaluation.length_control import length_controlled
from selfalign.evaluation.means import mean_measure
from selfalign.records import Record


class Outcome(Record):
    """One verdict on a model's completion beside another model's, and the length of both in characters."""

    prompt_id: str
    preference: float | None = Field(ge=0, le=1)
    """How sure the judge is of the model: 1 is a win, 0.5 a tie, 0 a loss; `None` if undecided."""
    reason: str | None
    """Why it is undecided; `None` where it is decided."""
    length: NonNegativeInt | None
    """`None` where the model gave no text."""
    other_length: NonNegativeInt | None

    @model_validator(mode="after")
    def _decided_or_reason(self) -> "Outcome":
        if (self.preference is None) == (self.reason is None):
            raise ValueError("an outcome has either a preference or a reason for having none")
        if self.preference is not None and None in (self.length, self.other_length):
            raise ValueError("a decided outcome is between two texts, so both have a length")
        return self


def preference_of(comparison: Comparison, *, soft: bool) -> float | None:
    """Return how sure a judge is of the one after both orders, in [0, 1]; `None` without two answers.

    Args:
        comparison: Of two completions.
        soft: Return the mean of the two probabilities instead of 1, 0.5 or 0. Where the orders contradict
            each other, a hard preference is a tie, a soft one leans to the surer answer.
    """
    if comparison.one_first is None or comparison.one_second is None:
        return None
    if soft:
        return (comparison.one_first + comparison.one_second) / 2
    return win_shares([comparison])[comparison.one_id]


def compared(
    comparisons: Iterable[Comparison], own: Mapping[str, str], other: Mapping[str, str]
) -> list[Outcome]:
    """Return what the comparisons of two models say of the first.

    Args:
        comparisons: Each between a completion of the first model and one of the other, either way round.
        own: Text of each completion of the first model by `completion_id`.
        other: The same of the other model.

    Returns:
        One outcome a comparison, in order. The reasons are `no_answer` and `one_order` (only one order was
        answered).

    Raises:
        ValueError: A comparison is not between a completion of the one and of the other.
    """
    outcomes = []
    for comparison in comparisons:
        straight = comparison.one_id in own and comparison.other_id in other
        if not straight and not (comparison.other_id in own and comparison.one_id in other):
            raise ValueError(f"comparison {comparison.comparison_id} is not between these two models")
        ids = (comparison.one_id, comparison.other_id)
        own_id, other_id = ids if straight else ids[::-1]
        preference = preference_of(comparison, soft=False)
        answered = comparison.one_first is not None or comparison.one_second is not None
        outcomes.append(
            Outcome(
                prompt_id=comparison.prompt_id,
                preference=preference if preference is None or straight else 1 - preference,
                reason=None if preference is not None else "one_order" if answered else "no_answer",
                length=len(own[own_id]),
                other_length=len(other[other_id]),
            )
        )
    return outcomes


def place_bias(comparisons: Iterable[Comparison], texts: Mapping[str, str]) -> tuple[int, int]:
    """Return how many comparisons of two different texts named one place in both orders, out of how many.

    Args:
        comparisons: Those without two answers are left out.
        texts: Of every completion by `completion_id`.
    """
    asked = [
        row for row in comparisons if row.winner is not None and texts[row.one_id] != texts[row.other_id]
    ]
    return sum(row.by_place for row in asked), len(asked)


def head_to_head(outcomes: Sequence[Outcome], *, seed: int = 0) -> dict[str, Any]:
    """Count the outcomes, and return what they add up to, JSON-ready.

    Several outcomes of a prompt are resampled together. The result
    doesn't depend on the order of the outcomes.

    Args:
        outcomes: Of one model against another.
        seed: Of the resamples.

    Returns:
        `wins`, `ties` and `losses`: preferences above, at and below 0.5. `undecided`: number of the other
        outcomes by reason. `win_rate`: the mean preference, so that a tie counts half, with its interval
        over prompts. `length_controlled`: see there. `mean_length` and `other_mean_length`: characters, over
        the decided outcomes; `None` if there are none.
    """
    ordered = sorted(outcomes, key=lambda outcome: outcome.model_dump_json())
    decided = [
        (outcome.prompt_id, outcome.preference, outcome.length, outcome.other_length)
        for outcome in ordered
        if outcome.preference is not None and outcome.length is not None and outcome.other_length is not None
    ]
    prompts = [prompt for prompt, *_ in decided]
    preferences = [preference for _, preference, _, _ in decided]
    return {
        "wins": sum(preference > 0.5 for preference in preferences),
        "ties": sum(preference == 0.5 for preference in preferences),
        "losses": sum(preference < 0.5 for preference in preferences),
        "undecided": dict(sorted(Counter(o.reason for o in ordered if o.reason is not None).items())),
        "win_rate": mean_measure(preferences, undefined="no prompt is decided", seed=seed, clusters=prompts),
        "length_controlled": length_controlled(
            preferences, [own - other for _, _, own, other in decided], seed=seed, clusters=prompts
        ),
        "mean_length": fmean(own for _, _, own, _ in decided) if decided else None,
        "other_mean_length": fmean(other for *_, other in decided) if decided else None,
    }
