"""Reading what a run directory holds so far, for tables and the report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfalign.runs.files import read_json

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


@dataclass(frozen=True)
class ModelRow:
    """One model of the run, or the length baseline, measured as a judge."""

    name: str
    where: str
    """Its directory in the run; empty for the baseline."""
    quality: dict[str, Any]


def measured_models(root: Path) -> list[ModelRow]:
    """Return the models measured so far, in the order of training, and length as a judge last."""
    places = [("SFT baseline", "sft"), ("M1", "eft")]
    places += [(f"M{t + 1}", f"iteration-{t}") for t in iterations(root)]
    rows = []
    length = None
    for name, where in places:
        if (root / where / "manifests" / "evaluate.json").exists():
            quality = read_json(root / where / "judge_quality.json")
            rows.append(ModelRow(name, where, quality["judge"]))
            length = quality["length"]
    return [*rows, ModelRow("length alone", "", length)] if length else rows


def iterations(root: Path) -> list[int]:
    """Return the numbers of the iterations that have begun."""
    return sorted(int(path.name.removeprefix("iteration-")) for path in root.glob("iteration-*"))


def stage_manifests(root: Path) -> list[dict[str, Any]]:
    """Return the manifests of all finished stages, in the order in which they finished."""
    manifests = [read_json(path) for path in root.glob("*/manifests/*.json") if path.parts[-3] != "stale"]
    return sorted(manifests, key=lambda manifest: str(manifest["finished"]))
