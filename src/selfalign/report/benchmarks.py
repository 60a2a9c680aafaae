"""The table of an evaluation: a row a benchmark, a column a model, and the change from first to last."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from selfalign.evaluation.judge_quality import Measure
from selfalign.evaluation.results import LABELS, TaskResult
from selfalign.report.concerns import given
from selfalign.report.problems import Problems
from selfalign.report.read import Manifest
from selfalign.report.votes import VOTES, HumanComparison, held_out_answers, human_comparisons, read_votes

EVALUATION = "evaluation"
"""Directory in a run that holds the evaluation of its models."""
PLAN = "plan.json"
ALL_MEASURES = ("ifeval", "alpaca_eval", "judge_quality")
"""Benchmarks that the published tables show by all their measures, not by a headline alone."""
_WORDS = {
    "prompt_level_strict_acc": "prompts, strict",
    "inst_level_strict_acc": "instructions, strict",
    "prompt_level_loose_acc": "prompts, loose",
    "inst_level_loose_acc": "instructions, loose",
    "pairwise_accuracy": "pairwise",
    "pairwise_accuracy_longer_better": "pairwise, longer better",
    "pairwise_accuracy_longer_worse": "pairwise, longer worse",
    "tie_rate": "ties",
    "five_best": "5-best",
    "exact_match": "exact order",
    "spearman": "Spearman",
    "kendall_tau_b": "Kendall τ-b",
    "parse_rate": "parsed",
    "length": "pairwise of length alone",
    "above_length": "pairwise above length",
    "likelihood": "pairwise of likelihood",
    "above_likelihood": "pairwise above likelihood",
}


class Plan(TypedDict):
    """What an evaluation is to measure."""

    models: list[str]
    tasks: list[str]
    not_run: dict[str, str]
    """Benchmarks that lack something, with what it is."""


_PLAN = TypeAdapter(Plan)


@dataclass(frozen=True)
class BenchmarkRow:
    """One measure of one benchmark for every model."""

    label: str
    cells: tuple[str | None, ...]
    """With their intervals; `None` where there is no value."""
    change: str | None
    """Of the last model from the first, without an interval of its own."""
    over: str
    """How many questions."""
    note: str
    """What to know before comparing; it stands in the first row of a benchmark."""
    task: str = ""
    headline: bool = False
    """Whether it is the measure that stands for the benchmark."""


def benchmark_rows(
    models: Sequence[str], results: Mapping[tuple[str, str], TaskResult]
) -> list[BenchmarkRow]:
    """Return the rows of the benchmarks that were run, in the order of the tasks.

    Args:
        models: Names, in order.
        results: By task and model.
    """
    rows = []
    for task in dict.fromkeys(task for task, _ in results):
        found = [results.get((task, model)) for model in models]
        first = next(result for result in found if result is not None)
        label = LABELS.get(task, task)
        notes = _notes([result for result in found if result is not None])
        every = dict.fromkeys(name for result in found if result is not None for name in result.measures)
        for name in every if task in ALL_MEASURES else (None,):
            measures = [_measure(result, name) for result in found]
            values = [None if measure is None else measure["value"] for measure in measures]
            change = None
            if len(models) > 1 and values[0] is not None and values[-1] is not None:
                change = _points(values[-1] - values[0], first.unit, sign="+")
            rows.append(
                BenchmarkRow(
                    label if name is None else f"{label} {_WORDS.get(name, name)}",
                    tuple(_cell(measure, first.unit) for measure in measures),
                    change,
                    f"{max((measure['n'] for measure in measures if measure is not None), default=0):,}",
                    notes,
                    task,
                    name in (None, first.metric),
                )
            )
            notes = ""
    return rows


def _notes(results: Sequence[TaskResult]) -> str:
    """Return the notes of a benchmark, each once; one that is not of all models says of which."""
    of: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            of.setdefault(note, []).append(result.model)
    return "; ".join(
        note if len(models) == len(results) else f"{', '.join(models)}: {note}" for note, models in of.items()
    )


def human_rows(models: Sequence[str], comparisons: Sequence[HumanComparison]) -> list[BenchmarkRow]:
    """Return what people said of the models: against the model before, then against each one further back.

    Args:
        models: Names, in order; a model that is not among them is left out.
        comparisons: Later models last.
    """
    found = {(c.model, c.other): c.figures for c in comparisons if {c.model, c.other} <= set(models)}
    before = set(zip(models[1:], models, strict=False))
    groups = {"": {pair: figures for pair, figures in found.items() if pair in before}}
    for other in models:
        further = {pair: f for pair, f in found.items() if pair[1] == other and pair not in before}
        groups[f" against {other}"] = further
    rows = []
    for against, figures in groups.items():
        rates = {model: f["win_rate"] for (model, _), f in figures.items()}
        if rates:
            cells = tuple(_cell(rates.get(model), "share") for model in models)
            note = "; ".join(_said_of(*pair, f) for pair, f in figures.items())
            over = f"{sum(rate['n'] for rate in rates.values()):,}"
            rows.append(BenchmarkRow(f"head to head (people){against}", cells, None, over, note))
    return rows


def people_rows(place: Path, models: Sequence[str], problems: Problems) -> list[BenchmarkRow]:
    """Return what people voted on the answers of a run, by a run directory or by the evaluation in one."""
    run = place.resolve().parent if place.resolve().name == EVALUATION else place
    return problems.attempt("head to head by people", _people, run, models) or []


def _people(run: Path, models: Sequence[str]) -> list[BenchmarkRow]:
    votes = read_votes(run)
    return human_rows(models, human_comparisons(votes, held_out_answers(run))) if votes else []


def _said_of(model: str, other: str, figures: Mapping[str, Any]) -> str:
    counts = f"{figures['wins']} wins, {figures['ties']} ties, {figures['losses']} losses"
    outdated = sum(figures["undecided"].values())
    return f"{model} against {other}: {counts}" + (
        f", {outdated} on answers since changed" if outdated else ""
    )


def _measure(result: TaskResult | None, name: str | None) -> Measure | None:
    if result is None:
        return None
    return result.headline if name is None else result.measures.get(name)


def read_table(root: Path, problems: Problems) -> tuple[list[str], list[BenchmarkRow], dict[str, str]] | None:
    """Return models, rows and what is not run, of an evaluation or of a run that has one; or `None`.

    Of an evaluation under way it is what is measured so far. People's votes on the run's answers are in it.
    """
    place = evaluation_of(root)
    if place is None:
        if not (root / VOTES).is_file():
            return None
        models = problems.attempt("answers to held-out prompts", lambda: list(held_out_answers(root))) or []
        people = people_rows(root, models, problems)
        return (models, people, {}) if people else None
    plan = read_plan(place, problems)
    rows = benchmark_rows(plan["models"], read_results(place, plan, problems))
    return plan["models"], rows + people_rows(place, plan["models"], problems), plan["not_run"]


def evaluation_of(root: Path) -> Path | None:
    """Return the directory of an evaluation, or of the one in a run; `None` if there is none."""
    return next((place for place in (root, root / EVALUATION) if (place / PLAN).is_file()), None)


def read_plan(place: Path, problems: Problems) -> Plan:
    """Return what an evaluation is to measure; nothing where that can't be read."""
    value = problems.json(place / PLAN)
    plan = None if value is None else problems.attempt(f"{place / PLAN}", _PLAN.validate_python, value)
    return plan or Plan(models=[], tasks=[], not_run={})


def read_results(place: Path, plan: Plan, problems: Problems) -> dict[tuple[str, str], TaskResult]:
    """Return what is measured so far, by task and model."""
    found = {}
    for task in plan["tasks"]:
        for model in plan["models"]:
            path = place / model / f"{task}.json"
            if (place / model / "manifests" / path.name).is_file():
                value = problems.json(path)
                if value is None:
                    continue
                result = problems.attempt(f"{path}", _result_of, value)
                if result is not None:
                    found[task, model] = result
    return found


def _result_of(value: Any) -> TaskResult:
    """Return what a benchmark found.

    Raises:
        ValueError: It is no such result, or lacks its own headline.
    """
    result = TaskResult.model_validate(value)
    if result.metric not in result.measures:
        raise ValueError(f"the headline {result.metric!r} is not among the measures")
    return result


def evaluation_page(root: Path, stages: Mapping[str, Manifest], problems: Problems) -> dict[str, Any]:
    """Return all that the page of an evaluation shows besides its table.

    Args:
        root: Directory of the evaluation.
        stages: Manifests of the finished stages.
        problems: Told of what can't be read.
    """
    plan = read_plan(root, problems) if (root / PLAN).is_file() else Plan(models=[], tasks=[], not_run={})
    wanted = {
        f"{model}/{task}"
        for task in plan["tasks"]
        if task not in plan["not_run"]
        # The first model is compared with no other.
        for model in plan["models"][task == "head_to_head" :]
    }
    return {
        "finished": bool(plan["models"]) and wanted <= stages.keys(),
        "concerns": list(given(stages)),
        "filters": {},
    }


def as_markdown(models: Sequence[str], rows: Sequence[BenchmarkRow], not_run: Mapping[str, str]) -> str:
    """Return the table as Markdown."""
    changed = len(models) > 1
    heads = ["benchmark", *models, *(["change"] if changed else []), "questions", "note"]
    lines = [f"| {' | '.join(map(_plain, heads))} |", f"|{' --- |' * len(heads)}"]
    for row in rows:
        cells = [row.label, *(cell or "–" for cell in row.cells)]
        cells += [row.change or "–"] if changed else []
        lines.append(f"| {' | '.join(_plain(cell) for cell in (*cells, row.over, row.note))} |")
    for task, reason in not_run.items():
        cells = [LABELS.get(task, task), *("not run" for _ in models), *([""] if changed else []), "", reason]
        lines.append(f"| {' | '.join(_plain(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _plain(cell: str) -> str:
    return " ".join(cell.replace("|", "\\|").split())


def _cell(measure: Measure | None, unit: str) -> str | None:
    if measure is None or measure["value"] is None:
        return None
    value, low, high = measure["value"], measure["low"], measure["high"]
    shown = _points(value, unit)
    return shown if low is None else f"{shown} ({_points(low, unit)}–{_points(high, unit)})"


def _points(value: object, unit: str, sign: str = "") -> str:
    assert isinstance(value, float | int)  # noqa: S101 -- a measure's value is a number
    return format(100 * value, f"{sign}.1f") if unit == "share" else format(value, f"{sign}.2f")
