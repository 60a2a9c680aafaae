"""Preference pairs made elsewhere, in whatever form they come."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import starmap

from pydantic import ValidationError

from selfalign.data.fields import Row, has, identifier, located, number, whole
from selfalign.data.formats import Exchange, Format, exchanges_of
from selfalign.data.rows import read_rows
from selfalign.errors import DataError
from selfalign.records import PreferencePair, content_id, prompt_id_of

_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_score", "rejected_score"),
)


@dataclass(frozen=True)
class _Side:
    text: str
    completion_id: str
    tokens: int
    score: float | None


def read_pairs(location: str, count: Callable[[str], int], dropped: Counter[str]) -> Iterator[PreferencePair]:
    """Yield the pairs of a file, each with the id that it was exported with or one derived from its texts.

    Known forms: TRL's rows (`prompt`, `chosen`, `rejected`, text or turns), whole conversations as in
    UltraFeedback's binarised rows and AutoAlign's `preference_data.json`, ShareGPT rows with `chosen` and
    `rejected`, HH-RLHF's transcripts, and `pairs.jsonl` of a run. Scores are rewards where a row has both.

    Args:
        location: A path, or `hub:owner/name[:split]`.
        count: Counts the tokens of a text, where a row doesn't say.
        dropped: Takes the counts of pairs that can't be used: whose sides answer different prompts, as
            conversations do that part before their last turn (`different_prompts`), without a user turn at
            the end of the prompt (`no_user_turn`), with a blank text (`empty`), of one text
            (`identical_texts`), with the higher score on the rejected side (`inverted`), or the same as an
            earlier one (`duplicate_pair`).

    Raises:
        DataError: The file can't be read, or a row is malformed or no pair; names the row.
    """
    known: set[str] = set()
    for row_number, row in read_rows(location):
        with located(location, row_number):
            pair = _own(row) or _pair(row, row_number, count, dropped)
        if pair is None:
            continue
        if pair.pair_id in known:
            dropped["duplicate_pair"] += 1
        else:
            known.add(pair.pair_id)
            yield pair


def _own(row: Row) -> PreferencePair | None:
    """Return a row of a run's own `pairs.jsonl`; `None` if it is none."""
    if not has(row, "pair_id", "messages", "chosen", "rejected"):
        return None
    try:
        return PreferencePair.model_validate(row)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise DataError(f"no pair of a run: {field}: {problem['msg']}; repair or remove the row") from None


def _pair(
    row: Row, row_number: int, count: Callable[[str], int], dropped: Counter[str]
) -> PreferencePair | None:
    exchange = _exchange(row, row_number)
    scores = _scores(row)
    reason = _unusable(exchange, scores)
    if reason is not None:
        dropped[reason] += 1
        return None
    prompt_id = prompt_id_of(exchange.messages)
    texts = [reply.text for reply in exchange.replies]
    chosen, rejected = starmap(
        lambda side, text, score: _Side(
            text,
            identifier(row, f"{side}_id") or content_id(prompt_id, text),
            count(text) if (said := whole(row, f"{side}_tokens")) is None else said,
            score,
        ),
        zip(("chosen", "rejected"), texts, scores, strict=True),
    )
    weight = number(row, "weight")
    return PreferencePair(
        pair_id=identifier(row, "pair_id") or content_id(chosen.completion_id, rejected.completion_id),
        prompt_id=prompt_id,
        messages=exchange.messages,
        chosen_id=chosen.completion_id,
        rejected_id=rejected.completion_id,
        chosen=chosen.text,
        rejected=rejected.text,
        reward_chosen=chosen.score,
        reward_rejected=rejected.score,
        margin=None if chosen.score is None or rejected.score is None else chosen.score - rejected.score,
        chosen_tokens=chosen.tokens,
        rejected_tokens=rejected.tokens,
        weight=1.0 if weight is None else weight,
        contrast_id=identifier(row, "contrast_id"),
    )


def _exchange(row: Row, row_number: int) -> Exchange:
    """Return the prompt with both replies, chosen first, and alone if the other answers another prompt.

    Raises:
        DataError: The row has no pair.
    """
    if has(row, "completions"):
        raise DataError(
            "the row has completions, not a pair; name the file in imports.candidates and "
            "imports.judgments, and pairs are made of them"
        )
    if not has(row, "chosen", "rejected"):
        raise DataError(
            f'"chosen" or "rejected" is missing or null; the row has {", ".join(row) or "no fields"}'
        )
    form: Format = "sharegpt" if has(row, "conversations") else "preference"
    (exchange,) = exchanges_of(row, form, row_number)
    if not exchange.replies or exchange.replies[0].rank != 0:
        raise DataError('"chosen" has to end with a turn of the assistant')
    return exchange


def _scores(row: Row) -> tuple[float | None, float | None]:
    """Return the scores of both sides; `None` for both if the row has none.

    Raises:
        DataError: One of them is missing.
    """
    for names in _SCORES:
        chosen, rejected = (number(row, name) for name in names)
        if (chosen is None) != (rejected is None):
            raise DataError(f'"{names[0]}" and "{names[1]}" belong together: give both, or neither')
        if chosen is not None:
            return chosen, rejected
    return None, None


def _unusable(exchange: Exchange, scores: tuple[float | None, float | None]) -> str | None:
    """Return why a pair can't be trained on, `None` if it can."""
    if len(exchange.replies) < 2:
        return "different_prompts"
    chosen, rejected = (reply.text for reply in exchange.replies)
    if not exchange.messages or exchange.messages[-1].role != "user":
        return "no_user_turn"
    if not all(text.strip() for text in (chosen, rejected, *(turn.content for turn in exchange.messages))):
        return "empty"
    if chosen == rejected:
        return "identical_texts"
    better, worse = scores
    return "inverted" if better is not None and worse is not None and better < worse else None
