"""The report page: one file that needs no network and no script.

Everything that comes from a run passes `text.readable` and is then escaped, wherever the template shows it.
The page depends on nothing but the run directory.
"""

from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from selfalign.evaluation.results import LABELS
from selfalign.report import text
from selfalign.report.benchmarks import as_markdown, evaluation_page, read_table
from selfalign.report.read import finished_stages
from selfalign.report.rlcd import rlcd_page
from selfalign.report.self_rewarding import self_rewarding_page
from selfalign.runs.events import read_events
from selfalign.runs.files import read_json, write_text

_RECIPE_LINES = 1000


def write_report(root: Path) -> Path:
    """Write `report.html` into a run directory from what it holds so far, and return its path.

    An evaluation gets its table as Markdown beside it, `table.md`.

    Raises:
        DataError: A file of a finished stage is missing or broken.
    """
    path = root / "report.html"
    stages = finished_stages(root)
    manifest = _json_or_empty(root / "manifest.json")
    recipe = _json_or_empty(root / "recipe.resolved.json")
    data = manifest.get("data", {})
    benchmarks = read_table(root)
    match recipe.get("method"):
        case "rlcd":
            template, page = "rlcd.jinja", rlcd_page(root, stages, data)
        case "evaluation":
            template, page = "evaluation.jinja", evaluation_page(root, stages)
            if benchmarks is not None:
                write_text(root / "table.md", as_markdown(*benchmarks))
        case _:
            template, page = "self_rewarding.jinja", self_rewarding_page(root, stages, recipe, data)
    shared = {
        "name": root.resolve().name,
        "manifest": manifest,
        "recipe": yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True).splitlines()[:_RECIPE_LINES],
        "stages": stages,
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "benchmarks": benchmarks,
        "stopped": None if page["finished"] else _stopped(root),
    }
    write_text(path, _environment().get_template(template).render(shared | page))
    return path


@cache
def _environment() -> jinja2.Environment:
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
    environment.filters["benchmark"] = LABELS.__getitem__
    return environment


def _readable(value: object) -> object:
    """Make whatever a template shows readable, except for what a template made or left out."""
    return value if isinstance(value, Markup | jinja2.Undefined) else text.readable(str(value))


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
