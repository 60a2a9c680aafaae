"""Comparing all texts of each prompt with each other, and judging each by how many it beats."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from selfalign.comparing import LETTERS, REPLY_START, Comparison, compare_messages, first_share, win_shares
from selfalign.config import BaseRecipe, Judge
from selfalign.engines import ChoiceRequest, Engine
from selfalign.records import Judgment, content_id
from selfalign.runs import Work
from selfalign.runs.files import read_rows, write_rows
from selfalign.stages.grader import Judged, open_judge

HIGHEST = 5.0
"""Score of a text that beats all others of its prompt, as in the rubrics."""


@dataclass(frozen=True)
class _Pair:
    """Two texts of one prompt to compare."""

    comparison_id: str
    one: Judged
    other: Judged


def comparisons_of(output: str) -> str:
    """Return the file of the comparisons behind a file of judgments."""
    return f"{output.removesuffix('.jsonl')}_comparisons.jsonl"


def compare(
    recipe: BaseRecipe, work: Work, model: Path | None, items: Sequence[Judged], output: str, settings: Judge
) -> None:
    """Compare every two texts of a prompt in both orders; write the comparisons, and a judgment of each text.

    The score of a text is its share of won comparisons, ties counting half, times `HIGHEST`. A text that no
    other is compared with is unscored.
    """
    by_prompt: dict[str, list[Judged]] = {}
    for item in items:
        by_prompt.setdefault(item.prompt_id, []).append(item)
    pairs = [
        _Pair(content_id(work.stage, one.completion_id, other.completion_id), one, other)
        for texts in by_prompt.values()
        for one, other in combinations(texts, 2)
    ]
    work.map_rows(
        comparisons_of(output),
        pairs,
        _Comparer(recipe, settings, model),
        key=lambda pair: pair.comparison_id,
        record=Comparison,
        row_key=lambda comparison: comparison.comparison_id,
    )
    shares = win_shares(read_rows(work.output(comparisons_of(output)), Comparison))
    write_rows(
        work.output(output), [_judgment(work.stage, item, shares.get(item.completion_id)) for item in items]
    )


class _Comparer:
    """Compares shards of pairs; opens its engine with the first one."""

    def __init__(self, recipe: BaseRecipe, settings: Judge, model: Path | None) -> None:
        self._recipe = recipe
        self._settings = settings
        self._model = model
        self._engine: Engine | None = None

    def __call__(self, shard: Sequence[_Pair]) -> Iterator[Comparison]:
        self._engine = self._engine or open_judge(self._recipe, self._settings, self._model)
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
