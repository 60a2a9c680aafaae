"""Means with their intervals, and the reason where there is none."""

from collections.abc import Hashable, Sequence

from selfalign.evaluation.bootstrap import mean_interval
from selfalign.evaluation.judge_quality import Measure

ONE_PROMPT = "one prompt gives no interval"


def mean_measure(
    values: Sequence[float], *, undefined: str, seed: int, clusters: Sequence[Hashable] | None = None
) -> Measure:
    """Return the mean of values with its interval over clusters; see `mean_interval`.

    Args:
        values: What to average.
        undefined: The reason if there are none.
        seed: Of the resampling.
        clusters: The prompt of each value. Without it each value stands for a prompt of its own.
    """
    found = mean_interval(values, seed=seed, clusters=clusters)
    reason = undefined if found["value"] is None else ONE_PROMPT if found["low"] is None else None
    return Measure(value=found["value"], low=found["low"], high=found["high"], n=found["n"], reason=reason)
