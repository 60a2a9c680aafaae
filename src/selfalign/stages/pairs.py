"""Preference pairs from candidates and judgments."""

from typing import Any

from selfalign.config import SelfRewardingRecipe
from selfalign.errors import NothingToTrainError
from selfalign.judging import mean_rewards
from selfalign.pairs import PairSelection, charge_length, pair_health
from selfalign.pairs import make_pairs as pure_make_pairs
from selfalign.records import Completion, Judgment, Prompt
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_rows, write_rows
from selfalign.seeds import derive_seed
from selfalign.stages.common import plain

VERSION = 1


def make_pairs(
    run: Run[SelfRewardingRecipe],
    iteration: int,
    prompts: Artifact,
    candidates: Artifact,
    judgments: Artifact,
) -> Artifact:
    """Make the preference pairs of an iteration.

    Reads:
        iteration-<t>/prompts.jsonl, candidates.jsonl, judgments.jsonl
    Writes:
        iteration-<t>/pairs.jsonl

    Raises:
        NothingToTrainError: No pair is left.
    """
    settings = run.recipe.pairs
    stage = Stage(
        name=f"iteration-{iteration}/pairs",
        version=VERSION,
        outputs=("pairs.jsonl",),
        settings={"pairs": plain(settings), "seed": run.recipe.seed},
        inputs={"prompts": prompts, "candidates": candidates, "judgments": judgments},
        expected={"rows": prompts.rows, "tokens": candidates.tokens},
    )

    def body(work: Work) -> dict[str, Any]:
        completions = list(read_rows(candidates.path, Completion))
        rewards = dict.fromkeys((c.completion_id for c in completions), None) | mean_rewards(
            read_rows(judgments.path, Judgment)
        )
        asked = list(read_rows(prompts.path, Prompt))

        def select(length_cost: float, near_best: float) -> PairSelection:
            return pure_make_pairs(
                asked,
                completions,
                charge_length(rewards, completions, length_cost),
                strategy=settings.strategy,
                min_margin=settings.min_margin,
                keep_truncated=settings.keep_truncated,
                seed=derive_seed(run.recipe.seed, work.stage),
                near_best=near_best,
            )

        selection = select(settings.length_cost, settings.near_best)
        if not selection.pairs:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(selection.dropped.items()))
            raise NothingToTrainError(
                f"{work.stage}: no pair is left after judging ({reasons}). Ways out: more prompts or "
                "candidates, more judge.samples so that rewards tie less, a lower pairs.min_margin, "
                "a longer candidates.sampling.max_new_tokens; then run again with --update"
            )
        write_rows(work.output("pairs.jsonl"), selection.pairs)
        uncontrolled = {}
        if settings.length_cost or settings.near_best:
            plain_selection = select(0.0, 0.0)
            uncontrolled = {"uncontrolled": pair_health(plain_selection.pairs, plain_selection.dropped)}
        return {
            "rows": len(selection.pairs),
            "tokens": sum(p.chosen_tokens + p.rejected_tokens for p in selection.pairs),
            **pair_health(selection.pairs, selection.dropped),
            **uncontrolled,
        }

    return run.do(stage, body)
