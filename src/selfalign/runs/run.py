"""A run: which stages are done, which are stale and why, and doing the rest."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from selfalign.config import BaseRecipe
from selfalign.errors import DataError
from selfalign.runs.artifact import Artifact, Stage, differences
from selfalign.runs.events import EventLog
from selfalign.runs.files import hash_file, read_json, remove, write_json
from selfalign.runs.work import Work

R = TypeVar("R", bound=BaseRecipe, covariant=True)
State = Literal["done", "partial", "pending", "stale"]
Figures = Mapping[str, Any]
Body = Callable[[Work], Figures]


@dataclass(frozen=True)
class StageStatus:
    """Where one stage stands."""

    stage: Stage
    state: State
    why: tuple[str, ...] = ()
    """Reasons of staleness."""
    manifest: Mapping[str, Any] | None = None
    """What the stage wrote when it was done; `None` while it is not."""


class Run(Generic[R]):
    """One run directory under one recipe.

    A method calls `do` for one stage after the other. With an event log the stages are done; without
    one they are only looked at, so that the same code is both the loop and its plan.
    """

    def __init__(self, root: Path, recipe: R, events: EventLog | None = None) -> None:
        """Take the directory, the recipe and, to do the stages, the event log."""
        self.root = root.resolve()
        self.recipe = recipe
        self.statuses: list[StageStatus] = []
        self._events = events

    @property
    def planning(self) -> bool:
        """Say whether stages are only looked at."""
        return self._events is None

    def do(self, stage: Stage, body: Body) -> Artifact:
        """Do a stage unless it is done, and return what it leaves.

        Args:
            stage: Name, settings and inputs.
            body: Does the work and returns its figures (JSON values); `rows` and `tokens` among them say
                how much it left. It must write every output of the stage, atomically.
        """
        status = self.inspect(stage)
        self.statuses.append(status)
        if status.manifest is not None and status.state == "done":
            return self._artifact(stage, status.manifest["figures"])
        if self._events is None:
            return self._artifact(stage, stage.expected)
        if status.state == "stale":
            self._set_aside(stage)
        return self._artifact(stage, self._execute(stage, body, self._events))

    def inspect(self, stage: Stage) -> StageStatus:
        """Find out where a stage stands."""
        directory, name = self._place(stage)
        path = _manifest_path(directory, name)
        if path.exists():
            manifest = _readable(path)
            if manifest is None:
                return StageStatus(stage, "stale", (f"{path} is damaged",))
            if manifest["fingerprint"] != stage.fingerprint:
                return StageStatus(stage, "stale", tuple(differences(manifest["parts"], stage.parts)))
            damaged = tuple(_damage(directory, manifest["outputs"]))
            return StageStatus(stage, "stale" if damaged else "done", damaged, manifest)
        left = sorted((directory / "partial").glob(f"{name}.*"))
        if any(not entry.name.startswith(_partial_prefix(stage)) for entry in left):
            return StageStatus(stage, "stale", ("it was begun under other settings",))
        return StageStatus(stage, "partial" if left else "pending")

    def _execute(self, stage: Stage, body: Body, events: EventLog) -> Figures:
        directory, name = self._place(stage)
        directory.mkdir(parents=True, exist_ok=True)
        for torn in [*directory.glob(".*.tmp"), *directory.glob("partial/.*.tmp")]:
            remove(torn)  # a write that was killed; a torn model may be many gigabytes
        work = Work(stage.name, directory, _partial_prefix(stage), events)
        events.emit("stage_started", stage=stage.name)
        started = time.monotonic()
        figures = body(work)
        seconds = round(time.monotonic() - started, 3)
        manifest = {
            "stage": stage.name,
            "fingerprint": stage.fingerprint,
            "parts": stage.parts,
            "outputs": {file: _describe(directory / file) for file in stage.outputs},
            "figures": figures,
            "warnings": work.warnings,
            "seconds": seconds,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        _write_metrics(directory, name, figures)
        write_json(_manifest_path(directory, name), manifest)
        for entry in (directory / "partial").glob(f"{name}.*"):
            remove(entry)
        events.emit("stage_finished", stage=stage.name, seconds=seconds, figures=figures)
        return figures

    def _set_aside(self, stage: Stage) -> None:
        """Move what a stale stage left to `stale/`; its manifest last, so that a kill leaves it stale."""
        directory, name = self._place(stage)
        aside = self.root / "stale" / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{stage.name.replace('/', '-')}"
        aside.mkdir(parents=True)
        leftovers = (directory / "partial").glob(f"{name}.*")
        for path in (*leftovers, *(directory / o for o in stage.outputs), _manifest_path(directory, name)):
            if path.exists():
                path.rename(aside / path.name)

    def _place(self, stage: Stage) -> tuple[Path, str]:
        directory, _, name = stage.name.rpartition("/")
        return self.root / directory, name

    def _artifact(self, stage: Stage, figures: Figures) -> Artifact:
        directory, _ = self._place(stage)
        return Artifact(directory / stage.outputs[0], stage.fingerprint, figures)


def _write_metrics(directory: Path, name: str, figures: Figures) -> None:
    """Gather the figures of a directory's stages for people and tools that look for one file."""
    found = {path.stem: _readable(path) for path in (directory / "manifests").glob("*.json")}
    gathered = {stage: made["figures"] for stage, made in found.items() if made} | {name: figures}
    write_json(directory / "metrics.json", dict(sorted(gathered.items())))


def _readable(path: Path) -> dict[str, Any] | None:
    """Return the manifest of a stage; `None` if it is damaged and can't say what shaped the stage."""
    try:
        manifest = read_json(path)
    except DataError:
        return None
    whole = isinstance(manifest, dict) and {"fingerprint", "parts", "outputs", "figures"} <= manifest.keys()
    return manifest if whole else None


def _manifest_path(directory: Path, name: str) -> Path:
    return directory / "manifests" / f"{name}.json"


def _partial_prefix(stage: Stage) -> str:
    return f"{stage.name.rpartition('/')[2]}.{stage.fingerprint[:12]}"


def _describe(path: Path) -> dict[str, Any]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {"files": {file.relative_to(path).as_posix(): _describe(file) for file in files}}
    return {"size": path.stat().st_size, "sha256": hash_file(path)}


def _damage(directory: Path, outputs: Mapping[str, Any]) -> list[str]:
    """Return what is missing or changed; weights are compared by size, all else by hash."""
    found = []
    for name, recorded in outputs.items():
        path = directory / name
        if "files" in recorded:
            found += _damage(path, recorded["files"])
        elif not path.is_file():
            found.append(f"{path} is missing")
        elif path.stat().st_size != recorded["size"] or (
            path.suffix != ".safetensors" and hash_file(path) != recorded["sha256"]
        ):
            found.append(f"{path} was changed after the stage")
    return found
