"""The report's figures: charts with captions, in panels to be read side by side."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from selfalign.report.read import Manifest, ModelRow
from selfalign.report.sample import MARGIN_STEP, PairSample
from selfalign.report.text import plural, share

_UNSCORED_AT = -1.0
_LENGTH_BINS = 20


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


def margin_panel(heading: str, samples: Mapping[str, PairSample]) -> Panel:
    """Return a histogram of the margins of each named set of pairs."""
    counted = {}
    for name, sample in samples.items():
        if sample.mean_margin is None:
            continue
        bins = [
            Bin(low, low + MARGIN_STEP, n, f"margin {low:g} to {low + MARGIN_STEP:g}")
            for low, n in ((number * MARGIN_STEP, n) for number, n in enumerate(sample.margins))
        ]
        mean = sample.mean_margin
        counted[name] = _Counted(f"{plural(sum(sample.margins), 'pair')}, mean {mean:.2f}", bins, mean)
    return _histograms(heading, counted, span=(0, 5), marks=[(float(at), str(at)) for at in range(6)])


def training_panels(
    root: Path, stages: Mapping[str, Manifest], places: Sequence[tuple[str, str]]
) -> list[Panel]:
    """Return the curves of every finished training; `places` are names and directories of the models."""
    panels = []
    for name, where in places:
        if f"{where}/train" in stages:
            lines = (root / where / "training.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            panels.append(Panel(name, tuple(_curves(rows, stages[f"{where}/train"]["figures"]))))
    return panels


def _curves(rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> Iterator[Figure]:
    """Yield loss, and for DPO margins and accuracies, which other trainings do not have."""
    losses = [_series(rows, "loss"), _series(rows, "validation_loss", "other")]
    even = math.log(2) if any("rewards/margins" in row for row in rows) else None
    drawn = (
        (
            "loss",
            f"{figures['loss_first']:.3f} to {figures['loss_last']:.3f} in {plural(len(rows), 'step')}",
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
    for name, caption, chart in drawn:
        if chart is not None:
            yield Figure(name, caption, chart)


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
