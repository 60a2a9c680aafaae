"""AlpacaEval: a model's answers to its instructions, compared with a baseline's by the judge."""

from pathlib import Path
from typing import Any

from selfalign.config import EvaluationRecipe
from selfalign.evaluation.alpaca_eval import Output, Outputs, alpaca_eval, read_outputs
from selfalign.evaluation.head_to_head import preference_of
from selfalign.evaluation.results import TaskResult
from selfalign.records import Completion, content_id
from selfalign.runs import Artifact, Run, Stage, Work
from selfalign.runs.files import hash_file, read_rows, write_json
from selfalign.stages.answers import answer_prompts, compare_answers
from selfalign.stages.benchmark_judge import judge_inputs, judge_name, judge_settings
from selfalign.stages.grader import Judged

VERSION = 1
COMPARISONS = "alpaca_eval_comparisons.jsonl"
_BASELINE = "alpaca_eval/results/text_davinci_003/model_outputs.json"
_CONSTANT = 0.5
"""Share of one and the same output beyond which a win rate means nothing."""


def alpaca_eval_problem(recipe: EvaluationRecipe) -> str | None:
    """Say what AlpacaEval lacks here and how to get it; `None` if it can be run."""
    if recipe.judge is None:
        return "needs a judge: give --judge MODEL, or judge.endpoint in a recipe"
    file = baseline_file(recipe)
    if file is None:
        return f"needs a baseline's outputs: give baseline, or data_dir with {_BASELINE}"
    return None if file.is_file() else f"{file} is missing; give another file of outputs as baseline"


def answer_alpaca_eval(run: Run[EvaluationRecipe], name: str, model: Artifact) -> Artifact:
    """Have a model answer the instructions of the baseline's file, once each and greedily.

    Reads:
        the baseline's outputs
    Writes:
        <name>/alpaca_eval_answers.jsonl
    """
    outputs = _baseline(run.recipe).by_prompt
    prompts = {key: output.prompt.messages for key, output in outputs.items()}
    return answer_prompts(run, name, model, "alpaca_eval", prompts, _data(run.recipe))


def grade_alpaca_eval(run: Run[EvaluationRecipe], name: str, answers: Artifact) -> Artifact:
    """Have the judge compare each answer with the baseline's, in both orders.

    Reads:
        <name>/alpaca_eval_answers.jsonl, the baseline's outputs
    Writes:
        <name>/alpaca_eval.json, alpaca_eval_comparisons.jsonl
    """
    recipe = run.recipe
    judge = recipe.judge
    assert judge is not None  # noqa: S101 -- `alpaca_eval_problem` was asked
    baseline = _baseline(recipe)
    stage = Stage(
        name=f"{name}/alpaca_eval",
        version=VERSION,
        outputs=("alpaca_eval.json", COMPARISONS),
        settings=judge_settings(run),
        inputs={**judge_inputs(run), "answers": answers, "data": _data(recipe)},
        expected={"rows": answers.rows},
    )

    def body(work: Work) -> dict[str, Any]:
        rows = list(read_rows(answers.path, Completion))
        own = Outputs(
            name,
            {row.prompt_id: Output(baseline.by_prompt[row.prompt_id].prompt, row.text) for row in rows},
        )
        pairs = []
        for row in rows:
            other = baseline.by_prompt[row.prompt_id]
            if row.text is not None and other.text is not None:
                messages = other.prompt.messages
                mine = Judged(row.completion_id, row.prompt_id, messages, row.text)
                theirs = Judged(
                    content_id(baseline.generator, row.prompt_id), row.prompt_id, messages, other.text
                )
                pairs.append((mine, theirs))
        compared = compare_answers(run, work, pairs, COMPARISONS)
        preferences = {row.prompt_id: preference_of(row, soft=True) for row in compared}
        found = alpaca_eval(own, baseline, preferences, seed=recipe.seed)
        result = _result(name, found, f"judged by {judge_name(judge)} against {baseline.generator}")
        if found["constant_share"] is not None and found["constant_share"] > _CONSTANT:
            work.warn(f"{name} gives one answer to {found['constant_share']:.0%} of the instructions")
        write_json(work.output("alpaca_eval.json"), result.model_dump(mode="json"))
        return {"rows": len(rows), "score": result.headline["value"]}

    return run.do(stage, body)


def baseline_file(recipe: EvaluationRecipe) -> Path | None:
    """Return the file of outputs to compare with; `None` if none is named."""
    if recipe.baseline is not None:
        return Path(recipe.baseline)
    return None if recipe.data_dir is None else Path(recipe.data_dir) / _BASELINE


def _baseline(recipe: EvaluationRecipe) -> Outputs:
    """Read the baseline's outputs, as many as the limit allows."""
    file = baseline_file(recipe)
    assert file is not None  # noqa: S101 -- `alpaca_eval_problem` was asked
    outputs = read_outputs(file)
    return Outputs(outputs.generator, dict(list(outputs.by_prompt.items())[: recipe.limit]))


def _data(recipe: EvaluationRecipe) -> Artifact:
    file = baseline_file(recipe)
    assert file is not None  # noqa: S101 -- `alpaca_eval_problem` was asked
    return Artifact(file, hash_file(file))


def _result(name: str, found: dict[str, Any], note: str) -> TaskResult:
    controlled = {key: found["length_controlled"][key] for key in ("value", "low", "high", "n", "reason")}
    return TaskResult(
        task="alpaca_eval",
        model=name,
        metric="win rate",
        measures={"win rate": found["win_rate"], "length-controlled": controlled},
        counts={key: found[key] for key in ("wins", "ties", "losses")} | found["undecided"],
        notes=(f"{note}; not comparable with the public board",),
        settings={"constant_share": found["constant_share"], "mean_characters": found["mean_length"]},
    )
