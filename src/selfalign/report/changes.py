"""What changed from model to model, with paired intervals: both are compared on the same questions.

Two models err on the same hard questions, so the interval of their difference is narrower than those of their
two values suggest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isclose
from pathlib import Path
from statistics import fmean

from pydantic import BaseModel

from selfalign.evaluation.judge_quality import Measure, paired_difference
from selfalign.evaluation.means import mean_measure
from selfalign.evaluation.mt_bench_scores import TurnScore
from selfalign.evaluation.results import TaskResult
from selfalign.judging import mean_rewards
from selfalign.records import Judgment, RankedPrompt
from selfalign.report.problems import Problems
from selfalign.report.read import ModelRow

Verdict = str
"""`gained`, `lost` or `open`."""
Key = tuple[str, ...]


class _Sample(BaseModel):
    """A question of lm-eval's and the verdicts on it, by metric."""

    id: str | int
    subject: str | None
    verdicts: dict[str, float | list[float]]


class _Program(BaseModel):
    """What became of a program."""

    problem: str
    status: str


class _Grade(BaseModel):
    """What a judge gave a turn."""

    turn_score: TurnScore


@dataclass(frozen=True)
class Change:
    """How much more one model has than another; without an interval where rows can't be paired."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    """Units that both models have."""

    @property
    def verdict(self) -> Verdict:
        """Return which way the interval lies; one that reaches 0, or none, leaves it open."""
        if self.low is not None and self.low > 0:
            return "gained"
        if self.high is not None and self.high < 0:
            return "lost"
        return "open"


def judge_changes(root: Path, models: Sequence[ModelRow], problems: Problems) -> dict[str, Change]:
    """Return how the pairwise accuracy of each model differs from that of the model before, by its name."""
    trained = [model for model in models if model.where not in ("", "judge")]
    if len(trained) < 2:
        return {}
    ranked = list(problems.rows(root / "data" / "held_out.jsonl", RankedPrompt))
    replies = [reply.reply_id for prompt in ranked for reply in prompt.replies]
    rewards = {}
    for model in trained:
        rows = problems.rows(root / model.where / "held_out_judgments.jsonl", Judgment)
        known = mean_rewards(rows)
        rewards[model.name] = {name: known.get(name) for name in replies}
    changes = {}
    for before, after in pairwise(trained):
        found = paired_difference(ranked, rewards[after.name], rewards[before.name])
        if (change := _change(found)) is not None:
            changes[after.name] = change
    return changes


def benchmark_changes(
    place: Path, models: Sequence[str], results: Mapping[tuple[str, str], TaskResult], problems: Problems
) -> dict[tuple[str, str, str], Change]:
    """Return how the headline of each benchmark differs between neighbours, and between first and last.

    Args:
        place: The evaluation.
        models: Names, in order.
        results: By task and model.
        problems: Told of what can't be read.

    Returns:
        Changes by task, the earlier model and the later one.
    """
    pairs = dict.fromkeys([*pairwise(models), *([(models[0], models[-1])] if len(models) > 1 else [])])
    changes = {}
    for task in dict.fromkeys(task for task, _ in results):
        if task == "head_to_head":  # each of its figures is a comparison
            continue
        scores = {
            model: _scores(place / model, results[task, model], problems)
            for model in models
            if (task, model) in results
        }
        for before, after in pairs:
            if before in scores and after in scores:
                one, other = (results[task, model].headline["value"] for model in (before, after))
                if one is not None and other is not None:
                    paired = _paired(scores[before], scores[after])
                    changes[task, before, after] = paired or Change(other - one)
    return changes


def _paired(before: Mapping[Key, float], after: Mapping[Key, float]) -> Change | None:
    """Return the mean difference over the units that both have; questions are resampled."""
    both = [key for key in before if key in after]
    differences = [after[key] - before[key] for key in both]
    return _change(mean_measure(differences, undefined="", seed=0, clusters=[key[:2] for key in both]))


def _change(measure: Measure) -> Change | None:
    value, low, high = measure["value"], measure["low"], measure["high"]
    return None if value is None else Change(value, low, high, measure["n"])


def _scores(place: Path, result: TaskResult, problems: Problems) -> dict[Key, float]:
    """Return what each unit of a benchmark scored; nothing where that does not give the headline."""
    scores = dict(_rows(place, result, problems))
    value = result.headline["value"]
    known = bool(scores) and value is not None and isclose(fmean(scores.values()), value, abs_tol=1e-6)
    return scores if known else {}


def _rows(place: Path, result: TaskResult, problems: Problems) -> Iterator[tuple[Key, float]]:
    """Yield the units of a benchmark by subject, question and part."""
    task, metric = result.task, result.metric
    if (path := place / f"{task}_samples.jsonl").is_file():
        for sample in problems.rows(path, _Sample):
            verdict = sample.verdicts.get(metric, [])
            for part, score in enumerate(verdict if isinstance(verdict, list) else [verdict]):
                yield (sample.subject or "", str(sample.id), str(part)), score
    elif (path := place / f"{task}_verdicts.jsonl").is_file():
        for program in problems.rows(path, _Program):
            yield ("", program.problem, ""), float(program.status == "passed")
    elif (path := place / f"{task}_grades.jsonl").is_file():
        for grade in problems.rows(path, _Grade):
            turn = grade.turn_score
            if turn.score is not None:
                yield ("", str(turn.question_id), str(turn.turn)), turn.score
