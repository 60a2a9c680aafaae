"""What the report needs of an RLCD run's big files: one pass over each, and a few rows in memory."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from selfalign.records import Completion, Contrast, Message, PreferencePair, Prompt
from selfalign.report.sample import fitting, in_turn, keep_lowest, turns
from selfalign.runs.files import read_rows

MOST_OUTPUTS = 20
"""Held-out prompts whose answers are shown, at most."""


@dataclass(frozen=True)
class Lengths:
    """Pairs of a group and their tokens."""

    pairs: int
    chosen: int
    """Tokens of all chosen completions."""
    rejected: int
    longer: int
    """Pairs whose chosen completion has the more tokens."""


@dataclass(frozen=True)
class ShownContrast:
    """A pair to browse, with the contrast that it comes from."""

    pair: PreferencePair
    contrast: Contrast


@dataclass(frozen=True)
class ContrastSample:
    """The pairs to train on: their lengths by group, and some to browse."""

    lengths: Mapping[str, Lengths]
    """By group, in the order of their names."""
    shown: tuple[ShownContrast, ...]
    """By group, then by id."""


@dataclass(frozen=True)
class Answers:
    """The answers to a held-out prompt before and after training."""

    messages: tuple[Message, ...]
    before: Completion
    after: Completion

    @property
    def changed(self) -> bool:
        """Return whether training changed the text."""
        return self.before.text != self.after.text


def sample_contrasts(pairs: Path, contrasts: Path, *, most_bytes: int) -> ContrastSample:
    """Measure the pairs by group and draw some to browse, as many of each group as there are.

    The draw depends on nothing but the pairs' ids, not on their order in the file.

    Args:
        pairs: The pairs to train on.
        contrasts: The contrasts that they come from.
        most_bytes: Size of all shown text as HTML, at most. A pair that doesn't fit is passed over.
    """
    groups = {row.contrast_id: group_of(row) for row in read_rows(contrasts, Contrast)}
    lowest: dict[str, list[PreferencePair]] = defaultdict(list)
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for pair in read_rows(pairs, PreferencePair):
        group = groups[str(pair.contrast_id)]
        longer = pair.chosen_tokens > pair.rejected_tokens
        for place, amount in enumerate((1, pair.chosen_tokens, pair.rejected_tokens, longer)):
            totals[group][place] += amount
        keep_lowest(lowest[group], pair)
    drawn = in_turn(lowest[group] for group in sorted(lowest))
    wanted = {pair.contrast_id for pair in drawn}
    found = {row.contrast_id: row for row in read_rows(contrasts, Contrast) if row.contrast_id in wanted}
    rows = (ShownContrast(pair, found[str(pair.contrast_id)]) for pair in drawn)
    shown = sorted(
        fitting(rows, _texts, most_bytes), key=lambda row: (group_of(row.contrast), row.pair.pair_id)
    )
    return ContrastSample({group: Lengths(*totals[group]) for group in sorted(totals)}, tuple(shown))


def sample_answers(prompts: Path, before: Path, after: Path, *, most_bytes: int) -> list[Answers]:
    """Return the answers to up to `MOST_OUTPUTS` held-out prompts: changed ones first, then by prompt id.

    Prompts that were too long for an answer are left out.

    Args:
        prompts: The held-out prompts.
        before: The answers of the model that training started from.
        after: Those of the tuned model.
        most_bytes: Size of all shown text as HTML, at most. What doesn't fit is passed over.
    """
    base, tuned = ({row.prompt_id: row for row in read_rows(path, Completion)} for path in (before, after))
    answered = [key for key in base if base[key].text is not None and tuned[key].text is not None]
    first = sorted(answered, key=lambda key: (base[key].text == tuned[key].text, key))[:MOST_OUTPUTS]
    wanted = {row.prompt_id: row for row in read_rows(prompts, Prompt) if row.prompt_id in first}
    rows = (Answers(wanted[key].messages, base[key], tuned[key]) for key in first)
    return list(fitting(rows, _answer_texts, most_bytes))


def group_of(contrast: Contrast) -> str:
    """Return language and group of a contrast, as the stages name it in their figures."""
    return f"{contrast.language}/{contrast.group}"


def _texts(row: ShownContrast) -> Iterator[str]:
    yield from turns(row.pair.messages)
    yield from (row.pair.chosen, row.pair.rejected, row.contrast.positive, row.contrast.negative)


def _answer_texts(row: Answers) -> Iterator[str]:
    yield from turns(row.messages)
    yield from (row.before.text or "", row.after.text or "")
