"""MT-Bench scores: read from the judge's replies, and what they add up to.

Where we depart from FastChat: what has no sound score is counted with its reason, not dropped silently; the
last score of a reply counts, not the first; and the result says which known-wrong reference answers were
used.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pydantic import Field, model_validator

from selfalign.evaluation.means import mean_measure
from selfalign.evaluation.mt_bench import MTBench, Question, Turn, wrong_references
from selfalign.judging import ParsedScore
from selfalign.records import Record

_LABEL = r"(?:\b(?:rat(?:e|ed|ing)|scored?)\b|[评得]分)"
_EDGE = r"[\s*_`]*"
_DOUBLE = re.compile(rf"\[\[{_EDGE}([-+]?\d[^\[\]]*?){_EDGE}\]\]")
_SINGLE = re.compile(rf"{_LABEL}[^\[\]\n]*\[{{1,2}}{_EDGE}([-+]?\d[^\[\]]*?){_EDGE}\]", re.IGNORECASE)
_CUT = re.compile(rf"(?:{_LABEL}[^\[\]\n]*(?:\[[^\[\]]*)?|\[\[[^\[\]]*\]?)\Z", re.IGNORECASE)


class TurnScore(Record):
    """What the judge gave one turn of one question."""

    question_id: int
    turn: Turn
    score: float | None = Field(ge=1, le=10)
    reason: str | None
    """Why there is no score; `None` with a score."""

    @model_validator(mode="after")
    def _score_or_reason(self) -> "TurnScore":
        if (self.score is None) == (self.reason is None):
            raise ValueError("a turn has either a score or a reason for having none")
        return self


def parse_rating(reply: str, *, truncated: bool = False) -> ParsedScore:
    """Read the last "[[n]]" of a judge's reply, fractions included.

    Where there is none, a last "[n]" counts that stands in one line after a word such as "rating". FastChat
    takes any "[n]", which is as often an index or a citation. Width, zero-width characters and emphasis
    don't matter.

    Args:
        reply: The judge's whole reply.
        truncated: Whether the token limit ended the reply.

    Returns:
        The score in [1, 10], or a reason: `empty`, `no_score`, `ambiguous` ("[[7-8]]"), `out_of_range`, or
        `truncated` (no score before the cut, or the cut is in a line that gives one).
    """
    folded = unicodedata.normalize("NFKC", reply)
    folded = "".join(c for c in folded if unicodedata.category(c) != "Cf").rstrip()
    if not folded:
        return ParsedScore(None, "empty")
    values = _DOUBLE.findall(folded) or _SINGLE.findall(folded)
    if truncated and (not values or _CUT.search(folded)):
        return ParsedScore(None, "truncated")
    if not values:
        return ParsedScore(None, "no_score")
    if not re.fullmatch(r"[-+]?\d+(?:\.\d*)?", values[-1]):
        return ParsedScore(None, "ambiguous")
    score = float(values[-1])
    return ParsedScore(score, None) if 1 <= score <= 10 else ParsedScore(None, "out_of_range")


def mt_bench(bench: MTBench, scores: Iterable[TurnScore], *, seed: int = 0) -> dict[str, Any]:
    """Return the mean scores, JSON-ready, with intervals over questions.

    Args:
        bench: The questions that were to be answered.
        scores: Of their turns, in any order.
        seed: Of the resamples.

    Returns:
        `turn_1`, `turn_2`, `all`, and `categories` (by name, both turns), each a `Measure` whose `n` is the
        number of scored turns, with `turns` (all that were to be scored) and `failed`, the number of the
        others by reason; `not_judged` has no row in `scores`. `all` is the mean over scored turns, as
        published. Beside them `questions`, and `wrong_references`: see there.

    Raises:
        ValueError: A turn is scored twice, or is of no question of the benchmark.
    """
    found: dict[tuple[int, int], TurnScore] = {}
    known = {question.question_id for question in bench.questions}
    for score in scores:
        if score.question_id not in known:
            raise ValueError(f"there is no question {score.question_id}")
        if (score.question_id, score.turn) in found:
            raise ValueError(f"turn {score.turn} of question {score.question_id} is scored twice")
        found[score.question_id, score.turn] = score

    def part(questions: Iterable[Question], *turns: Turn) -> dict[str, Any]:
        chosen = [question.question_id for question in questions]
        rows = [(name, found.get((name, turn))) for name in chosen for turn in turns]
        scored = [(name, row.score) for name, row in rows if row is not None and row.score is not None]
        failed = Counter(
            "not_judged" if row is None else str(row.reason)
            for _, row in rows
            if row is None or row.score is None
        )
        measure = mean_measure(
            [score for _, score in scored],
            undefined="no turn is scored",
            seed=seed,
            clusters=[name for name, _ in scored],
        )
        return {**measure, "turns": len(rows), "failed": dict(sorted(failed.items()))}

    categories: dict[str, list[Question]] = {}
    for question in bench.questions:
        categories.setdefault(question.category, []).append(question)
    return {
        "turn_1": part(bench.questions, 1),
        "turn_2": part(bench.questions, 2),
        "all": part(bench.questions, 1, 2),
        "categories": {name: part(members, 1, 2) for name, members in categories.items()},
        "questions": len(bench.questions),
        "wrong_references": wrong_references(bench),
    }
