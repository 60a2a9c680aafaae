"""Reading what a run directory holds so far, for tables and the report."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from selfalign.evaluation.judge_quality import Measure
from selfalign.report.problems import Problems

Manifest = dict[str, Any]
"""What a finished stage wrote about itself; a file of a stage without one may be unfinished."""


class _Shape(TypedDict):
    """What every manifest of a stage has, whatever the stage."""

    stage: str
    figures: dict[str, Any]
    warnings: list[str]
    seconds: float
    finished: str
    parts: NotRequired[dict[str, Any]]
    outputs: NotRequired[dict[str, dict[str, Any]]]


_SHAPE = TypeAdapter(_Shape)
_MEASURE = TypeAdapter(Measure)

MEASURES = (
    ("pairwise_accuracy", "pairwise"),
    ("pairwise_accuracy_longer_better", "longer better"),
    ("pairwise_accuracy_longer_worse", "longer worse"),
    ("tie_rate", "ties"),
    ("five_best", "5-best"),
    ("exact_match", "exact"),
    ("spearman", "Spearman"),
    ("kendall_tau_b", "Kendall τ-b"),
)
"""Keys of judge quality and their short headings."""

# Directories and stages in the order of the method, so that stages that took no time stay in order too.
_DIRECTORIES = ("data", "judge", "sft", "eft", "iteration", "contrast", "rlcd")
_STAGES = (
    *("read", "prompts", "candidates", "contrasts", "completions", "judgments", "attacks", "examples"),
    *("pairs", "strength", "reference", "train", "evaluate", "gate", "preference", "outputs"),
)


@dataclass(frozen=True)
class ModelRow:
    """One model of the run, or the length baseline, measured as a judge."""

    name: str
    where: str
    """Its directory in the run; empty for the baseline."""
    quality: dict[str, Any]


def measured_models(root: Path, problems: Problems) -> list[ModelRow]:
    """Return the models measured so far, in the order of training, and length as a judge last."""
    rows = []
    length = None
    for name, where in model_places(root):
        if (root / where / "manifests" / "evaluate.json").exists():
            quality = problems.json(root / where / "judge_quality.json")
            if quality is None:
                continue
            found = problems.attempt(f"{name} as a judge", _measures, quality)
            if found is not None:
                judge, length = found
                rows.append(ModelRow(name, where, judge))
    return [*rows, ModelRow("length alone", "", length)] if length else rows


def _measures(quality: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the measures of a judge and of length, all of them.

    Raises:
        KeyError: One is missing.
        ValueError: One is no measure.
    """
    judge, length = quality["judge"], quality["length"]
    for key, _ in MEASURES:
        for measures in (judge, length):
            _MEASURE.validate_python(measures[key])
    return {"parse_rate": None, **judge}, {"parse_rate": None, **length}


def model_places(root: Path) -> list[tuple[str, str]]:
    """Return name and directory of every model that is or will be trained there, in that order."""
    return [
        *([("fixed judge", "judge")] if (root / "judge").is_dir() else []),
        ("SFT baseline", "sft"),
        ("M1", "eft"),
        *((f"M{t + 1}", f"iteration-{t}") for t in iterations(root)),
    ]


def iterations(root: Path) -> list[int]:
    """Return the numbers of the iterations that have begun."""
    numbers = (path.name.removeprefix("iteration-") for path in root.glob("iteration-*"))
    return sorted(int(number) for number in numbers if number.isdecimal())


def finished_stages(root: Path, problems: Problems) -> dict[str, Manifest]:
    """Return the manifests of all finished stages by name, in the order of the method."""
    manifests = []
    for path in sorted(root.glob("*/manifests/*.json")):
        manifest = problems.json(path)
        try:
            _SHAPE.validate_python(manifest)
        except ValidationError as error:
            if manifest is not None:
                field = ".".join(str(part) for part in error.errors()[0]["loc"])
                problems.add(f"{path}: no manifest of a stage as this version reads it ({field or 'all'})")
            continue
        manifests.append({"parts": {}, "outputs": {}} | manifest)
    return {manifest["stage"]: manifest for manifest in sorted(manifests, key=_place)}


def check_outputs(root: Path, stages: Mapping[str, Manifest], problems: Problems) -> None:
    """Tell which outputs of the finished stages are gone, or not as long as their stages left them."""
    for stage, manifest in stages.items():
        for name, recorded in manifest["outputs"].items():
            path = root / stage.rpartition("/")[0] / name
            if not path.exists():
                problems.add(f"{path}: is missing; {stage} had made it")
            elif "size" in recorded and path.stat().st_size != recorded["size"]:
                problems.add(f"{path}: was changed after {stage} had made it")


def _place(manifest: Manifest) -> tuple[int, int, int, str]:
    """Return a sort key; what the method does not know comes last."""
    directory, _, stage = manifest["stage"].partition("/")
    kind, _, number = directory.partition("-")
    return (
        _DIRECTORIES.index(kind) if kind in _DIRECTORIES else len(_DIRECTORIES),
        int(number) if number.isdecimal() else 0,
        _STAGES.index(stage) if stage in _STAGES else len(_STAGES),
        manifest["stage"],
    )
