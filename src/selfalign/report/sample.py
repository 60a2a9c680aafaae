"""What the report needs of a run's big files: one pass over each, and a few rows in memory."""

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from selfalign.records import Completion, Judgment, Message, PreferencePair
from selfalign.report.text import readable
from selfalign.runs.files import read_rows

MARGIN_STEP = 0.5
MARGIN_BINS = 10
"""Bins of margins: rewards are means of scores from 0 to 5."""
SHOWN = 40
"""Pairs that can be browsed together, at most."""

T = TypeVar("T")


@dataclass(frozen=True)
class ShownPair:
    """A pair to browse, with the judgments of both sides in the order of their samples."""

    pair: PreferencePair
    chosen: tuple[Judgment, ...]
    rejected: tuple[Judgment, ...]


@dataclass(frozen=True)
class PairSample:
    """The pairs of an iteration: their margins, and some to browse."""

    margins: tuple[int, ...]
    """Pairs in each bin of `MARGIN_STEP`, the lowest first; the last one holds all above, too."""
    mean_margin: float | None
    """`None` without margins."""
    pairs: int
    """All pairs, those without a margin, too."""
    shown: tuple[ShownPair, ...]
    """Widest margin first, those without one last."""


def token_counts(candidates: Path) -> Counter[int]:
    """Return how many candidates have each length in tokens; those without a text are left out."""
    return Counter(row.num_tokens for row in read_rows(candidates, Completion) if row.text is not None)


def sample_pairs(pairs: Path, judgments: Path | None, *, most_bytes: int) -> PairSample:
    """Draw up to `SHOWN` pairs, as many of each margin as there are, with their judgments.

    The draw depends on nothing but the pairs' ids, not on their order in the file.

    Args:
        pairs: The pairs of an iteration.
        judgments: Its judgments; `None` shows the pairs without.
        most_bytes: Size of all shown text as HTML, at most. A pair that doesn't fit is passed over.
    """
    bins: list[list[PreferencePair]] = [[] for _ in range(MARGIN_BINS)]
    counts = [0] * MARGIN_BINS
    total, without = 0.0, 0
    for pair in read_rows(pairs, PreferencePair):
        # A mean of three scores makes margins such as 0.9999999999999996.
        place = min(int(round(pair.margin or 0.0, 6) / MARGIN_STEP), MARGIN_BINS - 1)
        if pair.margin is None:
            without += 1
        else:
            counts[place] += 1
            total += pair.margin
        keep_lowest(bins[place], pair)
    drawn = in_turn(bins)
    judged = _judgments_of(drawn, judgments)
    rows = (ShownPair(p, judged.get(p.chosen_id, ()), judged.get(p.rejected_id, ())) for p in drawn)
    shown = sorted(fitting(rows, _texts, most_bytes), key=_widest_first)
    mean = total / sum(counts) if any(counts) else None
    return PairSample(tuple(counts), mean, sum(counts) + without, tuple(shown))


def keep_lowest(kept: list[PreferencePair], pair: PreferencePair) -> None:
    """Add a pair to those with the `SHOWN` lowest ids: an id is a hash, so these are a fair draw."""
    insort(kept, pair, key=lambda pair: pair.pair_id)
    del kept[SHOWN:]


def in_turn(groups: Iterable[Sequence[T]]) -> list[T]:
    """Return up to `SHOWN` rows: the first of each group, then the second of each, and so on."""
    return [row for turn in zip_longest(*groups) for row in turn if row is not None][:SHOWN]


def fitting(rows: Iterable[T], texts: Callable[[T], Iterable[str]], most_bytes: int) -> Iterator[T]:
    """Yield the rows whose texts, as HTML, still fit; one that doesn't is passed over."""
    left = most_bytes
    for row in rows:
        size = sum(len(escape(readable(text)).encode()) for text in texts(row))
        if size <= left:
            left -= size
            yield row


def turns(messages: Iterable[Message]) -> Iterator[str]:
    """Return what was said in each turn."""
    return (message.content for message in messages)


def _widest_first(row: ShownPair) -> tuple[float, str]:
    return (-(row.pair.margin or 0.0), row.pair.pair_id)


def _texts(row: ShownPair) -> Iterator[str]:
    yield from turns(row.pair.messages)
    yield from (row.pair.chosen, row.pair.rejected)
    yield from (judgment.text or "" for judgment in (*row.chosen, *row.rejected))


def _judgments_of(pairs: Sequence[PreferencePair], judgments: Path | None) -> dict[str, tuple[Judgment, ...]]:
    wanted = {completion_id for pair in pairs for completion_id in (pair.chosen_id, pair.rejected_id)}
    found: dict[str, list[Judgment]] = {}
    for judgment in read_rows(judgments, Judgment) if judgments else ():
        if judgment.completion_id in wanted:
            found.setdefault(judgment.completion_id, []).append(judgment)
    return {key: tuple(sorted(rows, key=lambda row: row.sample)) for key, rows in found.items()}
