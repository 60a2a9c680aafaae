"""The judge of an evaluation's answers: one for all models, never one of them by default."""

from typing import Any

from selfalign.config import BenchmarkJudge, EvaluationRecipe
from selfalign.engines import Engine, open_endpoint, open_engine
from selfalign.runs import Artifact, Run
from selfalign.stages.base import base_model
from selfalign.stages.common import generation_settings, own_template


def judge_name(judge: BenchmarkJudge) -> str:
    """Return what the judge is called in a table."""
    return judge.model or (judge.endpoint.model if judge.endpoint is not None else "")


def judge_inputs(run: Run[EvaluationRecipe]) -> dict[str, Artifact]:
    """Return the judge's model among a stage's inputs; one behind an API is a setting."""
    judge = run.recipe.judge
    return {"judge": base_model(run, judge.model)} if judge is not None and judge.model is not None else {}


def judge_settings(run: Run[EvaluationRecipe]) -> dict[str, Any]:
    """Return what shapes the judge's replies besides its model and what it is shown."""
    judge = run.recipe.judge
    assert judge is not None  # noqa: S101 -- a task that needs a judge is not run without one
    settings: dict[str, Any] = {"max_new_tokens": judge.max_new_tokens, **generation_settings(run.recipe)}
    if judge.endpoint is not None:
        settings |= {"url": judge.endpoint.url, "api_model": judge.endpoint.model}
    return settings


def open_benchmark_judge(run: Run[EvaluationRecipe]) -> Engine:
    """Open the judge's engine."""
    judge = run.recipe.judge
    assert judge is not None  # noqa: S101 -- a task that needs a judge is not run without one
    if judge.endpoint is not None:
        return open_endpoint(judge.endpoint)
    model = judge_inputs(run)["judge"].path
    return open_engine(run.recipe.engine, own_template(run.recipe.policy), model)
