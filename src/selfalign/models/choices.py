"""Words as token sequences: what a model weighs when it is to choose between them."""

from collections.abc import Sequence

from selfalign.models.chat import Chat

Spelling = tuple[int, tuple[int, ...]]
"""The place of a choice, counted from 0, and token ids that spell it."""


def spellings(chat: Chat, reply_start: str, choices: Sequence[str]) -> list[Spelling]:
    """Return the token sequences that stand for the choices behind the start of a reply.

    Each choice is spelled with and without a space before it, as a tokenizer writes it right behind
    `reply_start`. Where the two would merge across the border, it is spelled as if it stood alone, since the
    ids of `reply_start` are already given.

    Returns:
        In the order of the choices; no sequence twice. One that spells two choices counts for the first.
    """
    start = _ids(chat, reply_start)
    places: dict[tuple[int, ...], int] = {}
    for place, choice in enumerate(choices):
        for words in (choice, f" {choice}"):
            ids = _ids(chat, reply_start + words)
            extends = ids[: len(start)] == start and len(ids) > len(start)
            places.setdefault(ids[len(start) :] if extends else _ids(chat, words), place)
    return [(place, ids) for ids, place in places.items()]


def by_choice(
    spelled: Sequence[Spelling], likelihoods: Sequence[float], num_choices: int
) -> tuple[float, ...]:
    """Add up the probabilities of the spellings of each choice.

    Where one spelling goes on from another, as `10` may go on from `1`, what belongs to the longer one is
    taken off the shorter one, so that nothing counts twice.

    Args:
        spelled: Distinct spellings.
        likelihoods: Of each spelling, the probability that the reply goes on with its tokens.
        num_choices: How many choices there are.

    Returns:
        One probability a choice; they add up to 1 or less.
    """
    own: dict[tuple[int, ...], float] = {}
    totals = [0.0] * num_choices
    by_length = sorted(zip(spelled, likelihoods, strict=True), key=lambda item: -len(item[0][1]))
    for (place, ids), likelihood in by_length:
        longer = sum(share for other, share in own.items() if other[: len(ids)] == ids)
        own[ids] = max(0.0, likelihood - longer)
        totals[place] += own[ids]
    return tuple(totals)


def _ids(chat: Chat, text: str) -> tuple[int, ...]:
    return tuple(chat.tokenizer(text, add_special_tokens=False)["input_ids"])
