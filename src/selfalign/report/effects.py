"""What an RLCD training did to the model, as far as the run has measured it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfalign.report.benchmarks import evaluation_of
from selfalign.report.problems import Problems
from selfalign.report.text import share

Measure = Mapping[str, Any]
"""A mean with its interval, as `mean_interval` returns it."""

BENCHMARKS = "benchmarks before and after"
"""The row for the price of the gain, which `selfalign eval` measures."""


@dataclass(frozen=True)
class Effect:
    """A measure before and after training; an empty cell has no such value, `None` is undefined."""

    label: str
    over: str
    """What the mean is over."""
    before: str | None = ""
    after: str | None = ""
    change: str | None = ""


def measures_of(root: Path, stage: str, problems: Problems) -> dict[str, Measure] | None:
    """Return what a stage of `rlcd/` measured, `None` while it is unfinished."""
    if not (root / "rlcd" / "manifests" / f"{stage}.json").exists():
        return None
    found: dict[str, Measure] | None = problems.json(root / "rlcd" / f"{stage}.json")
    return found


def effects(root: Path, problems: Problems) -> list[Effect]:
    """Return the rows of "what training did" that the run has measured so far; none for other methods."""
    rows = []
    if preference := measures_of(root, "preference", problems):
        accuracy = preference["implicit_reward_accuracy"]
        pairs = f"{accuracy['n']:,} pairs"
        rows += [
            Effect("implicit-reward accuracy (50 % is no effect)", pairs, after=_said(accuracy, share)),
            Effect(
                "prefers the positive answer",
                pairs,
                _said(preference["prefers_positive_before"], share),
                _said(preference["prefers_positive_after"], share),
                _said(preference["prefers_positive_change"], _points),
            ),
        ]
    if outputs := measures_of(root, "outputs", problems):
        prompts = f"{outputs['changed']['n']:,} prompts"
        rows += [
            Effect(
                "answer tokens",
                prompts,
                _said(outputs["tokens_before"], _tenth),
                _said(outputs["tokens_after"], _tenth),
                _said(outputs["tokens_change"], _signed_tenth),
            ),
            Effect("answers changed", prompts, change=_said(outputs["changed"], share)),
        ]
    return rows


def price(root: Path) -> str:
    """Say where the benchmarks before and after stand, or how to measure them."""
    if evaluation_of(root) is None:
        return "not measured; selfalign eval RUN --suite rlcd does"
    return "in the table of benchmarks"


def summary(root: Path, problems: Problems) -> str | None:
    """Return what training did in one sentence, `None` while that is not measured."""
    preference = measures_of(root, "preference", problems)
    if preference is None:
        return None
    before, after = preference["prefers_positive_before"], preference["prefers_positive_after"]
    if after["value"] is None:
        return "What training did is not measured: no pair of held-out prompts is left."
    reach = "" if after["low"] is None else f" ({100 * after['low']:.0f} to {100 * after['high']:.0f})"
    return (
        "On held-out prompts the tuned model prefers the positive answer in "
        f"{100 * after['value']:.0f} % of pairs{reach}, {100 * before['value']:.0f} % before."
    )


def _said(measure: Measure, written: Callable[[float], str]) -> str | None:
    """Return a measure with its interval, where it has one; the unit stands once."""
    if measure["value"] is None:
        return None
    if measure["low"] is None:
        return written(measure["value"])
    low, high = (written(measure[end]).partition("\N{NO-BREAK SPACE}")[0] for end in ("low", "high"))
    return f"{written(measure['value'])} ({low} to {high})"


def _tenth(value: float) -> str:
    return f"{value:,.1f}"


def _signed_tenth(value: float) -> str:
    shown = f"{value:+,.1f}".replace("-", "−")
    return "0.0" if shown[1:] == "0.0" else shown


def _points(change: float) -> str:
    return f"{_signed_tenth(100 * change)}\N{NO-BREAK SPACE}points"
