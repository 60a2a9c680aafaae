"""Candidates: N sampled completions of every prompt."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from selfalign.config import SelfRewardingRecipe
from selfalign.judging import parse_score, rationale_of
from selfalign.records import Completion, Prompt, content_id
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_rows
from selfalign.runs.work import Repeatable
from selfalign.seeds import derive_seed
from selfalign.stages.common import generation_settings, plain
from selfalign.stages.complete import Ask, complete
from selfalign.stages.join import together

MOST_SCORES = 0.05
"""Share of candidates that may be bare scores, as some prompts ask for one."""
VERSION = 1


def sample_candidates(
    run: Run[SelfRewardingRecipe], iteration: int, policy: Artifact, prompts: Artifact
) -> Artifact:
    """Sample N completions of every prompt from the policy.

    Reads:
        iteration-<t>/prompts.jsonl
    Writes:
        iteration-<t>/candidates.jsonl
    """
    recipe = run.recipe
    settings = recipe.candidates
    calls = prompts.rows * settings.n
    stage = Stage(
        name=f"iteration-{iteration}/candidates",
        version=VERSION,
        outputs=("candidates.jsonl",),
        settings={"candidates": plain(settings), **generation_settings(recipe)},
        inputs={"policy": policy, "prompts": prompts},
        expected={
            "rows": calls,
            "generations": calls,
            "new_tokens": calls * settings.sampling.max_new_tokens,
            "tokens": calls * settings.sampling.max_new_tokens,
        },
    )

    def body(work: Work) -> dict[str, Any]:
        def asks() -> Iterator[Ask]:
            for prompt in read_rows(prompts.path, Prompt):
                for sample in range(settings.n):
                    yield Ask(
                        content_id(work.stage, prompt.prompt_id, str(sample)),
                        prompt.prompt_id,
                        prompt.messages,
                        sample,
                        derive_seed(recipe.seed, work.stage, prompt.prompt_id, sample),
                    )

        complete(run, work, policy, Repeatable(asks), "candidates.jsonl", settings.sampling)
        return candidate_figures(work)

    return run.do(stage, body)


def candidate_figures(work: Work) -> dict[str, Any]:
    """Return the figures of the candidates that were written, and warn of what they show."""
    finished: Counter[str] = Counter()
    prompts = identical = rows = tokens = characters = judged = 0
    candidates = read_rows(work.output("candidates.jsonl"), Completion)
    for group in together(candidates, lambda row: row.prompt_id):
        prompts += 1
        identical += len({row.text for row in group}) == 1
        finished.update(row.finish_reason for row in group)
        rows += len(group)
        tokens += sum(row.num_tokens for row in group)
        characters += sum(len(row.text or "") for row in group)
        judged += sum(_is_score_alone(row.text or "") for row in group)
    if judged > MOST_SCORES * rows:
        work.warn(
            f"{judged} of {rows} candidates are nothing but a score: EFT has taught the model to judge and "
            "made it forget how to answer. Take eft.training=joint, fewer eft.train.max_steps, or a lower "
            "eft.train.learning_rate"
        )
    if identical > prompts / 2:
        work.warn(
            f"{identical} of {prompts} prompts got identical candidates; raise "
            "candidates.sampling.temperature"
        )
    if finished["prompt_too_long"]:
        work.warn(f"{finished['prompt_too_long']} candidates skipped: prompt longer than the context")
    return {
        "rows": rows,
        "tokens": tokens,
        "mean_tokens": tokens / rows,
        "mean_characters": characters / rows,
        "finish_reasons": dict(finished),
        "prompts_with_identical_candidates": identical,
    }


def _is_score_alone(text: str) -> bool:
    return not rationale_of(text) and parse_score(text).score is not None
