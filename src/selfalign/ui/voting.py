"""The pages on which people vote."""

from pathlib import Path
from threading import Lock
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict

from selfalign.errors import RunError
from selfalign.ui.pages import whole
from selfalign.ui.site import RunRoot, run_page
from selfalign.ui.state import start_of
from selfalign.ui.votes import Choice, Poll, material_of, names_of_sides, pairs_of_models, poll_of, vote

router = APIRouter()
_ONE_AT_A_TIME = Lock()


class VoteRequest(BaseModel):
    """What the page says of a ballot."""

    model_config = ConfigDict(extra="forbid")

    one: str
    other: str
    prompt_id: str
    choice: Choice


@router.get("/runs/{name}/vote")
def ballot(request: Request, root: RunRoot, one: str = "", other: str = "") -> HTMLResponse:
    """Show the next two answers of two models, or which models can be voted on."""
    material = material_of(root, start_of(root).seed)
    pairs = pairs_of_models(material.answers)
    poll = poll_of(material, one, other) if one or other else None
    polls = [poll_of(material, *pair) for pair in pairs] if poll is None else []
    return run_page(
        request,
        root,
        "vote.jinja",
        "vote",
        polls=[(found.one, found.other, found.given, len(found.ballots)) for found in polls] or pairs,
        poll=poll,
        ballot=poll.ballots[0] if poll is not None and poll.ballots else None,
    )


@router.get("/runs/{name}/vote/whole")
def whole_side(
    root: RunRoot,
    one: str,
    other: str,
    id: str,
    side: Literal["left", "right"],
) -> PlainTextResponse:
    """Return all of one side of a ballot, still without saying whose it is."""
    found = next((b for b in _poll(root, one, other).ballots if b.prompt_id == id), None)
    if found is None:
        raise RunError("this prompt has been voted on")
    return PlainTextResponse(whole(found.sides[side == "right"].text or ""))


@router.post("/runs/{name}/votes")
def give_vote(root: RunRoot, said: VoteRequest) -> dict[str, str]:
    """Write down a vote, and say whose answers they were."""
    with _ONE_AT_A_TIME:  # so that a prompt is voted on once
        given = vote(root, _poll(root, said.one, said.other), said.prompt_id, said.choice)
    left, right = names_of_sides(given)
    return {"left": left, "right": right}


def _poll(root: Path, one: str, other: str) -> Poll:
    return poll_of(material_of(root, start_of(root).seed), one, other)
