"""What the page of a self-rewarding run shows beyond what every page does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfalign.report import figures, tables
from selfalign.report.concerns import concerns
from selfalign.report.read import MEASURES, Manifest, iterations, measured_models, model_places
from selfalign.report.sample import PairSample, sample_pairs, token_counts

_BYTES_OF_PAIRS = 3_000_000
"""Size of the pairs to browse, all iterations together, so that the page stays below 5 MB."""


def self_rewarding_page(
    root: Path, stages: Mapping[str, Manifest], recipe: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all that the template of the method shows.

    Args:
        root: The run directory.
        stages: Manifests of the finished stages.
        recipe: The resolved recipe; empty for a run that was killed before it was written.
        data: What the manifest of the run says of its data; empty in the same case.
    """
    models = measured_models(root)
    numbers = iterations(root)
    samples = _samples(root, stages, numbers)
    ranked = stages.get("eft/judgments")
    contents = {"ift": [data["ift"]["path"]], "ranked": data["ranked"]["paths"]} if data else {}
    return {
        "finished": f"iteration-{recipe.get('num_iterations')}/evaluate" in stages,
        "data_contents": contents,
        "concerns": concerns(stages, numbers),
        "models": models,
        "headings": [(heading, tables.UNITS.get(key, "pairs")) for key, heading in MEASURES],
        "judges": tables.judge_table(models),
        "judge_figures": figures.judge_figures(models),
        "iterations": numbers,
        "iteration_panels": _iteration_panels(root, stages, numbers, samples),
        "iteration_counts": tables.iteration_counts(stages, numbers),
        "trainings": figures.training_panels(root, stages, model_places(root)),
        "data_counts": tables.data_counts(stages),
        "eft_counts": tables.eft_counts(stages),
        "eft_panel": figures.score_panel(
            "Scores of human-ranked replies", {"By the SFT baseline": ranked} if ranked else {}
        ),
        "eft_scores": tables.score_table(stages.get("eft/examples")),
        "samples": samples,
        "origins": {number: _origin(stages, number) for number in samples},
    }


def _origin(stages: Mapping[str, Manifest], number: int) -> str:
    """Say who wrote and judged the pairs of an iteration."""
    read = {
        stage: Path(manifest["figures"]["from"]).name
        for stage in ("pairs", "candidates", "judgments")
        if (manifest := stages.get(f"iteration-{number}/{stage}")) and "from" in manifest["figures"]
    }
    if "pairs" in read:
        return f"They were read from {read['pairs']}."
    if not read:
        return f"M{number} wrote and judged both sides."
    texts = f"were read from {read['candidates']}" if "candidates" in read else f"are by M{number}"
    scores = f"were read from {read['judgments']}" if "judgments" in read else f"are by M{number}"
    return f"Both texts {texts}; their scores {scores}."


def _samples(root: Path, stages: Mapping[str, Manifest], numbers: Sequence[int]) -> dict[int, PairSample]:
    samples = {}
    for number in numbers:
        if f"iteration-{number}/pairs" in stages:
            directory = root / f"iteration-{number}"
            judged = f"iteration-{number}/judgments" in stages
            samples[number] = sample_pairs(
                directory / "pairs.jsonl",
                directory / "judgments.jsonl" if judged else None,
                most_bytes=_BYTES_OF_PAIRS // len(numbers),
            )
    return samples


def _iteration_panels(
    root: Path,
    stages: Mapping[str, Manifest],
    numbers: Sequence[int],
    samples: Mapping[int, PairSample],
) -> list[figures.Panel]:
    """Return scores, candidate lengths and margins; the iterations of each share their axes."""

    def named(stage: str) -> dict[str, str]:
        """Return the directories in which a stage is finished, by the name of the iteration."""
        places = {f"Iteration {number}, by M{number}": f"iteration-{number}" for number in numbers}
        return {name: place for name, place in places.items() if f"{place}/{stage}" in stages}

    judgments = {name: stages[f"{place}/judgments"] for name, place in named("judgments").items()}
    lengths = {
        name: token_counts(root / place / "candidates.jsonl") for name, place in named("candidates").items()
    }
    margins = {f"Iteration {number}, by M{number}": sample for number, sample in samples.items()}
    return [
        figures.score_panel("Scores", judgments),
        figures.length_panel("Candidate lengths in tokens", lengths),
        figures.margin_panel("Margins of the pairs", margins),
    ]
