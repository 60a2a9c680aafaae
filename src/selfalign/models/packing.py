"""Packing: sequences that share a prefix are laid out as a tree in one row, without padding.

A pair repeats its prompt, the judgments of a candidate repeat the whole judge prompt. In a packed row each
shared token stands once, and every sequence sees the tokens on its own path from the root alone, at the
positions they would have if it stood by itself. So the row gives what the sequences give one by one.

The last token of a sequence predicts nothing, so it is a target alone and takes no place. Six scores to
choose from, a token each, cost their prompt and no more.

Source: the prefix sharing of preference pairs is that of 2410.20305; here any prefix is shared, of any
number of sequences.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True)
class TokenSequence:
    """A prompt and its completion as token ids; the completion ends with the end of turn."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]

    def __len__(self) -> int:
        """Return the number of tokens of both."""
        return len(self.prompt) + len(self.completion)

    @property
    def ids(self) -> tuple[int, ...]:
        """Return the prompt and the completion."""
        return self.prompt + self.completion

    @property
    def inputs(self) -> tuple[int, ...]:
        """Return the tokens that predict one: all but the last."""
        return self.ids[:-1]


@dataclass(frozen=True)
class Branch:
    """Tokens that one sequence adds to a row, after the tokens it shares with an earlier one."""

    start: int
    end: int
    shared: tuple[tuple[int, int], ...]
    """Ranges of the row, from the root on, that lie before the branch on its path."""

    @property
    def depth(self) -> int:
        """Return the number of shared tokens before the branch."""
        return sum(end - start for start, end in self.shared)


@dataclass(frozen=True)
class PackedRow:
    """Sequences laid out as a forest of prefix trees, L tokens in all."""

    ids: list[int]
    """Token ids, `(L,)`."""
    positions: list[int]
    """Position of each token in its sequence, `(L,)`."""
    branches: tuple[Branch, ...]
    """Cut the row into consecutive stretches."""
    sources: list[int]
    """For each target, the place in the row that predicts it, `(N,)`."""
    targets: list[int]
    """Token ids of the targets, `(N,)`; one that several completions share stands once."""
    terms: list[int]
    """Which targets make up the completions, `(M,)`, one completion after another."""
    owners: list[int]
    """The sequence that each term belongs to, `(M,)`."""


def pack(sequences: Sequence[TokenSequence]) -> PackedRow:
    """Lay sequences out in one row.

    In lexicographic order, what a sequence shares with any earlier one it shares with the one before it.

    Raises:
        ValueError: A sequence has no prompt, so that nothing predicts its first token.
    """
    ids: list[int] = []
    positions: list[int] = []
    branches: list[Branch] = []
    slots: dict[tuple[int, int], int] = {}  # what predicts a target, and its token: its number
    terms: list[list[int]] = [[] for _ in sequences]
    path: list[int] = []  # places in the row of the sequence before
    for number in sorted(range(len(sequences)), key=lambda i: sequences[i].ids):
        sequence = sequences[number]
        if not sequence.prompt:
            raise ValueError("a sequence without a prompt: nothing predicts its first token")
        tokens = sequence.inputs
        shared = _common(tokens, [ids[place] for place in path])
        start = len(ids)
        ids += tokens[shared:]
        positions += range(shared, len(tokens))
        path = path[:shared] + list(range(start, len(ids)))
        if len(ids) > start:
            branches.append(Branch(start, len(ids), _ranges(path[:shared])))
        for source, token in zip(path[len(sequence.prompt) - 1 :], sequence.completion, strict=True):
            terms[number].append(slots.setdefault((source, token), len(slots)))
    return PackedRow(
        ids=ids,
        positions=positions,
        branches=tuple(branches),
        sources=[source for source, _ in slots],
        targets=[token for _, token in slots],
        terms=list(chain.from_iterable(terms)),
        owners=[number for number, own in enumerate(terms) for _ in own],
    )


def micro_batches(
    items: Sequence[T], sequences: Callable[[T], tuple[TokenSequence, ...]], token_budget: int
) -> Iterator[list[T]]:
    """Split items into batches of about equal size whose packed tokens stay within a budget.

    Items that share a prefix come together, so that they share it in the row too.

    Args:
        items: What to split.
        sequences: The sequences of an item, which stay in one batch.
        token_budget: Packed tokens of a batch stay within it; a single item may exceed it.
    """
    ordered = sorted((sorted(s.ids for s in sequences(item)), i) for i, item in enumerate(items))
    ends = [(), *(own[-1] for own, _ in ordered[:-1])]
    costs = [_cost(own, end) for (own, _), end in zip(ordered, ends[: len(ordered)], strict=True)]
    total = sum(costs)
    fair = total / max(1, -(-total // token_budget))
    batch: list[T] = []
    size = 0
    for (own, index), cost in zip(ordered, costs, strict=True):
        if batch and (size + cost > token_budget or (cost and size >= fair)):
            yield batch
            batch, size = [], 0
        size += cost if batch else _cost(own, ())
        batch.append(items[index])
    if batch:
        yield batch


def packed_tokens(sequences: Sequence[TokenSequence]) -> int:
    """Return the number of tokens of the row that the sequences make."""
    return _cost(sorted(sequence.ids for sequence in sequences), ())


def _cost(ordered: Sequence[tuple[int, ...]], before: tuple[int, ...]) -> int:
    """Return the tokens that sequences in lexicographic order add to a row that ends with another."""
    added = 0
    for tokens in ordered:
        added += len(tokens) - 1 - _common(tokens[:-1], before[:-1])
        before = tokens
    return added


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return the length of the common prefix."""
    size = min(len(left), len(right))
    differ = np.asarray(left[:size]) != np.asarray(right[:size])
    return int(differ.argmax()) if differ.any() else size


def _ranges(places: list[int]) -> tuple[tuple[int, int], ...]:
    """Return rising places as ranges."""
    if not places:
        return ()
    breaks = [i for i in range(1, len(places)) if places[i] != places[i - 1] + 1]
    return tuple(
        (places[start], places[end - 1] + 1)
        for start, end in zip([0, *breaks], [*breaks, len(places)], strict=True)
    )
