"""What the page of a self-rewarding run shows beyond what every page does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfalign.report import figures, tables
from selfalign.report.changes import judge_changes
from selfalign.report.concerns import concerns, given
from selfalign.report.iteration import IterationSample, sample_iteration
from selfalign.report.problems import Problems
from selfalign.report.read import MEASURES, Manifest, iterations, measured_models, model_places

_BYTES_TO_BROWSE = 3_200_000
"""Size of the pairs and examples, all iterations together, so that the page stays below 5 MB."""


def self_rewarding_page(
    root: Path, stages: Mapping[str, Manifest], recipe: Mapping[str, Any], problems: Problems
) -> dict[str, Any]:
    """Return all that the template of the method shows.

    Args:
        root: The run directory.
        stages: Manifests of the finished stages.
        recipe: The resolved recipe; empty for a run that was killed before it was written.
        problems: Told of what can't be read.
    """
    attempt = problems.attempt
    models = measured_models(root, problems)
    numbers = iterations(root)
    samples = {
        number: attempt(
            f"iteration-{number}",
            sample_iteration,
            root / f"iteration-{number}",
            stages,
            recipe,
            _BYTES_TO_BROWSE // len(numbers),
            problems,
        )
        or IterationSample()
        for number in numbers
    }
    changes = attempt("changes of the judges", judge_changes, root, models, problems) or {}
    ranked = stages.get("eft/judgments")
    return {
        "finished": attempt("whether the run is finished", _finished, stages, recipe) or False,
        "concerns": attempt("warnings", concerns, stages, numbers) or list(given(stages)),
        "models": models,
        "headings": [(heading, tables.UNITS.get(key, "pairs")) for key, heading in MEASURES],
        "judges": tables.judge_table(models, changes),
        "judge_figures": figures.judge_figures(models),
        "iterations": numbers,
        "iteration_panels": attempt("charts of the iterations", _panels, stages, samples) or [],
        "health_panel": attempt("judge health", figures.health_panel, _judged(stages, numbers)),
        "iteration_counts": attempt("counts of the iterations", tables.iteration_counts, stages, numbers)
        or [],
        "trainings": figures.training_panels(root, stages, model_places(root), problems),
        "data_counts": attempt("counts of the data", tables.data_counts, stages) or [],
        "eft_counts": attempt("counts of EFT", tables.eft_counts, stages) or [],
        "eft_panel": attempt(
            "scores of human-ranked replies",
            figures.score_panel,
            "Scores of human-ranked replies",
            {"By the SFT baseline": ranked} if ranked else {},
        ),
        "eft_scores": attempt("scores of EFT examples", tables.score_table, stages.get("eft/examples")),
        "samples": samples,
        "origins": {n: attempt(f"origin of iteration {n}", _origin, stages, n) or "" for n in samples},
        "filters": {f"Iteration {number}": sample.filters for number, sample in samples.items()},
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


def _finished(stages: Mapping[str, Manifest], recipe: Mapping[str, Any]) -> bool:
    """Say whether the last iteration is done, or a gate has ended the run before it."""
    if f"iteration-{recipe.get('num_iterations')}/evaluate" in stages:
        return True
    gates = [made for name, made in stages.items() if name.endswith("/gate")]
    stops = (recipe.get("gate") or {}).get("otherwise") == "stop"
    return stops and any(made["figures"].get("accepted") is False for made in gates)


def _named(number: int) -> str:
    return f"Iteration {number}, by M{number}"


def _judged(stages: Mapping[str, Manifest], numbers: Sequence[int]) -> dict[str, Manifest]:
    """Return the finished judging of the iterations by their names."""
    found = {f"Iteration {number}": stages.get(f"iteration-{number}/judgments") for number in numbers}
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def _panels(stages: Mapping[str, Manifest], samples: Mapping[int, IterationSample]) -> list[figures.Panel]:
    """Return scores, rewards, margins and lengths; the iterations of each share their axes."""
    judgments = {
        _named(number): stages[name]
        for number in samples
        if (name := f"iteration-{number}/judgments") in stages
    }
    rewards = {_named(n): sample.judged for n, sample in samples.items() if sample.judged is not None}
    lengths = {_named(n): sample.lengths for n, sample in samples.items() if sample.lengths}
    margins = {_named(n): sample.pairs for n, sample in samples.items() if sample.pairs is not None}
    return [
        figures.score_panel("Scores", judgments),
        figures.reward_panel("Rewards", rewards),
        figures.margin_panel("Margins", margins),
        figures.length_panel("Lengths in tokens", lengths),
    ]
