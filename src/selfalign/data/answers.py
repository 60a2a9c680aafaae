"""Candidates and scores made elsewhere: completions with their prompts, and what a judge gave them."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import fmean

from selfalign.data.fields import Row, has, identifier, located, number, objects, text, whole
from selfalign.data.formats import speech
from selfalign.data.rows import read_rows
from selfalign.errors import DataError
from selfalign.records import Messages, prompt_id_of

_PROMPTS = ("prompt", "prompt_text", "instruction")
_TEXTS = ("completion", "response", "response_text")
_SCORES = ("score", "reward", "overall_score", "fine-grained_score", "quality_score", "quality")
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True)
class Answer:
    """A completion of a prompt, or a word about one: what a row says of it."""

    row: int
    messages: Messages | None
    """The prompt; `None` where the row names its completion by `completion_id` alone."""
    text: str | None
    completion_id: str | None
    """The id that the run gave the completion, if the row has one."""
    score: float | None
    """`None` where no judge gave one."""
    critique: str | None
    """What the judge wrote."""
    tokens: int | None
    """New tokens, where the row says."""
    truncated: bool
    """Whether the row says that the token limit cut it off."""

    @property
    def prompt_id(self) -> str | None:
        """Return the id of the prompt, which depends on its messages alone."""
        return None if self.messages is None else prompt_id_of(self.messages)


def read_answers(location: str, dropped: Counter[str]) -> Iterator[Answer]:
    """Yield what the rows of a file say of completions.

    A row is one completion (`prompt` with `completion` or `response`, text or turns; or `completion_id`
    alone), or a prompt (`instruction` or `prompt`) with a list of `completions`, as in UltraFeedback; rated
    rows (`prompt_text`, `response_text`) are known, too. The score is `score`, `reward`, `overall_score`,
    `fine-grained_score`, `quality_score` or `quality`, or the mean of the ratings in `annotations`.

    Args:
        location: A path, or `hub:owner/name[:split]`.
        dropped: Takes the counts of completions that can't be used: blank ones, or with a blank turn in the
            prompt (`empty`), and those whose prompt has no user turn at its end (`no_user_turn`).

    Raises:
        DataError: The file can't be read, or a row is malformed; names the row.
    """
    for row_number, row in read_rows(location):
        with located(location, row_number):
            for answer in _answers(row, row_number):
                reason = _unusable(answer)
                if reason is None:
                    yield answer
                else:
                    dropped[reason] += 1


def _answers(row: Row, row_number: int) -> list[Answer]:
    if has(row, "completions"):
        messages = _prompt(row)
        return [_answer(item, row_number, messages) for item in objects(row, "completions")]
    if any(has(row, name) for name in _PROMPTS):
        return [_answer(row, row_number, _prompt(row))]
    if not has(row, "completion_id"):
        raise DataError(
            'a completion needs "prompt" and "completion", or "completion_id" where the run knows it; the '
            f"row has {', '.join(row) or 'no fields'}"
        )
    completion_id = identifier(row, "completion_id")
    return [Answer(row_number, None, None, completion_id, _score(row), _critique(row), None, truncated=False)]


def _answer(row: Row, row_number: int, messages: Messages) -> Answer:
    return Answer(
        row_number,
        messages,
        _completion(row),
        identifier(row, "completion_id"),
        _score(row),
        _critique(row),
        whole(row, "num_tokens"),
        truncated=row.get("finish_reason") == "length",
    )


def _prompt(row: Row) -> Messages:
    return speech(row, next((name for name in _PROMPTS if has(row, name)), _PROMPTS[0]), "user")


def _completion(row: Row) -> str:
    name = next((name for name in _TEXTS if has(row, name)), _TEXTS[0])
    turns = speech(row, name, "assistant")
    if len(turns) != 1 or turns[0].role != "assistant":
        raise DataError(f'"{name}" must be text or one assistant turn')
    return turns[0].content


def _score(row: Row) -> float | None:
    for name in _SCORES:
        if (score := number(row, name)) is not None:
            return score
    if not isinstance(row.get("annotations"), dict):
        return None
    ratings = [rating for part in row["annotations"].values() if (rating := _rating(part)) is not None]
    return fmean(ratings) if ratings else None


def _rating(annotation: object) -> float | None:
    """Return a rating, which UltraFeedback writes as text; "N/A" is none."""
    rating = str(annotation.get("Rating")) if isinstance(annotation, dict) else ""
    return float(rating) if _NUMBER.fullmatch(rating) else None


def _critique(row: Row) -> str | None:
    return next((text(row, name) for name in ("critique", "rationale", "text") if has(row, name)), None)


def _unusable(answer: Answer) -> str | None:
    if answer.messages is None:
        return None
    if not answer.messages or answer.messages[-1].role != "user":
        return "no_user_turn"
    texts = (answer.text or "", *(turn.content for turn in answer.messages))
    return None if all(text.strip() for text in texts) else "empty"
