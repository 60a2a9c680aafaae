"""Supervised fine-tuning of a model on one or more files of examples."""

from collections.abc import Sequence
from typing import Any

from selfalign.config import BaseRecipe, Train
from selfalign.errors import NothingToTrainError
from selfalign.records import SFTExample
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_rows
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
    )

    def body(work: Work) -> dict[str, Any]:
        from selfalign.training.session import TrainingSession
        from selfalign.training.sft import sft_objective, tokenize_examples

        rows = [row for artifact in examples for row in read_rows(artifact.path, SFTExample)]
        with TrainingSession(start.path, run.recipe.policy, settings) as session:
            sequences, too_long = tokenize_examples(rows, session.chat, session.max_length)
            if not sequences:
                raise NothingToTrainError(
                    f"{where}: none of {len(rows)} examples fits into {session.max_length} tokens; raise "
                    "max_length of this training"
                )
            if too_long:
                work.warn(
                    f"{too_long} of {len(rows)} examples are longer than {session.max_length} tokens: skipped"
                )
            seed = derive_seed(run.recipe.seed, work.stage)
            figures = session.train(work, sequences, sft_objective(), settings.learning_rate, seed)
        return {"examples": len(sequences), "too_long": too_long, **figures}

    return run.do(stage, body)
