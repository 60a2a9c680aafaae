"""EFT by rankings: from the SFT baseline to an M1 that orders replies as people do."""

from typing import Any

from selfalign.config import SelfRewardingRecipe
from selfalign.engines import close_engine
from selfalign.judging import load_rubric
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import hash_json
from selfalign.seeds import derive_seed
from selfalign.stages.common import plain, training_settings
from selfalign.stages.eft import RUBRIC_TOKENS

VERSION = 1


def train_ranking(run: Run[SelfRewardingRecipe], baseline: Artifact, ranked: Artifact) -> Artifact:
    """Train the baseline to give the better of two human-ranked replies the higher expected score.

    Reads:
        data/ranked.jsonl
    Writes:
        eft/model/, eft/training.jsonl

    Raises:
        NothingToTrainError: No prompt has two replies that fit into the length limit.
        TrainingError: A loss or gradient is not finite.
    """
    settings, judge = run.recipe.eft, run.recipe.judge
    rubric, reply_start = load_rubric(judge.rubric), judge.score_start
    judged_tokens = ranked.tokens + ranked.figures.get("replies", 0) * RUBRIC_TOKENS
    stage = Stage(
        name="eft/train",
        version=VERSION,
        outputs=("model", "training.jsonl"),
        settings={
            **training_settings(run.recipe, settings.train),
            "ranking": plain(settings.ranking),
            "rubric": hash_json(rubric),
            "reply_start": reply_start,
        },
        inputs={"start": baseline, "ranked": ranked},
        expected={"training_tokens": settings.train.epochs * judged_tokens},
        training=settings.train,
    )

    def body(work: Work) -> dict[str, Any]:
        from selfalign.training.job import TrainingJob
        from selfalign.training.launch import train_job
        from selfalign.training.ranking import RankingTask

        job = TrainingJob(
            start=baseline.path,
            policy=run.recipe.policy,
            settings=settings.train,
            ranking=RankingTask(rubric=rubric, reply_start=reply_start, settings=settings.ranking),
            data=(ranked.path,),
            learning_rate=settings.train.learning_rate,
            seed=derive_seed(run.recipe.seed, work.stage),
            report_to=run.recipe.report_to,
        )
        close_engine()
        return train_job(job, work)

    return run.do(stage, body)
