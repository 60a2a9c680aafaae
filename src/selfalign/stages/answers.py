"""A model's answers to the prompts of a benchmark, and the judge's comparisons of them with others."""

from collections.abc import Iterable, Mapping
from typing import Any

from selfalign.comparing import Comparison
from selfalign.config import EvaluationRecipe, Sampling
from selfalign.records import Completion, Messages, content_id
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import read_rows
from selfalign.seeds import derive_seed
from selfalign.stages.benchmark_judge import open_benchmark_judge
from selfalign.stages.common import generation_settings
from selfalign.stages.compare import Comparer, pair_of
from selfalign.stages.complete import Ask, complete
from selfalign.stages.grader import Judged

VERSION = 1


def answer_prompts(
    run: Run[EvaluationRecipe],
    name: str,
    model: Artifact,
    task: str,
    prompts: Mapping[str, Messages],
    data: Artifact,
) -> Artifact:
    """Have a model answer the prompts of a benchmark, once each and greedily.

    Args:
        run: With the recipe.
        name: Of the model.
        model: To answer.
        task: The benchmark.
        prompts: By their keys.
        data: The file that they come from.

    Writes:
        <name>/<task>_answers.jsonl
    """
    recipe = run.recipe
    file = f"{task}_answers.jsonl"
    stage = Stage(
        name=f"{name}/{task}_answers",
        version=VERSION,
        outputs=(file,),
        settings=answer_settings(recipe),
        inputs={"model": model, "data": data},
        expected=answer_cost(recipe, len(prompts)),
    )

    def body(work: Work) -> dict[str, Any]:
        asks = []
        for key, messages in prompts.items():
            seed = derive_seed(recipe.seed, work.stage, key)
            asks.append(Ask(content_id(work.stage, key), key, messages, 0, seed))
        sampling = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=recipe.max_new_tokens)
        complete(run, work, model, asks, file, sampling)
        tokens = sum(row.num_tokens for row in read_rows(work.output(file), Completion))
        return {"rows": len(asks), "tokens": tokens}

    return run.do(stage, body)


def answer_settings(recipe: EvaluationRecipe) -> dict[str, Any]:
    """Return what shapes the answers to a benchmark besides model and prompts."""
    limits = {"limit": recipe.limit, "max_new_tokens": recipe.max_new_tokens}
    return limits | generation_settings(recipe)


def answer_cost(recipe: EvaluationRecipe, prompts: int) -> dict[str, int]:
    """Return the figures expected of answering so many prompts."""
    return {"rows": prompts, "generations": prompts, "new_tokens": prompts * recipe.max_new_tokens}


def compare_answers(
    run: Run[EvaluationRecipe], work: Work, pairs: Iterable[tuple[Judged, Judged]], output: str
) -> list[Comparison]:
    """Have the judge compare answers to the same prompts in both orders, and return what it said.

    Args:
        run: With the recipe.
        work: Of the stage.
        pairs: Two answers to one prompt each.
        output: File name of the comparisons.
    """
    work.map_rows(
        output,
        [pair_of(work.stage, one, other) for one, other in pairs],
        Comparer(lambda: open_benchmark_judge(run)),
        key=lambda pair: pair.comparison_id,
        record=Comparison,
        row_key=lambda comparison: comparison.comparison_id,
    )
    return list(read_rows(work.output(output), Comparison))
