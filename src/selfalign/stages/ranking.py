"""EFT by rankings: from the SFT baseline to an M1 that orders replies as people do."""

from typing import Any

from selfalign.config import SelfRewardingRecipe
from selfalign.eft import ranking_examples
from selfalign.engines import close_engine
from selfalign.judging import SCORES, judge_messages, load_rubric
from selfalign.records import RankedPrompt
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import hash_json, read_rows, write_rows
from selfalign.seeds import derive_seed
from selfalign.stages.common import about_tokens, plain, training_settings
from selfalign.stages.eft import RUBRIC_TOKENS, judged_replies

VERSION = 1


def build_rankings(run: Run[SelfRewardingRecipe], ranked: Artifact) -> Artifact:
    """Write down how the judge is asked about the replies of every ranked prompt, beside what people said.

    Reads:
        data/ranked.jsonl
    Writes:
        eft/rankings.jsonl
    """
    rubric = load_rubric(run.recipe.judge.rubric)
    count = ranked.figures.get("replies", 0)
    stage = Stage(
        name="eft/rankings",
        version=VERSION,
        outputs=("rankings.jsonl",),
        settings={"rubric": hash_json(rubric)},
        inputs={"ranked": ranked},
        expected={"rows": ranked.rows, "tokens": ranked.tokens + count * RUBRIC_TOKENS},
    )

    def body(work: Work) -> dict[str, Any]:
        prompts = list(read_rows(ranked.path, RankedPrompt))
        asked = {
            reply.completion_id: judge_messages(rubric, reply.messages, reply.text)
            for reply in judged_replies(prompts)
        }
        rankings = ranking_examples(prompts, asked)
        write_rows(work.output("rankings.jsonl"), rankings)
        return {
            "rows": len(rankings),
            "tokens": about_tokens(messages[-1].content for messages in asked.values()),
            "replies": len(asked),
        }

    return run.do(stage, body)


def train_ranking(run: Run[SelfRewardingRecipe], baseline: Artifact, rankings: Artifact) -> Artifact:
    """Train the baseline to give the better of two human-ranked replies the higher expected score.

    Reads:
        eft/rankings.jsonl
    Writes:
        eft/model/, eft/training.jsonl

    Raises:
        NothingToTrainError: No prompt has two replies that fit into the length limit.
        TrainingError: A loss or gradient is not finite.
    """
    settings, reply_start = run.recipe.eft, run.recipe.judge.score_start
    stage = Stage(
        name="eft/train",
        version=VERSION,
        outputs=("model", "training.jsonl"),
        settings={
            **training_settings(run.recipe, settings.train),
            "ranking": plain(settings.ranking),
            "reply_start": reply_start,
        },
        inputs={"start": baseline, "rankings": rankings},
        expected={"training_tokens": settings.train.epochs * rankings.tokens},
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
            ranking=RankingTask(reply_start=reply_start, scores=SCORES, settings=settings.ranking),
            data=(rankings.path,),
            learning_rate=settings.train.learning_rate,
            seed=derive_seed(run.recipe.seed, work.stage),
            report_to=run.recipe.report_to,
        )
        close_engine()
        return train_job(job, work)

    return run.do(stage, body)
