"""Model cards and data-set cards: README.md as the hub reads it, from what a run has measured.

What is not known is left out or said to be unknown; no model's text stands in a card.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jinja2
import yaml
from huggingface_hub import DatasetCardData, EvalResult, ModelCard, ModelCardData

from selfalign.errors import DataError
from selfalign.evaluation.results import LABELS, TaskResult
from selfalign.export.contents import Part, Split
from selfalign.export.formats import Format
from selfalign.models.source import EMBEDDED, accepted_models, trained_models
from selfalign.report.benchmarks import EVALUATION, as_markdown, read_table
from selfalign.report.effects import effects
from selfalign.report.problems import Problems
from selfalign.report.read import MEASURES, finished_stages, measured_models
from selfalign.report.rlcd import prompt_counts
from selfalign.report.tables import data_counts, eft_counts, iteration_counts, judge_table
from selfalign.runs.files import read_json

T = TypeVar("T")

_HUB_NAMES = {EMBEDDED: "HuggingFaceTB/SmolLM2-135M-Instruct"}
_LICENCES = {EMBEDDED: "apache-2.0"}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_METHODS = {
    "self_rewarding": ("Self-Rewarding", "https://arxiv.org/abs/2401.10020"),
    "rlcd": ("RLCD by system message", "https://arxiv.org/abs/2307.12950"),
}


def model_card(root: Path, name: str, hashes: Mapping[str, str], licence: str | None) -> str:
    """Return the card of a model of a run.

    Args:
        root: The run directory.
        name: The model's, such as "M2".
        hashes: SHA-256 of its weight files, by their names.
        licence: By its name on the hub; that of the base if `None` and known.
    """
    run = _run(root)
    header = ModelCardData(
        base_model=run["base_on_hub"],
        library_name="transformers",
        license=licence or run["base_licence"],
        pipeline_tag="text-generation",
        tags=["selfalign", run["tag"], "dpo"],
        model_name=f"{run['name']}-{name}",
        eval_results=_benchmarks_of(root, name) or None,
    )
    return _render(
        "model_card.jinja",
        run,
        header=header.to_yaml(),
        model=name,
        models=list(trained_models(root)),
        turned_down=[made for made in trained_models(root) if made not in accepted_models(root)],
        hashes=hashes,
        licence=licence or run["base_licence"],
        judges=_judges(root),
        effects=_effects(root),
        benchmarks=None if (table := _read(root, read_table)) is None else as_markdown(*table),
    )


def dataset_card(
    root: Path,
    parts: Sequence[Part],
    format: Format,
    counts: Mapping[Split, int],
    hashes: Mapping[str, str],
    licence: str | None,
) -> str:
    """Return the card of exported rows.

    Args:
        root: The run directory.
        parts: What was exported, one kind of rows.
        format: Of the files.
        counts: Rows by split.
        hashes: SHA-256 of the files of rows, by their names.
        licence: By its name on the hub; none is stated if `None`.
    """
    run = _run(root)
    files = [{"split": Path(name).stem, "path": name} for name in hashes]
    header = DatasetCardData(
        license=licence,
        pretty_name=f"{run['name']}: {parts[0].what}",
        task_categories=["text-generation"],
        size_categories=[_size(sum(counts.values()))],
        tags=["selfalign", run["tag"], "synthetic", parts[0].what],
        configs=[{"config_name": "default", "data_files": files}],
    )
    return _render(
        "dataset_card.jinja",
        run,
        header=header.to_yaml(),
        what=parts[0].what,
        format=format,
        counts=counts,
        numbers=_numbers(parts),
        hashes=hashes,
        licence=licence,
        counted=_counted(root, run["method"], parts),
        judges=_judges(root),
    )


def _run(root: Path) -> dict[str, Any]:
    """Return what both cards say of the run."""
    manifest, recipe = read_json(root / "manifest.json"), read_json(root / "recipe.resolved.json")
    base = str(manifest["model"]["name"])
    directory = Path(base).is_dir()
    paper, address = _METHODS[recipe["method"]]
    return {
        "name": root.resolve().name,
        "method": recipe["method"],
        "tag": recipe["method"].replace("_", "-"),
        "paper": paper,
        "address": address,
        "base": Path(base).name if directory else base,
        "base_fingerprint": manifest["model"]["fingerprint"],
        "base_on_hub": _HUB_NAMES.get(base, None if directory or base.count("/") != 1 else base),
        "base_licence": _LICENCES.get(base) or (_licence_beside(Path(base)) if directory else None),
        "data": list(_data_hashes(manifest["data"])),
        "invocation": manifest["invocations"][-1],
        "seed": manifest["seed"],
        "recipe": yaml.safe_dump(_public(recipe), sort_keys=False, allow_unicode=True),
    }


def _licence_beside(model: Path) -> str | None:
    """Return the licence that a model directory's own card states, if it has one."""
    card = model / "README.md"
    stated = ModelCard.load(card).data.license if card.is_file() else None
    return stated if isinstance(stated, str) else None


def _data_hashes(data: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Yield what was read and the hash, or the name on the hub, of each of its files."""
    for key in ("ift", "ranked"):
        section = data.get(key, {})
        for content in [section["path"]] if "path" in section else section.get("paths", ()):
            yield key, content
    yield from (("prompts", content) for content in data.get("paths", ()))


def _public(value: Any, key: str = "") -> Any:
    """Return a recipe without what is nobody else's business: directories of this machine, addresses."""
    if isinstance(value, dict):
        return {name: _public(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if key == "url":
        return "(not shown)"
    local = value.startswith(("/", "~", "./", "../")) or Path(value).exists()
    return Path(value).name if local else value


def _benchmarks_of(root: Path, name: str) -> list[EvalResult]:
    """Return the headlines of a model's benchmarks for the header."""
    found = []
    for file in sorted((root / EVALUATION / name / "manifests").glob("*.json")):
        result = TaskResult.model_validate(read_json(root / EVALUATION / name / file.name))
        value = result.headline["value"]
        if value is not None:
            label = LABELS[result.task]
            found.append(
                EvalResult(
                    task_type="text-generation",
                    dataset_type=result.task,
                    dataset_name=label,
                    metric_type=result.metric,
                    metric_value=round(value, 4),
                )
            )
    return found


def _read(root: Path, read: Callable[[Path, Problems], T]) -> T:
    """Read something of a run for a card, which leaves nothing out unsaid.

    Raises:
        DataError: Not all of it could be read.
    """
    problems = Problems(root)
    found = read(root, problems)
    if (problem := next(iter(problems), None)) is not None:
        raise DataError(problem, path=root)
    return found


def _judges(root: Path) -> str | None:
    """Return how well the models judge as a Markdown table; `None` if that was not measured."""
    models = _read(root, measured_models)
    if not models:
        return None
    heads = ["judge", *(heading for _, heading in MEASURES), "parsed"]
    rows = [
        [
            name,
            *(cell.value and cell.value + (f" ({cell.interval})" if cell.interval else "") for cell in cells),
        ]
        for name, cells in judge_table(models, {}).rows
    ]
    return _table(heads, rows)


def _effects(root: Path) -> str | None:
    rows = [[e.label, e.over, e.before, e.after, e.change] for e in _read(root, effects)]
    return _table(["measure", "over", "before", "after", "change"], rows) if rows else None


def _counted(root: Path, method: str, parts: Sequence[Part]) -> str:
    """Return what the stages that made the rows counted, as a Markdown table."""
    stages, numbers = _read(root, finished_stages), _numbers(parts)
    heads = ["", *(f"iteration {number}" for number in numbers)] if numbers else ["", ""]
    if method == "rlcd":
        groups = prompt_counts(stages)
    elif numbers:
        groups = iteration_counts(stages, numbers)
    else:
        groups = [*data_counts(stages), *(eft_counts(stages) if parts[0].what == "eft" else [])]
    rows = [(f"{group.heading}: {row.label}", row.cells) for group in groups for row in group.rows]
    return _table(
        heads, [[label, *cells] for label, cells in rows if any(cell is not None for cell in cells)]
    )


def _numbers(parts: Sequence[Part]) -> list[int]:
    return sorted({part.iteration for part in parts if part.iteration is not None})


def _table(heads: Sequence[str], rows: Iterable[Sequence[str | None]]) -> str:
    """Return a Markdown table; what is unknown is a dash."""
    lines = [heads, ["---"] * len(heads), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str | None) -> str:
    """Return text on one line in which nothing is Markdown or HTML; a dash for what is unknown."""
    if text is None:
        return "–"
    plain = " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", plain)


def _code(text: str) -> str:
    """Return a name as Markdown code on one line, whatever is in it."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _size(rows: int) -> str:
    return next((name for limit, name in _SIZES if rows < limit), "n>1M")


def _render(template: str, run: Mapping[str, Any], **own: Any) -> str:
    return _environment().get_template(template).render({**run, **own})


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("selfalign.export"),
        autoescape=False,  # noqa: S701 -- it is Markdown; `code` and `_cell` keep names from being structure
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _code
    environment.filters["plain"] = _cell
    return environment
