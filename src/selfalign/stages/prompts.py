"""New prompts by few-shot generation, filtered, and unlike everything earlier."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from selfalign.config import SelfRewardingRecipe
from selfalign.dedup import NearDuplicates
from selfalign.engines import Engine, GenerationRequest, open_engine
from selfalign.errors import NothingToTrainError
from selfalign.prompting import accept, extract_prompts, few_shot, new_prompt_messages, showable
from selfalign.records import Prompt, RankedPrompt, Record, SFTExample
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_rows, write_rows
from selfalign.seeds import derive_seed
from selfalign.stages.common import about_tokens, generation_settings, own_template, plain
from selfalign.stages.data import DataSets

VERSION = 2


class PromptGeneration(Record):
    """The generator's raw reply to one few-shot request."""

    key: str
    """Round and number of the request."""
    text: str | None
    truncated: bool


def new_prompts(
    run: Run[SelfRewardingRecipe],
    iteration: int,
    generator: Artifact,
    data: DataSets,
    earlier: Sequence[Artifact],
) -> Artifact:
    """Generate the prompts of an iteration.

    Requests go out in rounds, each showing examples from IFT prompts and from what was accepted in
    earlier rounds and iterations; so the result depends on nothing but the replies, whatever order they
    came in and however often the run was killed.

    Reads:
        data/*.jsonl, prompts.jsonl of the earlier iterations
    Writes:
        iteration-<t>/prompts.jsonl, iteration-<t>/generations.jsonl

    Raises:
        NothingToTrainError: Not one prompt was accepted.
    """
    settings = run.recipe.prompts
    stage = Stage(
        name=f"iteration-{iteration}/prompts",
        version=VERSION,
        outputs=("prompts.jsonl", "generations.jsonl"),
        settings={"prompts": plain(settings), **generation_settings(run.recipe)},
        inputs={
            "generator": generator,
            "ift": data.ift,
            "ranked": data.ranked,
            "held_out": data.held_out,
            **{f"prompts {t}": artifact for t, artifact in enumerate(earlier, start=1)},
        },
        expected={
            "rows": settings.per_iteration,
            "tokens": settings.per_iteration * settings.sampling.max_new_tokens,
            "generations": settings.max_rounds * settings.requests_per_round,
            "new_tokens": settings.max_rounds
            * settings.requests_per_round
            * settings.sampling.max_new_tokens,
        },
    )

    def body(work: Work) -> dict[str, Any]:
        ift = [_prompt_of(example) for example in read_rows(data.ift.path, SFTExample)]
        before = [prompt for artifact in earlier for prompt in read_rows(artifact.path, Prompt)]
        seen = NearDuplicates(settings.similarity)
        ranked = [p for file in (data.ranked, data.held_out) for p in read_rows(file.path, RankedPrompt)]
        for messages in (*(p.messages for p in (*ift, *before)), *(p.messages for p in ranked)):
            seen.add(messages[-1].content)
        rounds = _Rounds(run, work, generator, showable(ift, max_words=settings.max_words), before)
        accepted: list[Prompt] = []
        dropped: Counter[str] = Counter()
        with work.partial("generations.jsonl", PromptGeneration, lambda row: row.key) as rows:
            for number in range(settings.max_rounds):
                work.progress(min(len(accepted), settings.per_iteration), settings.per_iteration, "prompts")
                if len(accepted) >= settings.per_iteration:
                    break
                keys = rounds.keys(number)
                missing = [key for key in keys if key not in rows]
                for row in rounds.generate(missing, accepted):
                    rows.append(row)
                rows.sync()
                found, lost = accept(
                    _extracted(work.stage, (rows.read(key) for key in keys)),
                    seen,
                    min_words=settings.min_words,
                    max_words=settings.max_words,
                )
                accepted += found
                dropped += lost
            used = [key for n in range(settings.max_rounds) for key in rounds.keys(n) if key in rows]
            rows.write_ordered(work.output("generations.jsonl"), used)
        kept = accepted[: settings.per_iteration]
        return _finish(work, kept, len(used), dropped, wanted=settings.per_iteration)

    return run.do(stage, body)


def _finish(
    work: Work, prompts: list[Prompt], requests: int, dropped: Counter[str], *, wanted: int
) -> dict[str, Any]:
    if not prompts:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) or "no replies"
        raise NothingToTrainError(
            f"{work.stage}: no prompt of {requests} replies was accepted ({reasons}). Ways out: a stronger "
            "prompts.generator, more prompts.max_rounds, or a higher prompts.sampling.temperature"
        )
    if len(prompts) < wanted:
        work.warn(f"{len(prompts)} of {wanted} prompts after {requests} requests; going on with these")
    write_rows(work.output("prompts.jsonl"), prompts)
    return {
        "rows": len(prompts),
        "tokens": about_tokens(prompt.messages[-1].content for prompt in prompts),
        "requests": requests,
        "dropped": dict(dropped),
    }


class _Rounds:
    """Makes the few-shot requests of a round and has them answered."""

    def __init__(
        self,
        run: Run[SelfRewardingRecipe],
        work: Work,
        generator: Artifact,
        ift: list[Prompt],
        before: list[Prompt],
    ) -> None:
        self._recipe = run.recipe
        self._stage = work.stage
        self._generator = generator
        self._ift = ift
        self._before = before
        self._engine: Engine | None = None

    def keys(self, number: int) -> list[str]:
        return [f"{number}:{i}" for i in range(self._recipe.prompts.requests_per_round)]

    def generate(self, keys: Sequence[str], accepted: Sequence[Prompt]) -> Iterator[PromptGeneration]:
        if not keys:
            return
        settings = self._recipe.prompts
        policy = self._recipe.policy if settings.generator == "policy" else own_template(self._recipe.policy)
        self._engine = self._engine or open_engine(self._recipe.engine, policy, self._generator.path)
        generated = [*self._before, *accepted]
        requests = []
        for key in keys:
            seed = derive_seed(self._recipe.seed, self._stage, key)
            shown = few_shot(
                self._ift,
                generated,
                seed=seed,
                shots=settings.shots,
                generated_shots=settings.generated_shots,
            )
            requests.append(GenerationRequest(key, new_prompt_messages(shown), seed))
        for reply in self._engine.generate(requests, settings.sampling):
            yield PromptGeneration(key=reply.key, text=reply.text, truncated=reply.finish_reason == "length")


def _extracted(stage: str, rows: Iterator[PromptGeneration]) -> Iterator[tuple[str, str]]:
    for row in rows:
        for text in extract_prompts(row.text or "", truncated=row.truncated):
            yield f"{stage}:{row.key}", text


def _prompt_of(example: SFTExample) -> Prompt:
    return Prompt(prompt_id=example.prompt_id, messages=example.messages, source=example.source)
