"""Where runs stand, by their manifests and the end of their event logs; of a damaged one, what is there."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from selfalign.errors import RunError
from selfalign.report.concerns import given, grouped
from selfalign.report.problems import Problems
from selfalign.report.read import Manifest, finished_stages
from selfalign.runs.files import read_json
from selfalign.runs.lock import noted_holder
from selfalign.ui.sources import is_inside

RESOLVED = "recipe.resolved.json"
_MARKS = (RESOLVED, "events.jsonl", "manifest.json")
_TAIL = 256 * 1024
"""Bytes of the event log that are read, from its end."""


class Progress(BaseModel):
    """How far a stage under way is."""

    stage: str
    done: int
    total: int
    unit: str
    time: str


class BaseModelName(BaseModel):
    """The model that a run starts from."""

    name: str


class Start(BaseModel):
    """What the page needs of what a run wrote at its start."""

    seed: int
    model: BaseModelName


@dataclass(frozen=True)
class RunState:
    """One run directory, as far as it can be read."""

    name: str
    state: Literal["running", "finished", "stopped", "not started"]
    why: str = ""
    """Who holds a running one; why one stopped, where that is known."""
    method: str = ""
    model: str = ""
    stages: tuple[Manifest, ...] = ()
    """Manifests of the finished ones, in the order of the method."""
    stage: str | None = None
    """The stage under way, or the one in which the run stopped."""
    progress: Progress | None = None
    """Of that stage; `None` where it has not said."""
    problems: tuple[str, ...] = ()
    """What can't be read, a line each."""

    @property
    def warnings(self) -> dict[str, list[str]]:
        """Return the stages' warnings, each once, with the stages that gave it."""
        return grouped(given({made["stage"]: made for made in self.stages}))


def runs_in(directory: Path) -> list[Path]:
    """Return the run directories in a directory, by name; links that lead out of it are none of them.

    A name that is no UTF-8 can't stand in an address, so such a directory is left out.
    """
    return sorted(
        path
        for path in directory.iterdir()
        if path.is_dir() and is_inside(path, directory) and _is_text(path.name) and is_run(path)
    )


def find_run(directory: Path, name: str) -> Path:
    """Return the run directory of this name, resolved.

    Raises:
        RunError: There is no such run in the directory itself.
    """
    path = directory / name
    alone = name not in ("", ".", "..") and "/" not in name and "\0" not in name
    if not alone or not path.is_dir() or not is_inside(path, directory) or not is_run(path):
        raise RunError(f"{name}: no such run in {directory}")
    return path.resolve()


def start_of(root: Path) -> Start:
    """Return what a run wrote at its start.

    Raises:
        DataError: It has not begun.
        ValidationError: It is of another version.
    """
    return Start.model_validate(read_json(root / "manifest.json"))


def state_of(root: Path) -> RunState:
    """Return where a run stands."""
    problems = Problems(root)
    written = problems.json(root / RESOLVED)
    recipe: dict[str, Any] = problems.attempt(RESOLVED, dict, {} if written is None else written) or {}
    model = problems.attempt(RESOLVED, _model_of, recipe)
    stages = tuple(finished_stages(root, problems).values())
    last, stage, progress = _story(root)
    holder = noted_holder(root)
    state, why = _standing(last, holder)
    done = {made["stage"] for made in stages}
    return RunState(
        name=root.name,
        state=state,
        why=why,
        method=str(recipe.get("method", "")),
        model=model or "",
        stages=stages,
        stage=stage if stage not in done and state != "finished" else None,
        progress=progress if progress is not None and progress.stage == stage and stage not in done else None,
        problems=tuple(problems),
    )


def read_events_tail(root: Path) -> Iterator[dict[str, Any]]:
    """Yield the last events of a run; what is torn or no event is passed over, as they only tell a story."""
    path = root / "events.jsonl"
    if not path.is_file() or not is_inside(path, root):
        return
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _TAIL))
        for line in file.read().split(b"\n"):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                yield event


def _story(root: Path) -> tuple[dict[str, Any] | None, str | None, Progress | None]:
    """Return the last beginning or end of the run, the last stage begun, and its progress."""
    last = stage = progress = None
    for event in read_events_tail(root):
        match event["event"]:
            case "run_started" | "run_stopped" | "run_finished":
                last = event
            case "stage_started":
                stage, progress = str(event.get("stage")), None
            case "progress":
                try:
                    progress = Progress.model_validate(event)
                    stage = progress.stage
                except ValidationError:
                    continue  # an event only tells a story
    return last, stage, progress


def _standing(
    last: dict[str, Any] | None, holder: str | None
) -> tuple[Literal["running", "finished", "stopped", "not started"], str]:
    if holder is not None:
        return "running", holder
    match last and last["event"]:
        case "run_finished":
            return "finished", ""
        case "run_stopped":
            assert last is not None  # noqa: S101 -- it was matched
            return "stopped", f"{last.get('reason')}: {last.get('message')}"
        case "run_started":
            return "stopped", "it ended without a word, as when it is killed"
        case _:
            return "not started", ""


def _model_of(recipe: dict[str, Any]) -> str:
    policy = recipe.get("policy", {})
    return str(policy.get("from_run") or policy.get("model") or "")


def is_run(path: Path) -> bool:
    """Say whether a directory holds a run, be it one that has just begun."""
    return any((path / mark).is_file() for mark in _MARKS)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
