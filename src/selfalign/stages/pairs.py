"""Preference pairs from candidates and judgments."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from selfalign.config import SelfRewardingRecipe
from selfalign.config.self_rewarding import Pairs
from selfalign.errors import NothingToTrainError
from selfalign.judging import mean_rewards
from selfalign.pairs import PairFigures, PairSelection, charge_length
from selfalign.pairs import make_pairs as pure_make_pairs
from selfalign.records import Completion, Judgment, PreferencePair, Prompt
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_rows, write_rows
from selfalign.seeds import derive_seed
from selfalign.stages.common import plain
from selfalign.stages.join import by_prompt, with_judgments

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
        seed = derive_seed(run.recipe.seed, work.stage)
        made, uncontrolled = PairFigures(), PairFigures()
        controlled = bool(settings.length_cost or settings.near_best)
        without = settings.model_copy(update={"length_cost": 0.0, "near_best": 0.0})

        def pairs() -> Iterator[PreferencePair]:
            texts = with_judgments(read_rows(candidates.path, Completion), judgments.path)
            answered = by_prompt(prompts.path, texts, lambda text: text[0].prompt_id, candidates.path)
            for prompt, judged in answered:
                selection = _select(prompt, judged, settings, seed)
                made.add(selection)
                if controlled:
                    uncontrolled.add(_select(prompt, judged, without, seed))
                yield from selection.pairs
            if not made.pairs:
                raise NothingToTrainError(_no_pairs(work.stage, made.dropped))

        rows = write_rows(work.output("pairs.jsonl"), pairs())
        figures = {"rows": rows, "tokens": made.tokens, **made.health()}
        return figures | ({"uncontrolled": uncontrolled.health()} if controlled else {})

    return run.do(stage, body)


def _select(
    prompt: Prompt, judged: Sequence[tuple[Completion, Sequence[Judgment]]], settings: Pairs, seed: int
) -> PairSelection:
    """Pair the completions of a prompt by their judgments; one without any is unscored."""
    completions = [completion for completion, _ in judged]
    rewards = dict.fromkeys((c.completion_id for c in completions), None) | mean_rewards(
        judgment for _, judgments in judged for judgment in judgments
    )
    return pure_make_pairs(
        [prompt],
        completions,
        charge_length(rewards, completions, settings.length_cost),
        strategy=settings.strategy,
        min_margin=settings.min_margin,
        keep_truncated=settings.keep_truncated,
        seed=seed,
        near_best=settings.near_best,
    )


def _no_pairs(stage: str, dropped: Counter[str]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    return (
        f"{stage}: no pair is left after judging ({reasons}). Ways out: more prompts or "
        "candidates, more judge.samples so that rewards tie less, a lower pairs.min_margin, "
        "a longer candidates.sampling.max_new_tokens; then run again with --update"
    )
