"""Telling a person what a run does: a moving line on a terminal, plain lines in a log."""

import time
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from selfalign.cli.status import pace_line
from selfalign.runs.progress import Following

_LOG_EVERY_SECONDS = 15.0


class Narrator:
    """Listens to a run's events and prints them."""

    def __init__(self, console: Console) -> None:
        """Take the console to print on."""
        self._console = console
        self._last_line = time.monotonic()
        self._following = Following()
        columns = (
            TextColumn("  {task.description:<26}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task("", visible=False, unit="")

    def __enter__(self) -> "Narrator":
        """Begin to show progress."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the terminal clean."""
        self._progress.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Print an event."""
        self._following.take(event)
        match event["event"]:
            case "run_started":
                self._console.print(f"{escape(event['run'])}: {escape(event['model'])}", highlight=False)
            case "stage_started":
                self._progress.reset(
                    self._task, description=event["stage"], visible=True, total=None, unit=""
                )
                self._last_line = time.monotonic()
            case "progress":
                self._show_progress(event)
            case "warning":
                self._console.print(
                    f"[yellow]! {event['stage']}:[/] {escape(event['message'])}", highlight=False
                )
            case "stage_finished":
                self._progress.update(self._task, visible=False)
                figures = _short(event["figures"])
                self._console.print(
                    f"[green]✓[/] {event['stage']:<26} {event['seconds']:>7.1f} s  {escape(figures)}",
                    highlight=False,
                )

    def _show_progress(self, event: dict[str, Any]) -> None:
        self._progress.update(
            self._task, completed=event["done"], total=event["total"], unit=event["unit"], visible=True
        )
        now, pace = time.monotonic(), self._following.pace()
        if not self._console.is_terminal and pace is not None and now - self._last_line > _LOG_EVERY_SECONDS:
            self._last_line = now
            self._console.print(f"  {escape(pace_line(pace))}", highlight=False)


def _short(figures: dict[str, Any]) -> str:
    """Return the few figures of a stage that fit on its line."""
    wanted = (
        "rows",
        "examples",
        "pairs",
        "steps",
        "parse_rate",
        "loss_first",
        "loss_last",
        "pairwise_accuracy",
    )
    shown = [(name, figures[name]) for name in wanted if figures.get(name) is not None]
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.3g}" if isinstance(value, float) else f"{value} {name}"
        for name, value in shown
    )
