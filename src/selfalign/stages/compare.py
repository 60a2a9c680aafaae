"""Comparing all texts of each prompt with each other, and judging each by how many it beats."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from selfalign.comparing import LETTERS, REPLY_START, Comparison, compare_messages, first_share, win_shares
from selfalign.config import BaseRecipe, Judge
from selfalign.engines import ChoiceRequest, Engine
from selfalign.records import Judgment, content_id
from selfalign.runs import Work
from selfalign.runs.files import read_rows, write_rows
from selfalign.runs.work import Repeatable
from selfalign.stages.grader import Judged, open_judge
from selfalign.stages.join import joined, together

HIGHEST = 5.0
"""Score of a text that beats all others of its prompt, as in the rubrics."""


@dataclass(frozen=True)
class Pair:
    """Two texts of one prompt to compare."""

    comparison_id: str
    one: Judged
    other: Judged


def comparisons_of(output: str) -> str:
    """Return the file of the comparisons behind a file of judgments."""
    return f"{output.removesuffix('.jsonl')}_comparisons.jsonl"


def compare(
    recipe: BaseRecipe, work: Work, model: Path | None, items: Iterable[Judged], output: str, settings: Judge
) -> None:
    """Compare every two texts of a prompt in both orders; write the comparisons, and a judgment of each text.

    The score of a text is its share of won comparisons, ties counting half, times `HIGHEST`. A text that no
    other is compared with is unscored.
    """
    prompts = Repeatable(lambda: together(items, lambda item: item.prompt_id))
    path = work.output(comparisons_of(output))
    work.map_rows(
        path.name,
        Repeatable(
            lambda: (pair_of(work.stage, *two) for texts in prompts for two in combinations(texts, 2))
        ),
        Comparer(lambda: open_judge(recipe, settings, model)),
        key=lambda pair: pair.comparison_id,
        record=Comparison,
        row_key=lambda comparison: comparison.comparison_id,
    )
    compared = joined(
        prompts,
        read_rows(path, Comparison),
        key=lambda texts: f"prompt {texts[0].prompt_id}",
        of=lambda comparison: f"prompt {comparison.prompt_id}",
        path=path,
    )
    write_rows(work.output(output), _judgments(work.stage, compared))


def pair_of(stage: str, one: Judged, other: Judged) -> Pair:
    """Name a pair of texts of one prompt."""
    return Pair(content_id(stage, one.completion_id, other.completion_id), one, other)


class Comparer:
    """Compares shards of pairs; opens its engine with the first one."""

    def __init__(self, open_judge: Callable[[], Engine]) -> None:
        """Take what opens the judge's engine."""
        self._open = open_judge
        self._engine: Engine | None = None

    def __call__(self, shard: Sequence[Pair]) -> Iterator[Comparison]:
        """Yield a comparison for each pair, in any order."""
        self._engine = self._engine or self._open()
        pairs = {pair.comparison_id: pair for pair in shard}
        orders = {
            f"{name} {order}": (pair.one, pair.other) if order == "first" else (pair.other, pair.one)
            for name, pair in pairs.items()
            for order in ("first", "second")
        }
        requests = [
            ChoiceRequest(key, compare_messages(a.messages, a.text, b.text), REPLY_START, LETTERS)
            for key, (a, b) in orders.items()
        ]
        answered: dict[str, float | None] = {}
        for choice in self._engine.choose(requests):
            answered[choice.key] = first_share(choice.probabilities)
            name = choice.key.rpartition(" ")[0]
            if {f"{name} first", f"{name} second"} <= answered.keys():
                shown_second = answered[f"{name} second"]
                pair = pairs[name]
                yield Comparison(
                    comparison_id=name,
                    prompt_id=pair.one.prompt_id,
                    one_id=pair.one.completion_id,
                    other_id=pair.other.completion_id,
                    one_first=answered[f"{name} first"],
                    one_second=None if shown_second is None else 1 - shown_second,
                )


def _judgments(stage: str, compared: Iterable[tuple[list[Judged], list[Comparison]]]) -> Iterator[Judgment]:
    for texts, comparisons in compared:
        shares = win_shares(comparisons)
        for item in texts:
            yield _judgment(stage, item, shares.get(item.completion_id))


def _judgment(stage: str, item: Judged, share: float | None) -> Judgment:
    return Judgment(
        judgment_id=content_id(stage, item.completion_id, "0"),
        completion_id=item.completion_id,
        prompt_id=item.prompt_id,
        sample=0,
        score=None if share is None else HIGHEST * share,
        reason="not_compared" if share is None else None,
        text=None,
        attempts=1,
    )
