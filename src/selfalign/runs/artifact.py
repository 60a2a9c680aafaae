"""Stages by name, the fingerprints that say what shaped their results, and the artifacts they leave.

A stage's fingerprint is a hash of its version, its settings and the fingerprints of its inputs, so it
is known before anything has run, and a change anywhere upstream changes it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfalign.config import Train
from selfalign.runs.files import hash_json


@dataclass(frozen=True)
class Artifact:
    """A file or directory that a stage leaves, or will leave; or a model from outside."""

    path: Path
    fingerprint: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    """What its stage counted; while the stage is not done, what it is expected to count at most."""

    @property
    def rows(self) -> int:
        """Return its number of rows."""
        return int(self.figures.get("rows", 0))

    @property
    def tokens(self) -> int:
        """Return about how many tokens its texts have."""
        return int(self.figures.get("tokens", 0))

    def sibling(self, file: str) -> "Artifact":
        """Return another output of the stage; its figures stand under its name without the ending."""
        figures = self.figures.get(Path(file).stem, {})
        return Artifact(self.path.with_name(file), hash_json([self.fingerprint, file]), figures)


@dataclass(frozen=True)
class Stage:
    """One step of a run: a name, and everything that shapes its result."""

    name: str
    """Directory in the run and name of the stage, such as `iteration-1/candidates`."""
    version: int
    """Raised whenever the stage's code starts to give other results for the same inputs."""
    outputs: tuple[str, ...]
    """Files or directories it leaves in its directory, the main one first."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The part of the recipe that shapes the result, as plain JSON values."""
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    expected: Mapping[str, Any] = field(default_factory=dict)
    """Upper bounds known beforehand: `rows` and `tokens` of the main output, and what the stage costs:
    `generations`, `new_tokens` (to generate), `training_tokens` (every epoch counted)."""
    training: Train | None = None
    """Settings of a stage that trains, from which its memory can be told."""

    @property
    def parts(self) -> dict[str, Any]:
        """Return what the fingerprint is made of, flat, so that two can be compared key by key."""
        return {
            "stage version": self.version,
            **dict(_flatten("", self.settings)),
            **{f"input {name}": artifact.fingerprint for name, artifact in self.inputs.items()},
        }

    @property
    def fingerprint(self) -> str:
        """Return the hash of the name and the parts."""
        return hash_json([self.name, self.parts])


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say in words which parts differ, in the order of their keys."""
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [
        f"{key} changed"
        if key.startswith("input ") or _is_hash(new.get(key))
        else f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in changed
    ]


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value
