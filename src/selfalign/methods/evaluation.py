"""An evaluation, top to bottom: each model of a run, or one, on each benchmark.

All that one model has to answer comes before the next model, so that each is loaded once; the judge reads
the answers of all models after that. A benchmark that lacks something here is left out with the reason.
"""

from selfalign import stages
from selfalign.config import EvaluationRecipe
from selfalign.runs import Artifact, Run


def evaluation(run: Run[EvaluationRecipe]) -> None:
    """Measure models on the benchmarks of the recipe."""
    recipe = run.recipe
    models = stages.models_to_measure(run)
    lacking = stages.problems(recipe)
    tasks = [task for task in recipe.tasks if task not in lacking]
    stages.announce(run, models, lacking)

    answers: dict[tuple[str, str], Artifact] = {}
    for name, model in models.items():
        for task in tasks:
            if task in stages.JUDGED:
                answers[name, task] = stages.answer(run, name, model, task)
            else:
                stages.measure(run, name, model, task)
    for name in models:
        for task in tasks:
            if task in stages.JUDGED:
                stages.grade(run, name, task, answers)


def doctor(recipe: EvaluationRecipe) -> dict[str, str | None]:
    """Return every benchmark of the recipe with what it lacks here, `None` where it lacks nothing."""
    lacking = stages.problems(recipe)
    return {task: lacking.get(task) for task in recipe.tasks}
