"""Measuring a model as a judge on held-out human rankings."""

from typing import Any

from selfalign.config import SelfRewardingRecipe
from selfalign.evaluation.judge_quality import judge_quality, length_baseline, no_better_than
from selfalign.judging import mean_rewards
from selfalign.records import Judgment, RankedPrompt
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_rows, write_json
from selfalign.seeds import derive_seed
from selfalign.stages.eft import judged_replies
from selfalign.stages.judge import (
    judge,
    judge_cost,
    judge_of,
    judge_outputs,
    judge_settings,
    warn_of_one_score,
)

VERSION = 1


def evaluate_judge(
    run: Run[SelfRewardingRecipe], where: str, model: Artifact | None, held_out: Artifact
) -> Artifact:
    """Have a model judge the held-out replies and compare it with people, and length with people.

    Without a model it is the fixed judge of the recipe.

    Reads:
        data/held_out.jsonl
    Writes:
        <where>/judge_quality.json, <where>/held_out_judgments.jsonl
    """
    settings = run.recipe.evaluation
    greedy = run.recipe.judge.sampling.temperature == 0  # then more samples would only repeat the first
    asked = run.recipe.judge.model_copy(update={"samples": 1 if greedy else settings.samples})
    if model is not None:
        asked = asked.model_copy(update={"model": None, "endpoint": None})
    by = judge_of(run, asked, model)
    stage = Stage(
        name=f"{where}/evaluate",
        version=VERSION,
        outputs=("judge_quality.json", *judge_outputs(asked, "held_out_judgments.jsonl")),
        settings={"bootstrap": settings.bootstrap, **judge_settings(run, asked)},
        inputs={**by, "held_out": held_out},
        expected=judge_cost(asked, held_out.figures.get("replies", 0)),
    )

    def body(work: Work) -> dict[str, Any]:
        ranked = list(read_rows(held_out.path, RankedPrompt))
        file = "held_out_judgments.jsonl"
        figures = judge(run, work, by, judged_replies(ranked), file, asked)
        warn_of_one_score(work, figures)
        rewards = mean_rewards(read_rows(work.output(file), Judgment))
        seed = derive_seed(run.recipe.seed, "bootstrap")
        quality = {
            "judge": judge_quality(
                ranked, rewards, parse_rate=figures["parse_rate"], bootstrap=settings.bootstrap, seed=seed
            ),
            "length": length_baseline(ranked, bootstrap=settings.bootstrap, seed=seed),
        }
        if (found := no_better_than(quality["judge"], quality["length"])) is not None:
            work.warn(found)
        write_json(work.output("judge_quality.json"), quality)
        return {**figures, "pairwise_accuracy": quality["judge"]["pairwise_accuracy"]["value"]}

    return run.do(stage, body)
