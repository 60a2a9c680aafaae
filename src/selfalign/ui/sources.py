"""Which files of a run hold the rows to browse, finished or under way, and which rows in them are damaged."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from selfalign.records import Completion, Contrast, Judgment, PreferencePair, Prompt, RankedPrompt
from selfalign.report.read import iterations

Kind = Literal["prompts", "candidates", "judgments", "pairs"]
NAMED_ROWS = 5
"""Damaged rows of a file that are named, at most; the others are counted."""

_ITERATION: dict[str, tuple[str, type[BaseModel]]] = {
    "prompts": ("prompts.jsonl", Prompt),
    "candidates": ("candidates.jsonl", Completion),
    "judgments": ("judgments.jsonl", Judgment),
    "pairs": ("pairs.jsonl", PreferencePair),
}
_PLACES: dict[str, dict[str, tuple[str, type[BaseModel]]]] = {
    "eft": {
        "prompts": ("../data/ranked.jsonl", RankedPrompt),
        "candidates": ("../data/ranked.jsonl", RankedPrompt),
        "judgments": ("judgments.jsonl", Judgment),
    },
    "contrast": {
        **_ITERATION,
        "prompts": ("contrasts.jsonl", Contrast),
        "candidates": ("completions.jsonl", Completion),
    },
}


@dataclass(frozen=True)
class Source:
    """The files of one kind of rows in one place of a run."""

    kind: str
    place: str
    """Directory in the run."""
    record: type[BaseModel]
    files: tuple[Path, ...]
    finished: bool
    """False where these are rows of a stage under way, whose last row may be half written."""


def sources_of(root: Path) -> list[Source]:
    """Return what there is to browse, in the order of the method; links out of the run are left out.

    Args:
        root: The run directory, resolved.
    """
    places = [*_PLACES, *(f"iteration-{number}" for number in iterations(root))]
    found = []
    for place in places:
        for kind, (name, record) in _PLACES.get(place, _ITERATION).items():
            file = root / place / name
            shards = sorted((root / place / "partial").glob(f"*.{name}.shards/*.jsonl"))
            files = tuple(path for path in ([file] if file.is_file() else shards) if is_inside(path, root))
            if files and (root / place).is_dir():
                found.append(Source(kind, place, record, files, finished=file.is_file()))
    return found


def is_inside(path: Path, root: Path) -> bool:
    """Say whether a path still lies in a directory when all links are followed."""
    return path.resolve().is_relative_to(root.resolve())


def damaged_rows(source: Source) -> list[str]:
    """Return a line for each damaged row of a source, the first `NAMED_ROWS` of a file and how many more."""
    found = []
    for file in source.files:
        numbers = list(_damaged(file, source))
        where = f"{source.place}/{file.name}"
        found += [f"{where}, row {number}: not a {source.record.__name__}" for number in numbers[:NAMED_ROWS]]
        if len(numbers) > NAMED_ROWS:
            found.append(f"{where}: {len(numbers) - NAMED_ROWS:,} more damaged rows")
    return found


def _damaged(file: Path, source: Source) -> Iterator[int]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not source.finished and not line.endswith(b"\n"):
                return  # being written
            try:
                source.record.model_validate_json(line)
            except ValidationError:
                yield number
