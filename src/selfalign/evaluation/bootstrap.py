"""Bootstrap intervals of plain means."""

from collections.abc import Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000


def mean_interval(values: Sequence[float], *, seed: int) -> dict[str, Any]:
    """Return the mean with its 95 % percentile interval over the values, JSON-ready.

    `value`, `low` and `high` are `None` where there is nothing to average, `low` and `high` also for a
    single value; `n` is the number of values.
    """
    if not values:
        return {"value": None, "low": None, "high": None, "n": 0}
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 1:
        return {"value": float(array[0]), "low": None, "high": None, "n": 1}
    draws = np.random.default_rng(seed).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = np.percentile(array[draws].mean(axis=1), [2.5, 97.5])
    return {"value": float(array.mean()), "low": float(low), "high": float(high), "n": len(array)}
