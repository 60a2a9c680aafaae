"""Judging: K judgments of every completion, by the policy itself or by a fixed judge."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from selfalign.config import BaseRecipe, Judge, SelfRewardingRecipe
from selfalign.judging import health_of_prompts, load_rubric, one_score
from selfalign.records import Completion, Judgment
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import hash_json, read_rows
from selfalign.runs.work import Repeatable
from selfalign.stages.base import base_model
from selfalign.stages.common import CHARACTERS_PER_TOKEN, generation_settings
from selfalign.stages.compare import compare, comparisons_of
from selfalign.stages.grader import Grader, Judged
from selfalign.stages.join import by_prompt, together, with_judgments

VERSION = 2


def judge_candidates(
    run: Run[SelfRewardingRecipe], iteration: int, policy: Artifact, prompts: Artifact, candidates: Artifact
) -> Artifact:
    """Have the judge score the policy's candidates, K times each.

    Reads:
        iteration-<t>/prompts.jsonl, iteration-<t>/candidates.jsonl
    Writes:
        iteration-<t>/judgments.jsonl
    """
    settings = run.recipe.judge
    by = judge_of(run, settings, policy)
    stage = Stage(
        name=f"iteration-{iteration}/judgments",
        version=VERSION,
        outputs=judge_outputs(settings, "judgments.jsonl"),
        settings=judge_settings(run, settings),
        inputs={**by, "prompts": prompts, "candidates": candidates},
        expected=judge_cost(settings, candidates.rows),
    )

    def body(work: Work) -> dict[str, Any]:
        items = Repeatable(lambda: candidate_texts(prompts.path, candidates.path))
        figures = judge(run, work, by, items, "judgments.jsonl", settings)
        warn_of_one_score(work, figures)
        return figures

    return run.do(stage, body)


def candidate_texts(prompts: Path, candidates: Path) -> Iterator[Judged]:
    """Read the candidates that have a text, with their prompts."""
    rows = read_rows(candidates, Completion)
    for prompt, completions in by_prompt(prompts, rows, lambda row: row.prompt_id, candidates):
        for row in completions:
            if row.text is not None:
                yield Judged(row.completion_id, row.prompt_id, prompt.messages, row.text)


def judge_of(run: Run[BaseRecipe], settings: Judge, policy: Artifact | None) -> dict[str, Artifact]:
    """Return the model that judges, by what it is called among a stage's inputs; none is behind an API.

    Args:
        run: With the recipe.
        settings: Of the judge.
        policy: Judges unless the settings name a fixed judge, as they have to where it is `None`.
    """
    if settings.endpoint is not None:
        return {}
    if settings.model is not None:
        return {"judge": base_model(run, settings.model)}
    return {} if policy is None else {"policy": policy}


def judge(
    run: Run[BaseRecipe],
    work: Work,
    by: dict[str, Artifact],
    items: Iterable[Judged],
    output: str,
    settings: Judge,
) -> dict[str, Any]:
    """Judge texts and write the judgments, one row a text and sample, in the order of the texts.

    A judgment that can't be parsed is asked for again as often as the recipe allows; then it stays
    unscored with its reason.

    Args:
        run: With the recipe.
        work: Of the stage.
        by: As `judge_of` returns it.
        items: The texts, a list or `Repeatable`; those of a prompt together.
        output: File name of the judgments.
        settings: How to judge.

    Returns:
        The figures of the judgments: see `judging.health`; and `tokens`, about how many the judge wrote.
    """
    model = next((artifact.path for artifact in by.values()), None)
    if settings.method == "pairwise":
        compare(run.recipe, work, model, items, output, settings)
    else:
        _grade(run.recipe, work, model, items, output, settings)
    figures = judgment_figures(items, work.output(output))
    if figures["parse_rate"] is not None and figures["parse_rate"] < 0.5:
        work.warn(f"only {figures['parse_rate']:.0%} of the judgments could be parsed")
    return figures


def judgment_figures(items: Iterable[Judged], judgments: Path) -> dict[str, Any]:
    """Return the figures of texts' judgments: see `judging.health`.

    `rows` is their number, and `tokens` about how many the judge wrote.
    """
    characters = 0

    def measured() -> Iterator[list[tuple[int, list[Judgment]]]]:
        nonlocal characters
        for judged in together(with_judgments(items, judgments), lambda pair: pair[0].prompt_id):
            characters += sum(len(row.text or "") for _, rows in judged for row in rows)
            yield [(len(item.text), rows) for item, rows in judged]

    figures = health_of_prompts(measured())
    return {"rows": figures["judgments"], "tokens": characters // CHARACTERS_PER_TOKEN, **figures}


def judge_outputs(settings: Judge, output: str) -> tuple[str, ...]:
    """Return the files that `judge` writes, the judgments first."""
    return (output, comparisons_of(output)) if settings.method == "pairwise" else (output,)


def _grade(
    recipe: BaseRecipe, work: Work, model: Path | None, items: Iterable[Judged], output: str, settings: Judge
) -> None:
    grader = Grader(recipe, settings, work.stage, model)
    tasks = Repeatable(lambda: (grader.task(i, sample) for i in items for sample in range(settings.calls)))
    work.map_rows(
        output,
        tasks,
        grader,
        key=lambda task: task.judgment_id,
        record=Judgment,
        row_key=lambda judgment: judgment.judgment_id,
    )


def warn_of_one_score(work: Work, figures: Mapping[str, Any]) -> None:
    """Warn where nearly all judgments of different texts have the same score."""
    if (most := one_score(figures["scores"])) is not None:
        work.warn(f"{most}: such a judge hardly tells replies apart")


def judge_settings(run: Run[BaseRecipe], settings: Judge) -> dict[str, Any]:
    """Return what shapes judgments besides model and texts."""
    judge = settings.model_dump(mode="json", exclude={"endpoint", "attacked_prompts"})
    judge |= {"rubric": hash_json(load_rubric(settings.rubric))}
    if settings.endpoint is not None:
        judge |= {"url": settings.endpoint.url, "api_model": settings.endpoint.model}
    return {"judge": judge, **generation_settings(run.recipe)}


def judge_cost(settings: Judge, texts: int) -> dict[str, int]:
    """Return the figures expected of judging so many texts, retries not counted."""
    if settings.method == "pairwise":
        return {"rows": texts}
    calls = texts * settings.calls
    generations = 0 if settings.method == "expected" else calls
    return {
        "rows": calls,
        "generations": generations,
        "new_tokens": generations * settings.sampling.max_new_tokens,
    }
