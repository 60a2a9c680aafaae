"""The three readers: a location in, records and the counts of what was dropped out.

Each reads one file or Hub data set in any of the formats. Records come in file order unless said otherwise,
their ids depend on the text alone, and text is never changed: nothing is stripped, cut or recased, and
control tokens in it stay (rendering deals with them). An empty result is legal.

What was dropped is counted by reason, one for every message, reply or prompt that was left out; replies of a
dropped prompt are not counted again. Every reader may count, for any format, prompts that are `empty` (a
turn is blank), have `no_user_turn` at their end, or are a `duplicate_prompt` of an earlier one; for
OpenAssistant data also the reasons that `oasst.exchanges` lists. The language applies to OpenAssistant data
alone, since the other formats define no label for it.
"""

from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

from selfalign.data import oasst, rated
from selfalign.data.fields import located
from selfalign.data.formats import Exchange, Format, Reply, dense_ranks, exchanges_of, recognise
from selfalign.data.rows import read_rows
from selfalign.errors import DataError
from selfalign.records import Prompt, RankedPrompt, RankedReply, SFTExample, content_id, prompt_id_of

_OASST = ("oasst_trees", "oasst_messages")


def read_ift(
    location: str,
    format: Format | None = None,
    *,
    selection: oasst.Selection,
    language: str | None,
    limit: int | None,
) -> tuple[list[SFTExample], Counter[str]]:
    """Read prompts with the completion to learn: of several replies the one of rank 0.

    A conversation's completion is its last assistant turn; what follows that turn is left out. If several
    replies share rank 0, the first is taken and the others count as `duplicate_prompt`. If the best reply
    was dropped, no other takes its place.

    Args:
        location: A path, or `hub:owner/name[:split]`.
        format: Format of the rows; recognised from the first one if `None`.
        selection: Which OpenAssistant replies to take, as `oasst.unfit` tells; `autoalign` also sorts by the
            summed quality of prompt and reply, highest first, equal sums by message id. Other formats
            are taken whole.
        language: Language label of OpenAssistant prompts and replies; `None` takes any.
        limit: Most examples to keep, applied last; `None` keeps all.

    Returns:
        The examples, and the counts. Besides the reasons that all readers and `oasst.unfit` know: prompts
        with `no_completion`; replies that are blank (`empty`), `not_rank_0`, or have `no_rank` or, in rated
        rows, `no_quality`; and what is `over_limit`.

    Raises:
        DataError: The file can't be read, no format fits, or a row is malformed.

    Source: 2401.10020, section 3.1.1, for `paper`; the reproduction in icip-cas/AutoAlign for `autoalign`.
    """
    format, exchanges, dropped = _load(location, format, language)
    if format not in _OASST:
        selection = "all"
    if format in ("messages", "sharegpt"):
        exchanges = [_up_to_last_reply(exchange) for exchange in exchanges]
    edges: list[tuple[Exchange, Reply]] = []
    for exchange in exchanges:
        if not exchange.replies:
            dropped["no_completion"] += 1
        for reply in exchange.replies:
            reason = _unranked(reply, format) or ("not_rank_0" if reply.rank != 0 else None)
            reason = reason or oasst.unfit(exchange, reply, selection)
            if reason is None:
                edges.append((exchange, reply))
            else:
                dropped[reason] += 1
    if selection == "autoalign":
        edges.sort(key=oasst.best_first)
    kept: dict[str, SFTExample] = {}
    for exchange, reply in edges:
        example = _example(exchange, reply, location)
        if example.prompt_id in kept:
            dropped["duplicate_prompt"] += 1
        else:
            kept[example.prompt_id] = example
    examples = list(kept.values())[:limit]
    dropped["over_limit"] += len(kept) - len(examples)
    return examples, +dropped


def read_ranked(
    location: str, format: Format | None = None, *, language: str | None
) -> tuple[list[RankedPrompt], Counter[str]]:
    """Read prompts with two or more replies in human order.

    Ranks are renumbered from 0 without gaps once replies were dropped; equal places stay equal, even where
    all are. Rated rows of one prompt are taken together; in other formats the first usable of equal prompts
    is kept. Replies are in the order of their rank, equal ranks in that of their ids. A reply's id is the
    source's own, or derived from its prompt and text.

    Args:
        location: A path, or `hub:owner/name[:split]`.
        format: Format of the rows; recognised from the first one if `None`.
        language: Language label of OpenAssistant prompts and replies; `None` takes any.

    Returns:
        The prompts, and the counts. Besides the reasons that all readers know: replies that are blank
        (`empty`), a `duplicate_reply` of an earlier one of the prompt, or have `no_rank` or, in rated rows,
        `no_quality`; and prompts left with `fewer_than_two_replies`.

    Raises:
        DataError: The file can't be read, no format fits, a row is malformed, ranks repeat within a ranked
            row, or one reply id stands for two replies.
    """
    format, exchanges, dropped = _load(location, format, language)
    kept: dict[str, RankedPrompt] = {}
    row_of: dict[str, int] = {}
    for exchange in exchanges:
        prompt_id = prompt_id_of(exchange.messages)
        if prompt_id in kept:
            dropped["duplicate_prompt"] += 1
            continue
        replies = _ranked_replies(exchange, prompt_id, format, dropped)
        if len(replies) < 2:
            dropped["fewer_than_two_replies"] += 1
            continue
        for reply in replies:
            if reply.reply_id in row_of:
                message = f'row {row_of[reply.reply_id]} has another reply with the id "{reply.reply_id}"'
                raise DataError(f"{message}; give each its own", path=location, row=exchange.row)
            row_of[reply.reply_id] = exchange.row
        kept[prompt_id] = RankedPrompt(
            prompt_id=prompt_id,
            messages=exchange.messages,
            replies=replies,
            source=_source(location, exchange.prompt_key, exchange.row),
        )
    return list(kept.values()), +dropped


def read_prompts(
    location: str, format: Format | None = None, *, language: str | None = None
) -> tuple[list[Prompt], Counter[str]]:
    """Read prompts, without the replies that the file may give to them.

    A conversation that ends with an assistant turn is taken without it; earlier turns stay. Of OpenAssistant
    data every usable prompter message is a prompt, with the turns above it.

    Args:
        location: A path, or `hub:owner/name[:split]`.
        format: Format of the rows; recognised from the first one if `None`.
        language: Language label of OpenAssistant prompts; `None` takes any.

    Returns:
        The prompts, and the counts of the reasons that all readers know.

    Raises:
        DataError: The file can't be read, no format fits, or a row is malformed.
    """
    format, exchanges, dropped = _load(location, format, language)
    kept: dict[str, Prompt] = {}
    for exchange in exchanges:
        prompt = Prompt.of(exchange.messages, _source(location, exchange.prompt_key, exchange.row))
        if prompt.prompt_id in kept:
            dropped["duplicate_prompt"] += 1
        else:
            kept[prompt.prompt_id] = prompt
    return list(kept.values()), +dropped


def _load(
    location: str, format: Format | None, language: str | None
) -> tuple[Format, list[Exchange], Counter[str]]:
    """Return the format, the exchanges whose prompts can be used, and the counts of the others."""
    rows = read_rows(location)
    if format is None:
        number, first = next(rows)
        with located(location, number):
            format = recognise(first)
        rows = chain([(number, first)], rows)
    dropped: Counter[str] = Counter()
    if format == "oasst_trees" or format == "oasst_messages":
        exchanges = oasst.exchanges(rows, format, location, language, dropped)
    elif format == "rated":
        exchanges = rated.exchanges(rows, location)
    else:
        exchanges = []
        for number, row in rows:
            with located(location, number):
                exchanges += exchanges_of(row, format, number)
    usable: list[Exchange] = []
    for exchange in exchanges:
        if not exchange.messages or exchange.messages[-1].role != "user":
            dropped["no_user_turn"] += 1
        elif not all(message.content.strip() for message in exchange.messages):
            dropped["empty"] += 1
        else:
            usable.append(exchange)
    return format, usable, dropped


def _up_to_last_reply(exchange: Exchange) -> Exchange:
    """Make the last answer to the user the reply, in a conversation that goes on after it."""
    turns = exchange.messages
    roles = [turn.role for turn in turns]
    answers = [
        place for place in range(1, len(turns)) if roles[place - 1 : place + 1] == ["user", "assistant"]
    ]
    if exchange.replies or not answers:
        return exchange
    last = answers[-1]
    return replace(exchange, messages=turns[:last], replies=(Reply(turns[last].content, rank=0),))


def _unranked(reply: Reply, format: Format) -> str | None:
    """Return why a reply can't be ordered, or `None` if it can."""
    if not reply.text.strip():
        return "empty"
    if reply.rank is None:
        return "no_quality" if format == "rated" else "no_rank"
    return None


def _ranked_replies(
    exchange: Exchange, prompt_id: str, format: Format, dropped: Counter[str]
) -> tuple[RankedReply, ...]:
    usable: dict[str, Reply] = {}
    for reply in exchange.replies:
        reason = _unranked(reply, format) or ("duplicate_reply" if reply.text in usable else None)
        if reason is None:
            usable[reply.text] = reply
        else:
            dropped[reason] += 1
    replies = list(usable.values())
    ranks = dense_ranks([reply.rank for reply in replies if reply.rank is not None])
    ranked = [
        RankedReply(
            reply_id=reply.reply_id or content_id(prompt_id, reply.text),
            text=reply.text,
            rank=rank,
            quality=reply.quality,
        )
        for reply, rank in zip(replies, ranks, strict=True)
    ]
    return tuple(sorted(ranked, key=lambda reply: (reply.rank, reply.reply_id)))


def _example(exchange: Exchange, reply: Reply, location: str) -> SFTExample:
    prompt_id = prompt_id_of(exchange.messages)
    return SFTExample(
        example_id=content_id(prompt_id, reply.text),
        prompt_id=prompt_id,
        messages=exchange.messages,
        completion=reply.text,
        kind="ift",
        source=_source(location, reply.reply_id or exchange.prompt_key, exchange.row),
    )


def _source(location: str, key: str | None, row: int) -> str:
    name = location if location.startswith("hub:") else Path(location).name
    return f"{name}:{key or row}"
