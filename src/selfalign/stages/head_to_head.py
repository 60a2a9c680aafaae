"""Head to head: the models of a run answer its held-out prompts, and a judge compares the answers."""

from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfalign.config import EvaluationRecipe
from selfalign.evaluation.head_to_head import compared, head_to_head, place_bias
from selfalign.evaluation.results import TaskResult
from selfalign.records import Completion, Messages, Prompt, RankedPrompt
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import hash_file, read_rows, write_json
from selfalign.stages.answers import answer_prompts, compare_answers
from selfalign.stages.benchmark_judge import judge_inputs, judge_name, judge_settings
from selfalign.stages.grader import Judged

VERSION = 2
ANSWERS = "head_to_head_answers.jsonl"
COMPARISONS = "head_to_head_comparisons.jsonl"


def head_to_head_problem(recipe: EvaluationRecipe) -> str | None:
    """Say what a comparison of models lacks here; `None` if it can be run."""
    if recipe.of_run is None:
        return "compares the models of a run, and this is one model: give a run directory"
    if recipe.judge is None:
        return "needs a judge: give --judge MODEL, or judge.endpoint in a recipe"
    file = held_out_file(recipe)
    return None if file.is_file() else f"{file} is missing: the run holds out no prompts yet"


def answer_held_out(run: Run[EvaluationRecipe], name: str, model: Artifact) -> Artifact:
    """Have a model answer the run's held-out prompts, once each and greedily.

    Reads:
        the run's data/held_out.jsonl
    Writes:
        <name>/head_to_head_answers.jsonl
    """
    file = held_out_file(run.recipe)
    data = Artifact(file, hash_file(file))
    return answer_prompts(run, name, model, "head_to_head", held_out_prompts(run.recipe), data)


def compare_models(run: Run[EvaluationRecipe], name: str, answers: Mapping[str, Artifact]) -> None:
    """Have the judge compare a model's answers with those of each model before it, in both orders.

    Reads:
        <model>/head_to_head_answers.jsonl of this model and those before it
    Writes:
        <name>/head_to_head.json, head_to_head_comparisons.jsonl
    """
    recipe = run.recipe
    judge = recipe.judge
    assert judge is not None  # noqa: S101 -- `head_to_head_problem` was asked
    order = list(answers)
    earlier = order[: order.index(name)]
    if not earlier:
        return
    stage = Stage(
        name=f"{name}/head_to_head",
        version=VERSION,
        outputs=("head_to_head.json", COMPARISONS),
        settings=judge_settings(run),
        inputs={**judge_inputs(run), **{model: answers[model] for model in (*earlier, name)}},
        expected={"rows": len(earlier) * answers[name].rows},
    )

    def body(work: Work) -> dict[str, Any]:
        texts = {model: _texts(run.root / model / ANSWERS) for model in (*earlier, name)}
        prompts = held_out_prompts(recipe)
        pairs = [
            (_judged(texts[name][key], messages), _judged(texts[other][key], messages))
            for other in earlier
            for key, messages in prompts.items()
            if texts[name][key].text is not None and texts[other][key].text is not None
        ]
        rows = compare_answers(run, work, pairs, COMPARISONS)
        by_id = {model: _by_id(answers) for model, answers in texts.items()}
        found = {}
        for other in earlier:
            between = [row for row in rows if {row.one_id, row.other_id} & by_id[other].keys()]
            found[other] = head_to_head(compared(between, by_id[name], by_id[other]), seed=recipe.seed)
        bias = place_bias(rows, ChainMap(*by_id.values()))
        result = _result(name, earlier[-1], found, judge_name(judge), bias)
        if result.headline["value"] is None:
            work.warn(f"no score: {result.headline['reason']}")
        write_json(work.output("head_to_head.json"), result.model_dump(mode="json"))
        return {"rows": len(rows), "score": result.headline["value"]}

    run.do(stage, body)


def held_out_prompts(recipe: EvaluationRecipe) -> dict[str, Messages]:
    """Return the prompts that the run held out from training, by id; as many as the limit allows."""
    file = held_out_file(recipe)
    rows: list[RankedPrompt] | list[Prompt]
    with file.open(encoding="utf-8") as lines:
        ranked = '"replies"' in next(lines, "")
    rows = list(read_rows(file, RankedPrompt)) if ranked else list(read_rows(file, Prompt))
    return {row.prompt_id: row.messages for row in rows[: recipe.limit]}


def held_out_file(recipe: EvaluationRecipe) -> Path:
    """Return where a run keeps the prompts that it held out from training."""
    return Path(recipe.of_run or "") / "data" / "held_out.jsonl"


def _texts(path: Path) -> dict[str, Completion]:
    return {row.prompt_id: row for row in read_rows(path, Completion)}


def _by_id(answers: Mapping[str, Completion]) -> dict[str, str]:
    return {row.completion_id: row.text for row in answers.values() if row.text is not None}


def _judged(answer: Completion, messages: Messages) -> Judged:
    return Judged(answer.completion_id, answer.prompt_id, messages, answer.text or "")


def _result(
    name: str, before: str, found: Mapping[str, Mapping[str, Any]], judge: str, bias: tuple[int, int]
) -> TaskResult:
    metric, (by_place, asked) = f"win rate against {before}", bias
    if by_place == asked > 0:
        reason = f"the judge, {judge}, takes the same place in both orders of every comparison"
        return TaskResult.without_score("head_to_head", name, metric, reason)
    measures, counts = {}, {}
    for other, figures in found.items():
        measures[f"win rate against {other}"] = figures["win_rate"]
        controlled = dict(figures["length_controlled"])
        controlled.pop("length_coefficient")
        measures[f"length-controlled against {other}"] = controlled
        for kind in ("wins", "ties", "losses"):
            counts[f"{kind} against {other}"] = figures[kind]
        for reason, count in figures["undecided"].items():
            counts[f"{reason} against {other}"] = count
    return TaskResult(
        task="head_to_head",
        model=name,
        metric=metric,
        measures=measures,
        counts=counts,
        notes=(
            f"against the model before, judged by {judge}; a tie is half a win",
            f"the same place taken in both orders in {by_place} of {asked} comparisons",
        ),
    )
