"""Bootstrap intervals of plain means."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000


def mean_interval(
    values: Sequence[float], *, seed: int, clusters: Sequence[Hashable] | None = None
) -> dict[str, Any]:
    """Return the mean with its 95 % percentile interval, JSON-ready.

    Args:
        values: What to average.
        seed: Of the resampling.
        clusters: What each value belongs to, such as its prompt; the values of one are drawn together.
            Without it each value stands for itself.

    Returns:
        `value`, `low`, `high`, and `n`, the number of values. `None` where there is nothing to average;
        `low` and `high` also where there is a single value or cluster.
    """
    if not values:
        return {"value": None, "low": None, "high": None, "n": 0}
    array = np.asarray(values, dtype=np.float64)
    names = {name: place for place, name in enumerate(dict.fromkeys(clusters or range(len(array))))}
    places = np.array([names[name] for name in clusters or range(len(array))])
    sums, counts = np.bincount(places, weights=array), np.bincount(places)
    found: dict[str, Any] = {"value": float(array.mean()), "low": None, "high": None, "n": len(array)}
    if len(sums) > 1:
        draws = np.random.default_rng(seed).integers(len(sums), size=(RESAMPLES, len(sums)))
        means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
        found["low"], found["high"] = (float(bound) for bound in np.percentile(means, [2.5, 97.5]))
    return found
