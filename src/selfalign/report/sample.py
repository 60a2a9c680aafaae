"""What the report needs of an iteration's big files: one pass over each, and a few rows in memory."""

from bisect import insort
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from markupsafe import Markup

from selfalign.records import Completion, Judgment, Message, PreferencePair
from selfalign.report.differences import with_marks
from selfalign.report.problems import Problems
from selfalign.report.text import readable

MARGIN_STEP = 0.5
MARGIN_BINS = 10
"""Bins of margins: rewards are means of scores from 0 to 5."""
SHOWN = 40
"""Pairs that can be browsed together, at most."""
EXAMPLES = 3
"""Examples of one kind, at most."""

T = TypeVar("T")


@dataclass(frozen=True)
class ShownPair:
    """A pair to browse, with the judgments of both sides in the order of their samples."""

    pair: PreferencePair
    chosen: tuple[Judgment, ...]
    rejected: tuple[Judgment, ...]
    chosen_text: Markup
    """With the words marked that the other side lacks."""
    rejected_text: Markup


@dataclass(frozen=True)
class DrawnPairs:
    """The pairs of an iteration: their margins, and some to browse."""

    margins: tuple[int, ...]
    """Pairs in each bin of `MARGIN_STEP`, the lowest first; the last one holds all above, too."""
    mean_margin: float | None
    """`None` without margins."""
    pairs: int
    """All pairs, those without a margin, too."""
    drawn: tuple[PreferencePair, ...]
    prompts: Container[str]
    """Ids of the prompts that have a pair."""


@dataclass
class Judged:
    """The judgments of an iteration, gone through once."""

    of: dict[str, list[Judgment]] = field(default_factory=dict)
    """Those of the completions asked for, by completion, in the order of their samples."""
    rewards: Counter[float] = field(default_factory=Counter)
    """Completions by their mean score, rounded to halves; the unscored are in none."""
    mean_reward: float | None = None
    unscored: dict[str, list[Judgment]] = field(default_factory=dict)
    """Some unscored judgments, by reason."""


def draw_pairs(pairs: Path, problems: Problems) -> DrawnPairs:
    """Draw up to `SHOWN` pairs, as many of each margin as there are.

    The draw depends on nothing but the pairs' ids, not on their order in the file. Pairs from elsewhere may
    have no margin; they are drawn with those of the lowest.
    """
    bins: list[list[PreferencePair]] = [[] for _ in range(MARGIN_BINS)]
    counts = [0] * MARGIN_BINS
    total, without = 0.0, 0
    prompts = set()
    for pair in problems.rows(pairs, PreferencePair):
        prompts.add(pair.prompt_id)
        # A mean of three scores makes margins such as 0.9999999999999996.
        place = min(int(round(pair.margin or 0.0, 6) / MARGIN_STEP), MARGIN_BINS - 1)
        if pair.margin is None:
            without += 1
        else:
            counts[place] += 1
            total += pair.margin
        keep_lowest(bins[place], pair, lambda pair: pair.pair_id)
    mean = total / sum(counts) if any(counts) else None
    return DrawnPairs(tuple(counts), mean, sum(counts) + without, tuple(in_turn(bins)), prompts)


def read_judgments(judgments: Path, wanted: Container[str], problems: Problems) -> Judged:
    """Read all judgments once, and keep those of the wanted completions."""
    found = Judged()
    sums: dict[str, tuple[float, int]] = {}
    for row in problems.rows(judgments, Judgment):
        if row.score is not None:
            total, n = sums.get(row.completion_id, (0.0, 0))
            sums[row.completion_id] = (total + row.score, n + 1)
        else:
            keep_lowest(found.unscored.setdefault(str(row.reason), []), row, _judgment_id, EXAMPLES)
        if row.completion_id in wanted:
            found.of.setdefault(row.completion_id, []).append(row)
    for rows in found.of.values():
        rows.sort(key=lambda row: row.sample)
    found.rewards.update(round(2 * total / n) / 2 for total, n in sums.values())
    if sums:
        found.mean_reward = sum(total / n for total, n in sums.values()) / len(sums)
    return found


def shown_pairs(pairs: Iterable[PreferencePair], judged: Judged, *, most_bytes: int) -> tuple[ShownPair, ...]:
    """Return the pairs to browse with their judgments, widest margin first, those without one last.

    Args:
        pairs: As they were drawn.
        judged: Has the judgments of both sides.
        most_bytes: Size of all shown text as HTML, at most. A pair that doesn't fit is passed over.
    """
    rows = (
        ShownPair(
            pair,
            tuple(judged.of.get(pair.chosen_id, ())),
            tuple(judged.of.get(pair.rejected_id, ())),
            *with_marks(pair.chosen, pair.rejected),
        )
        for pair in pairs
    )
    shown = fitting(rows, _texts, most_bytes)
    return tuple(sorted(shown, key=lambda row: (-(row.pair.margin or 0), row.pair.pair_id)))


def token_counts(candidates: Iterable[Completion]) -> Counter[int]:
    """Return how many candidates have each length in tokens; those without a text are left out."""
    return Counter(row.num_tokens for row in candidates if row.text is not None)


def keep_lowest(kept: list[T], row: T, key: Callable[[T], str], most: int = SHOWN) -> None:
    """Add a row to those with the lowest ids, at most so many: an id is a hash, so these are a fair draw."""
    insort(kept, row, key=key)
    del kept[most:]


def in_turn(groups: Iterable[Sequence[T]]) -> list[T]:
    """Return up to `SHOWN` rows: the first of each group, then the second of each, and so on."""
    return [row for turn in zip_longest(*groups) for row in turn if row is not None][:SHOWN]


def fitting(rows: Iterable[T], texts: Callable[[T], Iterable[str]], most_bytes: int) -> Iterator[T]:
    """Yield the rows whose texts, as HTML, still fit; one that doesn't is passed over."""
    left = most_bytes
    for row in rows:
        size = sum(map(_size, texts(row)))
        if size <= left:
            left -= size
            yield row


def turns(messages: Iterable[Message]) -> Iterator[str]:
    """Return what was said in each turn."""
    return (message.content for message in messages)


def _size(text: str) -> int:
    """Return the bytes of a text in the page."""
    return len((text if isinstance(text, Markup) else escape(readable(text))).encode())


def _texts(row: ShownPair) -> Iterator[str]:
    yield from turns(row.pair.messages)
    yield from (row.chosen_text, row.rejected_text)
    yield from (judgment.text or "" for judgment in (*row.chosen, *row.rejected))


def _judgment_id(judgment: Judgment) -> str:
    return judgment.judgment_id
