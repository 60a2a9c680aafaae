"""Judging: K judgments of every completion, by the policy itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfalign.config import BaseRecipe, Judge, SelfRewardingRecipe
from selfalign.engines import Engine, Generation, GenerationRequest, open_engine
from selfalign.judging import health, judge_messages, load_rubric, parse_score
from selfalign.records import Completion, Judgment, Messages, Prompt, content_id
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import hash_json, read_rows
from selfalign.seeds import derive_seed
from selfalign.stages.common import generation_settings, plain

VERSION = 1


@dataclass(frozen=True)
class Judged:
    """A text to judge."""

    completion_id: str
    prompt_id: str
    messages: Messages
    text: str


def judge_candidates(
    run: Run[SelfRewardingRecipe], iteration: int, policy: Artifact, prompts: Artifact, candidates: Artifact
) -> Artifact:
    """Have the policy judge its own candidates, K times each.

    Reads:
        iteration-<t>/prompts.jsonl, iteration-<t>/candidates.jsonl
    Writes:
        iteration-<t>/judgments.jsonl
    """
    settings = run.recipe.judge
    stage = Stage(
        name=f"iteration-{iteration}/judgments",
        version=VERSION,
        outputs=("judgments.jsonl",),
        settings=judge_settings(run, settings),
        inputs={"policy": policy, "prompts": prompts, "candidates": candidates},
        expected=judge_cost(settings, candidates.rows),
    )

    def body(work: Work) -> dict[str, Any]:
        by_id = {prompt.prompt_id: prompt for prompt in read_rows(prompts.path, Prompt)}
        items = [
            Judged(c.completion_id, c.prompt_id, by_id[c.prompt_id].messages, c.text)
            for c in read_rows(candidates.path, Completion)
            if c.text is not None
        ]
        return judge(run, work, policy, items, "judgments.jsonl", settings)

    return run.do(stage, body)


def judge(
    run: Run[BaseRecipe],
    work: Work,
    model: Artifact,
    items: Sequence[Judged],
    output: str,
    settings: Judge,
) -> dict[str, Any]:
    """Judge texts and write the judgments, one row a text and sample, in the order of the texts.

    A judgment that can't be parsed is asked for again as often as the recipe allows; then it stays
    unscored with its reason.

    Returns:
        The figures of the judgments: see `judging.health`.
    """
    tasks = [(item, sample) for item in items for sample in range(settings.samples)]
    judge_shard = _JudgeShard(run.recipe, settings, work.stage, model.path)
    work.map_rows(
        output,
        tasks,
        judge_shard,
        key=lambda task: _judgment_id(work.stage, task[0].completion_id, task[1]),
        record=Judgment,
        row_key=lambda judgment: judgment.judgment_id,
    )
    figures = health(read_rows(work.output(output), Judgment))
    if figures["parse_rate"] is not None and figures["parse_rate"] < 0.5:
        work.warn(f"only {figures['parse_rate']:.0%} of the judgments could be parsed")
    return {"rows": len(tasks), **figures}


class _JudgeShard:
    """Judges shards of tasks; opens the engine with the first one."""

    def __init__(self, recipe: BaseRecipe, settings: Judge, stage: str, model: Path) -> None:
        self._recipe = recipe
        self._settings = settings
        self._stage = stage
        self._model = model
        self._rubric = load_rubric(settings.rubric)
        self._start = settings.reply_start
        self._engine: Engine | None = None

    def __call__(self, shard: Sequence[tuple[Judged, int]]) -> Iterator[Judgment]:
        self._engine = self._engine or open_engine(self._recipe.engine, self._recipe.policy, self._model)
        tasks = {_judgment_id(self._stage, item.completion_id, k): (item, k) for item, k in shard}
        for attempt in range(1 + self._settings.retries):
            requests = [
                GenerationRequest(
                    key,
                    judge_messages(self._rubric, item.messages, item.text),
                    derive_seed(self._recipe.seed, self._stage, item.completion_id, k, attempt),
                    self._start,
                )
                for key, (item, k) in tasks.items()
            ]
            for generation in self._engine.generate(requests, self._settings.sampling):
                judgment = self._judgment(generation, *tasks[generation.key], attempts=attempt + 1)
                final = attempt == self._settings.retries or generation.text is None
                if judgment.score is not None or final:
                    del tasks[generation.key]
                    yield judgment

    def _judgment(self, generation: Generation, item: Judged, sample: int, *, attempts: int) -> Judgment:
        score, reason, text = None, "prompt_too_long", None
        if generation.text is not None:
            text = self._start + generation.text
            parsed = parse_score(text, truncated=generation.finish_reason == "length")
            score, reason = parsed.score, parsed.reason or "no_score"
        return Judgment(
            judgment_id=generation.key,
            completion_id=item.completion_id,
            prompt_id=item.prompt_id,
            sample=sample,
            score=score,
            reason=None if score is not None else reason,
            text=text,
            attempts=attempts,
        )


def _judgment_id(stage: str, completion_id: str, sample: int) -> str:
    return content_id(stage, completion_id, str(sample))


def judge_settings(run: Run[BaseRecipe], settings: Judge) -> dict[str, Any]:
    """Return what shapes judgments besides model and texts."""
    judge = plain(settings) | {"rubric": hash_json(load_rubric(settings.rubric))}
    return {"judge": judge, **generation_settings(run.recipe)}


def judge_cost(settings: Judge, texts: int) -> dict[str, int]:
    """Return the figures expected of judging so many texts, retries not counted."""
    calls = texts * settings.samples
    return {
        "rows": calls,
        "generations": calls,
        "new_tokens": calls * settings.sampling.max_new_tokens,
    }
