"""Passing the log of a training on to experiment trackers, through accelerate."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from selfalign.config import Tracker

PROJECT = "selfalign"


@contextmanager
def tracking(
    names: Sequence[Tracker], stage: str, run: Path, settings: Mapping[str, Any]
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open the trackers for one training and end them after it.

    Args:
        names: Of the trackers.
        stage: That trains; its name is that of the tracked run.
        run: Directory of the run; files of trackers go to `tracking/` in it.
        settings: Given the trackers as the configuration, as far as they are plain values.

    Yields:
        What takes a row of the log, whose `step` counts from 1.
    """
    if names:
        PartialState()  # accelerate's trackers ask it which process they are in
    trackers = [_open(name, stage, run) for name in names]
    plain = {name: value for name, value in settings.items() if isinstance(value, bool | int | float | str)}
    for tracker in trackers:
        tracker.store_init_configuration(plain)

    def log(row: dict[str, Any]) -> None:
        values = {name: value for name, value in row.items() if name != "step"}
        for tracker in trackers:
            tracker.log(values, step=row["step"])

    try:
        yield log
    finally:
        for tracker in trackers:
            tracker.finish()


def _open(name: Tracker, stage: str, run: Path) -> GeneralTracker:
    kind = LOGGER_TYPE_TO_CLASS[name]
    title = f"{run.name}/{stage}"
    if kind.requires_logging_directory:
        tracker = kind(stage, str(run / "tracking"))
    elif name == "mlflow":
        tracker = kind(PROJECT, run_name=title)
    else:
        tracker = kind(PROJECT, name=title)
    tracker.start()
    return tracker
