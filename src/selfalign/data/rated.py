"""Rated rows: one reply a row with a quality label, the rows of one prompt anywhere in the file."""

from collections.abc import Iterable
from dataclasses import replace

from selfalign.data.fields import Row, has, identifier, located, quality, text
from selfalign.data.formats import Exchange, Reply, speech
from selfalign.errors import DataError
from selfalign.records import Messages, prompt_id_of


def exchanges(rows: Iterable[tuple[int, Row]], location: str) -> list[Exchange]:
    """Return one exchange a prompt, with the replies of all its rows.

    Prompts are told apart by what they say, not by the file's `prompt_id`, because a record's id must depend
    on nothing else. Replies are ranked by quality, equal quality is an equal rank, and a null quality has no
    rank. Prompts and their replies are in file order.

    Raises:
        DataError: A row lacks a field or has a wrong value, or one `prompt_id` stands for two prompts.
    """
    prompts: dict[str, Exchange] = {}
    replies: dict[str, list[Reply]] = {}
    keys: dict[str, str] = {}
    for number, row in rows:
        with located(location, number):
            messages, reply, key = _parse(row)
            prompt_id = prompt_id_of(messages)
            if key is not None and keys.setdefault(key, prompt_id) != prompt_id:
                raise DataError(f'the prompt_id "{key}" stands for two prompts; give each its own')
        prompts.setdefault(prompt_id, Exchange(number, messages, (), prompt_key=key))
        replies.setdefault(prompt_id, []).append(reply)
    return [
        replace(exchange, replies=_ranked_by_quality(replies[prompt_id]))
        for prompt_id, exchange in prompts.items()
    ]


def _parse(row: Row) -> tuple[Messages, Reply, str | None]:
    prompt = "prompt_text" if has(row, "prompt_text") else "prompt"
    label = "quality_score" if "quality_score" in row else "quality"
    if label not in row:
        raise DataError(
            'the field "quality_score" or "quality" is missing; write null where there is no label'
        )
    reply = Reply(
        text(row, "response_text", "response"), None, quality(row, label), identifier(row, "response_id")
    )
    return speech(row, prompt, "user"), reply, identifier(row, "prompt_id")


def _ranked_by_quality(replies: list[Reply]) -> tuple[Reply, ...]:
    labels = {reply.quality for reply in replies if reply.quality is not None}
    places = {label: place for place, label in enumerate(sorted(labels, reverse=True))}
    return tuple(
        reply if reply.quality is None else replace(reply, rank=places[reply.quality]) for reply in replies
    )
