"""OpenAssistant conversations: messages joined into trees by id, and the choice of replies to learn from.

Both published shapes are read: nested trees, and flat messages in any order. Labels are the parallel
name/value lists of the Hub data set or the mapping of the project's own export.

Source: 2401.10020, section 3.1.1 (first turn, English, the reply of rank 0). What is dropped is our choice:
what moderators or reviewers removed, what a model wrote, and whatever hangs below any of these, since its
context is gone.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from selfalign.data.fields import Row, has, identifier, located, objects, quality, text, whole
from selfalign.data.formats import ROLES, Exchange, Format, Reply
from selfalign.errors import DataError
from selfalign.records import Message, Messages, Role

Selection = Literal["paper", "autoalign", "all"]

_MIN_QUALITY = 0.6
_MIN_WORDS = 5
# Scripts written without spaces: Han and kana; their full-width punctuation parts words as a space does.
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_MARKS = "\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
_WORD = re.compile(rf"[{_CJK}]|[^\s{_CJK}{_CJK_MARKS}]+")


@dataclass(frozen=True)
class _Node:
    row: int
    message_id: str
    parent_id: str | None
    role: Role
    text: str
    lang: str | None
    rank: int | None
    quality: float | None
    problem: str | None
    """Why the message can't be used."""


def exchanges(
    rows: Iterable[tuple[int, Row]],
    format: Format,
    location: str,
    language: str | None,
    dropped: Counter[str],
) -> list[Exchange]:
    """Return one exchange for every usable prompter message, at any depth, in file order.

    Its messages are the whole path from the root. Its replies keep the file's ranks, which may have gaps
    where a reply was dropped, and no rank where they had none.

    Args:
        rows: Numbered rows.
        format: `oasst_trees` or `oasst_messages`.
        location: Where the rows came from, for errors.
        language: Language label that a prompt and its replies must have; `None` takes any. Earlier turns of
            the path may have another.
        dropped: Counts, added to: messages that are `deleted`, `review_rejected` (a null review is none),
            `synthetic`, `empty`, a `duplicate_id`, an `orphan` (no usable path leads to it from a root), or
            `other_language` (replies to a prompt so counted are not counted).

    Raises:
        DataError: A message lacks a field or has a wrong value in it.
    """
    nodes = _nodes(rows, format, location, dropped)
    children: defaultdict[str | None, list[_Node]] = defaultdict(list)
    for node in nodes:
        if node.problem is None:
            children[node.parent_id].append(node)
        else:
            dropped[node.problem] += 1
    paths = _paths(children)
    found: list[Exchange] = []
    for node in nodes:
        if node.problem is not None:
            continue
        if node.message_id not in paths:
            dropped["orphan"] += 1
        elif node.role == "user" and language not in (None, node.lang):
            dropped["other_language"] += 1
        elif node.role == "user":
            replies = [reply for reply in children[node.message_id] if reply.message_id in paths]
            spoken = [reply for reply in replies if language in (None, reply.lang)]
            dropped["other_language"] += len(replies) - len(spoken)
            found.append(_exchange(node, paths[node.message_id], spoken))
    return found


def unfit(exchange: Exchange, reply: Reply, selection: Selection) -> str | None:
    """Return why a reply of rank 0 is not in the selection, or `None` if it is.

    `paper` asks for the first conversational turn (`not_first_turn`). `autoalign` takes any turn and asks of
    both prompt and reply for one language (`other_language`), a quality label (`no_quality`) above 0.6
    (`low_quality`), and more than 5 words (`short`), where every Chinese or Japanese character is a word.
    `all` asks for nothing.
    """
    if selection == "paper" and len(exchange.messages) > 1:
        return "not_first_turn"
    if selection == "autoalign":
        if exchange.lang != reply.lang:
            return "other_language"
        if exchange.quality is None or reply.quality is None:
            return "no_quality"
        if min(exchange.quality, reply.quality) <= _MIN_QUALITY:
            return "low_quality"
        if min(_num_words(exchange.messages[-1].content), _num_words(reply.text)) <= _MIN_WORDS:
            return "short"
    return None


def best_first(edge: tuple[Exchange, Reply]) -> tuple[float, str]:
    """Return the sort key of `autoalign`: summed quality of prompt and reply, highest first; ties by id."""
    exchange, reply = edge
    labels = [label for label in (exchange.quality, reply.quality) if label is not None]
    return -sum(labels), reply.reply_id or ""


def _nodes(
    rows: Iterable[tuple[int, Row]], format: Format, location: str, dropped: Counter[str]
) -> list[_Node]:
    nodes: dict[str, _Node] = {}
    for number, row in rows:
        with located(location, number):
            for message, parent_id in _flat(row, format):
                node = _node(message, parent_id, number)
                if node.message_id in nodes:
                    dropped["duplicate_id"] += 1
                else:
                    nodes[node.message_id] = node
    return list(nodes.values())


def _flat(row: Row, format: Format) -> Iterator[tuple[Row, str | None]]:
    """Yield the messages of a row with the ids of their parents, depth first and in the order of the file."""
    if format == "oasst_messages":
        yield row, identifier(row, "parent_id")
        return
    # A stack, because a tree may be deeper than Python recurses.
    stack: list[tuple[Row, str | None]] = [(message, None) for message in objects(row, "prompt")]
    while stack:
        message, parent_id = stack.pop()
        yield message, parent_id
        if has(message, "replies"):
            message_id = text(message, "message_id")
            stack += [(reply, message_id) for reply in reversed(objects(message, "replies"))]


def _node(message: Row, parent_id: str | None, row: int) -> _Node:
    role = ROLES.get(text(message, "role"))
    if role not in ("user", "assistant"):
        raise DataError(f'the role "{message["role"]}" is none of prompter and assistant')
    content = text(message, "text")
    problems = {
        "deleted": message.get("deleted") is True,
        "review_rejected": message.get("review_result") is False,
        "synthetic": message.get("synthetic") is True,
        "empty": not content.strip(),
    }
    return _Node(
        row=row,
        message_id=text(message, "message_id"),
        parent_id=parent_id,
        role=role,
        text=content,
        lang=identifier(message, "lang"),
        rank=whole(message, "rank"),
        quality=_quality(message.get("labels")),
        problem=next((problem for problem, holds in problems.items() if holds), None),
    )


def _quality(labels: object) -> float | None:
    match labels:
        case None:
            return None
        case {"name": list(names), "value": list(values)} if len(names) == len(values):
            return (
                quality({"quality": values[names.index("quality")]}, "quality")
                if "quality" in names
                else None
            )
        case {"name": list()}:
            raise DataError('"labels" needs two lists of equal length, "name" and "value"')
        case {"quality": dict(label)}:
            return quality(label, "value")
        case dict():
            return None
        case _:
            raise DataError('"labels" must be an object')


def _paths(children: dict[str | None, list[_Node]]) -> dict[str, Messages]:
    """Return the turns from a root down to each message that a root leads to in alternating roles."""
    paths: dict[str, Messages] = {}
    waiting: list[tuple[_Node, Messages]] = [(root, ()) for root in children[None] if root.role == "user"]
    while waiting:
        node, above = waiting.pop()
        path = (*above, Message(role=node.role, content=node.text))
        paths[node.message_id] = path
        waiting += [(child, path) for child in children[node.message_id] if child.role != node.role]
    return paths


def _exchange(node: _Node, path: Messages, replies: list[_Node]) -> Exchange:
    return Exchange(
        row=node.row,
        messages=path,
        replies=tuple(
            Reply(reply.text, reply.rank, reply.quality, reply.message_id, reply.lang) for reply in replies
        ),
        prompt_key=node.message_id,
        quality=node.quality,
        lang=node.lang,
    )


def _num_words(text: str) -> int:
    return len(_WORD.findall(text))
