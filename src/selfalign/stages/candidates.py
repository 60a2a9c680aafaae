"""Candidates: N sampled completions of every prompt."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from selfalign.config import SelfRewardingRecipe
from selfalign.engines import Engine, GenerationRequest, open_engine
from selfalign.records import Completion, Prompt, content_id
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_rows
from selfalign.seeds import derive_seed
from selfalign.stages.common import generation_settings, plain

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
        engine: list[Engine] = []

        def complete(shard: Sequence[tuple[Prompt, int]]) -> Iterator[Completion]:
            if not engine:
                engine.append(open_engine(recipe.engine, recipe.policy, policy.path))
            asked = {_completion_id(work.stage, prompt, sample): (prompt, sample) for prompt, sample in shard}
            requests = [
                GenerationRequest(
                    key, prompt.messages, derive_seed(recipe.seed, work.stage, prompt.prompt_id, sample)
                )
                for key, (prompt, sample) in asked.items()
            ]
            for reply in engine[0].generate(requests, settings.sampling):
                prompt, sample = asked[reply.key]
                yield Completion(
                    completion_id=reply.key,
                    prompt_id=prompt.prompt_id,
                    sample=sample,
                    text=reply.text,
                    finish_reason=reply.finish_reason,
                    num_tokens=reply.num_tokens,
                )

        work.map_rows(
            "candidates.jsonl",
            [(p, sample) for p in read_rows(prompts.path, Prompt) for sample in range(settings.n)],
            complete,
            key=lambda item: _completion_id(work.stage, *item),
            record=Completion,
            row_key=lambda completion: completion.completion_id,
        )
        return _figures(work)

    return run.do(stage, body)


def _figures(work: Work) -> dict[str, Any]:
    finished: Counter[str] = Counter()
    texts: dict[str, set[str | None]] = {}
    rows = tokens = characters = 0
    for row in read_rows(work.output("candidates.jsonl"), Completion):
        finished[row.finish_reason] += 1
        texts.setdefault(row.prompt_id, set()).add(row.text)
        rows += 1
        tokens += row.num_tokens
        characters += len(row.text or "")
    identical = sum(len(distinct) == 1 for distinct in texts.values())
    if identical > len(texts) / 2:
        work.warn(
            f"{identical} of {len(texts)} prompts got identical candidates; raise "
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


def _completion_id(stage: str, prompt: Prompt, sample: int) -> str:
    return content_id(stage, prompt.prompt_id, str(sample))
