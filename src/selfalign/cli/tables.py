"""Tables for the terminal: the plan, the status, and what a run has measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from selfalign.report.effects import BENCHMARKS, Effect
from selfalign.report.overview import Cost
from selfalign.report.read import MEASURES, ModelRow
from selfalign.report.text import duration
from selfalign.runs.run import StageStatus

_COLOURS = {"done": "green", "partial": "yellow", "pending": "dim", "stale": "red"}
_COSTS = ("generations", "new_tokens", "training_tokens")


def plan_table(statuses: Sequence[StageStatus]) -> Table:
    """Return the stages with their state and what the ones not done need, at most."""
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "state"):
        table.add_column(heading)
    for heading in ("generations", "new tokens", "training tokens"):
        table.add_column(heading, justify="right")
    table.add_column("why", overflow="fold")
    totals = dict.fromkeys(_COSTS, 0)
    for status in statuses:
        costs = costs_of(status)
        for name, value in costs.items():
            totals[name] += value
        cells = [f"{costs[name]:,}" if costs[name] else "" for name in _COSTS]
        colour = _COLOURS[status.state]
        table.add_row(
            status.stage.name, f"[{colour}]{status.state}[/]", *cells, escape("; ".join(status.why))
        )
    table.add_section()
    table.add_row("left, at most", "", *(f"{totals[name]:,}" for name in _COSTS), "")
    return table


def status_table(statuses: Sequence[StageStatus], took: Mapping[str, Cost]) -> Table:
    """Return the stages with what the done ones took, and what the others need, at most."""
    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("took", "made", "tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("left to do, at most", overflow="fold")
    for status in statuses:
        cost = took.get(status.stage.name) if status.state == "done" else None
        cells = ("", "", "")
        if cost is not None:
            cells = duration(cost.seconds), cost.made, "" if cost.tokens is None else f"{cost.tokens:,}"
        needs = [f"{n:,} {name.replace('_', ' ')}" for name, n in costs_of(status).items() if n]
        colour = _COLOURS[status.state]
        left = escape("; ".join((*status.why, ", ".join(needs)))).strip("; ")
        table.add_row(status.stage.name, f"[{colour}]{status.state}[/]", *cells, left)
    return table


def costs_of(status: StageStatus) -> dict[str, int]:
    """Return what a stage still needs, at most; zeros once it is done."""
    done = status.state == "done"
    return {name: 0 if done else int(status.stage.expected.get(name, 0)) for name in _COSTS}


def memory_table(memory: Mapping[str, Mapping[str, int]]) -> Table:
    """Return what each training holds at most; a total above what is available is red."""
    table = Table(
        box=None, pad_edge=False, title="memory of one process of a training, GiB", title_justify="left"
    )
    table.add_column("stage")
    for heading in next(iter(memory.values())):
        table.add_column(heading, justify="right")
    for stage, parts in memory.items():
        cells = {name: f"{size / 2**30:.2f}" for name, size in parts.items()}
        if parts["total"] > parts["available"]:
            cells["total"] = f"[red]{cells['total']}[/]"
        table.add_row(stage, *cells.values())
    return table


def judge_table(models: Sequence[ModelRow]) -> Table:
    """Return the judge quality of every model measured so far, length as the baseline below."""
    table = Table(
        box=None,
        pad_edge=False,
        title="judge quality on held-out prompts (95 % interval)",
        title_justify="left",
    )
    table.add_column("model", no_wrap=True)
    table.add_column("parsed", justify="right")
    for _, heading in MEASURES:
        table.add_column(heading, justify="right", no_wrap=True)
    for model in models:
        rate = model.quality["parse_rate"]
        cells = [
            interval(model.quality[name]) if name == "pairwise_accuracy" else number(model.quality[name])
            for name, _ in MEASURES
        ]
        table.add_row(model.name, "" if rate is None else f"{rate:.0%}", *cells)
    return table


def effect_table(effects: Sequence[Effect], price: str) -> Table:
    """Return what an RLCD training did, as far as it is measured, and where its price stands."""
    table = Table(
        box=None,
        pad_edge=False,
        title="what training did, on held-out prompts (95 % interval)",
        title_justify="left",
    )
    table.add_column("measure", no_wrap=True)
    for heading in ("before", "after", "change", "over"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in effects:
        cells = ("–" if cell is None else cell for cell in (row.before, row.after, row.change))
        table.add_row(row.label, *cells, row.over)
    table.add_row(BENCHMARKS, "", price)
    return table


def number(measure: Mapping[str, Any]) -> str:
    """Return a measure, or a dash where it is undefined."""
    return "–" if measure["value"] is None else f"{measure['value']:.2f}"


def interval(measure: Mapping[str, Any]) -> str:
    """Return a measure with its interval, or a dash where it is undefined."""
    if measure["low"] is None:
        return number(measure)
    return f"{number(measure)} ({measure['low']:.2f}–{measure['high']:.2f})"
