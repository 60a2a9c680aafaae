"""Passing the log of a training, and what the run counted, on to experiment trackers, through accelerate."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from selfalign.config import Tracker
from selfalign.records import content_id
from selfalign.runs.files import read_json

PROJECT = "selfalign"
FIGURES = "figures"
"""Name of the tracked run that holds what the stages of a run counted."""
_LAST = ("evaluate", "outputs")
"""Stages with which the directory of a model is complete."""
_BEFORE = {"rlcd": ("contrast",)}
"""Directories that belong to a model besides its own."""
_TRAININGS = ("train/", "reference/")
"""Stages whose log is tracked step by step."""


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


def track_figures(names: Sequence[Tracker], stage: str, run: Path) -> None:
    """Report what led to a model and how well it judges, once its last stage is done; pass over other stages.

    All models of a run are in one tracked run, `figures`; a step is a model: 0 the SFT baseline, 1 M1 or the
    model of RLCD, t + 1 that of iteration t. Names are those of the stages and their figures.

    Args:
        names: Of the trackers.
        stage: That is finished, such as `iteration-1/evaluate`.
        run: Directory of the run.
    """
    where, _, last = stage.partition("/")
    step = _step_of(where)
    if step is None or last not in _LAST:
        return
    values = {
        name: value
        for place in (*_BEFORE.get(where, ()), where)
        for name, value in _numbers("", read_json(run / place / "metrics.json"))
        if not name.startswith(_TRAININGS)
    }
    with tracking(names, FIGURES, run, {}) as report:
        report({"step": step, **values})


def _step_of(where: str) -> int | None:
    """Return the number of the model that a directory leads to, `None` if it leads to none."""
    kind, _, number = where.partition("-")
    return {"sft": 0, "eft": 1, "rlcd": 1}.get(kind, int(number) + 1 if number.isdecimal() else None)


def _numbers(prefix: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers in nested figures, each by its path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{prefix}/{key}" if prefix else str(key), inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield prefix, value


def _open(name: Tracker, stage: str, run: Path) -> GeneralTracker:
    kind = LOGGER_TYPE_TO_CLASS[name]
    title = f"{run.name}/{stage}"
    if kind.requires_logging_directory:
        tracker = kind(stage, str(run / "tracking"))
    elif name == "mlflow":
        tracker = kind(PROJECT, run_name=title)
    elif stage == FIGURES:  # opened again for every model
        again = {"id": content_id(str(run.resolve()), stage)} if name == "wandb" else {}
        tracker = kind(PROJECT, name=title, resume="allow", **again)
    else:
        tracker = kind(PROJECT, name=title)
    tracker.start()
    return tracker
