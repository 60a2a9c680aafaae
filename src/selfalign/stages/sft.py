"""Supervised fine-tuning of a model on one or more files of examples."""

from collections.abc import Sequence
from typing import Any

from selfalign.config import BaseRecipe, Train
from selfalign.engines import close_engine
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.seeds import derive_seed
from selfalign.stages.common import training_settings

VERSION = 2


def train_sft(
    run: Run[BaseRecipe], where: str, start: Artifact, examples: Sequence[Artifact], settings: Train
) -> Artifact:
    """Train `start` on the completions of all examples and return the model.

    Reads:
        The example files.
    Writes:
        <where>/model/, <where>/training.jsonl

    Raises:
        NothingToTrainError: No example fits into the length limit.
        TrainingError: A loss or gradient is not finite.
    """
    stage = Stage(
        name=f"{where}/train",
        version=VERSION,
        outputs=("model", "training.jsonl"),
        settings=training_settings(run.recipe, settings),
        inputs={"start": start, **{f"examples {i}": a for i, a in enumerate(examples, start=1)}},
        expected={"training_tokens": settings.epochs * sum(a.tokens for a in examples)},
        training=settings,
    )

    def body(work: Work) -> dict[str, Any]:
        from selfalign.training.job import TrainingJob
        from selfalign.training.launch import train_job

        job = TrainingJob(
            start=start.path,
            policy=run.recipe.policy,
            settings=settings,
            data=tuple(artifact.path for artifact in examples),
            learning_rate=settings.learning_rate,
            seed=derive_seed(run.recipe.seed, work.stage),
            report_to=run.recipe.report_to,
        )
        close_engine()
        return train_job(job, work)

    return run.do(stage, body)
