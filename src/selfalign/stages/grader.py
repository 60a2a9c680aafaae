"""Asking a judge: texts in, judgments out, by any of the methods."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from selfalign.config import BaseRecipe, Judge
from selfalign.engines import (
    Choice,
    ChoiceRequest,
    Engine,
    Generation,
    GenerationRequest,
    open_endpoint,
    open_engine,
)
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
from selfalign.stages.structured import draw_score, judge_form, read_answer


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
        self._form = judge_form(settings.sampling.max_new_tokens) if settings.structured else None
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
                starts = dict.fromkeys(tasks, self._settings.score_start)
                yield from self._expected(self._engine, tasks, starts)
            case "pairwise":
                raise ValueError("texts are not graded one by one where they are compared")
            case "expected_after_rationale":
                requests = [self._request(task, attempt=0) for task in shard]
                starts = {
                    generation.key: _before_score(self._settings.reply_start + (generation.text or ""))
                    for generation in self._engine.generate(requests, self._settings.sampling)
                }
                yield from self._expected(self._engine, tasks, starts)

    def _sampled(self, engine: Engine, tasks: Mapping[str, Task]) -> Iterator[Judgment]:
        """Draw a reply for each task, and again for those whose score can't be read.

        A structured one that has no score, such as one that was cut, is ended before that.
        """
        # An API is held to a schema or to nothing: few tell the probabilities to end a reply by.
        ends = self._settings.structured and self._settings.endpoint is None
        for attempt in range(1 + self._settings.retries):
            last = attempt == self._settings.retries
            requests = [self._request(task, attempt) for task in tasks.values()]
            unread: list[Judgment] = []
            for generation in engine.generate(requests, self._settings.sampling):
                judgment = self._judgment(generation, tasks[generation.key], attempts=attempt + 1)
                if judgment.score is not None or judgment.text is None or (last and not ends):
                    yield judgment
                else:
                    unread.append(judgment)
            again: dict[str, Task] = {}
            for judgment in self._ended(engine, unread, tasks) if ends else unread:
                if judgment.score is not None or last:
                    yield judgment
                else:
                    again[judgment.judgment_id] = tasks[judgment.judgment_id]
            tasks = again

    def _ended(
        self, engine: Engine, unread: Iterable[Judgment], tasks: Mapping[str, Task]
    ) -> Iterator[Judgment]:
        """Draw a score after what each reply says; where there is none to draw, it stays unread."""
        judgments = {judgment.judgment_id: judgment for judgment in unread}
        starts = {key: _before_score(judgment.text or "") for key, judgment in judgments.items()}
        for choice in self._choose(engine, tasks, starts):
            judgment, task = judgments[choice.key], tasks[choice.key]
            seed = self._seed(task, judgment.attempts - 1, "score")
            score = draw_score(choice.probabilities or (), self._settings.sampling, seed)
            if score is not None:
                text = f"{starts[choice.key]} {score}"
                judgment = _record(task, float(score), "no_score", text, attempts=judgment.attempts)
            yield judgment

    def _request(self, task: Task, attempt: int) -> GenerationRequest:
        return GenerationRequest(
            task.judgment_id,
            judge_messages(self._rubric, task.item.messages, task.item.text),
            self._seed(task, attempt),
            self._settings.reply_start,
            self._form,
        )

    def _seed(self, task: Task, attempt: int, *names: str) -> int:
        return derive_seed(
            self._recipe.seed, self._stage, task.item.completion_id, task.sample, attempt, *names
        )

    def _judgment(self, generation: Generation, task: Task, *, attempts: int) -> Judgment:
        if generation.text is None:
            return _record(task, None, "prompt_too_long", None, attempts=attempts)
        text, truncated = self._settings.reply_start + generation.text, generation.finish_reason == "length"
        if self._settings.structured and self._settings.endpoint is not None:
            text, parsed = read_answer(text, truncated=truncated)
        else:
            parsed = parse_score(text, truncated=truncated)
        return _record(task, parsed.score, parsed.reason or "no_score", text, attempts=attempts)

    def _expected(
        self, engine: Engine, tasks: Mapping[str, Task], starts: Mapping[str, str]
    ) -> Iterator[Judgment]:
        """Read the probabilities of the scores after the start of each task's reply."""
        for choice in self._choose(engine, tasks, starts):
            task = tasks[choice.key]
            if choice.probabilities is None:
                yield _record(task, None, "prompt_too_long", None)
            else:
                score, mass = expected_score(choice.probabilities)
                yield _record(task, score, "no_score", starts[choice.key], mass=mass)

    def _choose(
        self, engine: Engine, tasks: Mapping[str, Task], starts: Mapping[str, str]
    ) -> Iterator[Choice]:
        """Ask how likely each score is after the start of a reply, of those tasks that have one."""
        requests = []
        for key, start in starts.items():
            item = tasks[key].item
            messages = judge_messages(self._rubric, item.messages, item.text)
            requests.append(ChoiceRequest(key, messages, start, SCORES))
        return engine.choose(requests)


def _before_score(reply: str) -> str:
    """Return the start of a reply whose score comes next: what this one says, and the label."""
    return f"{rationale_of(reply)}\nScore:".lstrip()


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
