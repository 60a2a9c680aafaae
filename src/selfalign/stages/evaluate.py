"""Measuring a model as a judge on held-out human rankings."""

from typing import Any

from selfalign.config import SelfRewardingRecipe
from selfalign.evaluation.judge_quality import judge_quality, length_baseline
from selfalign.judging import mean_rewards
from selfalign.records import Judgment, RankedPrompt
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_rows, write_json
from selfalign.seeds import derive_seed
from selfalign.stages.eft import judged_replies
from selfalign.stages.judge import judge, judge_cost, judge_settings

VERSION = 1


def evaluate_judge(
    run: Run[SelfRewardingRecipe], where: str, model: Artifact, held_out: Artifact
) -> Artifact:
    """Have a model judge the held-out replies and compare it with people, and length with people.

    Reads:
        data/held_out.jsonl
    Writes:
        <where>/judge_quality.json, <where>/held_out_judgments.jsonl
    """
    settings = run.recipe.evaluation
    greedy = run.recipe.judge.sampling.temperature == 0  # then more samples would only repeat the first
    asked = run.recipe.judge.model_copy(update={"samples": 1 if greedy else settings.samples})
    stage = Stage(
        name=f"{where}/evaluate",
        version=VERSION,
        outputs=("judge_quality.json", "held_out_judgments.jsonl"),
        settings={"bootstrap": settings.bootstrap, **judge_settings(run, asked)},
        inputs={"model": model, "held_out": held_out},
        expected=judge_cost(asked, held_out.figures.get("replies", 0)),
    )

    def body(work: Work) -> dict[str, Any]:
        ranked = list(read_rows(held_out.path, RankedPrompt))
        file = "held_out_judgments.jsonl"
        figures = judge(run, work, model, judged_replies(ranked), file, asked)
        rewards = mean_rewards(read_rows(work.output(file), Judgment))
        seed = derive_seed(run.recipe.seed, "bootstrap")
        quality = {
            "judge": judge_quality(
                ranked, rewards, parse_rate=figures["parse_rate"], bootstrap=settings.bootstrap, seed=seed
            ),
            "length": length_baseline(ranked, bootstrap=settings.bootstrap, seed=seed),
        }
        write_json(work.output("judge_quality.json"), quality)
        return {**figures, "pairwise_accuracy": quality["judge"]["pairwise_accuracy"]["value"]}

    return run.do(stage, body)
