"""Reading what a run directory holds so far, for tables and the report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfalign.runs.files import read_json

Manifest = dict[str, Any]
"""What a finished stage wrote about itself; a file of a stage without one may be unfinished."""

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


def measured_models(root: Path) -> list[ModelRow]:
    """Return the models measured so far, in the order of training, and length as a judge last."""
    rows = []
    length = None
    for name, where in model_places(root):
        if (root / where / "manifests" / "evaluate.json").exists():
            quality = read_json(root / where / "judge_quality.json")
            rows.append(ModelRow(name, where, quality["judge"]))
            length = quality["length"]
    return [*rows, ModelRow("length alone", "", length)] if length else rows


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


def finished_stages(root: Path) -> dict[str, Manifest]:
    """Return the manifests of all finished stages by name, in the order of the method."""
    manifests = [read_json(path) for path in root.glob("*/manifests/*.json")]
    return {manifest["stage"]: manifest for manifest in sorted(manifests, key=_place)}


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
