"""Charts as plain geometry, which `templates/charts.jinja` draws as SVG.

Coordinates are in units of the chart, x to the right and y down. A kind is a class to which the style
sheet gives a colour for light and one for dark. Every chart also says in words what it shows.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from selfalign.report.text import share

WIDTH = 320
RIGHT = 308.0
_LEFT = 46.0
_NAMES = 92.0
_TOP = 16.0
_PLOT = 110.0
_ROW = 26.0
_TICKS = 24.0
_MOST_POINTS = 240
_MOST_DOTS = 24
_MOST_LETTERS = 15
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)

Kind = Literal["main", "other", "missing", "rule"]
Point = tuple[float, float]


@dataclass(frozen=True)
class Bar:
    """A bar that stands on the axis."""

    x: float
    y: float
    width: float
    height: float
    kind: Kind
    tip: str


@dataclass(frozen=True)
class Line:
    """A line through points."""

    points: tuple[Point, ...]
    kind: Kind
    dots: bool = False
    """Whether every point has a dot."""


@dataclass(frozen=True)
class Label:
    """A text at a point; `anchor` is the part of the text that stands there."""

    x: float
    y: float
    text: str
    anchor: Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Chart:
    """What is drawn: grid, bars, lines, labels, in this order."""

    title: str
    description: str
    """The values in words."""
    left: float
    axis: float
    """Height of the horizontal axis."""
    grid: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    lines: tuple[Line, ...] = ()
    labels: tuple[Label, ...] = ()

    width: float = WIDTH
    right: float = RIGHT

    @property
    def height(self) -> float:
        """Return the height of the whole chart."""
        return self.axis + _TICKS


@dataclass(frozen=True)
class Bin:
    """How many values there are from `low` to `high`."""

    low: float
    high: float
    count: int
    name: str
    kind: Kind = "main"


@dataclass(frozen=True)
class Series:
    """A named line of a chart, by rising x."""

    name: str
    points: tuple[Point, ...]
    kind: Kind = "main"


@dataclass(frozen=True)
class Interval:
    """A named value with its 95 % interval; what is undefined is `None`."""

    name: str
    value: float | None
    low: float | None
    high: float | None
    kind: Kind = "main"


def histogram(
    title: str,
    bins: Sequence[Bin],
    *,
    span: Point,
    marks: Sequence[tuple[float, str]],
    top: float,
    mean: float | None = None,
) -> Chart:
    """Return a bar for the share of each bin among all of them.

    Args:
        title: What is counted.
        bins: One or more, not all empty.
        span: Ends of the x axis; several charts can share them.
        marks: Places on the x axis with their names.
        top: Share that the y axis reaches at least; several charts can share it.
        mean: Where to draw an upright line; `None` draws none.
    """
    total = sum(each.count for each in bins)
    axis = _TOP + _PLOT
    steps = ticks(0, top, 3)
    x, y = _scale(span, (_LEFT, RIGHT)), _scale((0, steps[-1]), (axis, _TOP))
    bars = tuple(
        Bar(
            x=round(x(each.low) + 0.75, 1),
            y=y(each.count / total),
            width=round(x(each.high) - x(each.low) - 1.5, 1),
            height=round(axis - y(each.count / total), 1),
            kind=each.kind,
            tip=f"{each.name}: {each.count:,} ({share(each.count / total)})",
        )
        for each in bins
        if each.count
    )
    return Chart(
        title=title,
        description="; ".join(bar.tip for bar in bars),
        left=_LEFT,
        axis=axis,
        grid=_grid(y, steps),
        bars=bars,
        lines=() if mean is None else (Line(((x(mean), _TOP), (x(mean), axis)), "other"),),
        labels=(
            *(Label(x(at), axis + 16, name, "middle") for at, name in marks),
            *(Label(_LEFT - 6, y(step) + 4, f"{100 * step:g} %", "end") for step in steps),
        ),
    )


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    bounds: Point | None = None,
    reference: float | None = None,
) -> Chart | None:
    """Return lines over training steps; `None` where no value is finite.

    A value that is not finite is left out. Of more than some hundred points, means of neighbours are drawn.

    Args:
        title: What is measured.
        series: The lines, the last one on top.
        bounds: Values that the y axis reaches at least.
        reference: Value at which to draw a level line to compare with.
    """
    finite = [tuple((x, y) for x, y in each.points if math.isfinite(y)) for each in series]
    drawn = [tuple(_thinned(points)) for points in finite]
    if not any(drawn):
        return None
    numbers = [x for points in finite for x, _ in points]
    values = [y for points in drawn for _, y in points]
    values += [*(bounds or ()), *([] if reference is None else [reference])]
    axis = _TOP + _PLOT
    y_steps = ticks(min(values), max(values), 4)
    x = _scale((min(numbers), max(numbers)), (_LEFT + 8, RIGHT - 8))
    y = _scale((y_steps[0], y_steps[-1]), (axis, _TOP))
    x_steps = [n for n in ticks(min(numbers), max(numbers), 6) if min(numbers) <= n <= max(numbers)]
    named = list(zip(series, finite, strict=True))
    level = [] if reference is None else [Line(((_LEFT, y(reference)), (RIGHT, y(reference))), "rule")]
    lines = [
        Line(tuple((x(a), y(b)) for a, b in points), each.kind, dots=len(points) <= _MOST_DOTS)
        for each, points in zip(series, drawn, strict=True)
        if points
    ]
    return Chart(
        title=title,
        description="; ".join(_course(each.name, points) for each, points in named if points),
        left=_LEFT,
        axis=axis,
        grid=_grid(y, y_steps),
        lines=(*level, *lines),
        labels=(
            *(Label(x(n), axis + 16, f"{n:,g}", "middle") for n in x_steps if n == int(n)),
            *(Label(_LEFT - 6, y(step) + 4, _number(step), "end") for step in y_steps),
        ),
    )


def interval_chart(
    title: str,
    intervals: Sequence[Interval],
    *,
    steps: Sequence[float] = _SHARES,
    reference: float | None = None,
) -> Chart:
    """Return a row for each value: a dot, and a line from end to end of its interval.

    Args:
        title: What is measured.
        intervals: The values, from the top; a long name is cut.
        steps: Rising places of the upright grid lines; they reach over all values and intervals.
        reference: Value at which to draw an upright line to compare with.
    """
    axis = _TOP + _ROW * len(intervals)
    x = _scale((steps[0], steps[-1]), (_NAMES, RIGHT))
    grid = tuple(Line(((x(step), _TOP), (x(step), axis)), "rule") for step in steps)
    lines: list[Line] = []
    if reference is not None:
        lines.append(Line(((x(reference), _TOP), (x(reference), axis)), "rule"))
    labels = [Label(x(step), axis + 16, _number(step), "middle") for step in steps]
    for row, each in enumerate(intervals):
        y = _TOP + _ROW * (row + 0.5)
        labels.append(Label(_NAMES - 8, y + 4, _cut(each.name), "end"))
        if each.value is None:
            labels.append(Label((_NAMES + RIGHT) / 2, y + 4, "undefined", "middle"))
            continue
        if each.low is not None and each.high is not None:
            lines.append(Line(((x(each.low), y), (x(each.high), y)), each.kind))
        lines.append(Line(((x(each.value), y),), each.kind, dots=True))
    return Chart(
        title=title,
        description="; ".join(map(_said, intervals)),
        left=_NAMES,
        axis=axis,
        grid=grid,
        lines=tuple(lines),
        labels=tuple(labels),
    )


def _cut(name: str) -> str:
    return name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"


def _said(interval: Interval) -> str:
    if interval.value is None:
        return f"{interval.name}: undefined"
    if interval.low is None or interval.high is None:
        return f"{interval.name}: {interval.value:.2f}, no interval"
    return f"{interval.name}: {interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})"


def _course(name: str, points: Sequence[Point]) -> str:
    (first, begin), (last, end) = points[0], points[-1]
    lowest, highest = min(y for _, y in points), max(y for _, y in points)
    return (
        f"{name}: {begin:.4g} at step {first:g}, {end:.4g} at step {last:g}, "
        f"between {lowest:.4g} and {highest:.4g}"
    )


def _thinned(points: Sequence[Point]) -> Iterator[Point]:
    size = math.ceil(len(points) / _MOST_POINTS) or 1
    for start in range(0, len(points), size):
        near = points[start : start + size]
        yield fmean(x for x, _ in near), fmean(y for _, y in near)


def _scale(values: Point, places: Point) -> Callable[[float], float]:
    """Return the function that takes values to places; a single value stands in the middle."""
    (low, high), (begin, end) = values, places
    if low == high:
        return lambda _: round((begin + end) / 2, 1)
    return lambda value: round(begin + (value - low) / (high - low) * (end - begin), 1)


def ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    """Return two or more multiples of a round step that enclose both ends; `most` steps span them.

    Ends that differ by less than a ten-thousandth count as one, so that names of a few digits differ.
    """
    reach = max(abs(low), abs(high))
    span = high - low if high - low > 1e-4 * reach else reach
    span = span if span > 1e-9 else 1.0
    unit = 10.0 ** math.floor(math.log10(span / most))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor * most >= span * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(n * step, 12) for n in range(first, max(last, first + 1) + 1))


def _grid(y: Callable[[float], float], steps: Sequence[float]) -> tuple[Line, ...]:
    return tuple(Line(((_LEFT, y(step)), (RIGHT, y(step))), "rule") for step in steps)


def _number(value: float) -> str:
    return f"{value:g}".replace("-", "−")
