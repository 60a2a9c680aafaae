"""Rows to browse, all that a run has on one prompt, and whole texts."""

from collections import defaultdict
from functools import partial
from math import ceil
from statistics import fmean
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, PlainTextResponse

from selfalign.errors import RunError
from selfalign.records import Completion, Messages
from selfalign.report.problems import Problems
from selfalign.report.votes import Answers, held_out_answers, held_out_prompts
from selfalign.ui.pages import address, whole
from selfalign.ui.rows import PAGE, Filter, Rows
from selfalign.ui.site import RunRoot, run_page
from selfalign.ui.sources import Kind

router = APIRouter()
_OPENING = 200
PageNumber = Annotated[int, Query(ge=1, le=10_000_000)]


@router.get("/runs/{name}/prompt")
def prompt(request: Request, root: RunRoot, id: str) -> HTMLResponse:
    """Show all that a run has on a prompt: the models' answers side by side, candidates, pairs."""
    found = Rows(root).of_prompt(id)
    problems = Problems(root)
    held_out = problems.attempt("the held-out prompts", held_out_prompts, root) or {}
    answers = problems.attempt("the models' answers", held_out_answers, root) or {}
    judgments = defaultdict(list)
    for judgment in found["judgments"]:
        judgments[judgment["completion_id"]].append(judgment)
    return run_page(
        request,
        root,
        "prompt.jinja",
        "prompt",
        id=id,
        problems=list(problems),
        messages=_messages(found["prompts"], held_out.get(id)),
        position=_position(list(held_out), id),
        answers={model: given[id] for model, given in answers.items() if id in given},
        candidates=[
            row | {"reward": _reward(judgments[row["completion_id"]])} for row in found["candidates"]
        ],
        judgments=judgments,
        pairs=found["pairs"],
    )


@router.get("/runs/{name}/whole/answers")
def whole_answer(root: RunRoot, id: str, field: str) -> PlainTextResponse:
    """Return all of a model's answer to a held-out prompt; the field is the model."""
    return _whole(_text_of(held_out_answers(root).get(field, {}).get(id)))


@router.get("/runs/{name}/whole/{kind}")
def whole_text(root: RunRoot, kind: Kind, id: str, field: str) -> PlainTextResponse:
    """Return all of a text of a row."""
    text = Rows(root).text(kind, id, field)
    if text is None and kind == "prompts":
        messages = held_out_prompts(root).get(id)
        text = messages[-1].content if messages else None
    return _whole(text)


@router.get("/runs/{name}/compare")
def compare(request: Request, root: RunRoot, text: str = "", page: PageNumber = 1) -> HTMLResponse:
    """List the held-out prompts that models answered."""
    answers = held_out_answers(root)
    wanted = text.lower()
    rows = [
        (id_, messages[-1].content[:_OPENING], sum(id_ in given for given in answers.values()))
        for id_, messages in held_out_prompts(root).items()
        if wanted in messages[-1].content.lower() or _any_answer_holds(answers, id_, wanted)
    ]
    first = PAGE * (page - 1)
    return run_page(
        request,
        root,
        "compare.jinja",
        "compare",
        models=list(answers),
        prompts=rows[first : first + PAGE],
        total=len(rows),
        first=first + 1,
        text=text,
        page=page,
        pages=max(1, ceil(len(rows) / PAGE)),
        page_link=lambda number: address("runs", root.name, "compare", text=text, page=number),
    )


@router.get("/runs/{name}/{kind}")
def rows(request: Request, root: RunRoot, kind: Kind, wanted: Annotated[Filter, Query()]) -> HTMLResponse:
    """List rows of a kind, filtered, sorted and in pages."""
    source = Rows(root)
    found, total = source.select(kind, wanted)
    here = partial(address, "runs", root.name, kind)
    asked = wanted.model_dump(exclude={"page", "sort", "order"})
    kept = {"sort": wanted.sort, "order": wanted.order}

    def sorted_by(column: str) -> str:
        again = wanted.sort == column and wanted.order == "desc"
        return here(**asked, sort=column, order="asc" if again else "desc")

    return run_page(
        request,
        root,
        "rows.jinja",
        kind,
        kind=kind,
        wanted=wanted,
        rows=found,
        total=total,
        pages=max(1, ceil(total / PAGE)),
        places=source.places,
        under_way=[line for line in source.under_way if line.startswith(f"{kind} ")],
        filtered=any(value not in (None, "") for value in asked.values()),
        sorted_by=sorted_by,
        page_link=lambda number: here(**asked, **kept, page=number),
    )


def _reward(judgments: list[dict[str, Any]]) -> float | None:
    scores = [judgment["score"] for judgment in judgments if judgment["score"] is not None]
    return fmean(scores) if scores else None


def _messages(rows: list[dict[str, Any]], held_out: Messages | None) -> list[dict[str, Any]] | Messages:
    return rows[0]["messages"] if rows else held_out or ()


def _position(ids: list[str], id_: str) -> dict[str, Any] | None:
    """Return where a prompt stands among those held out, and its neighbours; `None` if it isn't one."""
    if id_ not in ids:
        return None
    place = ids.index(id_)
    after = ids[place + 1] if place + 1 < len(ids) else None
    return {
        "number": place + 1,
        "count": len(ids),
        "before": ids[place - 1] if place else None,
        "after": after,
    }


def _any_answer_holds(answers: Answers, id_: str, wanted: str) -> bool:
    return any(wanted in (_text_of(given.get(id_)) or "").lower() for given in answers.values())


def _text_of(answer: Completion | None) -> str | None:
    return None if answer is None else answer.text


def _whole(text: str | None) -> PlainTextResponse:
    if text is None:
        raise RunError("there is no such text")
    return PlainTextResponse(whole(text))
