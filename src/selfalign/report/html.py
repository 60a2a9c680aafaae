"""The report page: one file that needs no network and no script.

Everything that comes from a run passes `text.readable` and is then escaped, wherever the template shows it.
The page depends on nothing but the run directory. What can't be read there is told on top of it.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml
from pydantic import TypeAdapter, ValidationError

from selfalign.config import Recipe
from selfalign.evaluation.results import LABELS
from selfalign.report.benchmarks import as_markdown, evaluation_page
from selfalign.report.concerns import grouped
from selfalign.report.gains import read_benchmarks
from selfalign.report.overview import Overview, costs, costs_by_kind, other_version, overview
from selfalign.report.problems import Problems
from selfalign.report.read import check_outputs, finished_stages
from selfalign.report.rlcd import rlcd_page
from selfalign.report.self_rewarding import self_rewarding_page
from selfalign.report.templating import environment_of
from selfalign.runs.events import read_events
from selfalign.runs.files import write_text

_RECIPE: TypeAdapter[Recipe] = TypeAdapter(Recipe)
_RECIPE_LINES = 1000


def write_report(root: Path, problems: Problems | None = None) -> Path:
    """Write `report.html` into a run directory from what it holds so far, and return its path.

    An evaluation gets its table as Markdown beside it, `table.md`.

    Args:
        root: The run directory, finished or not.
        problems: Told of what can't be read, which the page tells too.
    """
    problems = Problems(root) if problems is None else problems
    path = root / "report.html"
    stages = finished_stages(root, problems)
    check_outputs(root, stages, problems)
    manifest, recipe = (
        _object(root / name, problems, begun=bool(stages))
        for name in ("manifest.json", "recipe.resolved.json")
    )
    _check(recipe, problems)
    benchmarks = read_benchmarks(root, problems)
    match recipe.get("method") or manifest.get("method"):
        case "rlcd":
            template, page = "rlcd.jinja", rlcd_page(root, stages, recipe, problems)
        case "evaluation":
            template, page = "evaluation.jinja", evaluation_page(root, stages, problems)
            if benchmarks is not None:
                markdown = as_markdown(benchmarks.models, benchmarks.rows, benchmarks.not_run)
                write_text(root / "table.md", markdown)
        case _:
            template, page = "self_rewarding.jinja", self_rewarding_page(root, stages, recipe, problems)
    shared = {
        "name": root.resolve().name,
        "overview": problems.attempt("what was run", overview, manifest, stages) or Overview(),
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).splitlines()[:_RECIPE_LINES],
        "stages": stages,
        "costs": problems.attempt("what the stages took", costs, stages) or [],
        "kinds": problems.attempt("what the stages took", costs_by_kind, stages) or [],
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "benchmarks": benchmarks,
        "stopped": None if page["finished"] else _stopped(root),
        "concerns": grouped(page["concerns"]),
    }
    version = problems.attempt("the version", other_version, manifest)
    if any(True for _ in problems) and version is not None:
        problems.add(version)
    write_text(path, _environment().get_template(template).render(page | shared, problems=list(problems)))
    return path


@cache
def _environment() -> jinja2.Environment:
    environment = environment_of("selfalign.report")
    environment.filters["benchmark"] = lambda task: LABELS.get(task, task)
    return environment


def _object(path: Path, problems: Problems, *, begun: bool) -> dict[str, Any]:
    """Return what a run writes at its start; one that was killed before it had begun has nothing yet."""
    value = problems.json(path) if begun or path.exists() else {}
    if isinstance(value, dict):
        return value
    if value is not None:
        problems.add(f"{path}: no JSON object")
    return {}


def _check(recipe: Mapping[str, Any], problems: Problems) -> None:
    """Tell of a recipe that another version has resolved."""
    if not recipe:
        return
    try:
        _RECIPE.validate_python(recipe)
    except ValidationError as error:
        problem = error.errors()[0]
        # The place of a key goes through the validators of its sections, which say nothing to a person.
        key = ".".join(str(part) for part in problem["loc"] if "[" not in str(part))
        problems.add(
            f"recipe.resolved.json: made by another version of selfalign ({key}: {problem['msg']}), so that "
            "parts of the run may be missing here"
        )


def _stopped(root: Path) -> str | None:
    """Return why the run stopped; `None` where it goes on or was killed without a word."""
    last = None
    for event in read_events(root / "events.jsonl"):
        if event["event"] == "run_started":
            last = None
        elif event["event"] == "run_stopped":
            last = f"{event.get('reason')}: {event.get('message')}"
    return last
