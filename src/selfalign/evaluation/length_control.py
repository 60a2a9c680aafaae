"""The win rate that two models would have if their completions were equally long."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from selfalign.evaluation.judge_quality import Measure
from selfalign.evaluation.means import ONE_PROMPT

RESAMPLES = 1000
_RIDGE = np.array([0.01, 0.1])
"""Weights of half the squared intercept and of half the squared length coefficient."""

Array = NDArray[np.float64]


class LengthControlled(Measure):
    """A length-controlled win rate with its interval, JSON-ready."""

    length_coefficient: float | None
    """Logits that go to the model whose completion is far longer; negative if the judge likes short ones."""


def length_controlled(
    preferences: Sequence[float],
    differences: Sequence[float],
    *,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
) -> LengthControlled:
    """Fit how preference follows length, and return the win rate at no difference in length.

    The fit is a logistic regression of two parameters for this pair of models: an intercept, and a
    coefficient of tanh(difference / standard deviation of the differences). The win rate is what it predicts
    with the length term at zero. This is not the figure of the AlpacaEval 2 board: that one has a third term,
    the difficulty of each instruction, whose values come from a joint fit over the public leaderboard, and is
    drawn to a baseline that was made to talk more or less. So compare it only with figures made here.

    A small ridge keeps the fit finite where one model always wins or length decides everything. Where one
    model's completions are longer at every prompt, the win rate at equal length would be a guess, and there
    is none. Where they are longer at nearly every prompt, only part of the effect is taken off a judge that
    picks the longer one without fail, because the curve is smoother than such a judge.

    Args:
        preferences: In [0, 1], how sure the judge is of the model; 0.5 is a tie.
        differences: Length of the model's completion minus that of the other's, in any unit.
        seed: Of the resampling.
        clusters: The prompt of each preference; the preferences of one are drawn together.

    Returns:
        The win rate in [0, 1] with its 95 % percentile interval over prompts; the standard deviation is kept
        in the resamples. `None` with a reason where there is nothing to fit.

    Source: Dubois et al. 2024 (arXiv 2404.04475), section 3, without the instruction term; the ridge of both
        parameters and the refusal to extrapolate are our choice, because no leaderboard steadies the fit.
    """
    y, delta = np.asarray(preferences, dtype=np.float64), np.asarray(differences, dtype=np.float64)
    if y.shape != delta.shape:
        raise ValueError(f"{len(y)} preferences and {len(delta)} differences in length")
    found = LengthControlled(
        value=None, low=None, high=None, n=len(y), reason="no prompt is decided", length_coefficient=None
    )
    if len(y) == 0:
        return found
    if delta.min() > 0 or delta.max() < 0:
        found["reason"] = "one model is longer at every prompt, so equal length is never seen"
        return found
    design = np.column_stack([np.ones_like(y), np.tanh(delta / (delta.std() or 1.0))])
    fitted = _fit(design, y, np.ones_like(y), np.zeros(2))
    found["value"], found["length_coefficient"] = float(expit(fitted[0])), float(fitted[1])
    found["reason"] = ONE_PROMPT
    names = {name: place for place, name in enumerate(dict.fromkeys(clusters or range(len(y))))}
    places = np.array([names[name] for name in clusters or range(len(y))])
    if len(names) > 1:
        draws = np.random.default_rng(seed).integers(len(names), size=(RESAMPLES, len(names)))
        counts = (np.bincount(drawn, minlength=len(names)) for drawn in draws)
        intercepts = [_fit(design, y, count[places].astype(np.float64), fitted)[0] for count in counts]
        low, high = np.percentile(expit(np.array(intercepts)), [2.5, 97.5])
        found["low"], found["high"], found["reason"] = float(low), float(high), None
    return found


def _fit(design: Array, y: Array, weights: Array, start: Array) -> Array:
    """Return intercept and length coefficient of least cross-entropy under the ridge, shape (2,)."""

    def loss_and_slope(beta: Array) -> tuple[float, Array]:
        z = design @ beta
        loss = weights @ (np.logaddexp(0, z) - y * z) + _RIDGE @ beta**2 / 2
        return float(loss), design.T @ (weights * (expit(z) - y)) + _RIDGE * beta

    def curvature(beta: Array) -> Array:
        p = expit(design @ beta)
        return design.T @ (design * (weights * p * (1 - p))[:, None]) + np.diag(_RIDGE)

    # The loss is strictly convex, so that a trust region finds its one minimum from any start.
    solved = minimize(
        loss_and_slope, start, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-6}
    )
    return np.asarray(solved.x, dtype=np.float64)
