"""Formats whose every row stands alone, each turned into exchanges: a prompt with its replies.

The two OpenAssistant formats and rated rows need the whole file; `oasst` and `rated` read those.
"""

import os.path
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from selfalign.data.fields import Row, has, identifier, kind, objects, quality, text, whole
from selfalign.errors import DataError
from selfalign.records import Message, Messages, Role

Format = Literal[
    "oasst_trees",
    "oasst_messages",
    "rated",
    "ranked",
    "sharegpt",
    "alpaca",
    "messages",
    "preference",
    "prompts",
]

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}

_EXPECTED = (
    "oasst_trees (prompt with message_id and replies), oasst_messages (message_id, text, role), "
    "rated (prompt_text, response_text, quality_score or prompt, response, quality), "
    "ranked (messages, replies), sharegpt (conversations), preference (chosen, rejected), "
    "messages (messages), alpaca (instruction, output), prompts (prompt, instruction or turns)"
)
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True)
class Reply:
    """One reply that a source gives to a prompt."""

    text: str
    rank: int | None
    """0 is the best, and an only reply has 0; `None` where humans gave it no place."""
    quality: float | None = None
    """Human quality label in [0, 1]."""
    reply_id: str | None = None
    """The source's own id."""
    lang: str | None = None
    """Language label, in OpenAssistant data only."""


@dataclass(frozen=True)
class Exchange:
    """A prompt and the replies that its source gives to it, nothing dropped for its content yet."""

    row: int
    messages: Messages
    replies: tuple[Reply, ...]
    prompt_key: str | None = None
    """The source's own id of the prompt."""
    quality: float | None = None
    """Human quality label of the prompt's last turn, in [0, 1]."""
    lang: str | None = None
    """Language label of the prompt's last turn, in OpenAssistant data only."""


def recognise(row: Row) -> Format:
    """Return the format that a row's fields show.

    A field that is null counts as absent. Of two formats that fit, the one that says more wins: a row with
    `chosen` and `messages` is a preference, one with `conversations` and `chosen` is ShareGPT.

    Raises:
        DataError: No format fits.
    """
    tree = row.get("prompt")
    tests: list[tuple[Format, bool]] = [
        ("oasst_trees", isinstance(tree, dict) and "message_id" in tree),
        ("oasst_messages", has(row, "message_id", "text", "role")),
        ("rated", {"prompt_text", "response_text", "quality_score"} <= row.keys()),
        ("rated", {"prompt", "response", "quality"} <= row.keys()),
        ("ranked", has(row, "messages", "replies")),
        ("sharegpt", has(row, "conversations")),
        ("preference", has(row, "chosen", "rejected")),
        ("messages", has(row, "messages")),
        ("alpaca", has(row, "instruction") and (has(row, "output") or has(row, "instances"))),
        ("prompts", has(row, "prompt") or has(row, "instruction") or has(row, "turns")),
    ]
    for format, fits in tests:
        if fits:
            return format
    raise DataError(f"the fields {', '.join(row) or '(none)'} fit no format; known are: {_EXPECTED}")


def exchanges_of(row: Row, format: Format, number: int) -> list[Exchange]:
    """Turn one row into its exchanges: one, except for Self-Instruct tasks with several instances.

    Raises:
        DataError: The row lacks a field of the format or has a wrong value in it.
    """
    match format:
        case "alpaca":
            parsed = _alpaca(row)
        case "ranked":
            parsed = [_ranked(row)]
        case "sharegpt" if has(row, "chosen", "rejected"):
            parsed = [_preference(row, _turns(row, "conversations"))]
        case "sharegpt":
            parsed = [_split(_turns(row, "conversations"))]
        case "messages":
            parsed = [_split(_turns(row, "messages"))]
        case "preference":
            parsed = [_preference(row, speech(row, "prompt", "user") if has(row, "prompt") else ())]
        case "prompts":
            parsed = [_split(_prompt(row))]
        case "oasst_trees" | "oasst_messages" | "rated":
            raise ValueError(f"a row of {format} does not stand alone")
    return [Exchange(number, messages, replies) for messages, replies in parsed]


def speech(row: Row, name: str, role: Role) -> Messages:
    """Return the turns of a field that is a list of turns, a transcript, or plain text.

    A transcript opens with a blank line and "Human:", as HH-RLHF writes it; the one space after a speaker's
    colon belongs to the notation.

    Args:
        row: The row.
        name: The field.
        role: Who speaks in plain text.

    Raises:
        DataError: The field is missing or none of these.
    """
    if isinstance(row.get(name), list | dict):
        return _turns(row, name)
    content = text(row, name)
    if not content.startswith("\n\nHuman:"):
        return (Message(role=role, content=content),)
    _, *parts = _SPEAKER.split(content)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(role=ROLES[who.lower()], content=said.removeprefix(" ")) for who, said in pairs)


def dense_ranks(values: Sequence[float]) -> list[int]:
    """Return the place of each value, the lowest 0, equal values equal, no place left out."""
    places = {value: place for place, value in enumerate(sorted(set(values)))}
    return [places[value] for value in values]


def _turns(row: Row, name: str) -> Messages:
    """Return turns in either spelling, role and content or from and value; blank system turns left out."""
    turns: list[Message] = []
    for turn in objects(row, name):
        role = ROLES.get(text(turn, "role", "from").lower())
        if role is None:
            raise DataError(
                f'"{name}" has a turn of "{text(turn, "role", "from")}"; known are {", ".join(ROLES)}; '
                "leave such rows out"
            )
        content = text(turn, "content", "value")
        # It says nothing, yet templates would render it as a system block.
        if role != "system" or content.strip():
            turns.append(Message(role=role, content=content))
    return tuple(turns)


def _split(turns: Messages) -> tuple[Messages, tuple[Reply, ...]]:
    """Split a trailing assistant turn off as the only reply."""
    if turns and turns[-1].role == "assistant":
        return turns[:-1], (Reply(turns[-1].content, rank=0),)
    return turns, ()


def _alpaca(row: Row) -> list[tuple[Messages, tuple[Reply, ...]]]:
    instruction = text(row, "instruction")
    tasks = objects(row, "instances") if has(row, "instances") else [row]
    if not tasks:
        return [(_instruct(instruction, {}), ())]
    return [(_instruct(instruction, task), (Reply(text(task, "output"), rank=0),)) for task in tasks]


def _instruct(instruction: str, task: Row) -> Messages:
    given = text(task, "input") if has(task, "input") else ""
    content = f"{instruction}\n\n{given}" if given.strip() else instruction
    return (Message(role="user", content=content),)


def _prompt(row: Row) -> Messages:
    if has(row, "prompt"):
        return speech(row, "prompt", "user")
    if has(row, "turns"):
        turns = row["turns"]
        if not isinstance(turns, list) or not turns:
            raise DataError(f'"turns" is {kind(turns)}; it must be a list with at least one turn')
        first = turns[0] if isinstance(turns[0], dict) else {"content": turns[0]}
        return (Message(role="user", content=text(first, "content")),)
    if has(row, "instruction"):
        return _instruct(text(row, "instruction"), row)
    raise DataError('the field "prompt", "instruction" or "turns" is missing or null')


def _ranked(row: Row) -> tuple[Messages, tuple[Reply, ...]]:
    items = objects(row, "replies")
    ranks = [rank for item in items if (rank := whole(item, "rank")) is not None]
    labels = [label for item in items if (label := quality(item, "quality")) is not None]
    if len(ranks) == len(items):
        if len(set(ranks)) < len(ranks):
            raise DataError(
                'two of the "replies" have the same "rank"; if ties are meant, give every reply a "quality" '
                'from 0 to 1 and no "rank"'
            )
        places = dense_ranks(ranks)
    elif not ranks and len(labels) == len(items):
        places = dense_ranks([-label for label in labels])
    else:
        raise DataError(
            'a reply has no place; give every one of "replies" a "rank", or every one a "quality"'
        )
    replies = tuple(
        Reply(text(item, "text"), place, quality(item, "quality"), identifier(item, "reply_id"))
        for item, place in zip(items, places, strict=True)
    )
    return _turns(row, "messages"), replies


def _preference(row: Row, prompt: Messages) -> tuple[Messages, tuple[Reply, ...]]:
    """Return the prompt with the chosen reply and, if it answers the same prompt, the rejected one.

    A side that opens with an assistant turn continues the prompt; any other is a whole conversation. Two
    conversations that part before their last turn have no prompt in common: then the rejected one is left
    out, and the chosen one stands alone. Two plain texts without a prompt share the words that they open
    with.
    """
    chosen, rejected = (speech(row, name, "assistant") for name in ("chosen", "rejected"))
    # A transcript may end with the empty turn that the reply fills.
    if prompt and prompt[-1].role == "assistant" and not prompt[-1].content.strip():
        prompt = prompt[:-1]
    plain = all(isinstance(row[name], str) for name in ("chosen", "rejected"))
    if plain and not prompt and chosen[0].role == rejected[0].role == "assistant":
        shared = _shared_words(chosen[0].content, rejected[0].content)
        prompt = (Message(role="user", content=shared),)
        chosen, rejected = (
            (Message(role="assistant", content=side[0].content[len(shared) :]),)
            for side in (chosen, rejected)
        )
    (messages, best), (other_messages, worst) = (
        _split(side if side and side[0].role != "assistant" else prompt + side) for side in (chosen, rejected)
    )
    second = tuple(Reply(reply.text, rank=1) for reply in worst if other_messages == messages)
    return messages, best + second


def _shared_words(one: str, other: str) -> str:
    """Return the words that both texts open with, without the space after them; empty if there are none."""
    common = os.path.commonprefix([one, other])  # noqa: RUF071 - characters are what we want
    return common[: max(common.rfind(" "), common.rfind("\n"), 0)]
