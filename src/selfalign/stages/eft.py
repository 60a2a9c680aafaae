"""EFT data: the SFT baseline judges human-ranked replies, and what agrees is kept."""

from typing import Any

from selfalign.balancing import balance_lengths, balance_scores, score_counts
from selfalign.config import SelfRewardingRecipe
from selfalign.eft import build_examples
from selfalign.errors import NothingToTrainError
from selfalign.judging import judge_messages, load_rubric
from selfalign.records import Judgment, RankedPrompt
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_rows, write_rows
from selfalign.seeds import derive_seed
from selfalign.stages.common import about_tokens
from selfalign.stages.grader import Judged
from selfalign.stages.judge import (
    judge,
    judge_cost,
    judge_of,
    judge_outputs,
    judge_settings,
    warn_of_one_score,
)

VERSION = 1
RUBRIC_TOKENS = 250
"""About what a rubric and its fences add to a judged text, for estimates."""


def judge_ranked(run: Run[SelfRewardingRecipe], baseline: Artifact, ranked: Artifact) -> Artifact | None:
    """Have the judge, by default the SFT baseline, score every ranked reply, K times each.

    Where EFT asks for no agreement there is nothing to judge, and nothing is returned.

    Reads:
        data/ranked.jsonl
    Writes:
        eft/judgments.jsonl
    """
    if run.recipe.eft.agreement == "none":
        return None
    settings = run.recipe.judge
    by = judge_of(run, settings, baseline)
    stage = Stage(
        name="eft/judgments",
        version=VERSION,
        outputs=judge_outputs(settings, "judgments.jsonl"),
        settings=judge_settings(run, settings),
        inputs={**by, "ranked": ranked},
        expected=judge_cost(settings, ranked.figures.get("replies", 0)),
    )

    def body(work: Work) -> dict[str, Any]:
        items = judged_replies(list(read_rows(ranked.path, RankedPrompt)))
        figures = judge(run, work, by, items, "judgments.jsonl", settings)
        warn_of_one_score(work, figures)
        return figures

    return run.do(stage, body)


def judged_replies(prompts: list[RankedPrompt]) -> list[Judged]:
    """Return the replies of ranked prompts as texts to judge."""
    return [
        Judged(reply.reply_id, prompt.prompt_id, prompt.messages, reply.text)
        for prompt in prompts
        for reply in prompt.replies
    ]


def build_eft(run: Run[SelfRewardingRecipe], ranked: Artifact, judgments: Artifact | None) -> Artifact:
    """Keep the judgments that agree with people, balance them, and write them as examples.

    Without judgments every reply makes an example, of its human label.

    Reads:
        data/ranked.jsonl, eft/judgments.jsonl
    Writes:
        eft/examples.jsonl

    Raises:
        NothingToTrainError: No judgment agrees.
    """
    settings, target = run.recipe.eft, run.recipe.eft.target
    assert target != "ranking"  # noqa: S101 -- a ranking needs no examples
    stage = Stage(
        name="eft/examples",
        version=VERSION,
        outputs=("examples.jsonl",),
        settings={
            "eft": settings.model_dump(mode="json", exclude={"train", "training"}),
            "rubric": judge_settings(run, run.recipe.judge)["judge"]["rubric"],
            "seed": run.recipe.seed,
        },
        inputs={"ranked": ranked} | ({} if judgments is None else {"judgments": judgments}),
        expected={
            "rows": ranked.figures.get("replies", 0),
            "tokens": ranked.tokens + ranked.figures.get("replies", 0) * RUBRIC_TOKENS,
        },
    )

    def body(work: Work) -> dict[str, Any]:
        prompts = list(read_rows(ranked.path, RankedPrompt))
        rubric = load_rubric(run.recipe.judge.rubric)
        replies = judged_replies(prompts)
        asked = {r.completion_id: judge_messages(rubric, r.messages, r.text) for r in replies}
        selection = build_examples(
            prompts,
            [] if judgments is None else read_rows(judgments.path, Judgment),
            asked,
            rule=settings.agreement,
            target=target,
            spread=settings.spread,
        )
        examples, dropped = selection.examples, selection.dropped
        agreed = score_counts(examples)
        if settings.max_length_correlation is not None:
            lengths = {reply.completion_id: len(reply.text) for reply in replies}
            examples, removed = balance_lengths(examples, lengths, bound=settings.max_length_correlation)
            dropped += removed
        if settings.balance_scores:
            seed = derive_seed(run.recipe.seed, "eft/balance")
            examples, removed = balance_scores(examples, seed=seed)
            dropped += removed
        if not examples:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
            raise NothingToTrainError(
                f"eft: none of {len(replies)} judged replies agrees with the human order ({reasons}). Ways "
                "out: eft.agreement=per_reply, more judge.samples, more ranked data, a stronger model"
            )
        write_rows(work.output("examples.jsonl"), examples)
        return {
            "rows": len(examples),
            "tokens": about_tokens(e.messages[-1].content + e.completion for e in examples),
            "replies": len(replies),
            "scores_agreed": agreed,
            "scores": score_counts(examples),
            "dropped": dict(dropped),
        }

    return run.do(stage, body)
