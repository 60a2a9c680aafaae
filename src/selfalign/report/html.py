"""The report page: one file that needs no network and no script.

Everything that comes from a run passes `text.readable` and is then escaped, wherever the template shows it.
The page depends on nothing but the run directory.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from selfalign.report import figures, tables, text
from selfalign.report.concerns import concerns
from selfalign.report.read import MEASURES, Manifest, finished_stages, iterations, measured_models
from selfalign.report.sample import PairSample, sample_pairs, token_counts
from selfalign.runs.events import read_events
from selfalign.runs.files import read_json, write_text

_BYTES_OF_PAIRS = 3_000_000
"""Size of the pairs to browse, all iterations together, so that the page stays below 5 MB."""
_RECIPE_LINES = 1000


def write_report(root: Path) -> Path:
    """Write `report.html` into a run directory from what it holds so far, and return its path.

    Raises:
        DataError: A file of a finished stage is missing or broken.
    """
    path = root / "report.html"
    write_text(path, _template().render(_page(root)))
    return path


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("selfalign.report"),
        autoescape=True,
        finalize=_readable,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (text.duration, text.moment, text.plural, text.share, text.whole, text.words_of):
        environment.filters[function.__name__] = function
    return environment.get_template("report.jinja")


def _readable(value: object) -> object:
    """Make whatever a template shows readable, except for what a template made or left out."""
    return value if isinstance(value, Markup | jinja2.Undefined) else text.readable(str(value))


def _page(root: Path) -> dict[str, Any]:
    """Return all that the template shows."""
    stages = finished_stages(root)
    models = measured_models(root)
    numbers = iterations(root)
    recipe = _json_or_empty(root / "recipe.resolved.json")
    samples = _samples(root, stages, numbers)
    finished = f"iteration-{recipe.get('num_iterations')}/evaluate" in stages
    ranked = stages.get("eft/judgments")
    return {
        "name": root.resolve().name,
        "manifest": _json_or_empty(root / "manifest.json"),
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).splitlines()[:_RECIPE_LINES],
        "stages": stages,
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "finished": finished,
        "stopped": None if finished else _stopped(root),
        "concerns": concerns(stages, models, numbers),
        "models": models,
        "headings": [(heading, tables.UNITS.get(key, "pairs")) for key, heading in MEASURES],
        "judges": tables.judge_table(models),
        "judge_figures": figures.judge_figures(models),
        "iterations": numbers,
        "iteration_panels": _iteration_panels(root, stages, numbers, samples),
        "iteration_counts": tables.iteration_counts(stages, numbers),
        "trainings": figures.training_panels(root, stages),
        "data_counts": tables.data_counts(stages),
        "eft_counts": tables.eft_counts(stages),
        "eft_panel": figures.score_panel(
            "Scores of human-ranked replies", {"By the SFT baseline": ranked} if ranked else {}
        ),
        "eft_scores": tables.score_table(stages.get("eft/examples")),
        "samples": samples,
    }


def _json_or_empty(path: Path) -> dict[str, Any]:
    """Return what a run writes at its start; a run that was killed before has nothing yet."""
    return dict(read_json(path)) if path.exists() else {}


def _stopped(root: Path) -> str | None:
    """Return why the run stopped; `None` where it goes on or was killed without a word."""
    last = None
    for event in read_events(root / "events.jsonl"):
        if event["event"] == "run_started":
            last = None
        elif event["event"] == "run_stopped":
            last = f"{event['reason']}: {event['message']}"
    return last


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
