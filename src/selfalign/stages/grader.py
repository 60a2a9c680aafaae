"""Asking a judge: texts in, judgments out, by any of the methods."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfalign.config import BaseRecipe, Judge
from selfalign.engines import ChoiceRequest, Engine, Generation, GenerationRequest, open_endpoint, open_engine
from selfalign.judging import (
    SCORES,
    expected_score,
    judge_messages,
    load_rubric,
    parse_score,
    rationale_of,
)
from selfalign.records import Judgment, Messages, content_id
from selfalign.seeds import derive_seed
from selfalign.stages.common import own_template


@dataclass(frozen=True)
class Judged:
    """A text to judge."""

    completion_id: str
    prompt_id: str
    messages: Messages
    text: str


@dataclass(frozen=True)
class Task:
    """One judgment to make."""

    judgment_id: str
    item: Judged
    sample: int


class Grader:
    """Makes the judgments of one stage, shard by shard; opens its engine with the first one."""

    def __init__(self, recipe: BaseRecipe, settings: Judge, stage: str, model: Path | None) -> None:
        """Take the recipe, how to judge, the stage's name, and the judge's model; `None` is behind an API."""
        self._recipe = recipe
        self._settings = settings
        self._stage = stage
        self._model = model
        self._rubric = load_rubric(settings.rubric)
        self._engine: Engine | None = None

    def task(self, item: Judged, sample: int) -> Task:
        """Name a judgment of an item."""
        return Task(content_id(self._stage, item.completion_id, str(sample)), item, sample)

    def __call__(self, shard: Sequence[Task]) -> Iterator[Judgment]:
        """Yield a judgment for each task, in any order."""
        self._engine = self._engine or open_judge(self._recipe, self._settings, self._model)
        tasks = {task.judgment_id: task for task in shard}
        match self._settings.method:
            case "sampled":
                yield from self._sampled(self._engine, tasks)
            case "expected":
                start = self._settings.reply_start or "Score:"
                yield from self._expected(self._engine, tasks, dict.fromkeys(tasks, start))
            case "pairwise":
                raise ValueError("texts are not graded one by one where they are compared")
            case "expected_after_rationale":
                requests = [self._request(task, attempt=0) for task in shard]
                starts = {}
                for generation in self._engine.generate(requests, self._settings.sampling):
                    rationale = rationale_of(self._settings.reply_start + (generation.text or ""))
                    starts[generation.key] = f"{rationale}\nScore:".lstrip()
                yield from self._expected(self._engine, tasks, starts)

    def _sampled(self, engine: Engine, tasks: dict[str, Task]) -> Iterator[Judgment]:
        """Draw a reply for each task, and again for those whose score can't be read."""
        tasks = dict(tasks)
        for attempt in range(1 + self._settings.retries):
            requests = [self._request(task, attempt) for task in tasks.values()]
            for generation in engine.generate(requests, self._settings.sampling):
                judgment = self._judgment(generation, tasks[generation.key], attempts=attempt + 1)
                final = attempt == self._settings.retries or generation.text is None
                if judgment.score is not None or final:
                    del tasks[generation.key]
                    yield judgment

    def _request(self, task: Task, attempt: int) -> GenerationRequest:
        item = task.item
        return GenerationRequest(
            task.judgment_id,
            judge_messages(self._rubric, item.messages, item.text),
            derive_seed(self._recipe.seed, self._stage, item.completion_id, task.sample, attempt),
            self._settings.reply_start,
        )

    def _judgment(self, generation: Generation, task: Task, *, attempts: int) -> Judgment:
        score, reason, text = None, "prompt_too_long", None
        if generation.text is not None:
            text = self._settings.reply_start + generation.text
            parsed = parse_score(text, truncated=generation.finish_reason == "length")
            score, reason = parsed.score, parsed.reason or "no_score"
        return _record(task, score, reason, text, attempts=attempts)

    def _expected(
        self, engine: Engine, tasks: Mapping[str, Task], starts: Mapping[str, str]
    ) -> Iterator[Judgment]:
        """Read the probabilities of the scores after the start of each task's reply."""
        requests = [
            ChoiceRequest(
                key, judge_messages(self._rubric, task.item.messages, task.item.text), starts[key], SCORES
            )
            for key, task in tasks.items()
        ]
        for choice in engine.choose(requests):
            task = tasks[choice.key]
            if choice.probabilities is None:
                yield _record(task, None, "prompt_too_long", None)
            else:
                score, mass = expected_score(choice.probabilities)
                yield _record(task, score, "no_score", starts[choice.key], mass=mass)


def open_judge(recipe: BaseRecipe, settings: Judge, model: Path | None) -> Engine:
    """Open the engine of a judge; without a model it is the one behind the recipe's API."""
    if settings.endpoint is not None:
        return open_endpoint(settings.endpoint)
    assert model is not None  # noqa: S101 -- a judge that is not behind an API has a model
    policy = own_template(recipe.policy) if settings.is_fixed else recipe.policy
    return open_engine(recipe.engine, policy, model)


def _record(
    task: Task,
    score: float | None,
    reason: str,
    text: str | None,
    *,
    attempts: int = 1,
    mass: float | None = None,
) -> Judgment:
    return Judgment(
        judgment_id=task.judgment_id,
        completion_id=task.item.completion_id,
        prompt_id=task.item.prompt_id,
        sample=task.sample,
        score=score,
        reason=None if score is not None else reason,
        text=text,
        attempts=attempts,
        mass=mass,
    )
