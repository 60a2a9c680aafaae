"""Contrasts: a principle pair for every prompt, a completion under each side, and the pairs left."""

from collections import Counter, defaultdict
from typing import Any

from selfalign.config import RLCDRecipe
from selfalign.errors import NothingToTrainError
from selfalign.judging import mean_rewards
from selfalign.records import Completion, Contrast, Judgment, PreferencePair, Prompt
from selfalign.rlcd import (
    SIDES,
    completion_id,
    contrast_pair,
    draw_contrasts,
    drop_reason,
    inverted,
    load_principles,
    neutral,
    under_principle,
)
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import hash_json, read_rows, write_rows
from selfalign.seeds import derive_seed
from selfalign.stages.common import generation_settings, plain
from selfalign.stages.complete import Ask, complete
from selfalign.stages.grader import Judged
from selfalign.stages.judge import (
    judge,
    judge_cost,
    judge_of,
    judge_outputs,
    judge_settings,
    warn_of_one_score,
)
from selfalign.stages.prompt_data import PromptSets

VERSION = 1


def draw_principles(run: Run[RLCDRecipe], prompts: PromptSets) -> Artifact:
    """Draw the principle pairs of every prompt, held-out ones included.

    Reads:
        data/prompts.jsonl, data/held_out.jsonl
    Writes:
        contrast/contrasts.jsonl

    Raises:
        DataError: The principles can't be used.
        NothingToTrainError: No prompt has principles for its language.
    """
    settings = run.recipe.contrast
    known = load_principles(settings.principles)
    texts = [[p.language, p.script, [[x.group, x.positive, x.negative] for g in p.groups.values() for x in g]]
             for p in known]  # fmt: skip
    count = (prompts.train.rows + prompts.held_out.rows) * settings.per_prompt
    stage = Stage(
        name="contrast/contrasts",
        version=VERSION,
        outputs=("contrasts.jsonl",),
        settings={
            "principles": hash_json(texts),
            **settings.model_dump(mode="json", include={"per_prompt", "own_system", "language"}),
            "seed": run.recipe.seed,
        },
        inputs={"prompts": prompts.train, "held_out": prompts.held_out},
        expected={"rows": count},
    )

    def body(work: Work) -> dict[str, Any]:
        contrasts, dropped = draw_contrasts(
            [p for artifact in (prompts.train, prompts.held_out) for p in read_rows(artifact.path, Prompt)],
            known,
            per_prompt=settings.per_prompt,
            own_system=settings.own_system,
            language=settings.language,
            seed=derive_seed(run.recipe.seed, work.stage),
        )
        if not contrasts:
            reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items()))
            raise NothingToTrainError(
                f"contrast: no prompt can be contrasted ({reasons}); add a principle file for the prompts' "
                "language, or force one with contrast.language"
            )
        write_rows(work.output("contrasts.jsonl"), contrasts)
        groups = Counter(f"{contrast.language}/{contrast.group}" for contrast in contrasts)
        return {"rows": len(contrasts), "groups": dict(sorted(groups.items())), "dropped": dict(dropped)}

    return run.do(stage, body)


def complete_contrasts(run: Run[RLCDRecipe], policy: Artifact, contrasts: Artifact) -> Artifact:
    """Have the policy answer every prompt under both sides of its principles.

    Reads:
        contrast/contrasts.jsonl
    Writes:
        contrast/completions.jsonl
    """
    recipe = run.recipe
    settings = recipe.contrast
    calls = contrasts.rows * settings.samples * len(SIDES)
    stage = Stage(
        name="contrast/completions",
        version=VERSION,
        outputs=("completions.jsonl",),
        settings={
            "samples": settings.samples,
            "sampling": plain(settings.sampling),
            "own_system": settings.own_system,
            **generation_settings(recipe),
        },
        inputs={"policy": policy, "contrasts": contrasts},
        expected={
            "rows": calls,
            "generations": calls,
            "new_tokens": calls * settings.sampling.max_new_tokens,
            "tokens": calls * settings.sampling.max_new_tokens,
        },
    )

    def body(work: Work) -> dict[str, Any]:
        asks = [
            Ask(
                completion_id(contrast, side, sample),
                contrast.prompt_id,
                under_principle(contrast.messages, getattr(contrast, side), settings.own_system),
                sample,
                derive_seed(recipe.seed, work.stage, contrast.contrast_id, side, sample),
            )
            for contrast in read_rows(contrasts.path, Contrast)
            for sample in range(settings.samples)
            for side in SIDES
        ]
        complete(run, work, policy, asks, "completions.jsonl", settings.sampling)
        rows = list(read_rows(work.output("completions.jsonl"), Completion))
        return {
            "rows": len(rows),
            "tokens": sum(row.num_tokens for row in rows),
            "finish_reasons": dict(Counter(row.finish_reason for row in rows)),
        }

    return run.do(stage, body)


def judge_contrasts(
    run: Run[RLCDRecipe], model: Artifact, contrasts: Artifact, completions: Artifact
) -> Artifact | None:
    """Have the judge, by default the model, score both sides, seeing the prompt without a principle.

    `None` unless the recipe asks for it.

    Reads:
        contrast/contrasts.jsonl, contrast/completions.jsonl
    Writes:
        contrast/judgments.jsonl
    """
    settings = run.recipe.judge
    if settings is None:
        return None
    by = judge_of(run, settings, model)
    stage = Stage(
        name="contrast/judgments",
        version=VERSION,
        outputs=judge_outputs(settings, "judgments.jsonl"),
        settings={**judge_settings(run, settings), "own_system": run.recipe.contrast.own_system},
        inputs={**by, "contrasts": contrasts, "completions": completions},
        expected=judge_cost(settings, completions.rows),
    )

    def body(work: Work) -> dict[str, Any]:
        asked = {c.prompt_id: c.messages for c in read_rows(contrasts.path, Contrast)}
        own_system = run.recipe.contrast.own_system
        items = [
            Judged(c.completion_id, c.prompt_id, neutral(asked[c.prompt_id], own_system), c.text)
            for c in read_rows(completions.path, Completion)
            if c.text is not None
        ]
        figures = judge(run, work, by, items, "judgments.jsonl", settings)
        warn_of_one_score(work, figures)
        return figures

    return run.do(stage, body)


def make_contrast_pairs(
    run: Run[RLCDRecipe],
    prompts: PromptSets,
    contrasts: Artifact,
    completions: Artifact,
    judgments: Artifact | None,
) -> tuple[Artifact, Artifact]:
    """Pair both sides, without the principle, and drop what teaches nothing; count every drop by group.

    Reads:
        data/held_out.jsonl, contrast/contrasts.jsonl, contrast/completions.jsonl, contrast/judgments.jsonl
    Writes:
        contrast/pairs.jsonl, contrast/held_out_pairs.jsonl

    Returns:
        The pairs to train on, and those of held-out prompts.

    Raises:
        NothingToTrainError: No pair is left to train on.
    """
    settings = run.recipe.contrast
    filters = settings.filters
    stage = Stage(
        name="contrast/pairs",
        version=VERSION,
        outputs=("pairs.jsonl", "held_out_pairs.jsonl"),
        settings={"filters": plain(filters), "own_system": settings.own_system},
        inputs={
            "contrasts": contrasts,
            "completions": completions,
            "held_out": prompts.held_out,
            **({"judgments": judgments} if judgments else {}),
        },
        expected={
            "rows": prompts.train.rows * settings.per_prompt * settings.samples,
            "tokens": completions.tokens,
        },
    )

    def body(work: Work) -> dict[str, Any]:
        by_id = {c.completion_id: c for c in read_rows(completions.path, Completion)}
        rewards = mean_rewards(read_rows(judgments.path, Judgment)) if judgments else {}
        held_out_ids = {prompt.prompt_id for prompt in read_rows(prompts.held_out.path, Prompt)}
        pairs: dict[bool, list[PreferencePair]] = {False: [], True: []}
        outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        for contrast in read_rows(contrasts.path, Contrast):
            for sample in range(settings.samples):
                positive, negative = (by_id[completion_id(contrast, side, sample)] for side in SIDES)
                reason = drop_reason(
                    positive,
                    negative,
                    similarity=filters.similarity,
                    keep_truncated=filters.keep_truncated,
                    refusals=filters.refusals,
                )
                rewarded = [rewards.get(c.completion_id) for c in (positive, negative)]
                if reason is None and inverted(*rewarded):
                    reason = "judge_inverted"
                outcomes[f"{contrast.language}/{contrast.group}"][reason or "kept"] += 1
                if reason is None:
                    messages = neutral(contrast.messages, settings.own_system)
                    pair = contrast_pair(contrast, messages, positive, negative, *rewarded)
                    pairs[contrast.prompt_id in held_out_ids].append(pair)
        total = sum(outcomes.values(), Counter[str]())
        if not pairs[False]:
            raise NothingToTrainError(_no_pairs(total))
        write_rows(work.output("pairs.jsonl"), pairs[False])
        write_rows(work.output("held_out_pairs.jsonl"), pairs[True])
        return {
            "rows": len(pairs[False]),
            "tokens": sum(p.chosen_tokens + p.rejected_tokens for p in pairs[False]),
            "held_out_pairs": {"rows": len(pairs[True])},
            "contrasts": sum(total.values()),
            "outcomes": dict(total),
            "outcomes_by_group": {group: dict(counts) for group, counts in sorted(outcomes.items())},
        }

    pairs = run.do(stage, body)
    return pairs, pairs.sibling("held_out_pairs.jsonl")


def _no_pairs(outcomes: Counter[str]) -> str:
    said = ", ".join(f"{count} {reason}" for reason, count in sorted(outcomes.items()))
    hint = (
        "Base models decoded greedily often ignore system messages: try contrast.sampling.temperature=0.7, "
        "or an instruct model"
        if outcomes["identical"] + outcomes["near_identical"] > sum(outcomes.values()) / 2
        else "Try a longer contrast.sampling.max_new_tokens, or contrast.filters.keep_truncated=true"
    )
    return f"contrast: no pair is left to train on ({said}). {hint}; then run again with --update"
