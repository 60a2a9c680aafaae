"""What the report needs of an iteration's big files: one pass over each, and a few rows in memory."""

from bisect import insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import zip_longest
from pathlib import Path

from selfalign.records import Completion, Judgment, PreferencePair
from selfalign.report.text import readable
from selfalign.runs.files import read_rows

MARGIN_STEP = 0.5
MARGIN_BINS = 10
"""Bins of margins: rewards are means of scores from 0 to 5."""
SHOWN = 40
"""Pairs of an iteration that can be browsed, at most."""


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
    """`None` without pairs."""
    shown: tuple[ShownPair, ...]
    """Widest margin first."""


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
    total = 0.0
    for pair in read_rows(pairs, PreferencePair):
        # A mean of three scores makes margins such as 0.9999999999999996.
        place = min(int(round(pair.margin, 6) / MARGIN_STEP), MARGIN_BINS - 1)
        counts[place] += 1
        total += pair.margin
        insort(bins[place], pair, key=_id)  # an id is a hash, so the lowest are a fair draw
        del bins[place][SHOWN:]
    in_turn = [pair for turn in zip_longest(*bins) for pair in turn if pair is not None]
    drawn = in_turn[:SHOWN]
    judged = _judgments_of(drawn, judgments)
    rows = (ShownPair(p, judged.get(p.chosen_id, ()), judged.get(p.rejected_id, ())) for p in drawn)
    shown = sorted(_fitting(rows, most_bytes), key=lambda row: (-row.pair.margin, row.pair.pair_id))
    return PairSample(tuple(counts), total / sum(counts) if any(counts) else None, tuple(shown))


def _id(pair: PreferencePair) -> str:
    return pair.pair_id


def _judgments_of(pairs: Sequence[PreferencePair], judgments: Path | None) -> dict[str, tuple[Judgment, ...]]:
    wanted = {completion_id for pair in pairs for completion_id in (pair.chosen_id, pair.rejected_id)}
    found: dict[str, list[Judgment]] = {}
    for judgment in read_rows(judgments, Judgment) if judgments else ():
        if judgment.completion_id in wanted:
            found.setdefault(judgment.completion_id, []).append(judgment)
    return {key: tuple(sorted(rows, key=lambda row: row.sample)) for key, rows in found.items()}


def _fitting(rows: Iterable[ShownPair], most_bytes: int) -> Iterator[ShownPair]:
    left = most_bytes
    for row in rows:
        judged = (judgment.text or "" for judgment in (*row.chosen, *row.rejected))
        turns = (message.content for message in row.pair.messages)
        texts = (*turns, row.pair.chosen, row.pair.rejected, *judged)
        size = sum(len(escape(readable(text)).encode()) for text in texts)
        if size <= left:
            left -= size
            yield row
