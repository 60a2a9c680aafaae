"""What a run has to export: rows of finished stages, each joined with what it refers to."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selfalign.errors import RunError
from selfalign.records import (
    Completion,
    Judgment,
    Messages,
    PreferencePair,
    Prompt,
    Record,
    SFTExample,
)
from selfalign.runs.files import read_rows

What = Literal["pairs", "candidates", "judgments", "prompts", "ift", "eft"]
Split = Literal["train", "test"]
_OF_ITERATIONS: tuple[What, ...] = ("pairs", "candidates", "judgments", "prompts")
_ELSEWHERE: dict[What, tuple[tuple[str, str, Split], ...]] = {
    "pairs": (("contrast/pairs", "pairs.jsonl", "train"), ("contrast/pairs", "held_out_pairs.jsonl", "test")),
    "prompts": (("data/read", "prompts.jsonl", "train"),),
    "ift": (("data/read", "ift.jsonl", "train"),),
    "eft": (("eft/examples", "examples.jsonl", "train"),),
}
"""Stage, file and split of what comes from no iteration."""


@dataclass(frozen=True)
class Part:
    """Rows of one kind that one stage left."""

    what: What
    file: Path
    split: Split
    iteration: int | None
    """Counted from 1; `None` for what no iteration made."""


class Scored(Record):
    """A candidate with its prompt and its reward."""

    messages: Messages
    completion: Completion
    reward: float | None
    """Mean of its judgments' scores; `None` where it has none."""


class Judged(Record):
    """A judgment with the prompt and the candidate that it is about."""

    messages: Messages
    completion: Completion
    judgment: Judgment


Exportable = PreferencePair | Prompt | SFTExample | Scored | Judged


def parts_of(root: Path, what: What, iteration: int | None = None) -> list[Part]:
    """Return the finished rows of a kind, in the order of training.

    Args:
        root: The run directory.
        what: Kind of rows.
        iteration: Which one, counted from 1; all if `None`.

    Raises:
        RunError: There are none; says what there is.
    """
    parts = [part for part in _all_parts(root) if part.what == what]
    parts = [part for part in parts if iteration is None or part.iteration == iteration]
    if not parts:
        of = "" if iteration is None else f" of iteration {iteration}"
        found = dict.fromkeys(
            part.what + ("" if part.iteration is None else f" of iteration {part.iteration}")
            for part in _all_parts(root)
        )
        raise RunError(f"{root}: no {what}{of} yet; finished are: {', '.join(found) or 'none'}")
    return parts


def rows_of(part: Part) -> Iterator[Exportable]:
    """Read the rows of a part, each with what it refers to.

    Candidates without a text are left out.
    """
    match part.what:
        case "pairs":
            yield from read_rows(part.file, PreferencePair)
        case "prompts":
            yield from read_rows(part.file, Prompt)
        case "ift" | "eft":
            yield from read_rows(part.file, SFTExample)
        case "candidates":
            yield from _candidates(part.file)
        case "judgments":
            yield from _judgments(part.file)


def _all_parts(root: Path) -> Iterator[Part]:
    for what, places in _ELSEWHERE.items():
        for stage, file, split in places:
            path = root / stage.partition("/")[0] / file
            if _finished(root, stage) and path.is_file():
                yield Part(what, path, split, None)
    for number in sorted(_numbers(root)):
        for what in _OF_ITERATIONS:
            place = root / f"iteration-{number}"
            made = (
                [what, "pairs"] if what == "prompts" else [what]
            )  # pairs from elsewhere bring their prompts
            if any(_finished(root, f"{place.name}/{stage}") for stage in made):
                path = place / f"{what}.jsonl"
                if path.is_file():
                    yield Part(what, path, "train", number)


def _numbers(root: Path) -> Iterator[int]:
    for path in root.glob("iteration-*"):
        number = path.name.removeprefix("iteration-")
        if number.isdecimal():
            yield int(number)


def _finished(root: Path, stage: str) -> bool:
    directory, _, name = stage.partition("/")
    return (root / directory / "manifests" / f"{name}.json").is_file()


def _candidates(file: Path) -> Iterator[Scored]:
    asked = _asked(file)
    scores: dict[str, list[float]] = {}
    judgments = file.with_name("judgments.jsonl")
    if _finished(file.parent.parent, f"{file.parent.name}/judgments"):
        for judgment in read_rows(judgments, Judgment):
            if judgment.score is not None:
                scores.setdefault(judgment.completion_id, []).append(judgment.score)
    for row in read_rows(file, Completion):
        if row.text is not None:
            given = scores.get(row.completion_id)
            reward = sum(given) / len(given) if given else None
            yield Scored(messages=asked[row.prompt_id], completion=row, reward=reward)


def _judgments(file: Path) -> Iterator[Judged]:
    asked = _asked(file)
    judged = {row.completion_id: row for row in read_rows(file.with_name("candidates.jsonl"), Completion)}
    for row in read_rows(file, Judgment):
        completion = judged[row.completion_id]
        yield Judged(messages=asked[row.prompt_id], completion=completion, judgment=row)


def _asked(file: Path) -> dict[str, Messages]:
    """Return the messages of the prompts beside a file, by their ids."""
    return {row.prompt_id: row.messages for row in read_rows(file.with_name("prompts.jsonl"), Prompt)}
