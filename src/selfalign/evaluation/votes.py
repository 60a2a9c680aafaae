"""Votes by people on the answers of two models to one prompt, and what they say of the two."""

from collections.abc import Iterable, Mapping
from typing import Literal

from selfalign.evaluation.head_to_head import Outcome
from selfalign.records import Completion, Record, content_id

Side = Literal["one", "other"]


class Vote(Record):
    """What a person preferred without knowing whose answer was whose."""

    vote_id: str
    prompt_id: str
    one: str
    """Name of the later model of the two, in the order of training."""
    other: str
    one_answer: str
    """Hash of the answer voted on; a vote counts as long as the model still gives this answer."""
    other_answer: str
    left: Side
    """Whose answer stood on the left, or above."""
    preferred: Side | None
    """`None` is a tie."""
    voted: str
    """When, in ISO form and UTC."""


def answer_hash(answer: Completion) -> str:
    """Return what an answer is known by in a vote: a hash of its text."""
    return content_id(answer.text or "")


def outcomes_of(
    votes: Iterable[Vote], one: Mapping[str, Completion], other: Mapping[str, Completion]
) -> list[Outcome]:
    """Return what people said of one model beside another.

    Args:
        votes: On these two models.
        one: Its answers now, by prompt.
        other: The same of the other model.

    Returns:
        One outcome a vote, in order: 1 where the one was preferred, 0.5 for a tie. It is undecided with the
        reason `answers_changed` where a model does not give the answer that was voted on any more.
    """
    return [_outcome(vote, one.get(vote.prompt_id), other.get(vote.prompt_id)) for vote in votes]


def _outcome(vote: Vote, own: Completion | None, its: Completion | None) -> Outcome:
    current = (
        own is not None
        and its is not None
        and (answer_hash(own), answer_hash(its)) == (vote.one_answer, vote.other_answer)
    )
    return Outcome(
        prompt_id=vote.prompt_id,
        preference={"one": 1.0, None: 0.5, "other": 0.0}[vote.preferred] if current else None,
        reason=None if current else "answers_changed",
        length=None if own is None else len(own.text or ""),
        other_length=None if its is None else len(its.text or ""),
    )
