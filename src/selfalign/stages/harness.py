"""Objective benchmarks through lm-eval, on the engine that a model's other benchmarks share."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from selfalign.config import EvaluationRecipe
from selfalign.engines import open_engine
from selfalign.errors import UnscorableError
from selfalign.evaluation.results import TaskResult
from selfalign.harness.data import fingerprint
from selfalign.harness.tasks import BENCHMARKS, problem_of
from selfalign.records import Record
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import write_json, write_rows
from selfalign.stages.common import generation_settings

VERSION = 1


class Sample(Record):
    """One question of a benchmark and what became of it."""

    id: str | int
    subject: str | None
    prompt_hash: str
    target: str | int | float | None
    verdicts: dict[str, float | list[float]]
    """By metric."""
    reply: str | None = None
    logps: list[float] | None = None
    """Of the choices."""
    choice: int | None = None
    """The likeliest one."""


def harness_problem(recipe: EvaluationRecipe, task: str) -> str | None:
    """Say what a benchmark of lm-eval lacks here and how to get it; `None` if it can be run."""
    if recipe.engine.kind != "transformers":
        return f"needs engine.kind: transformers, which tells log-probabilities; it is {recipe.engine.kind}"
    return problem_of(task, _data_dir(recipe))


def measure_harness(run: Run[EvaluationRecipe], name: str, model: Artifact, task: str) -> Artifact:
    """Ask a model the questions of a benchmark through lm-eval; one whose answers mean nothing gets no score.

    Reads:
        the benchmark's files, or the hub's
    Writes:
        <name>/<task>.json, <task>_samples.jsonl
    """
    recipe = run.recipe
    stage = Stage(
        name=f"{name}/{task}",
        version=VERSION,
        outputs=(f"{task}.json", f"{task}_samples.jsonl"),
        settings={
            "limit": recipe.limit,
            "chat": recipe.chat,
            "lm_eval": version("lm_eval"),
            **generation_settings(recipe),
        },
        inputs={"model": model, "data": Artifact(run.root, fingerprint(task, _data_dir(recipe)))},
        expected={"rows": recipe.limit or 0},
    )

    def body(work: Work) -> dict[str, Any]:
        from selfalign.engines.local import LocalEngine
        from selfalign.harness.kept import Answer, KeptEngine
        from selfalign.harness.run import run_task

        engine = open_engine(recipe.engine, recipe.policy, model.path)
        assert isinstance(engine, LocalEngine)  # noqa: S101 -- `harness_problem` was asked
        try:
            with work.partial(f"{task}_answers.jsonl", Answer, lambda answer: answer.key) as answers:
                found = run_task(
                    task,
                    KeptEngine(engine, answers),
                    data_dir=_data_dir(recipe),
                    limit=recipe.limit,
                    chat=recipe.chat,
                    seed=recipe.seed,
                    counting=lambda total: work.counting(total, "answers"),
                )
        except UnscorableError as error:
            reason = str(error).removeprefix(f"{task}: ")
            work.warn(f"no score: {reason}")
            result = TaskResult.without_score(task, name, BENCHMARKS[task].metric, reason)
            return _written(work, result, [])
        result = TaskResult(
            task=task,
            model=name,
            metric=found.metric,
            measures=found.measures,
            counts=found.counts,
            notes=found.notes,
            settings=found.settings,
        )
        return _written(work, result, list(map(Sample.model_validate, found.rows)))

    return run.do(stage, body)


def _written(work: Work, result: TaskResult, samples: Sequence[Sample]) -> dict[str, Any]:
    """Write a result and its samples, and return the figures of the stage."""
    write_rows(work.output(f"{result.task}_samples.jsonl"), samples)
    write_json(work.output(f"{result.task}.json"), result.model_dump(mode="json"))
    return {"rows": len(samples), "score": result.headline["value"]}


def _data_dir(recipe: EvaluationRecipe) -> Path | None:
    return None if recipe.data_dir is None else Path(recipe.data_dir)
