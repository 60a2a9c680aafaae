"""What the report needs of an RLCD run's big files: one pass over each, and a few rows in memory."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from selfalign.records import Completion, Contrast, Message, PreferencePair, Prompt, content_id
from selfalign.report.differences import with_marks
from selfalign.report.problems import Problems
from selfalign.report.sample import fitting, in_turn, keep_lowest, turns

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
    chosen_text: Markup
    """With the words marked that the other side lacks."""
    rejected_text: Markup


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
    before_text: Markup
    """With the words marked that the other answer lacks."""
    after_text: Markup

    @property
    def changed(self) -> bool:
        """Return whether training changed the text."""
        return self.before.text != self.after.text


def sample_contrasts(pairs: Path, contrasts: Path, problems: Problems, *, most_bytes: int) -> ContrastSample:
    """Measure the pairs by group and draw some to browse, as many of each group as there are.

    The draw depends on nothing but the pairs' ids, not on their order in the file. A pair whose contrast is
    missing is a problem.

    Args:
        pairs: The pairs to train on.
        contrasts: The contrasts that they come from.
        problems: Told of what can't be read.
        most_bytes: Size of all shown text as HTML, at most. A pair that doesn't fit is passed over.
    """
    groups = {row.contrast_id: group_of(row) for row in problems.rows(contrasts, Contrast)}
    lowest: dict[str, list[PreferencePair]] = defaultdict(list)
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for pair in problems.rows(pairs, PreferencePair):
        group = groups.get(str(pair.contrast_id))
        if group is None:
            problems.add(f"{pairs}: pair {pair.pair_id} comes from a contrast that {contrasts} lacks")
            continue
        longer = pair.chosen_tokens > pair.rejected_tokens
        for place, amount in enumerate((1, pair.chosen_tokens, pair.rejected_tokens, longer)):
            totals[group][place] += amount
        keep_lowest(lowest[group], pair, lambda pair: pair.pair_id)
    drawn = in_turn([lowest[group] for group in sorted(lowest)])
    wanted = {pair.contrast_id for pair in drawn}
    found = {row.contrast_id: row for row in problems.rows(contrasts, Contrast) if row.contrast_id in wanted}
    rows = (
        ShownContrast(pair, found[str(pair.contrast_id)], *with_marks(pair.chosen, pair.rejected))
        for pair in drawn
    )
    shown = sorted(
        fitting(rows, _texts, most_bytes), key=lambda row: (group_of(row.contrast), row.pair.pair_id)
    )
    return ContrastSample({group: Lengths(*totals[group]) for group in sorted(totals)}, tuple(shown))


def sample_answers(
    prompts: Path, before: Path, after: Path, problems: Problems, *, most_bytes: int
) -> list[Answers]:
    """Return the answers to up to `MOST_OUTPUTS` held-out prompts: changed ones first, then by prompt id.

    Prompts that were too long for an answer, or lack one of the two, are left out.

    Args:
        prompts: The held-out prompts.
        before: The answers of the model that training started from.
        after: Those of the tuned model.
        problems: Told of what can't be read.
        most_bytes: Size of all shown text as HTML, at most. What doesn't fit is passed over.
    """
    first = _to_show(before, after, problems)
    base, tuned = (
        {row.prompt_id: row for row in problems.rows(path, Completion) if row.prompt_id in first}
        for path in (before, after)
    )
    asked = {row.prompt_id: row for row in problems.rows(prompts, Prompt) if row.prompt_id in first}
    rows = (
        Answers(
            asked[key].messages,
            base[key],
            tuned[key],
            *with_marks(base[key].text or "", tuned[key].text or ""),
        )
        for key in first
        if key in asked
    )
    return list(fitting(rows, _answer_texts, most_bytes))


def _to_show(before: Path, after: Path, problems: Problems) -> list[str]:
    """Return the ids of the prompts to show, in order; of each answer nothing but a hash is kept."""
    base = {
        row.prompt_id: content_id(row.text)
        for row in problems.rows(before, Completion)
        if row.text is not None
    }
    answered = [
        (base[row.prompt_id] == content_id(row.text), row.prompt_id)
        for row in problems.rows(after, Completion)
        if row.text is not None and row.prompt_id in base
    ]
    return [key for _, key in sorted(answered)[:MOST_OUTPUTS]]


def group_of(contrast: Contrast) -> str:
    """Return language and group of a contrast, as the stages name it in their figures."""
    return f"{contrast.language}/{contrast.group}"


def _texts(row: ShownContrast) -> Iterator[str]:
    yield from turns(row.pair.messages)
    yield from (row.chosen_text, row.rejected_text, row.contrast.positive, row.contrast.negative)


def _answer_texts(row: Answers) -> Iterator[str]:
    yield from turns(row.messages)
    yield from (row.before_text, row.after_text)
