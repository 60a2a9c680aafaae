"""The benchmarks of an evaluation: which can be run here, and running each."""

from collections.abc import Iterable, Mapping

from selfalign.config import EvaluationRecipe
from selfalign.runs import Artifact, Run
from selfalign.runs.files import write_json
from selfalign.stages.alpaca_eval import alpaca_eval_problem, answer_alpaca_eval, grade_alpaca_eval
from selfalign.stages.code import FILES, code_problem, measure_code
from selfalign.stages.harness import harness_problem, measure_harness
from selfalign.stages.head_to_head import answer_held_out, compare_models, head_to_head_problem
from selfalign.stages.judge_quality import judge_quality_problem, measure_judge_quality
from selfalign.stages.mt_bench import answer_mt_bench, grade_mt_bench, mt_bench_problem

JUDGED = ("mt_bench", "alpaca_eval", "head_to_head")
"""Benchmarks whose answers a judge grades, after all models have answered."""

Answers = Mapping[tuple[str, str], Artifact]
"""What models answered, by model and benchmark."""


def problems(recipe: EvaluationRecipe) -> dict[str, str]:
    """Return the benchmarks that can't be run here, with what they lack and how to get it."""
    found = {task: _problem(recipe, task) for task in recipe.tasks}
    return {task: problem for task, problem in found.items() if problem is not None}


def _problem(recipe: EvaluationRecipe, task: str) -> str | None:
    if task in FILES:
        return code_problem(recipe, task)
    match task:
        case "mt_bench":
            return mt_bench_problem(recipe)
        case "alpaca_eval":
            return alpaca_eval_problem(recipe)
        case "head_to_head":
            return head_to_head_problem(recipe)
        case "judge_quality":
            return judge_quality_problem(recipe)
        case _:
            return harness_problem(recipe, task)


def measure(run: Run[EvaluationRecipe], name: str, model: Artifact, task: str) -> Artifact:
    """Measure a model on a benchmark that needs no judge."""
    if task in FILES:
        return measure_code(run, name, model, task)
    if task == "judge_quality":
        return measure_judge_quality(run, name, model)
    return measure_harness(run, name, model, task)


def answer(run: Run[EvaluationRecipe], name: str, model: Artifact, task: str) -> Artifact:
    """Have a model answer a benchmark that a judge grades later."""
    match task:
        case "mt_bench":
            return answer_mt_bench(run, name, model)
        case "alpaca_eval":
            return answer_alpaca_eval(run, name, model)
        case _:
            return answer_held_out(run, name, model)


def grade(run: Run[EvaluationRecipe], name: str, task: str, answers: Answers) -> None:
    """Have the judge grade a model's answers, head to head beside those of the models before it."""
    match task:
        case "mt_bench":
            grade_mt_bench(run, name, answers[name, task])
        case "alpaca_eval":
            grade_alpaca_eval(run, name, answers[name, task])
        case _:
            compare_models(run, name, {model: made for (model, of), made in answers.items() if of == task})


def announce(run: Run[EvaluationRecipe], models: Iterable[str], lacking: Mapping[str, str]) -> None:
    """Write down what is to be measured, so that a table can be made of what is there at any time.

    Writes:
        plan.json
    """
    if not run.planning:
        planned = {"models": list(models), "tasks": list(run.recipe.tasks), "not_run": dict(lacking)}
        write_json(run.root / "plan.json", planned)
