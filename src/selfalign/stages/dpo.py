"""DPO: from M(t) to M(t+1) on M(t)'s own pairs."""

from typing import Any

from selfalign.config import DPO, BaseRecipe, Train
from selfalign.engines import close_engine
from selfalign.errors import NothingToTrainError
from selfalign.records import PreferencePair
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_rows
from selfalign.seeds import derive_seed
from selfalign.stages.common import training_settings

VERSION = 2


def train_dpo(
    run: Run[BaseRecipe], where: str, policy: Artifact, pairs: Artifact, settings: DPO, learning_rate: float
) -> Artifact:
    """Train the policy on pairs, with itself before training as the reference.

    Reads:
        The pairs.
    Writes:
        <where>/reference.jsonl, <where>/model/, <where>/training.jsonl

    Raises:
        NothingToTrainError: No pair fits into the length limit.
        TrainingError: A loss or gradient is not finite.
    """
    reference = _reference(run, where, policy, pairs, settings.train)
    stage = Stage(
        name=f"{where}/train",
        version=VERSION,
        outputs=("model", "training.jsonl"),
        settings={
            **training_settings(run.recipe, settings.train),
            "learning_rate": learning_rate,
            **settings.model_dump(mode="json", include=set(DPO.model_fields) - {"train"}),
        },
        inputs={"policy": policy, "pairs": pairs, "reference": reference},
        expected={"training_tokens": settings.train.epochs * pairs.tokens},
        training=settings.train,
    )

    def body(work: Work) -> dict[str, Any]:
        from selfalign.training.job import TrainingJob
        from selfalign.training.launch import train_job

        job = TrainingJob(
            start=policy.path,
            policy=run.recipe.policy,
            settings=settings.train,
            dpo=settings,
            data=(pairs.path,),
            reference=reference.path,
            learning_rate=learning_rate,
            seed=derive_seed(run.recipe.seed, work.stage),
            report_to=run.recipe.report_to,
        )
        close_engine()
        return train_job(job, work)

    return run.do(stage, body)


def _reference(
    run: Run[BaseRecipe], where: str, policy: Artifact, pairs: Artifact, settings: Train
) -> Artifact:
    """Compute the reference log-probabilities once, so that no second model is held in training."""
    shaping = training_settings(run.recipe, settings)
    stage = Stage(
        name=f"{where}/reference",
        version=VERSION,
        outputs=("reference.jsonl",),
        settings={
            "max_length": settings.max_length,
            "lora": settings.lora is not None,  # then the base is held in the computing type
            **{key: shaping[key] for key in ("precision", "chat_template")},
        },
        inputs={"policy": policy, "pairs": pairs},
        expected={"rows": pairs.rows},
    )

    def body(work: Work) -> dict[str, Any]:
        from selfalign.models.load import compute_dtype, load_chat, load_trainable, pick_device
        from selfalign.models.logps import CompletionLogps
        from selfalign.training.dpo import ReferenceLogps, reference_logps, tokenize_pairs

        close_engine()
        recipe = run.recipe.policy
        # The same weights in the same precision as training starts from, so that margins start at zero.
        model = CompletionLogps(load_trainable(policy.path, recipe, settings.lora, dropout=0.0))
        length = min(settings.max_length, model.max_length)
        chat = load_chat(policy.path, recipe)
        items, too_long = tokenize_pairs(read_rows(pairs.path, PreferencePair), chat, length)
        if not items:
            raise NothingToTrainError(
                f"{where}: none of {too_long} pairs fits into {length} tokens; raise dpo.train.max_length"
            )
        if too_long:
            work.warn(f"{too_long} of {too_long + len(items)} pairs are longer than {length} tokens: skipped")
        autocast = compute_dtype(recipe, pick_device(recipe))
        work.map_rows(
            "reference.jsonl",
            items,
            lambda shard: reference_logps(model, shard, settings.micro_batch_tokens, autocast),
            key=lambda pair: pair.pair_id,
            record=ReferenceLogps,
            row_key=lambda row: row.pair_id,
        )
        return {"rows": len(items), "too_long": too_long}

    return run.do(stage, body)
