"""Gains and losses on benchmarks: what the training of a run cost in skills."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfalign.evaluation.results import LABELS
from selfalign.report.benchmarks import (
    BenchmarkRow,
    benchmark_rows,
    evaluation_of,
    people_rows,
    read_plan,
    read_results,
    read_table,
)
from selfalign.report.changes import Change, benchmark_changes
from selfalign.report.figures import Figure, change_figure
from selfalign.report.problems import Problems


@dataclass(frozen=True)
class ChangeCell:
    """A change as it is written, and which way its interval lies."""

    text: str
    verdict: str


@dataclass(frozen=True)
class Benchmarks:
    """The benchmarks of an evaluation."""

    models: list[str]
    rows: list[BenchmarkRow]
    not_run: dict[str, str]
    steps: dict[tuple[str, str], ChangeCell]
    """Changes against the model before, by task and model."""
    whole: dict[str, ChangeCell]
    """Changes from the first model to the last, by task."""
    figures: tuple[Figure, ...]
    """The same as charts: shares, and points."""
    said: str
    """How many were gained and lost."""


def read_benchmarks(root: Path, problems: Problems) -> Benchmarks | None:
    """Return the benchmarks of an evaluation, or of a run that has one; `None` if it has none."""
    place = evaluation_of(root)
    if place is None:
        table = read_table(root, problems)  # of people's votes alone
        return None if table is None else Benchmarks(*table, {}, {}, (), "")
    plan = read_plan(place, problems)
    models, results = plan["models"], read_results(place, plan, problems)
    what = "changes of the benchmarks"
    changes = problems.attempt(what, benchmark_changes, place, models, results, problems) or {}
    units = {task: result.unit for (task, _), result in results.items()}
    ends = {task: change for (task, *pair), change in changes.items() if pair == [models[0], models[-1]]}
    before = dict(zip(models[1:], models, strict=False))
    return Benchmarks(
        models,
        benchmark_rows(models, results) + people_rows(place, models, problems),
        plan["not_run"],
        {
            (task, later): _cell(change, units[task])
            for (task, earlier, later), change in changes.items()
            if before[later] == earlier
        },
        {task: _cell(change, units[task]) for task, change in ends.items()},
        tuple(_figures(models, ends, units)),
        _said(list(ends.values())),
    )


def _figures(models: Sequence[str], ends: Mapping[str, Change], units: Mapping[str, str]) -> list[Figure]:
    names = (
        {"share": f"{models[0]} to {models[-1]}, in points of per cent", "points": "in points"}
        if models
        else {}
    )
    drawn = []
    for unit, name in names.items():
        scale = 100 if unit == "share" else 1
        chosen = {
            LABELS.get(task, task): _scaled(change, scale)
            for task, change in ends.items()
            if units[task] == unit
        }
        if (figure := change_figure(name, chosen)) is not None:
            drawn.append(figure)
    return drawn


def _scaled(change: Change, by: float) -> Change:
    low, high = (None if end is None else by * end for end in (change.low, change.high))
    return Change(by * change.value, low, high, change.n)


def _cell(change: Change, unit: str) -> ChangeCell:
    scaled, places = (_scaled(change, 100), 1) if unit == "share" else (change, 2)
    said = _signed(scaled.value, places)
    if scaled.low is not None and scaled.high is not None:
        said += f" ({_signed(scaled.low, places)} to {_signed(scaled.high, places)})"
    return ChangeCell(said, scaled.verdict)


def _signed(value: float, places: int) -> str:
    shown = f"{value:+.{places}f}".replace("-", "−")
    return f"±{shown[1:]}" if float(shown[1:]) == 0 else shown


def _said(changes: Sequence[Change]) -> str:
    counts = {verdict: sum(change.verdict == verdict for change in changes) for verdict in ("gained", "lost")}
    rest = len(changes) - sum(counts.values())
    return f"{counts['lost']} of {len(changes)} benchmarks lost, {counts['gained']} gained, {rest} open."
