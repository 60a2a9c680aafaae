"""The list of runs, and the first page of each."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse, Response

from selfalign.errors import RunError
from selfalign.evaluation.judge_quality import Measure
from selfalign.evaluation.results import TaskResult
from selfalign.report.benchmarks import EVALUATION, PLAN
from selfalign.report.problems import Problems
from selfalign.report.text import share
from selfalign.report.votes import held_out_answers, human_comparisons, read_votes
from selfalign.runs.files import read_json
from selfalign.ui.guard import REPORT_POLICY
from selfalign.ui.pages import render
from selfalign.ui.rows import Rows
from selfalign.ui.site import RunRoot, page, run_page, site_of
from selfalign.ui.sources import is_inside
from selfalign.ui.state import RunState, is_run, runs_in, state_of

router = APIRouter()


@dataclass(frozen=True)
class Duel:
    """A row of the head-to-head table."""

    model: str
    other: str
    people: bool
    """Whether people voted, or a judge compared."""
    rate: str
    wins: int
    ties: int
    losses: int
    n: int
    left_out: str
    """Comparisons that don't count, by reason."""


@router.get("/")
def runs(request: Request) -> HTMLResponse:
    """Show all runs."""
    return page(request, "runs.jinja", title="Runs", **_runs(request))


@router.get("/live")
def runs_live(request: Request) -> HTMLResponse:
    """Return the list alone, for a page that is open."""
    return HTMLResponse(render("runs_live.jinja", **_runs(request)))


@router.get("/runs/{name}")
def run(request: Request, root: RunRoot) -> HTMLResponse:
    """Show where a run stands and what it holds."""
    rows, problems = Rows(root), Problems(root)
    counts = problems.attempt("rows", rows.counts) or {}
    damage = problems.attempt("rows", rows.damage) or []
    by_judge = problems.attempt("head to head by the judge", lambda: list(judged(root))) or []
    by_people = problems.attempt("head to head by people", lambda: list(voted(root))) or []
    answers = problems.attempt("the models' answers", held_out_answers, root) or {}
    return run_page(
        request,
        root,
        "run.jinja",
        "",
        **_standing(root),
        problems=[*problems, *damage],
        counts=counts,
        under_way=rows.under_way,
        duels=[*by_judge, *by_people],
        answered=len(answers) > 1,
        has_report=(root / "report.html").is_file(),
    )


@router.get("/runs/{name}/live")
def run_live(root: RunRoot) -> HTMLResponse:
    """Return where a run stands alone, for a page that is open."""
    return HTMLResponse(render("run_live.jinja", **_standing(root)))


@router.get("/runs/{name}/report")
def report(root: RunRoot) -> Response:
    """Return the report as it was written; nothing in it can run.

    Raises:
        RunError: There is none in the run.
    """
    path = root / "report.html"
    if not path.is_file() or not is_inside(path, root):
        raise RunError(f"{root.name}: no report yet; `selfalign report {root}` writes one")
    return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})


def judged(root: Path) -> Iterator[Duel]:
    """Yield what the judge of an evaluation said of every two models, in the order of the models.

    Raises:
        DataError: A file is damaged.
    """
    place = root / EVALUATION
    models = read_json(place / PLAN)["models"] if (place / PLAN).is_file() else []
    for model in models:
        if not (place / model / "manifests" / "head_to_head.json").is_file():
            continue
        found = TaskResult.model_validate(read_json(place / model / "head_to_head.json"))
        for other in models[: models.index(model)][::-1]:
            if (rate := found.measures.get(f"win rate against {other}")) is not None:
                wins, ties, losses = (
                    found.counts.get(f"{kind} against {other}", 0) for kind in ("wins", "ties", "losses")
                )
                reasons = {
                    reason: found.counts.get(f"{reason} against {other}", 0)
                    for reason in ("no_answer", "one_order")
                }
                yield Duel(model, other, False, _rate(rate), wins, ties, losses, rate["n"], _reasons(reasons))


def voted(root: Path) -> Iterator[Duel]:
    """Yield what people said of every two models that they voted on.

    Raises:
        DataError: A row is damaged.
    """
    votes = read_votes(root)
    for comparison in human_comparisons(votes, held_out_answers(root)) if votes else ():
        figures = comparison.figures
        rate = figures["win_rate"]
        counts = (figures["wins"], figures["ties"], figures["losses"])
        reasons = _reasons(figures["undecided"])
        yield Duel(comparison.model, comparison.other, True, _rate(rate), *counts, rate["n"], reasons)


def _rate(measure: Measure) -> str:
    if measure["value"] is None:
        return f"– ({measure['reason']})"
    if measure["low"] is None or measure["high"] is None:
        return share(measure["value"])
    return f"{share(measure['value'])} ({100 * measure['low']:.1f}–{100 * measure['high']:.1f})"


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in counts.items() if count)


def _standing(root: Path) -> dict[str, RunState | None]:
    evaluation = root / EVALUATION
    there = is_run(evaluation) and is_inside(evaluation, root)
    return {"run": state_of(root), "evaluation": state_of(evaluation) if there else None}


def _runs(request: Request) -> dict[str, Any]:
    directory = site_of(request).directory
    return {"runs": [state_of(root) for root in runs_in(directory)], "directory": directory}
