"""`selfalign eval`: benchmarks of one model, or of every model of a run."""

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from selfalign.config import EvaluationRecipe, SelfRewardingRecipe
from selfalign.errors import RecipeError
from selfalign.evaluation.results import LABELS
from selfalign.report.benchmarks import EVALUATION, BenchmarkRow


def evaluation_recipe(target: str, options: dict[str, Any], overrides: list[str]) -> EvaluationRecipe:
    """Return the recipe that measures a model, or the models of a run directory under the run's own policy.

    Args:
        target: A run directory, or a model as `policy.model` takes it.
        options: Keys of the recipe from the command line; `None` leaves one out.
        overrides: As for `selfalign run`.

    Raises:
        RecipeError: A key or value is wrong.
    """
    from selfalign.methods.execute import RESOLVED, recipe_of
    from selfalign.recipes import resolve_recipe

    own = {"method": "evaluation", **{key: value for key, value in options.items() if value is not None}}
    if (Path(target) / RESOLVED).is_file():
        run = recipe_of(Path(target))
        settings = run.model_dump(mode="json", include={"policy", "engine", "seed"})
        if isinstance(run, SelfRewardingRecipe):
            settings["judging"] = run.judge.model_dump(mode="json", exclude={"model", "endpoint"})
        own = settings | {"of_run": target} | own
    else:
        own |= {"policy": {"model": target}}
    recipe = resolve_recipe(own, overrides, where="eval")
    if not isinstance(recipe, EvaluationRecipe):
        raise RecipeError("eval: method has to be evaluation; `selfalign run` runs the others")
    return recipe


def evaluation_root(target: str, recipe: EvaluationRecipe) -> Path:
    """Return where an evaluation lives: in the run that it measures, or under the model's name."""
    if recipe.of_run is not None:
        return Path(target) / EVALUATION
    return Path("evaluations") / Path(target).name


def benchmark_table(models: list[str], rows: list[BenchmarkRow], not_run: dict[str, str]) -> Table:
    """Return the table of an evaluation for the terminal."""
    table = Table(
        box=None, pad_edge=False, title="benchmarks, in per cent (95 % interval)", title_justify="left"
    )
    table.add_column("benchmark", no_wrap=True)
    for model in models:
        table.add_column(escape(model), justify="right", no_wrap=True)
    if len(models) > 1:
        table.add_column("change", justify="right", no_wrap=True)
    table.add_column("questions", justify="right")
    table.add_column("", overflow="fold")
    for row in rows:
        change = [row.change or "–"] if len(models) > 1 else []
        table.add_row(row.label, *(cell or "–" for cell in row.cells), *change, row.over, escape(row.note))
    for task, reason in not_run.items():
        blank = [""] * (len(models) - 1 + (len(models) > 1))
        table.add_row(f"[dim]{LABELS[task]}[/]", "[dim]not run[/]", *blank, "", f"[dim]{escape(reason)}[/]")
    return table


def doctor_table(tasks: dict[str, str | None]) -> Table:
    """Return what each benchmark needs and does not find."""
    table = Table(box=None, pad_edge=False)
    for heading in ("benchmark", "state", "what is missing"):
        table.add_column(heading, overflow="fold")
    for task, problem in tasks.items():
        state = "[green]ready[/]" if problem is None else "[yellow]can't run[/]"
        table.add_row(LABELS[task], state, escape(problem or ""))
    return table
