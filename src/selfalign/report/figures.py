"""The report's figures: charts with captions, in panels to be read side by side."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from selfalign.report.changes import Change
from selfalign.report.charts import (
    Bin,
    Chart,
    Interval,
    Kind,
    Point,
    Series,
    histogram,
    interval_chart,
    line_chart,
    ticks,
)
from selfalign.report.problems import Problems
from selfalign.report.read import Manifest, ModelRow
from selfalign.report.sample import MARGIN_STEP, DrawnPairs, Judged
from selfalign.report.text import plural, share

_UNSCORED_AT = -1.0
_LENGTH_BINS = 20
_HEALTH = (
    ("parse_rate", "Parsed", "share of the judgments that ended in a score", (0.0, 1.0)),
    ("tie_rate", "Ties within a prompt", "share of pairs of candidates with equal rewards", (0.0, 1.0)),
    ("agreement", "Repeated judgments agree", "share of pairs of judgments of one text", (0.0, 1.0)),
    ("length_correlation", "Reward and length", "rank correlation; near 1 the judge counts", (-1.0, 1.0)),
)


class _Step(BaseModel):
    """A step of a training log, with whatever it measured."""

    model_config = ConfigDict(extra="allow")
    step: int


@dataclass(frozen=True)
class Figure:
    """A chart with its name and what it says in short."""

    name: str
    caption: str
    chart: Chart


@dataclass(frozen=True)
class Panel:
    """Figures under one heading."""

    heading: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class _Counted:
    """Counts to draw as a histogram beside others of their kind."""

    caption: str
    bins: list[Bin]
    mean: float | None = None


def judge_figures(models: Sequence[ModelRow]) -> tuple[Figure, ...]:
    """Return pairwise accuracy, over all pairs and split by length, of every model and of length."""
    names = {
        "pairwise_accuracy": "All pairs",
        "pairwise_accuracy_longer_better": "The longer reply is the better",
        "pairwise_accuracy_longer_worse": "The longer reply is the worse",
    }
    return tuple(
        Figure(name, "", interval_chart(name, [_interval(model, key) for model in models]))
        for key, name in names.items()
    )


def score_panel(heading: str, judgments: Mapping[str, Manifest]) -> Panel:
    """Return a histogram of the scores of each named judging stage; the unscored stand apart."""
    counted = {}
    scores = [float(score) for manifest in judgments.values() for score in manifest["figures"]["scores"]]
    low, high = min([0.0, *scores]), max([5.0, *scores])  # scores from elsewhere have a scale of their own
    none = low + (high - low) / 5 * _UNSCORED_AT
    for name, manifest in judgments.items():
        figures = manifest["figures"]
        bins = [_around(float(score), n, f"score {score}") for score, n in figures["scores"].items()]
        unscored = _around(none, sum(figures["unscored"].values()), "unscored", "missing")
        parsed = "" if figures["parse_rate"] is None else f", {share(figures['parse_rate'])} parsed"
        counted[name] = _Counted(f"{figures['judgments']:,} judgments{parsed}", [unscored, *bins])
    marks = [(none, "none"), *((at, f"{at:g}") for at in ticks(low, high, 5) if at <= high)]
    return _histograms(heading, counted, span=(none - 0.4, high + 0.4), marks=marks)


def length_panel(heading: str, lengths: Mapping[str, Counter[int]]) -> Panel:
    """Return a histogram of each named set of lengths in tokens."""
    longest = max((length for counter in lengths.values() for length in counter), default=0)
    edges = ticks(0, max(longest + 1, _LENGTH_BINS), _LENGTH_BINS)
    width = int(edges[1])
    counted = {}
    for name, counter in lengths.items():
        if not counter:
            continue
        binned: Counter[int] = Counter()
        for length, n in counter.items():
            binned[length // width * width] += n
        bins = [
            Bin(low, low + width, n, f"{low} to {low + width - 1} tokens")
            for low, n in sorted(binned.items())
        ]
        mean = sum(length * n for length, n in counter.items()) / counter.total()
        counted[name] = _Counted(f"{counter.total():,} candidates, mean {mean:,.1f} tokens", bins, mean)
    marks = [(at, f"{at:,g}") for at in ticks(0, edges[-1], 5) if at <= edges[-1]]
    return _histograms(heading, counted, span=(0, edges[-1]), marks=marks)


def reward_panel(heading: str, judged: Mapping[str, Judged]) -> Panel:
    """Return a histogram of the mean scores of the candidates of each named set."""
    counted = {}
    rewards = [reward for found in judged.values() for reward in found.rewards]
    low, high = min([0.0, *rewards]), max([5.0, *rewards])  # those from elsewhere have a scale of their own
    for name, found in judged.items():
        bins = [_around(reward, n, f"reward {reward:g}") for reward, n in sorted(found.rewards.items())]
        mean = found.mean_reward
        said = "" if mean is None else f", mean {mean:.2f}"
        counted[name] = _Counted(f"{plural(found.rewards.total(), 'candidate')}{said}", bins, mean)
    marks = [(at, f"{at:g}") for at in ticks(low, high, 5) if at <= high]
    return _histograms(heading, counted, span=(low - 0.4, high + 0.4), marks=marks)


def margin_panel(heading: str, pairs: Mapping[str, DrawnPairs]) -> Panel:
    """Return a histogram of the margins of each named set of pairs."""
    counted = {}
    for name, found in pairs.items():
        if found.mean_margin is None:
            continue
        bins = [
            Bin(low, low + MARGIN_STEP, n, f"margin {low:g} to {low + MARGIN_STEP:g}")
            for low, n in ((number * MARGIN_STEP, n) for number, n in enumerate(found.margins))
        ]
        mean = found.mean_margin
        counted[name] = _Counted(f"{plural(sum(found.margins), 'pair')}, mean {mean:.2f}", bins, mean)
    return _histograms(heading, counted, span=(0, 5), marks=[(float(at), str(at)) for at in range(6)])


def health_panel(judgments: Mapping[str, Manifest]) -> Panel:
    """Return what tells a sound judge from a broken one, a row for each named judging stage."""
    drawn = []
    for key, name, caption, (low, high) in _HEALTH:
        values = {stage: manifest["figures"].get(key) for stage, manifest in judgments.items()}
        if any(value is not None for value in values.values()):
            steps = [low + part * (high - low) / 4 for part in range(5)]
            rows = [Interval(stage, value, None, None) for stage, value in values.items()]
            drawn.append(Figure(name, caption, interval_chart(name, rows, steps=steps)))
    return Panel("Judge health", tuple(drawn))


def change_figure(name: str, changes: Mapping[str, Change]) -> Figure | None:
    """Return gains and losses in points, with 0 marked; `None` without any."""
    if not changes:
        return None
    intervals = [
        Interval(
            label,
            change.value,
            change.low,
            change.high,
            "other" if change.verdict == "lost" else "main",
        )
        for label, change in changes.items()
    ]
    ends = [end for each in intervals for end in (each.value, each.low, each.high) if end is not None]
    steps = ticks(min(0, *ends), max(0, *ends), 4)
    return Figure(name, "", interval_chart(name, intervals, steps=steps, reference=0))


def training_panels(
    root: Path, stages: Mapping[str, Manifest], places: Sequence[tuple[str, str]], problems: Problems
) -> list[Panel]:
    """Return the curves of every finished training; `places` are names and directories of the models."""
    panels = []
    for name, where in places:
        if (made := stages.get(f"{where}/train")) is not None:
            rows = [step.model_dump() for step in problems.rows(root / where / "training.jsonl", _Step)]
            curves = problems.attempt(f"the curves of {name}", _curves, rows, made["figures"])
            panels.append(Panel(name, tuple(curves or ())))
    return panels


def _curves(rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> list[Figure]:
    """Return loss, and for DPO margins and accuracies, which other trainings do not have."""
    losses = [_series(rows, "loss"), _series(rows, "validation_loss", "other")]
    even = math.log(2) if any("rewards/margins" in row for row in rows) else None
    drawn = (
        (
            "loss",
            _course(figures, len(rows)),
            line_chart("loss", losses, reference=even),
        ),
        (
            "rewards/margins",
            "chosen above rejected, in implicit reward",
            line_chart("rewards/margins", [_series(rows, "rewards/margins")], reference=0),
        ),
        (
            "rewards/accuracies",
            "share of pairs with chosen above rejected",
            line_chart("rewards/accuracies", [_series(rows, "rewards/accuracies")], bounds=(0, 1)),
        ),
    )
    return [Figure(name, caption, chart) for name, caption, chart in drawn if chart is not None]


def _course(figures: Mapping[str, Any], steps: int) -> str:
    """Say where the loss began and ended, if the training has told."""
    first, last = figures.get("loss_first"), figures.get("loss_last")
    told = "" if first is None or last is None else f"{first:.3f} to {last:.3f} in "
    return f"{told}{plural(steps, 'step')}"


def _histograms(
    heading: str, counted: Mapping[str, _Counted], *, span: Point, marks: Sequence[tuple[float, str]]
) -> Panel:
    """Return histograms with the same axes."""
    totals = {name: sum(each.count for each in found.bins) for name, found in counted.items()}
    filled = {name: found for name, found in counted.items() if totals[name]}
    top = max((each.count / totals[n] for n, found in filled.items() for each in found.bins), default=1.0)
    return Panel(
        heading,
        tuple(
            Figure(
                name,
                found.caption,
                histogram(f"{heading}: {name}", found.bins, span=span, marks=marks, top=top, mean=found.mean),
            )
            for name, found in filled.items()
        ),
    )


def _around(value: float, n: int, name: str, kind: Kind = "main") -> Bin:
    return Bin(value - MARGIN_STEP / 2, value + MARGIN_STEP / 2, n, name, kind)


def _series(rows: Sequence[Mapping[str, Any]], key: str, kind: Kind = "main") -> Series:
    return Series(key, tuple((row["step"], row[key]) for row in rows if key in row), kind)


def _interval(model: ModelRow, key: str) -> Interval:
    measure = model.quality[key]
    kind: Kind = "main" if model.where else "other"
    return Interval(model.name, measure["value"], measure["low"], measure["high"], kind)
